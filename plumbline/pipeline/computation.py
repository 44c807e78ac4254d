"""What identifies a stage's computation: its values, its inputs, and the files of the project that it runs on.

Shards and checkpoints of an interrupted run are taken over only by the same computation. A file that the stage does not read changes nothing: an edit
of the report loses no shard.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from plumbline.pipeline.provenance import Input
from plumbline.pipeline.sources import files_digest, files_read_by


def computation_key(values: str, inputs: Sequence[Input], modules: Iterable[str]) -> str:
    """A hash of a stage's values, as text, of its inputs' digests, and of all files that its modules run on."""
    digest = hashlib.sha256(values.encode())
    for item in inputs:
        digest.update(f"{item.path} {item.digest}\n".encode())
    digest.update(files_digest(files_read_by(modules)).encode())
    return digest.hexdigest()[:16]


def modules_of_stage(stage: str, config: Any, loads: Iterable[str]) -> list[str]:
    """The modules that a stage starts from: its own, those of the classes of its config, and those that it loads by their name."""
    return [f"stages.{stage}", *_schema_modules(config), *loads]


def _schema_modules(value: Any) -> Iterator[str]:
    """The modules of the classes that a config and the configs in it are of: their methods may compute, though no statement imports them."""
    if dataclasses.is_dataclass(value):
        yield type(value).__module__
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, Mapping):
        value = [*value.values()]
    for item in value if isinstance(value, list | tuple) else ():
        yield from _schema_modules(item)
