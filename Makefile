# `make` lists the targets. Everything runs in .venv, which `make setup` makes from requirements.lock (exact, hashed) and
# requirements-torch.txt; a GPU machine may install its own torch: `make setup TORCH="torch==2.13.0 --index-url …"`.
SHELL := /bin/bash
PYTHON ?= python3
TORCH ?= -r requirements-torch.txt
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# a project folder of its own on sys.path, and no bytecode or user site that another Python wrote
export PYTHONNOUSERSITE := 1
export PROMPT RESPONSE FILTER
unexport PYTHONPATH

.DEFAULT_GOAL := help
.PHONY: FORCE help setup repro test test-fast lint format ui score recipe study show graph chat feedback clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: .venv/.ready  ## Make .venv with the locked libraries

ifeq ($(origin TORCH),command line)
.venv/.ready: FORCE  # another torch is asked for
endif
FORCE:

.venv/.ready: requirements.lock requirements-torch.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	touch $@

repro: setup  ## Run the pipeline: only what an edit touched runs again (RECIPE=name chooses a recipe first)
	@if [ -n "$(RECIPE)" ]; then python -m plumbline.tools.recipe $(RECIPE); fi
	python -m stages.check
	@mkdir -p .timings && date -u +%Y-%m-%dT%H:%M:%S+00:00 > .timings/started
	dvc repro --all-pipelines
	@python -m plumbline.tools.summary

test: setup  ## Run all tests, on as many cores as there are (PYTEST="…" for more options)
	HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=passive python -m pytest -n auto --dist loadfile $(PYTEST)

test-fast: setup  ## Run the tests that take seconds
	HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=passive python -m pytest -n auto --dist loadfile -m "not slow" $(PYTEST)

lint: setup  ## Check style and types
	ruff check . && ruff format --check . && mypy

format: setup  ## Put the code into the project's style
	ruff check --fix . && ruff format .

ui: setup  ## Browse the runs in MLflow on 127.0.0.1:5000 (PORT=… for another)
	@python -m plumbline.tools.ui $(or $(PORT),5000)

score: setup  ## Print a reward: make score REWARD=rm PROMPT="What is 2 + 3?" RESPONSE="It is 5."
	@python -m plumbline.tools.score "$(or $(REWARD),rm)" "$${PROMPT}" "$${RESPONSE}"

recipe: setup  ## Choose a recipe: make recipe NAME=smoke (without NAME: list them; LOCAL=folder: from local copies)
	@python -m plumbline.tools.recipe $(NAME) $(if $(FORCE),--force) $(if $(LOCAL),--local "$(LOCAL)")

chat: setup  ## Talk to a policy, or to two blindly, and vote: make chat POLICY=dpo AGAINST=sft (PORT=… for another than 8080)
	@python -m plumbline.tools.chatting "$(POLICY)" --against "$(AGAINST)" --port $(or $(PORT),8080)

study: setup  ## Answer a question over several seeds: make study NAME=label_noise (without NAME: list them; RECIPE=, JOBS=, DRY=1)
	@python -m plumbline.tools.study $(NAME) $(if $(RECIPE),--recipe "$(RECIPE)") $(if $(JOBS),--jobs $(JOBS)) $(if $(DRY),--dry)

feedback: setup  ## Bring thumbs from MLflow's pages into data/feedback, and sum up what lies there (FILTER="…" for some traces)
	@python -m plumbline.tools.collecting --filter "$${FILTER}"

show: setup  ## Compare experiments in the terminal
	@python -m plumbline.tools.show

graph: setup  ## Draw what the last `make repro` ran, what came from the cache, and where the time went
	@python -m plumbline.tools.graph_page

clean:  ## Remove by-hand runs, checkpoints and caches of tools; results stay
	rm -rf scratch .checkpoints .warm-*.sock .pytest_cache .mypy_cache .ruff_cache .hypothesis
