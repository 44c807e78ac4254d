"""From files to rows: read, convert, check and scan every row of a role, in chunks on all cores, into a spool on disk.

What must be known of all rows at once (digests, MinHash signatures, splits, places) stays in memory as arrays: about 550 bytes a
row with near-duplicate search. The rows themselves wait on disk until it is decided which are kept.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from stages.datasets.checks import REASONS, check_content, check_policy, contents, for_role
from stages.datasets.config import FilesData, Policy, Source
from stages.datasets.decontamination import Overlaps, overlapping
from stages.datasets.duplicates import PERMUTATIONS, digest, signatures
from stages.datasets.formats import RowFault, converter, format_of, unused_fields
from stages.datasets.parallel import chunked, map_chunks
from stages.datasets.personal_data import may_hold_any, scan
from stages.datasets.reading import DataError, Fault, Item, parse_line, read_source
from stages.datasets.scripts import language

CHUNK_ROWS = 1000
SPLITS = ("train", "validation", "test")
_SAMPLE_ROWS = 50  # read to detect a format, and which fields it does not use
_EXAMPLES = 5


class Gathering(NamedTuple):
    """What a worker needs to know to turn items into rows of a role."""

    role: str
    sources: list[Source]
    formats: list[str]
    unused: list[list[str]]  # fields of each source that its format takes no notice of
    policy: Policy
    validation_fraction: float
    test_fraction: float
    overlaps: Overlaps | None


class Drop(NamedTuple):
    """A row that is not used: why, and where it stands."""

    source: str
    reason: str
    found: str
    file: str
    row: int


class Chunk(NamedTuple):
    """What a worker made of a chunk of items."""

    lines: list[bytes]
    columns: np.ndarray
    signatures: np.ndarray
    files: list[str]
    rows: list[int]
    drops: list[Drop]
    rows_in: Counter[str]
    personal: Counter[str]


COLUMNS = np.dtype([("source", "i4"), ("split", "i1"), ("digest", "i8"), ("overlap", "?"), ("bytes", "i4")])


class Tally:
    """Rows in and dropped by source and reason, with the first examples of each."""

    def __init__(self) -> None:
        self.rows_in: Counter[str] = Counter()
        self.dropped: Counter[tuple[str, str]] = Counter()
        self.examples: dict[tuple[str, str], list[Drop]] = {}
        self.noted: Counter[tuple[str, str]] = Counter()  # reported, but kept: duplicates, personal data, cut prompts

    def drop(self, drop: Drop) -> None:
        """Counts one dropped row."""
        key = (drop.source, drop.reason)
        self.dropped[key] += 1
        self.example(drop)

    def example(self, drop: Drop) -> None:
        """Keeps a row as an example of a reason, if there are few yet."""
        examples = self.examples.setdefault((drop.source, drop.reason), [])
        if len(examples) < _EXAMPLES:
            examples.append(drop)


class Pool:
    """A role's rows: on disk, with what is known of each in arrays of the same length."""

    def __init__(self, gathering: Gathering, spool: Path) -> None:
        self.role = gathering.role
        self.sources = gathering.sources
        self.formats = gathering.formats
        self.unused = gathering.unused
        self.spool = spool
        self.tally = Tally()
        self.columns = np.zeros(0, dtype=COLUMNS)
        self.keep = np.zeros(0, dtype=bool)
        self.signatures = np.zeros((0, PERMUTATIONS), dtype=np.uint32)
        self.files: list[str] = []
        self.places = np.zeros((0, 2), dtype=np.int64)  # file number, row number

    def lines(self, wanted: np.ndarray) -> Iterator[tuple[int, bytes]]:
        """The wanted rows in order, as (index, line); `wanted` may change while they are read."""
        with self.spool.open("rb") as file:
            for index, size in enumerate(self.columns["bytes"].tolist()):
                line = file.read(size)
                if wanted[index]:
                    yield index, line

    def drop_of(self, index: int, fault: Fault) -> Drop:
        """A row of the pool as a drop."""
        file, row = self.places[index]
        return Drop(self.sources[self.columns["source"][index]].name, fault.reason, fault.found, self.files[file], int(row))


def gather(gathering: Gathering, items: Iterable[tuple[int, Item]], spool: Path, processes: int) -> Pool:
    """Reads all items of a role into a pool."""
    pool = Pool(gathering, spool)
    columns, signature_parts, places = [], [], []
    numbers: dict[str, int] = {}
    with spool.open("wb") as file, tqdm(desc=f"read {gathering.role}", unit=" rows", disable=None, mininterval=1) as bar:
        for chunk in map_chunks(work_chunk, gathering, chunked(items, CHUNK_ROWS), processes):
            file.writelines(chunk.lines)
            columns.append(chunk.columns)
            signature_parts.append(chunk.signatures)
            files = [numbers.setdefault(name, len(numbers)) for name in chunk.files]
            places.append(np.array([files, chunk.rows], dtype=np.int64).T)
            pool.tally.rows_in.update(chunk.rows_in)
            for drop in chunk.drops:
                pool.tally.drop(drop)
            for kind, count in chunk.personal.items():
                pool.tally.noted[(gathering.role, kind)] += count
            bar.update(sum(chunk.rows_in.values()))
    if len(numbers):
        pool.columns = np.concatenate(columns)
        pool.signatures = np.concatenate(signature_parts)
        pool.places = np.concatenate(places)
    pool.files = list(numbers)
    pool.keep = np.ones(len(pool.columns), dtype=bool)
    return pool


