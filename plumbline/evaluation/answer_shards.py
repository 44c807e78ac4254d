"""Scores a policy's answers beside its opponent's, shard by shard.

Whatever needs a model or a judge passes over all shards alone, so that memory holds one model at a time, and one shard. A pass keeps what it found
as columns of Score, in a folder for each shard (plumbline/pipeline/shard_work.py); `score_shards` puts the columns of all passes together.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from plumbline.checking.following import require_checkers
from plumbline.checking.program_runs import Programs, outcome_figures, outcomes
from plumbline.evaluation.divergence_shards import COLUMNS
from plumbline.evaluation.figures import Score
from plumbline.evaluation.repetition import repeated_fraction
from plumbline.evaluation.scoring import (
    VERDICT_COLUMNS,
    RightAnswers,
    right_answer,
    stated_values,
    unread_figures,
    verdict_values,
)
from plumbline.pipeline.engine import Engine
from plumbline.pipeline.records import read_json, stream_jsonl, write_json, write_jsonl
from plumbline.pipeline.shard_files import count_rows, read_shard, shard_paths
from plumbline.pipeline.shard_work import by_shard, write_counts
from plumbline.pipeline.shard_workers import Compute
from plumbline.reasoning import without_reasoning
from plumbline.rows import Row, text_of

Columns = Mapping[str, Sequence[float | None]]
"""Columns of Score, each with a value for each answer of a shard."""

FindColumns = Callable[[list[Row], list[Row], Path], Columns]
"""Finds columns of a shard's answers, from them, the opponent's, and the shard's folder, to which it may write more."""

OURS, THEIRS, SCORED = "ours.jsonl", "theirs.jsonl", "answers.jsonl"
"""A shard's files of scores: the policy's, the opponent's, and the policy's answers with their scores, rounded, for people."""

THEIR_REWARD = "their_reward"
"""The column of a pass that holds the reward of the opponent's answers."""


class Pair(NamedTuple):
    """A shard of the policy's answers, and that of the opponent's answers to the same prompts."""

    ours: Path
    theirs: Path

    def read(self) -> tuple[list[Row], list[Row]]:
        """Both policies' answers, which `check_pairs` has compared."""
        answers, opposing = read_shard(self.ours), read_shard(self.theirs)
        check_pairs(answers, opposing)
        return answers, opposing


def pairs_of(ours: Path, theirs: Path) -> list[Pair]:
    """The shards of two tables of answers.

    Raises:
        ValueError: they have another number of shards or rows.
    """
    files = shard_paths(ours), shard_paths(theirs)
    sizes = count_rows(ours), count_rows(theirs)
    if len(files[0]) != len(files[1]) or sizes[0] != sizes[1]:
        raise ValueError(
            f"evaluate: expected answers to the same prompts from both policies, found {sizes[0]} in {len(files[0])} shards and {sizes[1]} in "
            f"{len(files[1])}; answer both again with the same data and `evaluate` section"
        )
    return [Pair(*files_of_shard) for files_of_shard in zip(*files, strict=True)]


def check_pairs(answers: Sequence[Row], opposing: Sequence[Row]) -> None:
    """Requires that both policies answered the same prompts, equally often and in the same order.

    Raises:
        ValueError: they did not; the message names the first difference.
    """
    ours, theirs = ([(row["id"], row["index"]) for row in rows] for rows in (answers, opposing))
    if ours != theirs:
        first = next((pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]), (len(ours), len(theirs)))
        raise ValueError(
            f"evaluate: expected answers to the same prompts from both policies, found {len(ours)} and {len(theirs)} answers that "
            f"first differ at {first[0]} and {first[1]}; answer both again with the same data and `evaluate` section"
        )


def pass_over(
    folder: Path,
    pairs: Sequence[Pair],
    prepare: Callable[[], AbstractContextManager[FindColumns]],
    engine: Engine | None = None,
    *,
    afresh: bool = False,
) -> list[Path]:
    """The folders of a pass that finds columns for each shard's answers, from them and the opponent's.

    prepare: sets up what finds them; this, engine and afresh are as of `by_shard`.
    """
    return by_shard(folder, pairs, partial(_writing, prepare), engine, afresh=afresh)


@contextmanager
def _writing(prepare: Callable[[], AbstractContextManager[FindColumns]]) -> Iterator[Compute]:
    """Computes shards of the columns that are found."""
    with prepare() as columns:

        def compute(number: int, pair: Pair, shard: Path) -> None:
            write_json(shard / COLUMNS, columns(*pair.read(), shard))

        yield compute


