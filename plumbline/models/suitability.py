"""Whether a causal LM can be trained from a folder or a hub id, and if not, why not and what to do: in one sentence, before any work.

What is told by files that are here, `check` tells (`known_reason`). `prepare` and `pretrain` may also ask the hub (`require_suitable`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plumbline.models.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, TOKENIZERS, ModelFiles, local_files

PLACE = "the model's file in conf/model"
"""Where a stage, which does not know the file's name, says that a value of the model stands. `check` names the file."""

CAUSAL_NAMES = ("ForCausalLM", "LMHeadModel")
"""How the names of causal LMs end."""

SEVERAL_INPUTS = "ForConditionalGeneration"
"""How the names of models end that read images as well, and of encoder-decoders. From the first the causal LM of their text part is loaded."""

QUANTISED = (
    "its weights are quantised ({method}), so that they can be run but not trained. Take the model that they were made from; its page "
    "names it"
)
ADAPTER = (
    "it is an adapter (LoRA) of {base}, not a whole model. Merge it first: AutoPeftModelForCausalLM.from_pretrained(…).merge_and_unload()"
    ".save_pretrained(…), and save the tokenizer beside it"
)
ADAPTER_BESIDE = (
    "it holds an adapter (LoRA) beside a whole model, and both would be loaded. If the adapter is merged into the model already, move "
    "adapter_config.json elsewhere; else merge it first (merge_and_unload)"
)
GGUF = (
    "it holds GGUF files, which are for llama.cpp. Take the model that they were made from, or save them as a Hugging Face folder: "
    "AutoModelForCausalLM.from_pretrained(…, gguf_file=…).save_pretrained(…)"
)
OTHER_HEAD = "it is a {architecture}, not a causal LM: its output layer would be drawn at random. Take the model that it was made from, or another"
ENCODER_DECODER = (
    "it is a {architecture}, an encoder with a decoder, not a causal LM. Take a model that consists of a decoder alone"
)
NO_CAUSAL_LM = "it is a {architecture}, for which transformers has no causal LM. Take another model"
UNKNOWN_KIND = "transformers {version} does not know its kind ({kind}). Update transformers, or take another model"
OWN_CODE = (
    "transformers does not know its kind ({kind}); it comes with code of its own, which is not run here. Take another model"
)
NO_KIND = "its config.json names no model_type, so that its kind is not known. Take a model that transformers has saved"
NO_CONFIG = (
    "it has no config.json. Name a folder with config.json, *.safetensors and a tokenizer, or a hub id of the form owner/name"
)
NO_WEIGHTS = "it has no model.safetensors. Copy the whole model there: config.json, *.safetensors and the tokenizer"
MISSING_WEIGHTS = "of its {count} files with weights, {missing} are missing (first: {first}). Download it again"
POINTERS = "it holds pointers of Git LFS instead of {names}. Run `git lfs pull` where it was cloned, or download it again"
UNREADABLE = "its {name} cannot be read ({error}). Download it again"
NOT_CACHED = (
    "it is not in the local cache, and the hub cannot be reached. Connect, and unset HF_HUB_OFFLINE if it is set; or run "
    "`hf download {path} --revision {revision}` on a machine with a connection and copy its cache (HF_HOME)"
)


def require_suitable(path: str, revision: str | None) -> None:
    """Refuses a model that no causal LM can be trained from, by its files alone. Of a hub id, config.json is fetched.

    Raises:
        ValueError: it is something else, or cannot be reached; the message says what to do.
    """
    try:
        files = _fetched_files(path, revision)
    except OSError as error:
        reason = unreachable(error, path, revision)
    else:
        reason = (GGUF if "gguf" in path.lower() else NO_CONFIG) if files is None else unsuitable(files)
    if reason:
        raise ValueError(f"{PLACE}: {refusal(path, reason)}")


def known_reason(path: str, revision: str | None, *, trained: bool = True, needed: bool = True) -> str | None:
    """Why no causal LM can be loaded from a folder or a hub id, as far as the files that are here tell; None if nothing is against it.

    trained: false for a model that only answers, such as a judge: it may be quantised, or an adapter. needed: false for a model that no
    stage has yet to load: it may be missing.
    """
    from huggingface_hub import is_offline_mode

    if files := local_files(path, revision):
        return unsuitable(files, trained=trained)
    return _not_cached(path, revision) if needed and is_offline_mode() else None


def refusal(path: str, reason: str) -> str:
    """The complaint about a model that is not suitable, under the key of its file in conf/model."""
    return f"path: no causal LM can be trained from {path!r}: {reason}."


