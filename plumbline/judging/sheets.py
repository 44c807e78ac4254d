"""Sheets for annotators: blank sheets out, filled sheets in.

A blank sheet has each prompt's distinct answers, shuffled, without their reasoning and without the policy's name. Annotators fill in
`annotator` and `verdict`: for each row a rank (1 is the best) or a rating from 1 to 10, as its column `way` says, or `A`, `B` or `tie` for
each pair. Several filled sheets may be joined in one file, or lie in one folder, such as a sheet for each annotator.

Answers are identified by a digest of their text, so that no key to the sheet is needed, and a verdict stays valid in another sample.
"""

import csv
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plumbline.judging.store import content_key
from plumbline.judging.templates import rendered_conversation
from plumbline.judging.verdicts import COMPARISON, parse_choice, parse_rating
from plumbline.pipeline.records import read_jsonl, write_jsonl
from plumbline.reasoning import ALL, without_reasoning
from plumbline.rows import Message, Row, conversation_text, text_of

WAYS = ("ranking", "rating", "pairwise")
EXPECTED = {"ranking": "a rank (1 the best)", "rating": "a rating from 1 to 10", "pairwise": "A, B or tie"}
"""What annotators write as a verdict."""


def item_code(prompt: Sequence[Message], completion: str) -> str:
    """The code of a completion on a sheet: 16 hex digits of a digest of prompt and completion, which tell nothing about its policy.

    The letter before them keeps spreadsheets from reading 12e4… as a number and saving a different text.
    """
    return "c" + content_key([prompt, completion])[:16]


def sheet(rows: Iterable[Mapping[str, Any]], way: str, seed: int, prompts: int = 0, thinking_marks: str = ALL) -> list[Row]:
    """The rows to annotate: prompts in order, the distinct answers to each shuffled, and nothing that tells who wrote them.

    Prompts with fewer than two distinct answers are left out unless answers are rated. `prompts` limits their number (0: all), and
    `thinking_marks` set apart the reasoning of a completion, which is not shown.
    """
    groups: dict[str, tuple[list[Message], list[str]]] = {}
    for row in rows:
        texts = groups.setdefault(row["id"], (row["prompt"], []))[1]
        answer = without_reasoning(text_of(row["completion"]), thinking_marks)
        if answer not in texts:
            texts.append(answer)
    blank = []
    selected = [group for group in groups.values() if way == "rating" or len(group[1]) > 1][: prompts or None]
    for number, (prompt, texts) in enumerate(selected, 1):
        random.Random(f"{seed}:{rendered_conversation(prompt)}").shuffle(texts)
        question: Row = {"task": number, "way": way, "conversation": conversation_text(prompt)}
        if way == "pairwise":
            for first, second in zip(texts[::2], texts[1::2], strict=False):
                items = {"item_a": item_code(prompt, first), "item_b": item_code(prompt, second)}
                blank.append({**question, "answer_a": first, "answer_b": second, "annotator": "", "verdict": "", **items})
        else:
            for text in texts:
                blank.append({**question, "answer": text, "annotator": "", "verdict": "", "item": item_code(prompt, text)})
    return blank


def export(
    rows: Iterable[Mapping[str, Any]], stem: Path, way: str, seed: int, prompts: int = 0, thinking_marks: str = ALL
) -> list[Path]:
    """Writes the blank sheet as `<stem>.csv` and `<stem>.jsonl`, and returns their paths.

    Raises:
        FileExistsError: one of the files exists; it may be a filled sheet.
        ValueError: there is nothing to annotate.
    """
    blank = sheet(rows, way, seed, prompts, thinking_marks)
    paths = [stem.with_name(stem.name + suffix) for suffix in (".csv", ".jsonl")]
    if existing := [str(path) for path in paths if path.exists()]:
        raise FileExistsError(f"export: {', '.join(existing)} exists and may be filled in: choose another name, or remove it")
    if not blank:
        raise ValueError("export: expected completions to annotate, found none")
    stem.parent.mkdir(parents=True, exist_ok=True)
    with paths[0].open("w", encoding="utf-8-sig", newline="") as file:  # the byte-order mark lets spreadsheets read Korean
        writer = csv.DictWriter(file, blank[0].keys())
        writer.writeheader()
        writer.writerows(blank)
    write_jsonl(paths[1], blank)
    return paths


def read_sheet(path: Path) -> list[Row]:
    """The filled rows of a sheet, or of all sheets in a folder.

    Raises:
        ValueError: a filled row lacks a column, has a verdict that cannot be read, or contradicts another; the message names the row.
    """
    files = sorted(file for file in path.iterdir() if file.suffix in (".csv", ".jsonl")) if path.is_dir() else [path]
    filled: list[Row] = []
    seen: dict[tuple[str, ...], tuple[str, str]] = {}
    for file in files:
        for number, row in _numbered(file):
            verdict = "" if row.get("verdict") is None else str(row["verdict"]).strip()
            if not verdict:
                continue
            where = f"{file}, {'row' if file.suffix == '.csv' else 'line'} {number}"
            way, annotator, items = _read_row(row, verdict, where)
            earlier, earlier_row = seen.setdefault((way, annotator, *items), (verdict, where))
            if earlier != verdict:
                raise ValueError(
                    f"{where}: expected one verdict of {annotator!r} on each item, found {verdict!r} after {earlier!r} in {earlier_row}"
                )
            filled.append({**row, "way": way, "annotator": annotator, "verdict": verdict})
    if not filled:
        raise ValueError(f"{path}: expected rows with a verdict, found none: annotators fill in `annotator` and `verdict`")
    return filled


def _numbered(path: Path) -> list[tuple[int, Row]]:
    """A sheet's rows, numbered as a spreadsheet or an editor shows them."""
    if path.suffix != ".csv":
        return [*enumerate(read_jsonl(path), 1)]
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            start = file.readline()
            file.seek(0)
            # In some countries, spreadsheets save with semicolons.
            return [*enumerate(csv.DictReader(file, delimiter=";" if start.count(";") > start.count(",") else ","), 2)]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected UTF-8, found {error.object[error.start : error.end]!r}: save as `CSV UTF-8`"
        ) from error


def _read_row(row: Row, verdict: str, where: str) -> tuple[str, str, tuple[str, ...]]:
    """The way, the annotator and the items of a filled row."""
    annotator, items = str(row.get("annotator") or "").strip(), _items(row)
    if not annotator or not items:
        raise ValueError(f"{where}: a verdict needs annotator and item, or item_a and item_b; found {row}")
    way = "pairwise" if len(items) == 2 else str(row.get("way") or "")
    if not _readable(way, verdict):
        raise ValueError(f"{where}: expected {EXPECTED.get(way, f'one of the ways {WAYS}')}, found {verdict!r} ({way=})")
    return way, annotator, items


def _items(row: Row) -> tuple[str, ...]:
    names = ("item",) if row.get("item") else ("item_a", "item_b")
    items = tuple(str(row.get(name) or "") for name in names)
    return items if all(items) else ()


def _readable(way: str, verdict: str) -> bool:
    if way == "pairwise":
        return parse_choice(f"Verdict: {verdict}", COMPARISON) is not None
    if way == "rating":
        return parse_rating(f"Rating: {verdict}") is not None
    return way == "ranking" and re.fullmatch(r"\d{1,4}(\.\d+)?", verdict) is not None
