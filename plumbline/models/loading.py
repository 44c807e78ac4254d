"""Loading models from folders: on which device, in which precision, and how much they can read."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

CACHE_BYTES = 8 * 2**30
"""The most memory that the keys and values of a batch may take."""


def device() -> str:
    """The device on which a model answers or scores: the GPU if there is one. Trainers choose the device themselves."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load_policy(folder: Path) -> "PreTrainedModel":
    """Loads a causal LM that answers or is scored, in the precision in which it was saved."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    return model.to(device()).eval()


def training_dtype(lora_rank: int) -> Any:
    """The precision in which a trainer loads a model.

    Full training takes float32, so that a step of 1e-5 is not rounded away; `bf16` is autocast. Below an adapter nothing is trained,
    so the saved precision will do.
    """
    import torch

    return "auto" if lora_rank else torch.float32


def rows_in_cache(model: "PreTrainedModel", tokens: int, most: int) -> int:
    """The number of rows of `tokens` tokens to sample side by side: as many as CACHE_BYTES hold, at most `most`, at least one."""
    text = model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    row_bytes = 2 * text.num_hidden_layers * heads * head_dim * model.dtype.itemsize * tokens
    return max(1, min(most, CACHE_BYTES // row_bytes))


def context_of(config: "PretrainedConfig") -> int | None:
    """The longest sequence that a model, or the text part of one, can read in tokens; None if there is no limit (ALiBi)."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)