def files_role(role: str, data: FilesData, inputs: Path) -> tuple[Gathering, Iterator[tuple[int, Item]]]:
    """What a role is made from, by the data conf; DataError for a source that cannot be read, before any work."""
    check_policy(data)
    sources = named(role, getattr(data, role).sources)
    formats, unused, items = read_items(sources, inputs, data.policy.line_mib)
    split = (data.validation_fraction, data.test_fraction)
    return Gathering(role, sources, formats, unused, data.policy, *split, None), items


def world_role(role: str, files: dict[str, list[dict[str, Any]]], policy: Policy) -> tuple[Gathering, Iterator[tuple[int, Item]]]:
    """What a role is made from, by rows that are split already, named as their files below artifacts/data."""
    found = {split: files.get(f"{role}/{split}.jsonl", []) for split in SPLITS}
    sources = [Source(name=f"closed world, {split}", into=split, licence="") for split, rows in found.items() if rows]
    items = (
        (number, Item(f"{role}/{source.into}", place, row))
        for number, source in enumerate(sources)
        for place, row in enumerate(found[str(source.into)], 1)
    )
    return Gathering(role, sources, ["plumbline"] * len(sources), [[] for _ in sources], policy, 0.0, 0.0, None), items


def named(role: str, sources: list[Source]) -> list[Source]:
    """Sources with names: their own, or the first file or hub id. DataError for ambiguous or contradictory ones."""
    splits = SPLITS if role == "prompts" else SPLITS[:2]  # only prompts are tested on
    for source in sources:
        source.name = source.name or source.hub or (source.files[0] if source.files else "")
        if bool(source.files) == bool(source.hub):
            raise DataError(
                f"data source '{source.name}': expected either `files` or `hub`, found {'both' if source.hub else 'neither'}."
            )
        if source.into not in (None, *splits):
            raise DataError(
                f"data source '{source.name}': expected `into` of a source of {role} to be one of {', '.join(splits)}, "
                f"found '{source.into}'."
            )
        if source.limit is not None and source.limit < 1:
            raise DataError(f"data source '{source.name}': expected `limit` to be at least 1, found {source.limit}.")
        if both := sorted(set(source.positive) & set(source.negative)):
            raise DataError(f"data source '{source.name}': expected values of one meaning, found {both} good and bad.")
        if not source.licence.strip():
            raise DataError(f"data source '{source.name}': expected a licence, found none. Write `unknown` where none is stated.")
    names = Counter(source.name for source in sources)
    if double := [name for name, count in names.items() if count > 1]:
        raise DataError(f"expected sources of different names in a role, found '{double[0]}' twice. Set `name`.")
    return sources


def read_items(
    sources: list[Source], inputs: Path, line_mib: int
) -> tuple[list[str], list[list[str]], Iterator[tuple[int, Item]]]:
    """The format of each source, the fields that it takes no notice of, and the items of all as (source number, item)."""
    formats, unused, streams = [], [], []
    for number, source in enumerate(sources):
        items = read_source(source, inputs, line_mib)
        head = list(islice(items, _SAMPLE_ROWS))
        parsed = [parse_line(item.content) if isinstance(item.content, bytes) else item.content for item in head]
        sample = [row for row in parsed if isinstance(row, dict)]
        if head and not sample and source.format == "auto" and not source.fields:
            fault = next(row for row in parsed if isinstance(row, Fault))
            raise DataError(
                f"{head[0].file}:{head[0].row}: expected rows, found none in the first {len(head)} that can be read: "
                f"{fault.reason}, {fault.found}. Is it the file it is named as? Remedy: {REASONS[fault.reason].remedy}."
            )
        formats.append(format_of(source, sample))
        unused.append(unused_fields(formats[-1], source, sample))
        streams.append((number, chain(head, items)))
    return formats, unused, ((number, item) for number, stream in streams for item in stream)


def work_chunk(gathering: Gathering, items: list[tuple[int, Item]]) -> Chunk:
    """Converts, checks and measures a chunk of items."""
    rows, lines, kept, drops = [], [], [], []
    rows_in: Counter[str] = Counter()
    personal: Counter[str] = Counter()
    for number, item in items:
        source = gathering.sources[number]
        rows_in[source.name] += 1
        try:
            row = convert(gathering, number, item, personal)
            line = _line(row)
        except RowFault as error:
            drops.append(Drop(source.name, error.fault.reason, _safe(error.fault.found), item.file, item.row))
            continue
        rows.append(row)
        lines.append(line)
        kept.append((number, item))
    columns = np.zeros(len(rows), dtype=COLUMNS)
    texts = [whole_text(row) for row in rows]
    prompts = [prompt_text(row) for row in rows]
    questions = [question_text(row) for row in rows]
    columns["source"] = [number for number, _ in kept]
    columns["bytes"] = list(map(len, lines))
    columns["digest"] = [digest(identity(row)) for row in rows]
    columns["split"] = [
        _split(gathering, gathering.sources[number], prompt or text)
        for (number, _), prompt, text in zip(kept, prompts, texts, strict=True)
    ]
    if gathering.overlaps is not None:
        columns["overlap"] = overlapping(gathering.overlaps, texts, questions)
    near = gathering.policy.near_duplicates != "off"
    signature = signatures(texts) if near else np.zeros((0, PERMUTATIONS), dtype=np.uint32)
    files, numbers = [item.file for _, item in kept], [item.row for _, item in kept]
    return Chunk(lines, columns, signature, files, numbers, drops, rows_in, personal)


