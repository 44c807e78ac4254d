"""From kept rows to the stage's outputs: rendered, tokenised and checked in chunks on all cores, written split by split."""

import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from plumbline.data.faults import DataError, Fault
from plumbline.data.gathering import id_of
from plumbline.data.parallel import map_chunks
from plumbline.data.rendering import Fitted, Fitting, fit_rows
from plumbline.data.schema import SPLITS, splits_of
from plumbline.data.scripts import SCRIPTS, language, languages, scripts_by_text
from plumbline.data.spool import CHUNK_ROWS, TRAIN, Pool
from plumbline.data.texts import contents, whole_text
from plumbline.pipeline.records import chunked, replacing
from plumbline.rows import Row

_EXAMPLE_ROWS = 200  # at the start of a split, among which examples are looked for
_TOKENIZER_CHARACTERS = 30_000_000  # more text does not change the merges of a small vocabulary


class RenderPlan(NamedTuple):
    """How the rows of a role are rendered: what a worker needs to know."""

    role: str
    tokenizer: PreTrainedTokenizerBase
    fitting: Fitting


class FinishedRow(NamedTuple):
    """A row that can be fed to the model."""

    line: bytes | None
    """The row as a new line, if its prompt was cut; None if it is unchanged."""
    lengths: tuple[int, int, int]
    """Tokens of the prompt (or text) and of up to two completions."""
    byte_tokens: int
    cut_tokens: int


class RenderedChunk(NamedTuple):
    """What a worker makes of a chunk of rows."""

    results: list[FinishedRow | Fault]
    scripts: dict[int, np.ndarray]
    """Letters by script, for each split in the chunk."""
    languages: dict[int, Counter[str | None]]
    """Rows by language, for each split in the chunk."""


class SplitSummary:
    """What is counted of one split of a role: lengths in tokens, letters of each script, rows of each language, byte tokens."""

    def __init__(self) -> None:
        self.lengths: list[tuple[int, int, int]] = []
        self.scripts = np.zeros(len(SCRIPTS), dtype=np.int64)
        self.languages: Counter[str | None] = Counter()
        self.byte_tokens = 0
        self.examples: dict[str | None, Row] = {}  # the first row of each language among the first rows

    def add(self, line: bytes, finished: FinishedRow) -> None:
        """Counts a row that is written."""
        self.lengths.append(finished.lengths)
        self.byte_tokens += finished.byte_tokens
        if len(self.lengths) <= _EXAMPLE_ROWS:
            row = json.loads(line)
            self.examples.setdefault(language(whole_text(row)), row)


