"""From items to rows: parses, converts, checks and scans every row of a role, in chunks on all cores, into a spool on disk.

What must be known of all rows at once (digests, MinHash signatures, splits, positions) stays in memory as arrays, about 550 bytes a row
with near-duplicate search. The rows themselves stay on disk until it is decided which are kept.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import numpy as np
from tqdm import tqdm

from plumbline.checking.expectations import COMPLIANCE, EXPECTATIONS, REFUSAL
from plumbline.checking.instructions import COLUMN, read_instructions
from plumbline.checking.quantities import ambiguity
from plumbline.data.checks import check_content, for_role, unused_keys
from plumbline.data.decontamination import overlapping
from plumbline.data.duplicates import PERMUTATIONS, digest, signatures
from plumbline.data.faults import Fault, RowFault
from plumbline.data.formats import converter
from plumbline.data.marks import compare_scores, refuse_bad_demonstration
from plumbline.data.parallel import map_chunks
from plumbline.data.personal_data import apply_policy
from plumbline.data.plans import RolePlan
from plumbline.data.reading import Item, parsed
from plumbline.data.schema import SPLITS, Source
from plumbline.data.scripts import language
from plumbline.data.spool import CHUNK_ROWS, COLUMNS, TRAIN, Drop, Pool
from plumbline.data.texts import identity, prompt_text, question_text, whole_text
from plumbline.data.transcripts import unrolled
from plumbline.pipeline.records import chunked
from plumbline.rows import Row


class Notes(NamedTuple):
    """What is reported of rows that are kept."""

    personal: Counter[str]
    """Personal data by kind."""
    ties: Counter[str]
    """Pairs with equal scores, by source."""
    unused: Counter[tuple[str, str]]
    """Keys of messages that nothing uses, by source and key."""


class Chunk(NamedTuple):
    """What a worker makes of a chunk of items."""

    lines: list[bytes]
    columns: np.ndarray
    signatures: np.ndarray
    files: list[str]
    rows: list[int]
    drops: list[Drop]
    rows_in: Counter[str]
    notes: Notes


def gather(plan: RolePlan, items: Iterable[tuple[int, Item]], spool: Path, processes: int) -> Pool:
    """Reads all items of a role, each with the number of its source, into a pool."""
    pool = Pool(plan, spool)
    columns, signature_parts, positions = [], [], []
    numbers: dict[str, int] = {}
    with spool.open("wb") as file, tqdm(desc=f"read {plan.role}", unit=" rows", disable=None, mininterval=1) as bar:
        for chunk in map_chunks(work_chunk, plan, chunked(items, CHUNK_ROWS), processes):
            file.writelines(chunk.lines)
            columns.append(chunk.columns)
            signature_parts.append(chunk.signatures)
            files = [numbers.setdefault(name, len(numbers)) for name in chunk.files]
            positions.append(np.array([files, chunk.rows], dtype=np.int64).T)
            pool.tally.rows_in.update(chunk.rows_in)
            for drop in chunk.drops:
                pool.tally.drop(drop)
            for kind, count in chunk.notes.personal.items():
                pool.tally.noted[(plan.role, kind)] += count
            for name, count in chunk.notes.ties.items():
                pool.tally.noted[(name, "tied_scores")] += count
            pool.tally.unused.update(chunk.notes.unused)
            bar.update(sum(chunk.rows_in.values()))
    if numbers:
        pool.columns = np.concatenate(columns)
        pool.signatures = np.concatenate(signature_parts)
        pool.positions = np.concatenate(positions)
    pool.files = list(numbers)
    pool.keep = np.ones(len(pool.columns), dtype=bool)
    return pool


def work_chunk(plan: RolePlan, items: list[tuple[int, Item]]) -> Chunk:
    """Converts, checks and measures a chunk of items."""
    rows, lines, positions, drops = [], [], [], []
    rows_in: Counter[str] = Counter()
    notes = Notes(Counter(), Counter(), Counter())
    for number, item in items:
        source = plan.sources[number]
        rows_in[source.name] += 1
        try:
            row = convert(plan, number, item, notes)
            line = _line(row)
        except RowFault as error:
            drops.append(Drop(source.name, error.fault.reason, _printable(error.fault.detail), item.file, item.row))
            continue
        rows.append(row)
        lines.append(line)
        positions.append((number, item.file, item.row))
    columns = np.zeros(len(rows), dtype=COLUMNS)
    texts = [whole_text(row) for row in rows]
    columns["source"] = [number for number, _, _ in positions]
    columns["bytes"] = list(map(len, lines))
    columns["digest"] = [digest(identity(row)) for row in rows]
    columns["split"] = [
        _split(plan, plan.sources[number], prompt_text(row) or text)
        for (number, _, _), row, text in zip(positions, rows, texts, strict=True)
    ]
    if plan.overlaps is not None:
        columns["overlap"] = overlapping(plan.overlaps, texts, [question_text(row) for row in rows])
    near = plan.policy.near_duplicates != "off"
    signature = signatures(texts) if near else np.zeros((0, PERMUTATIONS), dtype=np.uint32)
    files, row_numbers = [file for _, file, _ in positions], [row_number for _, _, row_number in positions]
    return Chunk(lines, columns, signature, files, row_numbers, drops, rows_in, notes)


def convert(plan: RolePlan, number: int, item: Item, notes: Notes) -> Row:
    """An item of source `number` as a checked row of the role, with its provenance; RowFault if it cannot be one."""
    source = plan.sources[number]
    content = parsed(item)
    if isinstance(content, Fault):
        raise RowFault(*content)
    record = converter(plan.formats[number])(content, source)
    if plan.role == "sft" and record.kind != "preference":
        refuse_bad_demonstration(content, source)
    is_tied = record.kind == "preference" and plan.role != "prompts" and compare_scores(content, source)
    row = for_role(plan.role, record)
    unused = unused_keys(row)
    row = unrolled(row)
    check_content(plan.role, row)
    scanned = apply_policy(row, plan.policy.personal_data, notes.personal)
    if scanned is not row:  # masking may have made two answers equal
        check_content(plan.role, scanned)
        row = scanned
    if is_tied:
        notes.ties[source.name] += 1
    notes.unused.update((source.name, key) for key in unused)
    extra = {key: value for key, value in record.extra.items() if key not in row}
    if plan.role == "prompts":
        refuse_ambiguous_answer(extra)
        extra |= expectation(extra, source) | instructions(extra, source)
        named = extra.pop("language", None)
        spoken = language_code(named) if named else language(prompt_text(row))
        row, extra = {"id": id_of(row), **row, "family": None, "language": spoken, **extra}, {}
    provenance = {"source": source.name, "file": item.file, "row": item.row, "licence": source.licence}
    return {**row, **extra, **provenance} if source.licence else {**row, **extra}


def refuse_ambiguous_answer(extra: Row) -> None:
    """Raises a RowFault for an `answer`, which maths is checked against, that can be read in two ways; prose is nobody's reference."""
    answer = str(extra.get("answer", ""))
    if not re.search(r"[^\W\d_]{3}", re.sub(r"\\[A-Za-z]+", "", answer)) and (why := ambiguity(answer)):
        raise RowFault("ambiguous_answer", f"{answer[:60]!r}: {why}")


