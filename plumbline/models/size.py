"""Whether a model is of the size that its file in conf/model/ names, by its number of parameters."""

from dataclasses import dataclass

from plumbline.models.model_files import loaded_tensors
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
    """The number of parameters that a folder or a hub id has once it is loaded, by the headers of its safetensors files.

    None if they cannot be read.
    """
    tensors = loaded_tensors(path, revision)
    return None if tensors is None else sum(tensor.parameter_count for tensor in tensors.values())
