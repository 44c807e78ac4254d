"""A planted key must not appear in anything that a labelling run under DVC and MLflow leaves behind."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import judging_model
import pytest
import yaml
from judging_server import running

from plumbline.pipeline.records import read_jsonl
from plumbline.pipeline.shard_files import write_table

ROOT = Path(__file__).parents[1]
KEY, ORGANISATION = "planted/0123456789+abcdef", "org-planted-9876543210"
COPIED = (
    "conf",
    "plumbline",
    "stages",
    "dvc.yaml",
    ".dvcignore",
    ".dvc/config",
    "data",
    "requirements.lock",
    "requirements-torch.txt",
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the project under git and DVC, with a sample to label by judge: openai."""
    project = tmp_path / "project"
    for name in COPIED:
        target = project / name
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, target)
    params = yaml.safe_load((ROOT / "conf/recipe/default.yaml").read_text())
    params["label"]["round1"]["judge"] = "openai"
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    write_table(project / "artifacts/sample/round1", judging_model.sample(10, 4, seed=3), 1024)
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    return project


def repro(project: Path, url: str) -> "subprocess.CompletedProcess[str]":
    conf = project / "conf/judge/openai.yaml"
    lines = [f"base_url: {url}" if line.startswith("base_url:") else line for line in conf.read_text().splitlines()]
    conf.write_text("\n".join(lines) + "\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "GIT_"))}
    environment |= {"OPENAI_API_KEY": KEY, "OPENAI_ORG_ID": ORGANISATION, "OPENAI_LOG": "debug"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    command = [sys.executable, "-m", "dvc", "repro", "-v", "-s", "label@round1"]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_planted_key_is_sent_and_found_nowhere_else(checkout: Path) -> None:
    with running(status=401, echo=f"Incorrect API key provided: {KEY}, {ORGANISATION}") as server:
        refused = repro(checkout, server.url)
        assert KEY in server.headers[0]
        assert ORGANISATION in server.headers[0]
    assert refused.returncode != 0
    assert "HTTP 401" in refused.stderr + refused.stdout
    assert "Error executing job" not in refused.stderr  # an expected error is a sentence, not a traceback
    with running() as server:
        done = repro(checkout, server.url)
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_jsonl(checkout / "artifacts/label/round1/train.jsonl")
    for secret in (KEY, ORGANISATION):
        for run in (refused, done):
            assert secret not in run.stdout + run.stderr
        holding = [file for file in checkout.rglob("*") if file.is_file() and secret.encode() in file.read_bytes()]
        assert holding == []
    names = {file.name for file in checkout.rglob("*")}
    assert {"mlflow.db", "dvc.lock", "verdicts.sqlite", "round1.jsonl", "round1.json"} <= names  # there was something to search
