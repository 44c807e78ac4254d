"""Where the rows of a role come from: files and hub data sets by the data conf, or the closed world."""

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from plumbline.data.decontamination import Overlaps
from plumbline.data.faults import REASONS, DataError, Fault
from plumbline.data.formats import format_of, unused_fields
from plumbline.data.reading import Item, parsed, read_source
from plumbline.data.schema import SPLITS, FilesData, Policy, Source
from plumbline.rows import Row

_SAMPLE_ROWS = 50  # read to detect a format, and which fields it ignores


class RolePlan(NamedTuple):
    """How the rows of a role are made: what a worker needs to know."""

    role: str
    sources: list[Source]
    formats: list[str]
    """The format of each source."""
    unused: list[list[str]]
    """The fields of each source that its format ignores."""
    policy: Policy
    validation_fraction: float
    test_fraction: float
    overlaps: Overlaps | None
    """The evaluation prompts; None while they are not known, or if the policy does not look for them."""


class Incoming(NamedTuple):
    """What a role is made from: the plan, and the items of all sources in order, each with the number of its source."""

    plan: RolePlan
    items: Iterator[tuple[int, Item]]


def role_from_files(role: str, data: FilesData, inputs: Path) -> Incoming:
    """A role's rows by the data conf; a DataError for a source that cannot be read comes here, before any work."""
    sources = getattr(data, role).sources
    formats, unused, streams = [], [], []
    for number, source in enumerate(sources):
        items = read_source(source, inputs, data.policy.line_mib)
        head = list(islice(items, _SAMPLE_ROWS))
        sample = _sample(source, head)
        formats.append(format_of(source, sample))
        unused.append(unused_fields(formats[-1], source, sample))
        streams.append((number, chain(head, items)))
    plan = RolePlan(role, sources, formats, unused, data.policy, data.validation_fraction, data.test_fraction, None)
    return Incoming(plan, ((number, item) for number, stream in streams for item in stream))


def _sample(source: Source, head: list[Item]) -> list[Row]:
    """The first items that are rows; a DataError if the format is to be detected and none of them is."""
    rows = [parsed(item) for item in head]
    sample = [row for row in rows if isinstance(row, dict)]
    if head and not sample and source.format == "auto" and not source.fields:
        fault = next(row for row in rows if isinstance(row, Fault))
        raise DataError(
            f"{head[0].file}:{head[0].row}: expected rows, found none in the first {len(head)}: {fault.reason}, {fault.detail}. "
            f"Check that the file is what its name says. Remedy: {REASONS[fault.reason].remedy}."
        )
    return sample


def role_from_world(role: str, files: dict[str, list[Row]], policy: Policy) -> Incoming:
    """A role's rows from the closed world, which has split them already; `files` maps paths below artifacts/data to rows."""
    by_split = {split: files.get(f"{role}/{split}.jsonl", []) for split in SPLITS}
    sources = [Source(name=f"closed world, {split}", into=split, licence="") for split, rows in by_split.items() if rows]
    items = (
        (number, Item(f"{role}/{source.into}", row_number, row))
        for number, source in enumerate(sources)
        for row_number, row in enumerate(by_split[str(source.into)], 1)
    )
    return Incoming(RolePlan(role, sources, ["plumbline"] * len(sources), [[] for _ in sources], policy, 0.0, 0.0, None), items)
