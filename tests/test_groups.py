"""Claims about GRPO and RLOO: which prompts are sampled, what is rewarded and counted, how rollouts are cut into steps, what is refused."""

import csv
from pathlib import Path
from typing import Any

import pytest
from aligning import GROUPS, config_of, run_align, write_inputs
from ppo_tiny import PROMPTS
from transformers import GenerationMixin

from plumbline.methods.online import draws
from plumbline.methods.online.groups import group_history, prompts_in_order, reward_functions
from plumbline.methods.online.start import last_means, prompts_of
from plumbline.pipeline import processes
from plumbline.pipeline.records import write_json, write_jsonl
from plumbline.pipeline.tracking import Run
from plumbline.rewards import reward as rewards
from plumbline.rows import assistant
from tests.test_sandbox import needs_bubblewrap


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    return write_inputs(tmp_path)


# ---- prompts ------------------------------------------------------------------------------------------------------------


def test_every_pass_has_every_prompt_in_another_order() -> None:
    first = prompts_in_order(PROMPTS, 20, seed=3)
    assert [sorted(map(str, first[start : start + 8])) for start in (0, 8)] == [sorted(map(str, PROMPTS))] * 2
    assert first[:8] != first[8:16]
    assert first == prompts_in_order(PROMPTS, 30, seed=3)[:20]