def expectation(extra: Row, source: Source) -> Row:
    """The column `expects` of a prompt whose row or source says what it calls for; empty if neither does.

    Raises:
        RowFault: the row's value is neither an expectation nor one that the source maps to it.
    """
    if (stated := extra.get("expects")) is None:
        return {"expects": source.expects} if source.expects else {}
    value = normalize("NFC", str(stated))
    expects = COMPLIANCE if value in source.positive else REFUSAL if value in source.negative else value
    if expects not in EXPECTATIONS:
        expected = f"{' or '.join(EXPECTATIONS)}, or a value of `positive` or `negative`"
        raise RowFault("wrong_type", f"'expects': expected {expected}, found {value[:40]!r}")
    return {"expects": expects}


def instructions(extra: Row, source: Source) -> Row:
    """The column `instructions` of a prompt whose row or source states some, as all rows spell it; empty if neither does.

    Raises:
        RowFault: one of them cannot be checked.
    """
    stated = extra.get(COLUMN) or source.instructions
    try:
        return {COLUMN: read_instructions(stated)} if stated else {}
    except ValueError as error:
        raise RowFault("bad_instruction", str(error)) from None


_CODES = {"english": "en", "eng": "en", "korean": "ko", "kor": "ko"}


def language_code(stated: object) -> str:
    """A language as the project names it: `en` for `EN`, `en-US`, `eng` and `English`, and so for Korean; another one in small letters."""
    code = re.split("[-_]", str(stated).strip().lower())[0]
    return _CODES.get(code, code)


def id_of(row: Row) -> str:
    """The id of a prompt that the data give none: a hash of its text."""
    return f"{digest(prompt_text(row)):016x}"


def _line(row: Row) -> bytes:
    """A row as a line of JSON; RowFault if an extra column cannot be written, such as a date of a Parquet file."""
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError as error:
        raise RowFault("bad_text", f"a lone surrogate U+{ord(error.object[error.start]):04X} in an extra column") from None
    except (TypeError, ValueError) as error:
        raise RowFault("wrong_type", f"an extra column that JSON cannot express: {error}") from None


def _split(plan: RolePlan, source: Source, prompt: str) -> int:
    """The split of a row, by a hash of its prompt: the same prompt is in the same split in every role and source, with every seed."""
    if source.into is not None:
        return SPLITS.index(source.into)
    fraction = digest(" ".join(prompt.lower().split())) / 2**63
    if fraction < plan.test_fraction:
        return SPLITS.index("test") if plan.role == "prompts" else TRAIN
    return SPLITS.index("validation") if fraction < plan.test_fraction + plan.validation_fraction else TRAIN


def _printable(detail: str) -> str:
    return detail[:160].encode("utf-8", "backslashreplace").decode()
