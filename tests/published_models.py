"""Folders of models as people have them: a sound one, headers of weights without the weights, and what a recipe's configs say of them."""

import json
import struct
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ppo_tiny import llama_config, tiny_policy
from transformers import PreTrainedTokenizerFast

from plumbline.hub_models import wrong_models
from plumbline.models.architecture import HubModel
from plumbline.models.saving import save_policy
from plumbline.models.tokenizers import SMALLEST_VOCABULARY, train_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PARAMS = {"model": "mine"}

SAVED_BYTES = {"F32": 4, "BF16": 2, "F8_E4M3": 1, "U8": 1}
"""Of an element, by the name that the header of a safetensors file gives to its precision."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, and the special tokens: it can write the answers with which a template is tried."""
    return train_tokenizer(["any text"], SMALLEST_VOCABULARY)


def save_model(folder: Path, **changes: Any) -> Path:
    """A sound Llama of a few thousand parameters, with a tokenizer and a chat template; `changes` of its config."""
    save_policy(tiny_policy(vocab_size=SMALLEST_VOCABULARY, **changes), byte_tokenizer(), folder)
    return folder


def write_headers(folder: Path, tensors: Mapping[str, Sequence[int]], saved_as: str = "BF16", **config: Any) -> Path:
    """A model's folder with a tokenizer, whose weights are a hole in the file: their header says `saved_as`, and nothing was written."""
    byte_tokenizer().save_pretrained(folder)
    llama_config(SMALLEST_VOCABULARY, **({"max_position_embeddings": 4096, "dtype": "bfloat16"} | config)).save_pretrained(folder)
    write_header(folder / "model.safetensors", tensors, saved_as)
    return folder


def write_header(file: Path, tensors: Mapping[str, Sequence[int]], saved_as: str = "BF16") -> None:
    """A safetensors file whose weights are a hole: it takes no room on most disks."""
    header, end = {}, 0
    for name, shape in tensors.items():
        start, end = end, end + SAVED_BYTES[saved_as] * prod(shape)
        header[name] = {"dtype": saved_as, "shape": [*shape], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.truncate(8 + len(text) + end)


def edit_json(file: Path, **changes: Any) -> None:
    """Changes values of a JSON file; None removes one."""
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def complaints(path: Path | str, revision: str | None = None, **nodes: Any) -> list[str]:
    """What `check` says of a model by its files; nodes: the values of further stages."""
    model = HubModel(path=str(path), revision=revision, size="tiny")
    configs: dict[Any, Any] = {("prepare", None): SimpleNamespace(model=model)}
    configs |= {(stage, None): SimpleNamespace(**{stage: SimpleNamespace(**values)}) for stage, values in nodes.items()}
    return [*(f"conf/model/mine.yaml: {problem}" for problem in model.problems()), *wrong_models(configs, PARAMS)]