@pytest.mark.parametrize("method", GROUPS)
def test_only_prompts_of_the_given_families_are_answered(artifacts: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[Any] = []

    def reward(prompts: list[Any], completions: list[str]) -> list[float]:
        received.extend(prompts)
        return [0.0] * len(prompts)

    monkeypatch.setattr(rewards, "load_reward", lambda *_: reward)
    rows = [{"id": str(i), "prompt": prompt, "family": "sums" if i < 2 else "facts"} for i, prompt in enumerate(PROMPTS)]
    write_jsonl(artifacts / "data/prompts/train.jsonl", rows)
    run_align(artifacts, method, families=["sums"])
    assert {str(prompt) for prompt in received} == {str(prompt) for prompt in PROMPTS[:2]}
    with pytest.raises(ValueError, match=rf"{method}: families: .*facts, sums.* found code"):
        run_align(artifacts, method, families=["sums", "code"])


@pytest.mark.parametrize("method", GROUPS)
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_what_samples_leaves_room_for_the_reference(
    artifacts: Path, method: str, beta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 a trained parameter takes 16 bytes, and one of the reference 4; without KL there is no reference."""
    held_by_parameter: set[float] = set()

    def recording(policy: Any, tokens: int, most: int, *, held: int) -> int:
        held_by_parameter.add(held / policy.num_parameters())
        return most

    monkeypatch.setattr(draws, "rows_in_cache", recording)
    run_align(artifacts, method, beta=beta)
    assert held_by_parameter == {20.0 if beta else 16.0}


@pytest.mark.parametrize("method", GROUPS)
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_sharded_policy_draws_with_generate_what_another_draws_with_the_sampler(
    tmp_path: Path, method: str, lora_rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[bool, list[str]] = {True: [], False: []}
    generated: list[bool] = []
    generate = GenerationMixin.generate
    monkeypatch.setattr(GenerationMixin, "generate", lambda *args, **more: (generated.append(True), generate(*args, **more))[1])
    for sharded, completions in drawn.items():

        def reward(prompts: list[Any], answers: list[str], completions: list[str] = completions) -> list[float]:
            completions.extend(answers)
            return [float(len(answer)) for answer in answers]

        monkeypatch.setattr(processes, "sharded", lambda sharded=sharded: sharded)
        monkeypatch.setattr(rewards, "load_reward", lambda *_, reward=reward: reward)
        generated.clear()
        run_align(write_inputs(tmp_path / f"{sharded}"), method, lora_rank=lora_rank)
        assert bool(generated) == sharded
    assert drawn[True] == drawn[False]
    assert len(set(drawn[True])) > 2


def test_families_are_compared_as_text_and_a_prompt_may_have_none() -> None:
    rows = [{"prompt": PROMPTS[0], "family": 3}, {"prompt": PROMPTS[1], "family": None}, {"prompt": PROMPTS[2]}]
    assert prompts_of(rows, ["3"], "grpo") == PROMPTS[:1]
    assert prompts_of(rows, [], "grpo") == PROMPTS[:3]
    with pytest.raises(ValueError, match=r"families: expected families of the prompts \(3\), found None"):
        prompts_of(rows, ["None"], "grpo")
    with pytest.raises(ValueError, match=r"they have none.* found sums"):
        prompts_of(rows[1:], ["sums"], "grpo")


@pytest.mark.parametrize("method", GROUPS)
def test_too_few_prompts_are_refused(artifacts: Path, method: str) -> None:
    """TRL would wait for more of them."""
    with pytest.raises(
        ValueError, match=rf"{method}: .*at least one rollout of 64 completions, found {len(PROMPTS)} prompts with 4"
    ):
        run_align(artifacts, method, max_steps=-1, rollout_batch_size=64, batch_size=64)
    write_jsonl(artifacts / "data/prompts/train.jsonl", [])
    with pytest.raises(ValueError, match=f"{method}: expected rollout prompts, found none"):
        run_align(artifacts, method)


# ---- sizes --------------------------------------------------------------------------------------------------------------


def test_a_rollout_is_split_into_steps_and_used_again(artifacts: Path) -> None:
    run_align(artifacts, "grpo", rollout_batch_size=16, update_epochs=2, checkpoint_every=4, max_steps=8)
    lengths = [row["length_tokens"] for row in csv.DictReader((artifacts / "new.csv").open())]
    assert [bool(length) for length in lengths] == [True, False, False, False] * 2  # sampled at the first of each four steps


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_generations": 1}, "num_generations: expected at least 2, found 1"),
        ({"rollout_batch_size": 12}, "rollout_batch_size: expected a multiple of batch_size 8, such as 16"),
        ({"num_generations": 3}, "rollout_batch_size: expected a multiple of num_generations 3, such as 9"),
        ({"rollout_batch_size": 16, "checkpoint_every": 3}, "checkpoint_every: expected a multiple of the 2 steps of a rollout, such as 4"),
        ({"temperature": 0.0}, "temperature: expected above 0"),
        ({"beta": -0.1}, "beta: expected 0 or above"),
        ({"loss": "ppo"}, "loss: expected one of grpo, dapo"),
        ({"schedule": "linaer"}, "schedule: expected one of"),
    ],
)  # fmt: skip
def test_values_that_do_not_fit_are_named(changes: dict[str, Any], complaint: str) -> None:
    (problem,) = config_of("grpo", **changes).problems()
    assert problem.startswith(complaint)


def test_epochs_count_passes_over_the_prompts_unless_max_steps_is_set() -> None:
    config = config_of("grpo", max_steps=-1, epochs=2.0, rollout_batch_size=16)  # 4 prompts and 2 steps in a rollout
    assert config.steps(10) == 10
    assert config_of("grpo", max_steps=7).steps(10) == 7


# ---- rewards and figures ------------------------------------------------------------------------------------------------


def test_a_poor_reward_model_is_refused(artifacts: Path) -> None:
    write_json(artifacts / "reward/digits/reward.json", {"kind": "model", "accuracy": 0.55})
    for method in GROUPS:
        with pytest.raises(ValueError, match=rf"{method}: .*0\.600.*0\.550"):
            run_align(artifacts, method, min_reward_accuracy=0.6)


@needs_bubblewrap
@pytest.mark.parametrize("method", GROUPS)
def test_programs_are_executed_for_their_reward(artifacts: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a group's answers are replaced by a program that passes: the executions decide the reward, and outcomes are logged."""
    from plumbline.checking.code import CodeReward

    checks = [{"prompt": prompt, "tests": ["assert f(2) == 4"]} for prompt in PROMPTS]
    write_jsonl(artifacts / "reward/digits/references.jsonl", checks)
    limits = {"seconds": 5.0, "memory_mib": 512, "processes": 8, "scratch_mib": 16}
    write_json(artifacts / "reward/digits/reward.json", {"kind": "code", "isolation": "bubblewrap", "limits": limits})
    original = CodeReward.__call__

    def with_programs(self: CodeReward, prompts: Any, completions: list[str]) -> list[float]:
        programs = ["def f(x):\n    return x * x" if i % 2 else text for i, text in enumerate(completions)]
        return original(self, prompts, programs)

    logged: dict[str, float] = {}
    monkeypatch.setattr(CodeReward, "__call__", with_programs)
    monkeypatch.setattr(Run, "log_costs", lambda self, figures: logged.update(figures))
    figures = run_align(artifacts, method, max_steps=2)
    assert figures["reward"] == pytest.approx(0.5)
    assert logged["verifier_passed"] == 8
    assert sum(value for name, value in logged.items() if name.startswith("verifier_")) == 16


@pytest.mark.parametrize("method", GROUPS)
def test_outcomes_of_checks_are_logged(artifacts: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [{"prompt": prompt, "answer": "1"} for prompt in PROMPTS]
    write_jsonl(artifacts / "reward/digits/references.jsonl", answers)
    write_json(artifacts / "reward/digits/reward.json", {"kind": "math"})
    logged: dict[str, float] = {}
    monkeypatch.setattr(Run, "log_costs", lambda self, figures: logged.update(figures))
    run_align(artifacts, method, max_steps=2)
    assert logged["verifier_missing"] == 16  # two rollouts of eight; none of the words is a number


def test_a_completion_that_does_not_end_is_penalised() -> None:
    reward, penalty = reward_functions(lambda prompts, completions: [2.0] * len(completions), (4,), 0.5)
    arguments: dict[str, Any] = {
        "prompts": PROMPTS[:2],
        "completions": [assistant("a"), assistant("b")],
        "completion_ids": [[5, 4], [6]],
    }
    assert reward(**arguments) == [2.0, 2.0]
    assert penalty(**arguments) == [0.0, -0.5]


def test_a_reward_that_is_not_finite_stops_the_run_and_is_not_replaced() -> None:
    reward, _ = reward_functions(lambda prompts, completions: [1.0, float("nan")], (4,), 0.5)
    with pytest.raises(FloatingPointError, match="nan for 'b d' as an answer to 'r q'"):
        reward(prompts=PROMPTS[:2], completions=[assistant("a"), assistant("b d")], completion_ids=[[5], [6]])


def test_figures_are_means_over_the_last_tenth_of_the_steps_or_the_last_value() -> None:
    history = [
        {"step": float(step), "reward": float(step)} | ({"length_tokens": 7.0} if step == 3 else {}) for step in range(1, 21)
    ]
    assert last_means(history) == {"reward": 19.5, "length_tokens": 7.0}


def test_the_curve_has_our_names() -> None:
    rows = [{"step": 1, "kl": 0.5, "completions/clipped_ratio": 0.25, "clip_ratio/low_min": 0.0}]
    assert group_history(rows, kl="kl_k1") == [{"step": 1, "kl_k1": 0.5, "end_of_turn_fraction": 0.75}]
