"""Claims about rollouts of GRPO and RLOO from a server: the same completions as in-process, the weights they get, and which adapters are served."""

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from aligning import GROUPS, Crashed, config_of, crash_after, outputs, run_align, write_inputs
from completions_server import CompletionsServer
from judging_server import serving
from safetensors.torch import load_file
from transformers import Trainer
from trl import GRPOTrainer

from plumbline.methods.online import draws, group_rollouts
from plumbline.methods.online.draws import random_stream
from plumbline.methods.online.group_rollouts import importance_weights
from plumbline.pipeline.endpoint_calls import EndpointError
from plumbline.pipeline.engine import Engine, Server, served_name
from plumbline.pipeline.launcher import Launcher
from plumbline.rewards import reward as rewards
from stages.rl import RlStage
from tests.test_engine import engine_of, patient

SEED = 3
ROLLOUT = 16
VALUES: dict[str, Any] = {"lora_rank": 2, "rollout_batch_size": ROLLOUT, "max_steps": 6, "learning_rate": 1e-2}
"""Three rollouts of sixteen completions, and two steps on each."""

TOLERANCE = 1e-4
"""How far weights may lie apart whose importance ratios differ from 1 by rounding; they move by 1e-2 in a step."""


def in_process_numbers(row: int, most: int) -> torch.Tensor:
    """What the training process draws a row by (draws.py)."""
    table = torch.rand(ROLLOUT, most, generator=random_stream(SEED, row // ROLLOUT), dtype=torch.float64)
    return table[row % ROLLOUT].unsqueeze(0)


@contextlib.contextmanager
def server(artifacts: Path, **settings: Any) -> Iterator[tuple[CompletionsServer, Server]]:
    """A server of the policy that training starts from, which draws by the numbers of the training process, and its endpoint."""
    folder = artifacts / "policy/sft"
    settings = {"model": served_name(Server(), folder), "rows": 3 * ROLLOUT, "numbers": in_process_numbers, **settings}
    with serving(CompletionsServer(folder=folder, of_seed=SEED, **settings)) as running:
        endpoint = patient(running.url).server
        assert endpoint is not None
        yield running, endpoint


@pytest.fixture
def artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Inputs; both samplers draw one row at a time, whose logits are then the same to the last bit."""
    monkeypatch.setattr(draws, "rows_in_cache", lambda *_, **__: 1)
    return write_inputs(tmp_path)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Receives every completion, and rewards it by its length."""
    received: list[str] = []

    def reward(prompts: list[Any], completions: list[str]) -> list[float]:
        received.extend(completions)
        return [float(len(completion)) for completion in completions]

    monkeypatch.setattr(rewards, "load_reward", lambda *_: reward)
    return received


def uncorrected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains on a server's completions as if they were the policy's own."""
    begin = GRPOTrainer.__init__

    def beginning(self: Any, *arguments: Any, **keywords: Any) -> None:
        begin(self, *arguments, **keywords)
        self.vllm_importance_sampling_correction = False

    monkeypatch.setattr(GRPOTrainer, "__init__", beginning)
    monkeypatch.setattr(group_rollouts, "weigh_by_ratio", lambda *_: None)


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = load_file(folder / "policy" / name / "model.safetensors")
    return loaded


def distance(folder: Path, one: str, other: str) -> float:
    """The largest difference between two policies' weights."""
    first, second = weights(folder, one), weights(folder, other)
    return max(float((first[name] - second[name]).abs().max()) for name in first)


# ---- the same completions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", GROUPS)
def test_a_server_that_draws_by_our_numbers_trains_the_bytes_of_this_process(
    artifacts: Path, answers: list[str], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless its log-probabilities, which differ in the last digits, weigh the completions."""
    run_align(artifacts, method, "here", **VALUES)
    uncorrected(monkeypatch)
    with server(artifacts) as (running, endpoint):
        run_align(artifacts, method, "served", endpoint, **VALUES)
    assert running.calls == len(answers) // 2 == 3 * ROLLOUT
    assert answers[: 3 * ROLLOUT] == answers[3 * ROLLOUT :]
    assert outputs(artifacts, "served") == outputs(artifacts, "here")
    assert distance(artifacts, "here", "sft") > 10 * TOLERANCE


@pytest.mark.parametrize("method", GROUPS)
def test_ratios_are_1_at_a_server_that_computes_alike(artifacts: Path, answers: list[str], method: str) -> None:
    run_align(artifacts, method, "here", **VALUES)
    with server(artifacts) as (_, endpoint):
        figures = run_align(artifacts, method, "served", endpoint, **VALUES)
    assert answers[: 3 * ROLLOUT] == answers[3 * ROLLOUT :]
    assert distance(artifacts, "served", "here") < TOLERANCE < 0.1 * distance(artifacts, "here", "sft")
    assert figures["server_ratio_min"] == pytest.approx(1, abs=1e-4)
    assert figures["server_ratio_max"] == pytest.approx(1, abs=1e-4)


# ---- a server that computes otherwise -----------------------------------------------------------------------------------


def test_a_weight_is_the_ratio_unless_it_exceeds_3() -> None:
    ratios = torch.tensor([0.0, math.log(0.5), math.log(2.9), math.log(3.1), -100.0])
    torch.testing.assert_close(importance_weights(ratios), torch.tensor([1.0, 0.5, 2.9, 0.0, 0.0]))


@pytest.mark.parametrize("method", GROUPS)
def test_nothing_is_learnt_from_completions_that_the_server_finds_far_less_likely(
    artifacts: Path, answers: list[str], method: str
) -> None:
    """A quarter as likely as in training: a ratio of 4."""
    with server(artifacts, believed=-math.log(4)) as (_, endpoint):
        figures = run_align(artifacts, method, "served", endpoint, **VALUES, beta=0.0)
    assert figures["server_ratio_max"] == 0
    assert distance(artifacts, "served", "sft") == 0
    with server(artifacts, believed=-math.log(2)) as (_, endpoint):
        figures = run_align(artifacts, method, "served", endpoint, **VALUES, beta=0.0)
    assert figures["server_ratio_min"] == pytest.approx(2, abs=1e-3)
    assert distance(artifacts, "served", "sft") > 10 * TOLERANCE


@pytest.mark.parametrize("method", GROUPS)
def test_a_ratio_multiplies_what_a_completion_adds_to_the_gradient(artifacts: Path, answers: list[str], method: str) -> None:
    norms = []
    for ratio in (1, 2):
        with server(artifacts, believed=-math.log(ratio)) as (_, endpoint):
            once = {**VALUES, "max_steps": 1, "batch_size": ROLLOUT}
            norms.append(run_align(artifacts, method, f"by{ratio}", endpoint, **once, beta=0.0)["gradient_norm"])
    assert norms[1] == pytest.approx(2 * norms[0], rel=1e-3)
    assert norms[0] > 0


def test_completions_that_are_left_out_as_truncated_are_no_outliers(artifacts: Path, answers: list[str]) -> None:
    with server(artifacts) as (_, endpoint):
        figures = run_align(artifacts, "rloo", "served", endpoint, **VALUES, mask_truncated=True, max_new_tokens=2)
    assert figures["end_of_turn_fraction"] < 1
    assert figures["server_ratio_min"] == pytest.approx(1, abs=1e-4)


# ---- adapters -----------------------------------------------------------------------------------------------------------


def test_each_rollout_is_drawn_by_an_adapter_of_its_own_and_none_is_left(artifacts: Path, answers: list[str]) -> None:
    with server(artifacts) as (running, endpoint):
        run_align(artifacts, "grpo", "served", endpoint, **VALUES)
    names = list(dict.fromkeys(body["model"] for body in running.bodies))
    assert len(names) == 3
    assert all(name.startswith(f"{running.model}-") for name in names)
    first, second, third = names
    assert running.changes == [
        f"load {first}", f"unload {first}", f"load {second}", f"unload {second}", f"load {third}", f"unload {third}"
    ]  # fmt: skip


def test_a_server_that_is_gone_when_training_is_done_takes_nothing(
    artifacts: Path, answers: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its adapter stays there, and a line says so."""
    with server(artifacts) as (_, endpoint):
        run_align(artifacts, "grpo", "undisturbed", endpoint, **VALUES)
    with server(artifacts, keeps_from=5) as (running, endpoint):
        run_align(artifacts, "grpo", "served", replace(endpoint, retries=1), **VALUES)
        assert len(running.adapters) == 1
    assert outputs(artifacts, "served") == outputs(artifacts, "undisturbed")
    assert "The server may still hold the last adapter: engine.server: http://" in capsys.readouterr().out


def test_an_answer_about_an_adapter_that_gets_lost_costs_a_further_try(artifacts: Path, answers: list[str]) -> None:
    with server(artifacts, loses=2) as (running, endpoint):
        run_align(artifacts, "grpo", "served", endpoint, **VALUES)
    assert len(running.changes) == 6


def test_a_killed_run_goes_on_to_the_same_bytes_and_its_adapter_is_dropped(
    artifacts: Path, answers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with server(artifacts) as (running, endpoint):
        run_align(artifacts, "grpo", "undisturbed", endpoint, **VALUES)
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_maybe_log_save_evaluate", crash_after(3))
            with pytest.raises(Crashed):
                run_align(artifacts, "grpo", "served", endpoint, **VALUES)
        assert running.adapters
        run_align(artifacts, "grpo", "served", endpoint, **VALUES)
        assert not running.adapters
    assert outputs(artifacts, "served") == outputs(artifacts, "undisturbed")


# ---- what is refused ----------------------------------------------------------------------------------------------------


def test_a_server_that_loads_no_adapters_is_refused_with_the_command_that_serves_them(artifacts: Path) -> None:
    with (
        server(artifacts, loads=False) as (running, endpoint),
        pytest.raises(
            EndpointError,
            match=r"to load the adapter /.*/adapters/sft-\w+-\w+, found that it refuses with HTTP 404: .*Not Found\. Serve",
        ) as refused,
    ):
        run_align(artifacts, "grpo", "served", endpoint, **VALUES)
    command = f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve {artifacts}/policy/sft --served-model-name {running.model} --enable-lora"
    assert command in str(refused.value)


def test_a_server_that_fails_is_not_said_to_load_no_adapters(artifacts: Path) -> None:
    with server(artifacts, keeps_from=0) as (_, endpoint), pytest.raises(EndpointError) as failed:
        run_align(artifacts, "grpo", "served", endpoint, **VALUES)
    message = str(failed.value)
    assert re.match(
        r"engine\.server: http://\S+ failed 3 times for one call, the last time with HTTP 500\. The checkpoints written", message
    )
    assert "adapter" not in message


def test_a_server_with_too_short_a_context_is_refused_before_training(artifacts: Path) -> None:
    with (
        server(artifacts, max_model_len=5) as (_, endpoint),
        pytest.raises(ValueError, match=r"with a context of at least \d+ tokens, found 5"),
    ):
        run_align(artifacts, "rloo", "served", endpoint, **VALUES)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sampler": "vllm"}, "sampler: expected one of here, server, found 'vllm'"),
        ({"sampler": "server"}, "lora_rank: expected at least 1 with sampler: server, because a server takes new weights as an adapter"),
        ({"sampler": "server", "lora_rank": 2, "temperature": 0.7}, "temperature: expected 1 with sampler: server"),
    ],
)  # fmt: skip
def test_values_that_no_server_can_serve_are_named(changes: dict[str, Any], complaint: str) -> None:
    (problem,) = config_of("grpo", **changes).problems()
    assert problem.startswith(complaint)


def test_sharded_weights_and_engines_without_a_server_are_refused() -> None:
    served = config_of("rloo", sampler="server", lora_rank=2)
    sharding = Launcher(processes=2, accelerate={"distributed_type": "FSDP"})
    (problem,) = served.launcher_problems(sharding)
    assert problem.startswith("sampler: expected here with a launcher that shards the weights, found server")
    assert not config_of("rloo").launcher_problems(sharding)
    (problem,) = RlStage(seed=1, threads=1, rl=served).problems()
    assert problem.startswith("rl.sampler: expected here with an engine without a server, found server. Set engine to vllm")
    assert not RlStage(seed=1, threads=1, rl=served, engine=engine_of("vllm")).problems()


def test_an_engine_is_a_part_of_the_computation_only_if_it_draws() -> None:
    vllm = engine_of("vllm")
    assert RlStage(rl=config_of("grpo"), engine=vllm).drawing_engine == Engine()
    assert RlStage(rl=config_of("grpo", sampler="server", lora_rank=2), engine=vllm).drawing_engine == vllm