def unsuitable(files: ModelFiles, *, trained: bool = True) -> str | None:
    """Why no causal LM can be trained from a model's files, and what to do; None if nothing is against it.

    trained: false if it is only to answer: it may be quantised, or an adapter.
    """
    try:
        if pointers := _pointers(files):
            return POINTERS.format(names=", ".join(pointers))
        config, adapter, complete = files.json(CONFIG), files.json(ADAPTER_CONFIG), files.has_weights()
        if adapter is not None and not trained:
            return None
        if adapter is not None and not (config and complete):
            return ADAPTER.format(base=adapter.get("base_model_name_or_path") or "another model")
        if files.whole and not complete and any(files.folder.glob("*.gguf")):
            return GGUF
        if config is None:
            return NO_CONFIG
        return (
            (_quantised(config) if trained else None)
            or _other_kind(config)
            or _unreadable_config(files)
            or (ADAPTER_BESIDE if adapter is not None else None)
            or _without_weights(files, config)
        )
    except ValueError as error:
        return f"{error}. Download it again, or name another folder"


def _pointers(files: ModelFiles) -> list[str]:
    """The names of files that are read when the model is loaded, and that Git has cloned without their content."""
    values = sorted(file.name for file in files.folder.glob("*.json"))
    if pointers := [name for name in values if _is_pointer(files.folder / name)]:
        return pointers  # among which may be the one that names the files with weights
    return [name for name in (*files.weights(), ADAPTER_WEIGHTS, *TOKENIZERS) if _is_pointer(files.folder / name)]


def _is_pointer(file: Path) -> bool:
    """Whether a file is there and holds what Git LFS puts in the place of a large file."""
    if not file.is_file() or file.stat().st_size >= 1024:
        return False
    start = b"version https://git-lfs"
    with file.open("rb") as content:
        return content.read(len(start)) == start


def _quantised(config: dict[str, Any]) -> str | None:
    """A reason against weights that are quantised."""
    if not (quantisation := config.get("quantization_config")):
        return None
    method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
    return QUANTISED.format(method=method or "method unknown")


def _other_kind(config: dict[str, Any]) -> str | None:
    """A reason against a model that is not a causal LM, or of which transformers knows nothing."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # type: ignore[attr-defined]
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind, architectures = config.get("model_type"), config.get("architectures") or []
    if not isinstance(kind, str):
        return NO_KIND
    if kind not in CONFIG_MAPPING_NAMES:
        return (OWN_CODE if config.get("auto_map") else UNKNOWN_KIND).format(kind=kind, version=transformers.__version__)
    names = [str(name) for name in (architectures if isinstance(architectures, list) else [architectures])]
    entries = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    causal = {name for entry in entries for name in ([entry] if isinstance(entry, str) else entry)}
    known = {*dir(transformers)}
    others = {
        name for name in names if name.endswith(CAUSAL_NAMES) and name not in known
    }  # other names for the causal LM of this kind
    has_text_part = not config.get("is_encoder_decoder") and any(name.endswith(SEVERAL_INPUTS) for name in names)
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and (not names or causal & {*names} or others or has_text_part):
        return None
    architecture = (names or [kind])[0]
    if config.get("is_encoder_decoder"):
        return ENCODER_DECODER.format(architecture=architecture)
    return (OTHER_HEAD if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else NO_CAUSAL_LM).format(architecture=architecture)


def _unreadable_config(files: ModelFiles) -> str | None:
    """A reason against a config.json whose values do not fit the kind of model that it names."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(files.folder)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        return UNREADABLE.format(name=CONFIG, error=" ".join(str(error).split()))
    return None


def _without_weights(files: ModelFiles, config: dict[str, Any]) -> str | None:
    """A reason against weights that are missing or cannot be read. Their headers are read, and compared with the length of the file."""
    from safetensors import SafetensorError, safe_open

    if config.get("transformers_weights"):  # which names another file
        return None
    names = files.weights()
    missing = [name for name in names if not (files.folder / name).is_file()]
    if files.whole and not names:
        return NO_WEIGHTS
    if files.whole and missing:
        return MISSING_WEIGHTS.format(count=len(names), missing=len(missing), first=missing[0])
    for name in names:
        if name.endswith(".safetensors") and name not in missing:
            try:
                with safe_open(files.folder / name, "numpy"):
                    pass
            except (OSError, SafetensorError) as error:
                return UNREADABLE.format(name=name, error=error)
    return None


# ---- the hub ------------------------------------------------------------------------------------------------------------


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
                return _not_cached(path, revision)
    return None


def _not_cached(path: str, revision: str | None) -> str:
    """Why a hub id cannot be had, with the revisions of it that can."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    snapshots = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=path, repo_type="model") / "snapshots"
    others = sorted(folder.name for folder in snapshots.glob("*"))
    return NOT_CACHED.format(path=path, revision=revision) + (
        f". The cache has the revision {', '.join(others)}" if others else ""
    )


def _fetched_files(path: str, revision: str | None) -> ModelFiles | None:
    """The files of a folder, or of a hub id whose config.json is fetched if need be; None if a hub id has none.

    Raises:
        OSError: the hub cannot be reached; `unreachable` says why.
    """
    from transformers.utils.hub import cached_file

    for name in () if Path(path).is_dir() else (CONFIG, ADAPTER_CONFIG):
        try:
            cached_file(path, name, revision=revision)
        except OSError as error:
            if unreachable(error, path, revision):
                raise
        else:
            break
    return local_files(path, revision)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
