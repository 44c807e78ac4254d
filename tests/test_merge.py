"""Merging policies: the ends exactly, the middle by hand, and a clear error if there is nothing to average."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_tiny import tiny_policy, word_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from plumbline.graph import nodes, parents
from plumbline.methods.job import OfflineJob
from plumbline.methods.offline.merge import MergeConfig, align, interpolate, relative_distance
from plumbline.models.saving import save_policy
from plumbline.pipeline.composing import CONF, load_params
from plumbline.pipeline.tracking import Run


def test_interpolation_by_hand() -> None:
    first, second = {"w": torch.tensor([0.0, 2.0])}, {"w": torch.tensor([4.0, -2.0])}
    assert interpolate(first, second, 0.25)["w"].tolist() == [1.0, 1.0]
    assert relative_distance(first, second) == pytest.approx((32**0.5) / 2)


def test_half_precision_is_averaged_in_float32() -> None:
    """1 and 1 + 2⁻⁷ lie next to each other in bfloat16: a quarter of the way rounds back, three quarters do not."""
    first, second = ({"w": torch.tensor([value], dtype=torch.bfloat16)} for value in (1.0, 1 + 2**-7))
    assert [interpolate(first, second, weight)["w"].item() for weight in (0.25, 0.75)] == [1.0, 1 + 2**-7]


def test_tensors_that_do_not_match_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\) at w"):
        interpolate({"w": torch.zeros(2)}, {"w": torch.zeros(3)}, 0.5)
    with pytest.raises(ValueError, match="such as v"):
        interpolate({"w": torch.zeros(2)}, {"w": torch.zeros(2), "v": torch.zeros(2)}, 0.5)


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    for seed, name in enumerate(("a", "b")):
        save_policy(tiny_policy(seed), word_tokenizer(), tmp_path / name)
    save_policy(tiny_policy(2, intermediate_size=48), word_tokenizer(), tmp_path / "wide")
    save_policy(tiny_policy(3), word_tokenizer(["d", "c", "b", "a", "r", "q"]), tmp_path / "foreign")
    return tmp_path


def merge(policies: Path, weight: float, signal: str = "b", init: str = "a", output: str = "out") -> dict[str, float]:
    config = MergeConfig(init=init, signal=f"policy/{signal}", weight=weight)
    job = OfflineJob(
        init=policies / init, signal=policies / signal, output=policies / output, curve=policies / "curve.csv", checkpoints=policies,
        run=Run(), seed=1,
    )  # fmt: skip
    return align(config, job)


def weights(folder: Path) -> dict[str, Any]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


@pytest.mark.parametrize(("weight", "end"), [(0.0, "a"), (1.0, "b")])
def test_a_weight_of_0_or_1_gives_an_end_to_the_last_bit(policies: Path, weight: float, end: str) -> None:
    merge(policies, weight)
    merged, expected = weights(policies / "out"), weights(policies / end)
    assert all(torch.equal(merged[name], tensor) for name, tensor in expected.items())


def test_the_middle_is_a_policy_that_other_programs_can_load(policies: Path) -> None:
    figures = merge(policies, 0.5)
    merged, a, b = (weights(policies / name) for name in ("out", "a", "b"))
    assert all(torch.allclose(merged[name], (a[name] + b[name]) / 2, atol=1e-6) for name in a)
    assert not torch.equal(merged["lm_head.weight"], a["lm_head.weight"])
    assert figures["relative_distance"] > 0.1
    assert AutoTokenizer.from_pretrained(policies / "out").chat_template
    assert (policies / "curve.csv").read_text() == "step\n"


def test_a_chain_gives_the_mean_of_three(policies: Path) -> None:
    save_policy(tiny_policy(9), word_tokenizer(), policies / "c")
    merge(policies, 1 / 2, output="ab")
    merge(policies, 1 / 3, init="ab", signal="c", output="abc")
    merged, *ends = (weights(policies / name) for name in ("abc", "a", "b", "c"))
    assert all(torch.allclose(merged[name], sum(end[name] for end in ends) / 3, atol=1e-6) for name in merged)


@pytest.mark.parametrize(
    ("signal", "message"),
    [
        ("wide", "a and wide: expected tensors of the same shapes"),
        ("foreign", "expected policies with the same vocabulary"),
        ("missing", "expected a policy as signal"),
    ],
)
def test_policies_that_cannot_be_merged_are_refused(policies: Path, signal: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"merge: {message}"):
        merge(policies, 0.5, signal)
    assert not (policies / "out").exists()


def test_a_weight_outside_0_and_1_is_named() -> None:
    assert [len(MergeConfig(init="a", signal="policy/b", weight=weight).problems()) for weight in (0.0, 1.0, 1.5, -0.1)] == [
        0,
        0,
        1,
        1,
    ]
    (problem,) = MergeConfig(init="a", signal="policy/b", weight=1.5).problems()
    assert problem.startswith("weight: expected a fraction in [0, 1], found 1.5")


def test_a_merge_builds_on_both_its_policies() -> None:
    recipe = load_params(CONF / "recipe/default.yaml")
    recipe["align"] |= {"soup": {"method": "merge", "init": "rs", "signal": "policy/dpo"}}
    assert set(parents(nodes(recipe))["align@soup"]) == {"align@rs", "align@dpo"}
