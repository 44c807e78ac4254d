"""The model that is aligned: one trained here from scratch, or an existing Hugging Face causal LM."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from plumbline.pipeline.digests import pin_problems, pinned
from plumbline.pipeline.ranges import COUNT, POSITIVE, Range, outside

if TYPE_CHECKING:
    from transformers import PreTrainedModel


DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class ScratchModel:
    """A small Qwen3 (arXiv:2505.09388) that `pretrain` trains from scratch: a Llama whose queries and keys are normalised (QK-norm).

    Normalised, they bear a higher learning rate.
    """

    kind: str = "scratch"
    size: str = MISSING
    vocabulary_size: int = MISSING
    context_tokens: int = MISSING
    hidden_size: int = MISSING
    layers: int = MISSING
    heads: int = MISSING
    intermediate_size: int = MISSING
    initializer_range: float = MISSING

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        sizes = dict.fromkeys(("context_tokens", "hidden_size", "layers", "heads", "intermediate_size"), COUNT)
        tokens = Range("at least 261, for 256 bytes and 5 special tokens", lambda value: value >= 261)
        complaints = outside(self, vocabulary_size=tokens, **sizes, initializer_range=POSITIVE)
        if not complaints and self.hidden_size % (2 * self.heads):
            complaints.append(
                f"hidden_size: expected a multiple of twice heads, {2 * self.heads}, since each head rotates pairs of numbers, found "
                f"{self.hidden_size}"
            )
        return complaints


@dataclass
class HubModel:
    """An existing causal LM: a folder, or a hub id with the commit that pins it. Values and their meaning: conf/model/hub.yaml."""

    kind: str = "hub"
    size: str = MISSING
    path: str = MISSING
    revision: str | None = None
    chat_template: str | None = None
    template_variables: dict[str, Any] = field(default_factory=dict)
    pad_token: str | None = None
    context_tokens: int | None = None
    dtype: str | None = None

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        known = self.dtype is None or self.dtype in DTYPES
        unknown = [] if known else [f"dtype: expected null (as saved) or one of {', '.join(DTYPES)}, found {self.dtype!r}"]
        return [*unknown, *outside(self, context_tokens=COUNT), *pin_problems(self.path, self.revision)]


SCHEMAS = {"scratch_schema": ScratchModel, "hub_schema": HubModel}


def new_model(config: ScratchModel, *, vocabulary: int, end_id: int, pad_id: int) -> "PreTrainedModel":
    """A Qwen3 with random weights and tied embeddings; `vocabulary` is the tokenizer's length."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            max_position_embeddings=config.context_tokens,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            head_dim=config.hidden_size // config.heads,
            intermediate_size=config.intermediate_size,
            tie_word_embeddings=True,
            attention_dropout=0.0,
            initializer_range=config.initializer_range,
            bos_token_id=None,
            eos_token_id=end_id,
            pad_token_id=pad_id,
        )
    )


def require_model(config: HubModel) -> None:
    """Refuses an existing model that is not there, is another than its revision says, or is not a causal LM, before its weights are read.

    Raises:
        ValueError: it is; the message says what to do.
    """
    from plumbline.models.suitability import PLACE, require_suitable

    if complaints := pin_problems(config.path, config.revision, f"{PLACE}: path"):
        raise ValueError(complaints[0])
    local = Path(config.path).is_dir()
    if local:
        pinned(Path(config.path), config.revision, f"{PLACE}: revision")
    require_suitable(config.path, None if local else config.revision)


def load_hub_model(config: HubModel) -> "PreTrainedModel":
    """Loads the causal LM that `model: hub` names, in the precision that `dtype` names or in which it was saved.

    Raises:
        ValueError: a hub id has no revision, a folder's content does not match its revision, no causal LM loads from the path, or some of its
            weights are missing there.
    """
    from transformers import AutoModelForCausalLM

    from plumbline.models.suitability import PLACE

    require_model(config)
    revision = None if Path(config.path).is_dir() else config.revision
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            config.path, revision=revision, dtype=config.dtype or "auto", output_loading_info=True
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{PLACE}: path: expected a Hugging Face causal LM, but {config.path!r} (revision {config.revision}) does not load: {reason}. Take the "
            "whole model: config.json, *.safetensors and the tokenizer"
        ) from error
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(
            f"{PLACE}: path: expected all weights of a {type(model).__name__}, found {config.path!r} without {len(missing)} of them (first: "
            f"{missing[0]}), which would be drawn at random. Take the whole model"
        )
    return model