def tokenizer_texts(pools: Iterable[Pool]) -> Iterator[str]:
    """The texts of the kept training rows, up to about 30 million characters, spread evenly over them."""
    training = [(pool, pool.keep & (pool.columns["split"] == TRAIN)) for pool in pools]
    size = sum(int(pool.columns["bytes"][keep].sum()) for pool, keep in training)
    step = max(1, -(-size // _TOKENIZER_CHARACTERS))
    for pool, keep in training:
        for number, (_, line) in enumerate(pool.lines(keep)):
            if number % step == 0:
                yield from (content for _, content in contents(json.loads(line)))


def write_role(
    pool: Pool, tokenizer: PreTrainedTokenizerBase, fitting: Fitting, folder: Path, processes: int
) -> dict[str, SplitSummary]:
    """Writes the kept rows of a role to `folder`/<split>.jsonl; rows that cannot be fed to the model are dropped here."""
    summaries = {split: SplitSummary() for split in splits_of(pool.role)}
    plan = RenderPlan(pool.role, tokenizer, fitting)
    with ExitStack() as stack:
        files = {split: stack.enter_context(replacing(folder / f"{split}.jsonl")) for split in summaries}
        bar = stack.enter_context(
            tqdm(desc=f"tokenise {pool.role}", total=int(pool.keep.sum()), unit=" rows", disable=None, mininterval=1)
        )
        for chunk, rendered in _rendered_chunks(plan, pool, processes):
            for (index, line), result in zip(chunk, rendered.results, strict=True):
                if isinstance(result, Fault):
                    pool.tally.drop(pool.drop_of(index, result))
                    pool.keep[index] = False
                    continue
                split = SPLITS[int(pool.columns["split"][index])]
                row_line = line if result.line is None else result.line
                files[split].write(row_line.decode())
                summaries[split].add(row_line, result)
                if result.cut_tokens:
                    pool.tally.noted[(pool.source_name(index), "cut")] += 1
            for number, letters in rendered.scripts.items():
                summaries[SPLITS[number]].scripts += letters
                summaries[SPLITS[number]].languages.update(rendered.languages[number])
            bar.update(len(chunk))
    _refuse_equal_ids(pool, folder)
    return summaries


def require_training_rows(pool: Pool, summaries: dict[str, SplitSummary]) -> None:
    """Raises a DataError if a role has sources but no row left to train on."""
    if pool.tally.rows_in and pool.role != "prompts" and not summaries["train"].lengths:
        dropped = ", ".join(f"{reason} {count}" for (_, reason), count in pool.tally.dropped.items())
        raise DataError(
            f"{pool.role}: expected rows to train on, found none among {sum(pool.tally.rows_in.values())} rows "
            f"(dropped: {dropped or 'none'}). Clean the files, or correct the sources' `into`."
        )


def _rendered_chunks(plan: RenderPlan, pool: Pool, processes: int) -> Iterator[tuple[list[tuple[int, bytes]], RenderedChunk]]:
    """Each chunk of kept rows, as (index, line), with what a worker made of it."""
    pending: deque[list[tuple[int, bytes]]] = deque()

    def submitted() -> Iterator[list[tuple[int, bytes]]]:
        lines = pool.lines(pool.keep.copy())
        for chunk in chunked(_with_distinct_ids(lines) if pool.role == "prompts" else lines, CHUNK_ROWS):
            pending.append(chunk)
            yield [(int(pool.columns["split"][index]), line) for index, line in chunk]

    for result in map_chunks(render_chunk, plan, submitted(), processes):
        yield pending.popleft(), result


def _with_distinct_ids(lines: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Prompts, as (index, line), with a number after each id made from a prompt that an earlier row has too; given ids stay as they are."""
    counts: Counter[str] = Counter()
    for index, line in lines:
        row = json.loads(line)
        counts[str(row["id"])] += 1
        if counts[str(row["id"])] > 1 and row["id"] == id_of(row):
            row["id"] = f"{row['id']}-{counts[row['id']]}"
            line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        yield index, line


def render_chunk(plan: RenderPlan, rows: list[tuple[int, bytes]]) -> RenderedChunk:
    """Renders and checks a chunk of rows, as (split, line)."""
    values = [json.loads(line) for _, line in rows]
    results: list[FinishedRow | Fault] = []
    texts: dict[int, list[str]] = {}
    fitted_rows = fit_rows(plan.tokenizer, plan.role, values, plan.fitting)
    for (split, _), value, fitted in zip(rows, values, fitted_rows, strict=True):
        if isinstance(fitted, Fault):
            results.append(fitted)
        else:
            results.append(_finished(value, fitted))
            texts.setdefault(split, []).append(whole_text(fitted.row))
    counts = {split: scripts_by_text(split_texts) for split, split_texts in texts.items()}
    return RenderedChunk(
        results,
        {split: count.sum(axis=0) for split, count in counts.items()},
        {split: Counter(languages(count)) for split, count in counts.items()},
    )


def _finished(row: dict[str, Any], fitted: Fitted) -> FinishedRow:
    line = None if fitted.row is row else json.dumps(fitted.row, ensure_ascii=False).encode() + b"\n"
    first, second = (*fitted.completion_tokens, 0, 0)[:2]
    return FinishedRow(line, (fitted.prompt_tokens, first, second), fitted.byte_tokens, fitted.cut_tokens)


def _refuse_equal_ids(pool: Pool, folder: Path) -> None:
    """Raises a DataError if two prompts have the same id: completions, verdicts and scores are joined on it."""
    if pool.role != "prompts":
        return
    ids: Counter[str] = Counter()
    for split in SPLITS:
        with (folder / f"{split}.jsonl").open(encoding="utf-8") as file:
            ids.update(str(json.loads(line)["id"]) for line in file)
    if repeated := [name for name, count in ids.items() if count > 1]:
        raise DataError(
            f"prompts: expected a different id for each, found {repeated[:3]} more than once in the data. Remove `id` from `fields`, or "
            "clean the file."
        )
