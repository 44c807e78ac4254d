"""Low-rank adapters: how one is put onto a model, and how it becomes a part of it after training."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.models.training_values import Lora

if TYPE_CHECKING:
    from peft import LoraConfig


def lora_config(config: Lora, head: str | None = None) -> "LoraConfig | None":
    """The adapter to train, on every linear layer except the output; None for full training.

    head: the name of a classifier's new layer, which is trained in full.
    """
    if not config.lora_rank:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="SEQ_CLS" if head else None,
        modules_to_save=[head] if head else None,
    )


def merged(model: Any, folder: Path, config: Lora) -> Any:
    """The trained model, with an adapter merged into its base, so that the folder loads on its own.

    It is merged in float32, so that the sum is rounded once, when the model is saved, and in the machine's memory: a GPU on which the model was
    trained in a smaller precision may have no room. With `lora_output: adapter` the adapter is written to `folder`/adapter as well, where serving
    engines and peft find it.
    """
    if not config.lora_rank:
        return model
    import torch

    if config.lora_output == "adapter":
        save_adapter(model, folder / "adapter")
    return model.to("cpu", torch.float32).merge_and_unload()


def save_adapter(model: Any, folder: Path) -> None:
    """Writes the adapter of a trained model alone; the same adapter gives the same bytes."""
    adapter = model.peft_config["default"]
    adapter.target_modules = sorted(adapter.target_modules)  # peft has a set, which each process would write in another order
    model.save_pretrained(folder)


def copied(model: Any) -> Any:
    """A copy of a model in the machine's memory, wherever the model is; nothing is allocated on a GPU."""
    from torch.nn import Parameter

    # deepcopy takes what its memo already holds, so each weight, and one that two layers share, is copied once and straight to the CPU
    memo: dict[int, Any] = {
        id(one): Parameter(one.detach().to("cpu", copy=True), one.requires_grad) for one in model.parameters()
    }
    memo |= {id(one): one.to("cpu", copy=True) for one in model.buffers()}
    return copy.deepcopy(model, memo)
