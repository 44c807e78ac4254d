"""Claims about policies that are kept during training: they are what training held then, survive a crash, and change nothing."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import test_ppo_align
import torch
from aligning import Crashed, config_of, crash_after, outputs, run_align, write_inputs
from ppo_tiny import tiny_config, tiny_policy
from test_ppo_align import artifacts as of_ppo  # noqa: F401
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

from plumbline.methods.keeping import LISTING, write_kept
from plumbline.models.adapters import copied, merged
from plumbline.models.determinism import make_deterministic
from plumbline.pipeline.launcher import Launcher
from plumbline.pipeline.records import read_json


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def same(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("method", ["dpo", "grpo", "rloo"])
def test_the_kept_policies_are_those_of_their_steps_and_the_training_is_the_same(tmp_path: Path, method: str) -> None:
    folder = write_inputs(tmp_path)
    run_align(folder, method, "without")
    assert read_json(folder / "steps/without" / LISTING) == {"steps": []}
    run_align(folder, method, "kept", keep_steps=[2])
    assert outputs(folder, "kept") == outputs(folder, "without")
    assert read_json(folder / "steps/kept" / LISTING) == {"steps": [2, 4]}
    assert same(folder / "steps/kept/4", folder / "policy/kept")
    assert not same(folder / "steps/kept/2", folder / "policy/kept")
    assert AutoTokenizer.from_pretrained(folder / "steps/kept/2").chat_template


def test_kept_policies_survive_a_crash(tmp_path: Path) -> None:
    folder = write_inputs(tmp_path)
    run_align(folder, "dpo", "whole", keep_steps=[2, 3])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_maybe_log_save_evaluate", crash_after(3))
        with pytest.raises(Crashed):
            run_align(folder, "dpo", "resumed", keep_steps=[2, 3])
    assert same(folder / "checkpoints/kept/2", folder / "checkpoints/checkpoint-2")  # which the trainer itself wrote
    (folder / "checkpoints/kept/.4").mkdir()  # half a policy, of a crash while one was written
    run_align(folder, "dpo", "resumed", keep_steps=[2, 3])
    assert read_json(folder / "steps/resumed" / LISTING) == {"steps": [2, 3, 4]}
    for step in (2, 3, 4):
        assert same(folder / f"steps/resumed/{step}", folder / f"steps/whole/{step}")


@pytest.mark.parametrize(("there", "missing"), [([], "2, 4"), ([2, 6], "4")])
def test_a_kept_policy_that_is_missing_is_an_error(tmp_path: Path, there: list[int], missing: str) -> None:
    for step in there:
        (tmp_path / f"checkpoints/kept/{step}").mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError, match=rf"^keep_steps: expected the policies after steps 2, 4 in .*, found none after {missing}\. They"
    ):
        write_kept(tmp_path / "checkpoints", tmp_path / "steps", [2, 4])


def test_a_kept_policy_is_on_the_disk_before_a_checkpoint_of_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync = os.fsync

    def noting(descriptor: int) -> None:
        events.append(str(Path(os.readlink(f"/proc/self/fd/{descriptor}")).relative_to(folder)))
        fsync(descriptor)

    folder = write_inputs(tmp_path)
    monkeypatch.setattr(os, "fsync", noting)
    run_align(folder, "dpo", keep_steps=[2])
    renamed, sealed = (events.index(f"checkpoints/{name}") for name in ("kept", "checkpoint-2"))
    assert events.index("checkpoints/kept/.2/model.safetensors") < renamed < sealed


def test_a_kept_policy_has_its_adapter_merged_while_training_goes_on_with_it(tmp_path: Path) -> None:
    folder = write_inputs(tmp_path)
    adapter: dict[str, Any] = {"lora_rank": 2, "lora_output": "adapter", "learning_rate": 1e-2}
    run_align(folder, "dpo", "without", **adapter)
    run_align(folder, "dpo", "kept", keep_steps=[2], **adapter)
    assert outputs(folder, "kept") == outputs(folder, "without")
    assert weights(folder / "steps/kept/2").keys() == weights(folder / "policy/sft").keys()
    assert not same(folder / "steps/kept/2", folder / "policy/sft")
    assert (folder / "steps/kept/2/adapter/adapter_config.json").is_file()


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_ppo_keeps_its_policy_after_the_steps_and_at_the_end(of_ppo: Path, lora_rank: int) -> None:  # noqa: F811
    changes: dict[str, Any] = {"lora_rank": lora_rank, "learning_rate": 1e-2}
    make_deterministic(3, 1)  # as the stage does: an adapter begins at random
    without, _ = test_ppo_align.run_align(of_ppo, **changes)
    final = weights(of_ppo / "policy/ppo")
    shutil.rmtree(of_ppo / "checkpoints")
    make_deterministic(3, 1)
    figures, _ = test_ppo_align.run_align(of_ppo, keep_steps=[1, 3], **changes)
    assert figures == without
    write_kept(of_ppo / "checkpoints", of_ppo / "steps", [1, 3])
    assert read_json(of_ppo / "steps" / LISTING) == {"steps": [1, 3, 4]}
    assert all(torch.equal(one, final[name]) for name, one in weights(of_ppo / "steps/4").items())
    assert not same(of_ppo / "steps/1", of_ppo / "steps/3")


def test_the_copy_of_a_model_takes_no_memory_of_its_gpu() -> None:
    """On a GPU that is only imitated: no operation makes a tensor there."""
    with FakeTensorMode(), torch.device("cuda"):
        model = torch.nn.Module()
        model.register_parameter("weight", torch.nn.Parameter(torch.empty(3)))
        model.register_buffer("mask", torch.empty(3))
        with Made() as made:
            copy = copied(model)
    assert {one.device.type for one in (*model.parameters(), *model.buffers())} == {"cuda"}
    assert {one.device.type for one in (*copy.parameters(), *copy.buffers())} == made.devices == {"cpu"}


def test_an_adapter_is_merged_in_the_machines_memory(tmp_path: Path) -> None:
    """Where a GPU holds the model in bfloat16, it may have no room for float32."""
    moves: list[tuple[Any, ...]] = []

    class OnGpu:
        def to(self, *target: Any) -> "OnGpu":
            moves.append(target)
            return self

        def merge_and_unload(self) -> tuple[Any, ...]:
            return moves[-1]

    assert merged(OnGpu(), tmp_path, tiny_config(lora_rank=2)) == ("cpu", torch.float32)


class Made(TorchDispatchMode):
    """Collects the devices of the tensors that operations make; a view or an alias is not made."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        if isinstance(result, torch.Tensor) and not func.is_view and func is not torch.ops.aten.detach.default:
            self.devices.add(result.device.type)
        return result


