"""How much memory there is, and how many rows are sampled side by side in it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from ppo_tiny import tiny_policy

from plumbline.models import memory
from plumbline.models.architecture import new_model
from plumbline.models.memory import GIB, cgroup_limits, held_bytes, rows_in_cache, total_memory
from plumbline.pipeline.composing import CONF

# ---- what there is ------------------------------------------------------------------------------------------------------


def written(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_limits_of_a_cgroup_and_of_those_around_it_count(tmp_path: Path) -> None:
    memberships = written(tmp_path / "cgroup", "0::/jobs/one\n")
    written(tmp_path / "mount/memory.max", "max\n")
    written(tmp_path / "mount/jobs/memory.max", "4096\n")
    written(tmp_path / "mount/jobs/one/memory.max", "8192\n")
    assert sorted(cgroup_limits(memberships, tmp_path / "mount")) == [4096, 8192]


def test_a_cgroup_of_version_1_and_one_that_is_mounted_as_the_root_are_found(tmp_path: Path) -> None:
    memberships = written(tmp_path / "cgroup", "4:cpu,cpuacct:/a\n3:memory:/docker/abc\n")
    written(tmp_path / "mount/memory/memory.limit_in_bytes", "1000\n")
    assert [*cgroup_limits(memberships, tmp_path / "mount")] == [1000]
    assert [*cgroup_limits(tmp_path / "none", tmp_path / "mount")] == []


def test_a_limit_below_the_machines_memory_is_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "cgroup_limits", lambda *_: iter([2**63 - 4096, 3 * GIB]))
    assert total_memory("cpu") == 3 * GIB


# ---- sampling -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the memory of the machine."""

    def of(size: int) -> None:
        monkeypatch.setattr(memory, "total_memory", lambda device: size)

    return of


def large_policy() -> Any:
    """28 layers with 4 heads of 128 for keys and values: 2 · 28 · 4 · 128 · 4 = 114,688 bytes a token in float32."""
    policy = tiny_policy()
    policy.config.update({"num_hidden_layers": 28, "num_key_value_heads": 4, "head_dim": 128})
    return policy


def test_a_large_model_is_sampled_with_as_many_rows_as_a_power_of_two_lets_fit(machine: Callable[[int], None]) -> None:
    """800 tokens take 1.25 · 800 · 114,688 bytes, 109.4 MiB, and the draw 24 · 11: 9.36 rows for each GiB."""
    machine(24 * GIB)
    assert rows_in_cache(large_policy(), tokens=800, most=512, held=0) == 32  # of 6 GiB, 56 rows
    assert rows_in_cache(large_policy(), tokens=800, most=512, held=16 * GIB) == 16  # of 2 GiB, 18 rows
    assert rows_in_cache(large_policy(), tokens=800, most=50, held=0) == 50  # as asked for, if it fits
    assert rows_in_cache(large_policy(), tokens=10**6, most=512, held=0) == 1


def test_machines_that_differ_a_little_sample_alike(machine: Callable[[int], None]) -> None:
    rows = []
    for size in (23.4, 24.0, 25.1):
        machine(int(size * GIB))
        rows.append(rows_in_cache(large_policy(), tokens=800, most=512, held=0))
    assert rows == [32] * 3


def test_the_closed_world_is_sampled_as_its_conf_says_whatever_the_machine(machine: Callable[[int], None]) -> None:
    machine(GIB // 4)
    for name in ("tiny", "nano"):
        values: Any = OmegaConf.load(CONF / f"model/{name}.yaml")
        model = new_model(values, vocabulary=values.vocabulary_size, end_id=1, pad_id=0)
        assert rows_in_cache(model, tokens=values.context_tokens, most=512, held=held_bytes(model, model, model)) == 512


def test_what_is_trained_is_held_with_its_gradients_and_moments() -> None:
    policy, reference = tiny_policy(), tiny_policy().to(torch.bfloat16).requires_grad_(False)
    count = policy.num_parameters()
    assert held_bytes(policy, reference, None) == 16 * count + 2 * count
    assert held_bytes(policy, reference=reference.requires_grad_(True)) == 16 * count + 2 * count