def convert(gathering: Gathering, number: int, item: Item, personal: Counter[str]) -> dict[str, Any]:
    """An item as a checked row of the role with its provenance; RowFault where it cannot be one."""
    source, name = gathering.sources[number], gathering.formats[number]
    content = parse_line(item.content) if isinstance(item.content, bytes) else item.content
    if isinstance(content, Fault):
        raise RowFault(*content)
    record = converter(name)(content, source)
    row = for_role(gathering.role, record)
    check_content(gathering.role, row)
    scanned = _scanned(row, gathering.policy.personal_data, personal)
    if scanned is not row:  # two answers may be equal, now that what told them apart is masked
        check_content(gathering.role, scanned)
        row = scanned
    extra = {key: value for key, value in record.extra.items() if key not in row}
    if gathering.role == "prompts":
        told = {"id": f"{digest(prompt_text(row)):016x}", **row, "family": None, "language": language(prompt_text(row)), **extra}
        row, extra = told, {}
    provenance = {"source": source.name, "file": item.file, "row": item.row, "licence": source.licence}
    return {**row, **extra, **provenance} if source.licence else {**row, **extra}


def _scanned(row: dict[str, Any], policy: str, personal: Counter[str]) -> dict[str, Any]:
    """The row, masked if that is the policy; what was found is added to `personal`. RowFault if such rows are to be dropped."""
    found: Counter[str] = Counter()
    for _, content in contents(row) if policy != "off" else ():
        if may_hold_any(content):
            found.update(scan(content).found)
    if found and policy == "drop":
        raise RowFault("personal_data", ", ".join(f"{count} {kind}" for kind, count in sorted(found.items())))
    personal.update(found)
    return _masked(row) if found and policy == "mask" else row


def _masked(row: dict[str, Any]) -> dict[str, Any]:
    return {
        column: scan(value).masked
        if column == "text"
        else [{**turn, "content": scan(turn["content"]).masked} for turn in value]
        if isinstance(value, list)
        else value
        for column, value in row.items()
    }


def _line(row: dict[str, Any]) -> bytes:
    """A row as a line of JSON; RowFault for what is none: further columns are taken as they are, from Parquet and the hub too."""
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError as error:
        raise RowFault("bad_text", f"a lone surrogate U+{ord(error.object[error.start]):04X} in a further column") from None
    except (TypeError, ValueError) as error:
        raise RowFault("wrong_type", f"a further column that JSON cannot hold: {error}") from None


def identity(row: dict[str, Any]) -> str:
    """What makes two rows the same: every text in its place, who says it, and the label."""
    turns = [turn for column in ("messages", "prompt", "completion", "chosen", "rejected") for turn in (*row.get(column, ()), {})]
    said = "\x1e".join(f"{turn['role']}\x1f{turn['content']}" if turn else "" for turn in turns)
    return f"{row.get('text', '')}\x1e{said}\x1e{row.get('label', '')}"


def whole_text(row: dict[str, Any]) -> str:
    """All that is said in a row: what near duplicates and overlaps are found by."""
    return "\n".join(content for _, content in contents(row))


def prompt_text(row: dict[str, Any]) -> str:
    """What is asked in a row, all turns before the answer; "" for plain text."""
    turns = row.get("prompt") or [*row.get("messages", ())]
    if "messages" in row and turns and turns[-1]["role"] == "assistant":
        turns = turns[:-1]
    return "\n".join(turn["content"] for turn in turns)


def question_text(row: dict[str, Any]) -> str:
    """What is asked in a row without its system turns, which many rows share and none is recognised by."""
    return prompt_text(
        {key: [turn for turn in row.get(key, ()) if turn["role"] != "system"] for key in ("prompt", "messages") if key in row}
    )


def _split(gathering: Gathering, source: Source, prompt: str) -> int:
    """The split of a row, by a hash of what is asked: the same prompt is in the same split whatever role, source or seed."""
    if source.into is not None:
        return SPLITS.index(source.into)
    place = digest(" ".join(prompt.lower().split())) / 2**63
    if place < gathering.test_fraction:
        return 2 if gathering.role == "prompts" else 0
    return 1 if place < gathering.test_fraction + gathering.validation_fraction else 0


def _safe(found: str) -> str:
    return found[:160].encode("utf-8", "backslashreplace").decode()
