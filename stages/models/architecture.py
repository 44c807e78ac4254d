"""Which model is aligned: one trained here from scratch, or an existing Hugging Face causal LM."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import MISSING

from stages.pipeline.pinning import pinned

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class ScratchModel:
    """A small Llama (arXiv:2302.13971) that `pretrain` trains from scratch."""

    kind: str = "scratch"
    vocabulary_size: int = MISSING
    context_tokens: int = MISSING
    hidden_size: int = MISSING
    layers: int = MISSING
    heads: int = MISSING
    intermediate_size: int = MISSING
    initializer_range: float = MISSING


@dataclass
class HubModel:
    """An existing causal LM: a folder, or a hub id with the commit that pins it."""

    kind: str = "hub"
    path: str = MISSING
    revision: str | None = None
    chat_template: str | None = None
    pad_token: str | None = None
    context_tokens: int | None = None


SCHEMAS = {"scratch_schema": ScratchModel, "hub_schema": HubModel}


def new_llama(config: ScratchModel, *, vocabulary: int, end_id: int, pad_id: int) -> "PreTrainedModel":
    """A Llama with random weights and tied embeddings; `vocabulary` is the tokenizer's length."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            max_position_embeddings=config.context_tokens,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            intermediate_size=config.intermediate_size,
            tie_word_embeddings=True,
            attention_dropout=0.0,
            initializer_range=config.initializer_range,
            bos_token_id=None,
            eos_token_id=end_id,
            pad_token_id=pad_id,
        )
    )


def load_hub_model(config: HubModel) -> "PreTrainedModel":
    """Loads the causal LM that `model: hub` names.

    Raises:
        ValueError: a hub id without a pinned revision, a folder that is another than its revision says, or a path that is no causal LM.
    """
    from transformers import AutoModelForCausalLM

    local = Path(config.path).is_dir()
    if not local and config.revision is None:
        raise ValueError(
            f"conf/model: path {config.path!r} is no local folder, and a hub id needs `revision` (a commit), or the result would "
            "depend on the day it was fetched. Set revision, or path to a folder."
        )
    if local:
        pinned(Path(config.path), config.revision, "conf/model/hub.yaml: revision")
    try:
        return AutoModelForCausalLM.from_pretrained(config.path, revision=None if local else config.revision, dtype="auto")
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"conf/model: expected a Hugging Face causal LM at {config.path!r} (revision {config.revision}), found none that "
            f"loads: {reason}. A local folder needs config.json and *.safetensors."
        ) from error