def test_a_copy_shares_what_the_model_shares_and_nothing_with_the_model() -> None:
    policy: Any = tiny_policy(tie_word_embeddings=True)
    copy = copied(policy)
    assert copy.lm_head.weight is copy.get_input_embeddings().weight
    before = {name: value.clone() for name, value in copy.state_dict().items()}
    with torch.no_grad():
        for one in policy.parameters():
            one.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in copy.state_dict().items())


def test_steps_that_training_does_not_reach_are_refused_before_it_begins(tmp_path: Path, of_ppo: Path) -> None:  # noqa: F811
    folder = write_inputs(tmp_path / "offline")
    with pytest.raises(ValueError, match="keep_steps: expected steps up to the last one, 4, found 5"):
        run_align(folder, "dpo", keep_steps=[2, 5])
    with pytest.raises(ValueError, match="keep_steps: expected steps up to the last one, 4, found 9"):
        test_ppo_align.run_align(of_ppo, keep_steps=[9])


@pytest.mark.parametrize("steps", [[3, 2], [2, 2], [0, 1], [-1]])
def test_steps_out_of_order_are_refused(steps: list[int]) -> None:
    complaint = f"keep_steps: expected different numbers of steps from 1 up, in rising order, found {steps}"
    assert config_of("dpo", keep_steps=steps).problems() == [complaint]
    assert config_of("grpo", keep_steps=steps).problems() == [complaint]
    assert tiny_config(keep_steps=steps).problems() == [complaint]


def test_weights_that_lie_in_parts_on_several_gpus_cannot_be_kept() -> None:
    sharding = Launcher(processes=2, machines=1, accelerate={"distributed_type": "FSDP"})
    for method in ("dpo", "grpo"):
        config = config_of(method, keep_steps=[2])
        assert any(
            one.startswith("keep_steps: expected [] with a launcher that shards") for one in config.launcher_problems(sharding)
        )
        assert not any("keep_steps" in one for one in config_of(method).launcher_problems(sharding))
