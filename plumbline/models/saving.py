"""From a trainer to a folder: the whole model, of however many processes, and the folder of a policy that others can load."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.models.adapters import merged
from plumbline.models.training_values import Lora
from plumbline.pipeline import processes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

    from plumbline.methods.job import Job


def whole_model(trainer: "Trainer", init: Path | None, load: Callable[[Path], Any] | None = None) -> Any:
    """The trained model, whole, in the first process; of several, the others leave the stage here.

    A sharded model is gathered by its trainer, on disk, and loaded anew: what follows is then the same for all models.

    Args:
        init: the folder of the base below an adapter.
        load: loads a model of this kind from its folder; None for a causal LM.
    """
    gathered = Path(str(trainer.args.output_dir)) / "whole"
    if processes.sharded():
        trainer.save_model(str(gathered))  # in which all processes take part
    processes.only_the_first_goes_on()
    if not processes.sharded():
        return trainer.model
    from peft import PeftModel

    from plumbline.models.loading import load_causal_lm

    load = load or load_causal_lm
    if not (gathered / "adapter_config.json").is_file():
        return load(gathered)
    assert init is not None
    return PeftModel.from_pretrained(load(init), str(gathered))


def save_policy(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Writes a model folder that transformers, vLLM and others can load: weights, tokenizer, chat template, generation config.

    The generation config keeps the decoding that the model came with. A model trained from scratch has none: its whole distribution at
    temperature 1.
    """
    from transformers import GenerationConfig

    from plumbline.models.chat import end_of_turn_id
    from plumbline.models.decoding_values import own_decoding
    from plumbline.models.loading import rows_without_token

    end = end_of_turn_id(tokenizer)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = end
    model.config.use_cache = True
    embeddings: Any = model.get_input_embeddings()
    model.generation_config = GenerationConfig(
        eos_token_id=end,
        pad_token_id=tokenizer.pad_token_id,
        **own_decoding(model.generation_config).generation_values(),
        suppress_tokens=rows_without_token(tokenizer, embeddings.num_embeddings) or None,
    )
    output = model.get_output_embeddings()
    mask = output.bias if getattr(output, "bias_is_mask", False) else None
    if mask is not None:
        output.bias = None  # it is not part of the architecture: whoever loads the folder masks again
    model.save_pretrained(folder)
    if mask is not None:
        output.bias = mask
    tokenizer.save_pretrained(folder)


def save_trained(model: Any, tokenizer: "PreTrainedTokenizerBase", job: "Job", config: Lora) -> None:
    """Writes the trained model to `job.output` as a policy, with an adapter merged into its base, in the precision of `job.init`.

    It is done once: of several processes, all but the first leave the stage here.
    """
    from plumbline.models.loading import as_saved

    processes.only_the_first_goes_on()
    save_policy(as_saved(merged(model, job.output, config), job.init), tokenizer, job.output)