def score_shards(
    folder: Path,
    pairs: Sequence[Pair],
    passes: Sequence[Sequence[Path]],
    policies: tuple[Path, Path],
    marks: str,
    programs: Programs,
    engine: Engine | None = None,
) -> list[Path]:
    """The scores of each shard: of the policy's answers, with what the passes found, and of the opponent's.

    policies: the folders of both; marks: what sets reasoning apart from an answer.
    """
    return by_shard(folder, pairs, partial(_scoring, passes, policies, marks, programs), engine)


@contextmanager
def _scoring(passes: Sequence[Sequence[Path]], policies: tuple[Path, Path], marks: str, programs: Programs) -> Iterator[Compute]:
    """Computes shards of scores."""

    def compute(number: int, pair: Pair, shard: Path) -> None:
        answers, opposing = pair.read()
        columns: dict[str, Sequence[float | None]] = {}
        for of_pass in passes:
            columns |= read_json(of_pass[number] / COLUMNS)
        of_theirs = {"reward": columns.pop(THEIR_REWARD)} if THEIR_REWARD in columns else {}
        ended = outcomes(answers, shown_texts(answers, marks), programs)
        scores = scored(answers, policies[0], marks, columns, ended)
        if policies[0] == policies[1]:
            theirs = scored(answers, policies[0], marks, {}, ended)
        else:
            theirs = scored(opposing, policies[1], marks, of_theirs, outcomes(opposing, shown_texts(opposing, marks), programs))
        write_jsonl(shard / OURS, map(vars, scores))
        write_jsonl(shard / THEIRS, map(vars, theirs))
        write_jsonl(shard / SCORED, map(_answer, scores, answers))
        write_counts(shard, unread_figures(answers, [score.refused for score in scores]) | outcome_figures(ended))

    yield compute


def scores_of(shards: Sequence[Path], file: str) -> list[Score]:
    """The scores of all shards, of the policy (OURS) or of the opponent (THEIRS)."""
    return [Score(**row) for shard in shards for row in stream_jsonl(shard / file)]


def scored(answers: Sequence[Row], policy: Path, marks: str, columns: Columns, ended: Sequence[str | None]) -> list[Score]:
    """Each answer's scores: the verdicts, its length, and others column by column; ended: how its program ended (program_runs.py)."""
    texts = shown_texts(answers, marks)
    every: dict[str, Sequence[Any]] = {**_verdicts(answers, texts, ended), "tokens": lengths(policy, answers, texts)}
    every |= {"characters": [len(text) for text in texts], "repeated": [repeated_fraction(text) for text in texts], **columns}
    kept = ("id", "index", "family", "language", "finished")
    by_answer = [dict(zip(every, values, strict=True)) for values in zip(*every.values(), strict=True)]
    return [Score(**{key: row[key] for key in kept}, **values) for row, values in zip(answers, by_answer, strict=True)]


def shown_texts(answers: Sequence[Row], marks: str) -> list[str]:
    """What each answer says, without its reasoning."""
    return [without_reasoning(text_of(row["completion"]), marks) for row in answers]


def lengths(policy: Path, answers: Sequence[Row], shown: Sequence[str]) -> list[int]:
    """The tokens of each answer without its reasoning (`shown` is what it says without it), the end of turn included."""
    tokens = [int(row["tokens"]) for row in answers]
    texts = [text_of(row["completion"]) for row in answers]
    if [*shown] != texts:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(policy)
        for position, (text, answer) in enumerate(zip(texts, shown, strict=True)):
            if answer != text:
                end = int(answers[position]["finished"])
                tokens[position] = len(tokenizer(answer, add_special_tokens=False)["input_ids"]) + end
    return tokens


def _verdicts(answers: Sequence[Row], shown: Sequence[str], ended: Sequence[str | None]) -> dict[str, list[Any]]:
    """The verdicts as columns of Score: the verifier's, or those by what the prompt's row states; None for a prompt without either."""
    require_checkers(one for row in answers for one in row.get("instructions") or ())
    right = RightAnswers()
    values: list[dict[str, Any]] = []
    for row, answer, outcome in zip(answers, shown, ended, strict=True):
        verdict = verdict_values(row["prompt"], row["family"], answer)
        values.append(verdict if verdict["gold"] is not None else stated_values(row, answer, right, outcome))
    return {name: [row[name] for row in values] for name in VERDICT_COLUMNS}


def _answer(score: Score, row: Row) -> Row:
    """A row of answers.jsonl."""
    right = right_answer(row["prompt"], row["family"]) or row.get("answer")
    return score.row() | {"prompt": row["prompt"], "completion": row["completion"], "right_answer": right}
