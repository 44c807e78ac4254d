"""The files of a model from elsewhere, in a folder or in the local cache of the hub: what they say without its weights being read."""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from huggingface_hub.utils import TensorInfo  # type: ignore[attr-defined]  # public, but not in __all__

CONFIG, ADAPTER_CONFIG, ADAPTER_WEIGHTS = "config.json", "adapter_config.json", "adapter_model.safetensors"

INDEXES = {"model.safetensors": "model.safetensors.index.json", "pytorch_model.bin": "pytorch_model.bin.index.json"}
"""The file with all weights → the file that names several, in the order in which transformers looks for them."""

EMBEDDINGS, OUTPUT = ("embed", "wte", "wpe"), ("lm_head", "embed_out")
"""Parts of the names of embeddings and of the output layer."""

NOT_LOADED = (
    ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".inv_freq", ".position_ids",
    "mtp.", "model.visual.", "vision_model.",
)  # fmt: skip
"""How the names of tensors end (or start: a name with a dot behind) that published files hold and the causal LM does not: masks, tables, heads that
predict several tokens ahead, and what reads images in Qwen3.5, Llama 4 and Llama 3.2."""

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json", "tiktoken.model")
"""Files that hold a vocabulary, by the names that tokenizers of published models have."""


class ModelFiles(NamedTuple):
    """Where the files of a model lie."""

    folder: Path
    whole: bool
    """Whether no more files can come from the hub: true for a folder, and for a cached hub id if the hub may not be asked."""

    def json(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the model; None if it is not there.

        Raises:
            ValueError: it does not hold a mapping; the message names the file.
        """
        file = self.folder / name
        if not file.is_file():
            return None
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"its {name} cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"its {name} cannot be read: expected a mapping, found {type(values).__name__}")
        return values

    def weights(self) -> list[str]:
        """The names of the files with the weights, which need not be there; empty if nothing says which they are.

        Raises:
            ValueError: the file that names them cannot be read.
        """
        for single, index in INDEXES.items():
            if (self.folder / single).is_file():
                return [single]
            if (listed := self.json(index)) is not None:
                names = listed.get("weight_map")
                if not isinstance(names, dict) or not names:
                    raise ValueError(f"its {index} cannot be read: expected a weight_map, found none")
                return sorted({str(name) for name in names.values()})
        return []

    def has_weights(self) -> bool:
        """Whether all files with weights are there."""
        names = self.weights()
        return bool(names) and all((self.folder / name).is_file() for name in names)

    def has_vocabulary(self) -> bool:
        """Whether a file with a tokenizer's vocabulary is there."""
        return any((self.folder / name).is_file() for name in TOKENIZERS)


def local_files(path: str, revision: str | None) -> ModelFiles | None:
    """The files of a folder, or of a hub id in the local cache; None if they are in neither. The hub is not asked."""
    from huggingface_hub import is_offline_mode, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if Path(path).is_dir():
        return ModelFiles(Path(path), whole=True)
    try:
        cached = [try_to_load_from_cache(path, name, revision=revision) for name in (CONFIG, ADAPTER_CONFIG)]
    except HFValidationError:
        return None
    file = next((file for file in cached if isinstance(file, str)), None)
    return None if file is None else ModelFiles(Path(file).parent, whole=is_offline_mode())


def tensors_of(path: str, revision: str | None) -> "dict[str, TensorInfo] | None":
    """The tensors of a folder or a hub id, by the headers of its safetensors files; None if they cannot be read.

    Of a hub id the cached files are read, or the headers alone are fetched.
    """
    from huggingface_hub import get_local_safetensors_metadata

    files = local_files(path, revision)
    folder = files.folder if files else None
    if folder and (tensors := _tensors(lambda: get_local_safetensors_metadata(folder))):
        return tensors
    return None if Path(path).is_dir() else _tensors_on_hub(path, revision)


def loaded_tensors(path: str, revision: str | None) -> "dict[str, TensorInfo] | None":
    """The tensors of a folder or a hub id that transformers loads; None if their headers cannot be read.

    An output layer that is saved although it is tied to the embeddings is not loaded.
    """
    if not (tensors := tensors_of(path, revision)):
        return None
    tensors = {name: one for name, one in tensors.items() if not (name.endswith(NOT_LOADED) or name.startswith(NOT_LOADED))}
    files = local_files(path, revision)
    config = (files and files.json(CONFIG)) or {}
    if config.get("tie_word_embeddings") is False:
        return tensors
    outputs = {name for name in tensors if any(part in name for part in OUTPUT)}
    embeddings = [tensors[name].shape for name in tensors.keys() - outputs if any(part in name for part in EMBEDDINGS)]
    return {name: one for name, one in tensors.items() if name not in outputs or one.shape not in embeddings}


def _tensors(read: Callable[[], Any]) -> "dict[str, TensorInfo] | None":
    """The tensors in the metadata that `read` returns (huggingface_hub's SafetensorsRepoMetadata); None if it cannot."""
    from httpx2 import HTTPError  # of huggingface_hub's client
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

    try:
        return {name: tensor for file in read().files_metadata.values() for name, tensor in file.tensors.items()}
    except (OSError, ValueError, HTTPError, NotASafetensorsRepoError, SafetensorsParsingError):
        return None


@lru_cache(maxsize=8)
def _tensors_on_hub(path: str, revision: str | None) -> "dict[str, TensorInfo] | None":
    """The tensors of a commit, which does not change; a hub that cannot be reached is asked once."""
    from huggingface_hub import get_safetensors_metadata

    return _tensors(lambda: get_safetensors_metadata(path, revision=revision))
