"""Loading models from folders: on which device, in which precision, and how much they can read.

Precision has three rules. A policy's own precision is the one in which its folder was saved; `dtype` in the model's file may change that of the
base policy, and all later policies and reward models inherit it.

- What is trained in full has its weights in float32, so that a step of 1e-5 is not rounded away. `bf16` is autocast, and leaves them so.
- What is only read stays in its own precision: samplers, opponents, judges, reward models, references with weights of their own, and the base
  below an adapter. DPO and KTO have no such reference: they ask the weights that are about to be trained, before the first step.
- What is written is written in the precision of the policy that training started from.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

LOST = 0.5
"""The part of what training changed whose loss in saving is worth a warning."""

NEVER = -1e4
"""A logit whose probability is exactly 0, even at a temperature of 10. It is finite, so that an entropy is not 0 · −∞."""


def device() -> str:
    """The device on which a model answers or scores: the GPU if there is one. Trainers choose the device themselves."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load_policy(folder: Path) -> "PreTrainedModel":
    """Loads a causal LM that answers or is scored, in the precision in which it was saved."""
    model: Any = load_causal_lm(folder)
    return model.to(device()).eval()


def load_causal_lm(folder: Path, **options: Any) -> "PreTrainedModel":
    """Loads the causal LM in a policy's folder, whose distribution is over the tokens of its tokenizer only.

    options: those of `from_pretrained`.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder, **options)
    mask_rows(model, rows_without_token(AutoTokenizer.from_pretrained(folder), model.get_input_embeddings().num_embeddings))
    return model


def vocabulary_size(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The number of embedding rows that a tokenizer needs: its highest id and one. `len(tokenizer)` is less if ids are left out."""
    return 1 + max(tokenizer.get_vocab().values())


def unknown_ids(tokenizer: "PreTrainedTokenizerBase", rows: int) -> str:
    """A complaint about a tokenizer with ids for which a model with `rows` embeddings has none; empty if there are none.

    One padding token may be new: the embeddings then grow by its row.
    """
    size = vocabulary_size(tokenizer)
    if size <= rows + (tokenizer.pad_token_id == rows):
        return ""
    return (
        f"path: expected an embedding for each token, found {rows} rows in the model and ids up to {size - 1} in its tokenizer "
        f"({tokenizer.convert_ids_to_tokens(rows)!r} is the first without a row). Take the tokenizer that belongs to the model"
    )


def rows_without_token(tokenizer: "PreTrainedTokenizerBase", rows: int) -> list[int]:
    """Embedding rows that no token has, such as those that pad a vocabulary to a round number.

    What is sampled from them would vanish from the text and count in ids, lengths and likelihoods.
    """
    return sorted(set(range(rows)) - set(tokenizer.get_vocab().values()))


def mask_rows(model: "PreTrainedModel", rows: list[int]) -> None:
    """Gives embedding rows the probability 0, in sampling and in every loss, by the output layer's bias; `save_policy` leaves it out.

    A bias is what all of them read: our sampler, transformers' `generate`, and TRL, which multiplies by the layer's weight itself.

    Raises:
        ValueError: the output is not one linear layer, or caps its logits, which would undo the mask.
    """
    import torch

    if not rows:
        return
    output: Any = model.get_output_embeddings()
    if not isinstance(output, torch.nn.Linear) or getattr(model.config.get_text_config(), "final_logit_softcapping", None):
        raise ValueError(
            f"expected a model with a token for each row of its embeddings, or one whose output is a linear layer without soft-capping, so that "
            f"rows can be masked; found {len(rows)} rows without a token (first: {rows[0]}) in {type(model).__name__}. Add tokens for them"
        )
    if output.bias is None:
        output.bias = torch.nn.Parameter(output.weight.new_zeros(len(output.weight)), requires_grad=False)
        output.bias_is_mask = True
    with torch.no_grad():
        output.bias[rows] = NEVER


def training_dtype(lora_rank: int) -> Any:
    """The precision in which a trainer loads a model: float32 for full training, the model's own below an adapter."""
    import torch

    return "auto" if lora_rank else torch.float32


def saved_dtype(folder: Path) -> "torch.dtype":
    """The precision of a model folder: that of its config, which `save_pretrained` writes, or float32."""
    import torch
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder).dtype or torch.float32


def as_saved(model: Any, init: Path) -> Any:
    """The trained model in the precision of `init`, from which training started. Warns if most of what was learnt is rounded away."""
    dtype = saved_dtype(init)
    if model.dtype != dtype and (lost := rounded_away(model.state_dict(), init, dtype)) > LOST:
        logger.warning(
            "%.0f %% of what training changed is smaller than a last digit of %s, in which the model is saved, and is lost. Set dtype to float32 in "
            "the model's file in conf/model, or train with a higher learning_rate or for longer",
            100 * lost,
            str(dtype).removeprefix("torch."),
        )
    return model.to(dtype)


def rounded_away(weights: "Mapping[str, torch.Tensor]", init: Path, dtype: "torch.dtype") -> float:
    """The part of the squared change of float32 weights since those in the folder `init` that is lost by saving them in `dtype`, from 0 to 1."""
    from safetensors import safe_open

    change = lost = 0.0
    for file in sorted(init.glob("*.safetensors")):
        with safe_open(file, "pt") as saved:
            for name in sorted(weights.keys() & set(saved.keys())):
                before, after = saved.get_tensor(name).float(), weights[name].cpu().float()
                change += float((after - before).square().sum())
                lost += float((after.to(dtype).float() - after).square().sum())
    return lost / change if change else 0.0


def context_of(config: "PretrainedConfig") -> int | None:
    """The longest sequence that a model, or the text part of one, can read in tokens; None if there is no limit (ALiBi)."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)
