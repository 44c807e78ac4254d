"""Loading models from folders: where they run, in which precision they are trained, how much they can read."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

CACHE_BYTES = 8 * 2**30


def device() -> str:
    """Where a model answers or scores: the GPU where there is one. Trainers place what they train themselves."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load_policy(folder: Path) -> "PreTrainedModel":
    """A causal LM that answers or is scored, in the precision it was saved in."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    return model.to(device()).eval()


def training_dtype(lora_rank: int) -> Any:
    """In what a trainer loads a model: float32, in which a step of 1e-5 is not rounded away (`bf16` is autocast); below an adapter
    nothing is trained, and the precision it was saved in will do."""
    import torch

    return "auto" if lora_rank else torch.float32


def rows_in_cache(model: "PreTrainedModel", tokens: int, most: int) -> int:
    """How many rows of so many tokens are sampled side by side: `most`, or what CACHE_BYTES of keys and values hold, at least one."""
    text = model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    row = 2 * text.num_hidden_layers * heads * width * model.dtype.itemsize * tokens
    return max(1, min(most, CACHE_BYTES // row))


def context_of(config: "PretrainedConfig") -> int | None:
    """How many tokens a model reads at most, also where its text part lies within another; None where positions have no end (ALiBi)."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)
