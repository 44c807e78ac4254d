"""Whether a causal LM can be trained from a folder or a hub id, and if not, why not and what to do: in one sentence, before any work."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

QUANTISED = (
    "its weights are quantised ({method}), so that they can be run but not trained. Take the model that they were made from; its page "
    "names it"
)
ADAPTER = (
    "it is an adapter (LoRA) of {base}, not a whole model. Merge it first: AutoPeftModelForCausalLM.from_pretrained(…).merge_and_unload()"
    ".save_pretrained(…), and save the tokenizer beside it"
)
GGUF = (
    "it holds GGUF files, which are for llama.cpp. Take the model that they were made from, or save them as a Hugging Face folder: "
    "AutoModelForCausalLM.from_pretrained(…, gguf_file=…).save_pretrained(…)"
)
OTHER_HEAD = "it is a {architecture}, not a causal LM: its output layer would be drawn at random. Take the model that it was made from, or another"
NO_CONFIG = (
    "it has no config.json. Name a folder with config.json, *.safetensors and a tokenizer, or a hub id of the form owner/name"
)


def require_suitable(path: str, revision: str | None) -> None:
    """Refuses a model that no causal LM can be trained from, by its files alone.

    Raises:
        ValueError: it is something else, or cannot be reached; the message says what to do.
    """
    try:
        reason = unsuitable(path, revision)
    except (OSError, ValueError) as error:
        reason = unreachable(error, path, revision) or f"its config.json cannot be read: {str(error).strip().splitlines()[0]}"
    if reason:
        raise ValueError(f"conf/model/hub.yaml: path: no causal LM can be trained from {path!r}: {reason}.")


def unsuitable(path: str, revision: str | None) -> str | None:
    """Why no causal LM can be trained from what is there, and what to do; None if its files say nothing against it.

    Raises:
        OSError: a hub id cannot be reached; `unreachable` says why.
        ValueError: a file is no JSON.
    """
    config = _read(path, revision, "config.json")
    if config is None:
        if (adapter := _read(path, revision, "adapter_config.json")) is not None:
            return ADAPTER.format(base=adapter.get("base_model_name_or_path") or "another model")
        return GGUF if Path(path).is_dir() and [*Path(path).glob("*.gguf")] else NO_CONFIG
    if quantisation := config.get("quantization_config"):
        return QUANTISED.format(method=quantisation.get("quant_method", "method unknown"))
    architectures = config.get("architectures") or []
    if architectures and "auto_map" not in config and not set(architectures) & _causal_lms():
        return OTHER_HEAD.format(architecture=architectures[0])
    return None


def unreachable(error: BaseException, path: str, revision: str | None) -> str | None:
    """Why the hub does not give a model, and what to do; None for an error of another kind."""
    from huggingface_hub import errors

    for cause in _causes(error):
        match cause:
            case errors.GatedRepoError():
                return "its owner asks for conditions to be accepted. Accept them on its page, then run `hf auth login` or set HF_TOKEN"
            case errors.RevisionNotFoundError():
                return f"it has no revision {revision}. Take a commit from its page, under “Files and versions”"
            case errors.RepositoryNotFoundError():
                return "the hub has no such model, or a private one. Check the id; for a private one run `hf auth login` or set HF_TOKEN"
            case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled() | ConnectionError():
                return (
                    f"it is not in the local cache, and the hub cannot be reached. Connect, and unset HF_HUB_OFFLINE if it is set; or run "
                    f"`hf download {path} --revision {revision}` on a machine with a connection and copy its cache (HF_HOME)"
                )
    return None


def _read(path: str, revision: str | None, name: str) -> dict[str, Any] | None:
    """A JSON file of the model; None if it has none."""
    from transformers.utils.hub import cached_file

    if Path(path).is_dir():
        file = Path(path) / name
    else:
        try:
            file = Path(cached_file(path, name, revision=revision) or "")
        except OSError as error:
            if unreachable(error, path, revision):
                raise
            return None
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _causal_lms() -> set[str]:
    """The names of transformers' causal LMs."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    return {name for entry in names for name in ([entry] if isinstance(entry, str) else entry)}


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
