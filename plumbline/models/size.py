"""Whether a model is of the size that its file in conf/model/ names, by its number of parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plumbline.pipeline.composing import size_section, sizes

PARAMETERS = "parameters"
"""The section of conf/size/<size>.yaml that says how many parameters a model of this size has."""


@dataclass
class ParameterRange:
    """How many parameters a model of a size has; any number if its file does not say."""

    least: float = 0.0
    most: float | None = None  # None: no limit

    def holds(self, count: int) -> bool:
        """Whether a model with `count` parameters is of this size."""
        return self.least <= count and (self.most is None or count <= self.most)

    def __str__(self) -> str:
        if self.most is None:
            return f"{in_words(self.least)} or more"
        least = f"{in_words(self.least)} to " if self.least else "up to "
        return least + in_words(self.most)


def in_words(count: float) -> str:
    """A number of parameters to three digits: `135 million`, `1.54 billion`."""
    for unit, name in ((1e9, "billion"), (1e6, "million")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:,.0f}"


def range_of(size: str) -> ParameterRange:
    """What conf/size/<size>.yaml says under `parameters`."""
    return ParameterRange(**size_section(size, PARAMETERS))


def wrong_size(size: str, count: int) -> str:
    """A complaint about a model with `count` parameters whose file in conf/model names another size; empty if it fits."""
    if range_of(size).holds(count):
        return ""
    fitting = sorted((name for name in sizes() if range_of(name).holds(count)), key=lambda name: range_of(name).least)
    return (
        f"size: expected {' or '.join(fitting) or 'another'} for a model of {in_words(count)} parameters, found {size}, whose learning rates are "
        f"for {range_of(size)}. Set size: {fitting[0] if fitting else 'that of a file of conf/size/'}"
    )


def require_size(size: str, count: int) -> None:
    """Refuses a model with `count` parameters if it is not of this size.

    Raises:
        ValueError: it is not; the message names the sizes that fit.
    """
    if complaint := wrong_size(size, count):
        raise ValueError(f"the model's file in conf/model: {complaint}")


def parameter_count(path: str, revision: str | None) -> int | None:
    """The number of parameters of a folder or a hub id, from the headers of its safetensors files; None if they cannot be read.

    Of a hub id the cached files are read, or the headers alone are fetched.
    """
    from huggingface_hub import get_local_safetensors_metadata, get_safetensors_metadata

    if Path(path).is_dir():
        return _total(lambda: get_local_safetensors_metadata(path))
    return _total(lambda: get_local_safetensors_metadata(_cached(path, revision))) or _total(
        lambda: get_safetensors_metadata(path, revision=revision)
    )


def _total(read: Callable[[], Any]) -> int | None:
    """The number of parameters in the metadata that `read` returns (huggingface_hub's SafetensorsRepoMetadata); None if it cannot."""
    from httpx2 import HTTPError  # of huggingface_hub's client
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

    try:
        return sum(read().parameter_count.values())
    except (OSError, ValueError, HTTPError, NotASafetensorsRepoError, SafetensorsParsingError):
        return None


def _cached(path: str, revision: str | None) -> Path:
    """The folder of a hub id in the local cache.

    Raises:
        FileNotFoundError: it is not there.
    """
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(path, "config.json", revision=revision)
    if not isinstance(config, str):
        raise FileNotFoundError(path)
    return Path(config).parent
