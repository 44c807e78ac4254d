"""From kept rows to the stage's outputs: rendered, tokenised and checked in chunks on all cores, written split by split."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from stages.datasets.checks import contents
from stages.datasets.gathering import CHUNK_ROWS, SPLITS, Pool, whole_text
from stages.datasets.parallel import chunked, map_chunks
from stages.datasets.reading import DataError, Fault
from stages.datasets.rendering import Fitting, fit_rows
from stages.datasets.scripts import SCRIPTS, language, languages, scripts_by_text
from stages.pipeline.records import replacing

_LOOKED_AT = 200  # rows of a split among which examples are found
_TOKENIZER_CHARACTERS = 30_000_000  # more text changes no merge of a small vocabulary


class Finishing(NamedTuple):
    """What a worker needs to know to render rows."""

    role: str
    tokenizer: PreTrainedTokenizerBase
    fitting: Fitting


class Finished(NamedTuple):
    """One row: changed by a cut (its new line), unchanged (None), or a fault; its lengths; tokens that are bytes; tokens cut."""

    result: bytes | Fault | None
    lengths: tuple[int, int, int]
    byte_tokens: int
    cut_tokens: int


class SplitStatistics:
    """What is known of one split of a role: lengths in tokens, letters of each script, tokens that are bytes of a character."""

    def __init__(self) -> None:
        self.lengths: list[tuple[int, int, int]] = []
        self.scripts = np.zeros(len(SCRIPTS), dtype=np.int64)
        self.languages: Counter[str | None] = Counter()  # rows, by what their script tells
        self.byte_tokens = 0
        self.examples: dict[str | None, dict[str, Any]] = {}  # the first row of each language among the first rows

    def see(self, line: bytes, finished: Finished) -> None:
        """Counts a row that is written."""
        self.lengths.append(finished.lengths)
        self.byte_tokens += finished.byte_tokens
        if len(self.lengths) <= _LOOKED_AT:
            row = json.loads(line)
            self.examples.setdefault(language(whole_text(row)), row)


def tokenizer_texts(pools: Iterable[Pool]) -> Iterator[str]:
    """What is said in the kept training rows, up to 30 million characters spread evenly over them."""
    chosen = [(pool, pool.keep & (pool.columns["split"] == 0)) for pool in pools]
    size = sum(int(pool.columns["bytes"][keep].sum()) for pool, keep in chosen)
    step = max(1, -(-size // _TOKENIZER_CHARACTERS))
    for pool, keep in chosen:
        for place, (_, line) in enumerate(pool.lines(keep)):
            if place % step == 0:
                yield from (content for _, content in contents(json.loads(line)))


def finish(
    pool: Pool, tokenizer: PreTrainedTokenizerBase, fitting: Fitting, folder: Path, processes: int
) -> dict[str, SplitStatistics]:
    """Writes the kept rows of a role to `folder`/<split>.jsonl, but for those that cannot be fed to the model."""
    splits = SPLITS if pool.role == "prompts" else SPLITS[:2]
    statistics = {split: SplitStatistics() for split in splits}
    lines = pool.lines(pool.keep.copy())
    with ExitStack() as stack:
        files = {split: stack.enter_context(replacing(folder / f"{split}.jsonl")) for split in splits}
        bar = stack.enter_context(
            tqdm(desc=f"tokenise {pool.role}", total=int(pool.keep.sum()), unit=" rows", disable=None, mininterval=1)
        )
        context = Finishing(pool.role, tokenizer, fitting)
        for chunk, (results, scripts) in _results(context, pool, lines, processes):
            for (index, line), finished in zip(chunk, results, strict=True):
                if isinstance(finished.result, Fault):
                    pool.tally.drop(pool.drop_of(index, finished.result))
                    pool.keep[index] = False
                    continue
                split = SPLITS[int(pool.columns["split"][index])]
                row_line = line if finished.result is None else finished.result
                files[split].write(row_line.decode())
                statistics[split].see(row_line, finished)
                if finished.cut_tokens:
                    pool.tally.noted[(pool.sources[pool.columns["source"][index]].name, "cut")] += 1
            for number, (counts, spoken) in scripts.items():
                statistics[SPLITS[number]].scripts += counts
                statistics[SPLITS[number]].languages.update(spoken)
            bar.update(len(chunk))
    _refuse_equal_ids(pool, folder)
    return statistics


def require_training_rows(pool: Pool, statistics: dict[str, SplitStatistics]) -> None:
    """Refuses a role of which rows were given and none is left to train on."""
    if pool.tally.rows_in and pool.role != "prompts" and not statistics["train"].lengths:
        why = ", ".join(f"{reason} {count}" for (_, reason), count in pool.tally.dropped.items())
        raise DataError(
            f"{pool.role}: expected rows to train on, found none of {sum(pool.tally.rows_in.values())} kept "
            f"(dropped: {why or 'none'}). Clean the files, or correct the sources' `into`."
        )


def _results(context: Finishing, pool: Pool, lines: Iterator[tuple[int, bytes]], processes: int) -> Iterator[tuple[Any, Any]]:
    """Each chunk of (index, line) with what the workers made of it."""
    pending: list[list[tuple[int, bytes]]] = []

    def remembered() -> Iterator[list[tuple[int, bytes]]]:
        for chunk in chunked(lines, CHUNK_ROWS):
            pending.append(chunk)
            yield [(int(pool.columns["split"][index]), line) for index, line in chunk]

    for result in map_chunks(work_rows, context, remembered(), processes):
        yield pending.pop(0), result


def work_rows(
    context: Finishing, rows: list[tuple[int, bytes]]
) -> tuple[list[Finished], dict[int, tuple[np.ndarray, Counter[str | None]]]]:
    """Renders and checks a chunk of lines, each with the number of its split; letters by script and rows by language of each."""
    values = [json.loads(line) for _, line in rows]
    finished: list[Finished] = []
    texts: dict[int, list[str]] = {}
    for (split, _), value, fitted in zip(
        rows, values, fit_rows(context.tokenizer, context.role, values, context.fitting), strict=True
    ):
        if isinstance(fitted, Fault):
            finished.append(Finished(fitted, (0, 0, 0), 0, 0))
            continue
        line = None if fitted.row is value else json.dumps(fitted.row, ensure_ascii=False).encode() + b"\n"
        lengths = (fitted.prompt_tokens, *fitted.completion_tokens, 0, 0)[:3]
        finished.append(Finished(line, lengths, fitted.byte_tokens, fitted.cut_tokens))  # type: ignore[arg-type]
        texts.setdefault(split, []).append(whole_text(fitted.row))
    counts = {split: scripts_by_text(said) for split, said in texts.items()}
    return finished, {split: (count.sum(axis=0), Counter(languages(count))) for split, count in counts.items()}


def _refuse_equal_ids(pool: Pool, folder: Path) -> None:
    """Prompts are known by their ids from here on: completions, verdicts and scores are joined on them."""
    if pool.role != "prompts":
        return
    ids: Counter[str] = Counter()
    for split in SPLITS:
        with (folder / f"{split}.jsonl").open(encoding="utf-8") as file:
            ids.update(str(json.loads(line)["id"]) for line in file)
    if double := [name for name, count in ids.items() if count > 1]:
        raise DataError(
            f"prompts: expected ids that are each used once, found {double[:3]} twice or more. Leave `id` out of `fields`."
        )
