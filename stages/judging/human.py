"""People as judges: blank sheets out, filled sheets in.

`python -m stages.judging.human artifacts/sample/round1/completions.jsonl data/annotations/round1 --way ranking` writes one
sheet as CSV and as JSON Lines: each prompt's distinct completions, shuffled and without the policy's name. Annotators fill in
`annotator` and `verdict` (a rank or rating for each row, `A`, `B` or `tie` for each pair); any number of filled sheets may stand
in one file.

Items are known by a digest of their text, so the sheets need no key, and a judgement stays valid in another sample.
"""

import argparse
import csv
import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.judging.aggregation import majority, mean
from stages.judging.chat import Ledger
from stages.judging.config import HumanJudge
from stages.judging.judge import Comparison, Judge, Principle, Prompts, Ranking, Rating, Verdict
from stages.judging.templates import conversation_text
from stages.judging.verdicts import COMPARISON, TIE, A, B, Ranks, parse_choice, parse_rating, scores_from_ranks, swapped
from stages.pipeline.records import Message, read_jsonl, write_jsonl

WAYS = ("ranking", "rating", "pairwise")
Row = dict[str, Any]


def item_code(prompt: Sequence[Message], completion: str) -> str:
    """What identifies a completion of a prompt on a sheet: 16 hex digits of their digest, which say nothing about its policy."""
    return hashlib.sha256(json.dumps([prompt, completion], ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]


def sheet(rows: Iterable[Mapping[str, Any]], way: str, seed: int) -> list[Row]:
    """The rows to annotate: prompts in order, each one's distinct completions shuffled, nothing that tells who wrote them."""
    groups: dict[str, tuple[list[Message], list[str]]] = {}
    for row in rows:
        texts = groups.setdefault(row["id"], (row["prompt"], []))[1]
        if row["completion"][0]["content"] not in texts:
            texts.append(row["completion"][0]["content"])
    blank = []
    for number, (prompt, texts) in enumerate(groups.values(), 1):
        random.Random(f"{seed}:{conversation_text(prompt)}").shuffle(texts)
        question: Row = {"task": number, "conversation": "\n".join(f"{m['role']}: {m['content']}" for m in prompt)}
        if way == "pairwise":
            for first, second in zip(texts[::2], texts[1::2], strict=False):
                items = {"item_a": item_code(prompt, first), "item_b": item_code(prompt, second)}
                blank.append({**question, "answer_a": first, "answer_b": second, "annotator": "", "verdict": "", **items})
        else:
            for text in texts:
                blank.append({**question, "answer": text, "annotator": "", "verdict": "", "item": item_code(prompt, text)})
    return blank


def export(rows: Iterable[Mapping[str, Any]], stem: Path, way: str, seed: int) -> list[Path]:
    """Writes the blank sheet as `<stem>.csv` and `<stem>.jsonl`."""
    blank = sheet(rows, way, seed)
    if not blank:
        raise ValueError("export: expected completions to annotate, found none")
    stem.parent.mkdir(parents=True, exist_ok=True)
    table = stem.with_suffix(".csv")
    with table.open("w", encoding="utf-8-sig", newline="") as file:  # the byte-order mark lets spreadsheets read Korean
        writer = csv.DictWriter(file, blank[0].keys())
        writer.writeheader()
        writer.writerows(blank)
    write_jsonl(stem.with_suffix(".jsonl"), blank)
    return [table, stem.with_suffix(".jsonl")]


def read_sheet(path: Path) -> list[Row]:
    """The filled rows of a sheet.

    Raises:
        ValueError: a filled row lacks a column; the message names the row.
    """
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows: list[Row] = [*csv.DictReader(file)]
    else:
        rows = read_jsonl(path)
    filled = []
    for number, row in enumerate(rows, 2 if path.suffix == ".csv" else 1):
        if not str(row.get("verdict", "")).strip():
            continue
        if not row.get("annotator") or not (row.get("item") or (row.get("item_a") and row.get("item_b"))):
            raise ValueError(f"{path}:{number}: a verdict needs columns annotator and item, or item_a and item_b; found {row}")
        filled.append(row)
    if not filled:
        raise ValueError(f"{path}: expected rows with a verdict, found none among {len(rows)}")
    return filled


class AnnotatorsJudge(Judge):
    """What people said of the same texts, aggregated over annotators; None where nobody said anything."""

    def __init__(self, rows: Sequence[Row], name: str = "human") -> None:
        self.name = name
        self.identity = hashlib.sha256(json.dumps(rows, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]
        self.ledger = Ledger()
        self._single: dict[str, dict[str, str]] = defaultdict(dict)
        self._pairs: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        for row in rows:
            verdict, annotator = str(row["verdict"]).strip(), str(row["annotator"])
            if row.get("item"):
                self._single[row["item"]][annotator] = verdict
            else:
                self._pairs[row["item_a"], row["item_b"]][annotator] = verdict
        self.annotators = sorted({str(row["annotator"]) for row in rows})

    def finish(self) -> None:
        """Nothing is open."""

    def _verdict(self, annotator: str, value: str | float | Ranks | None, reply: str, order: str = "") -> Verdict:
        self.ledger.calls += 1
        return Verdict(annotator, self.name, "", order, value, reply)

    def rate(self, prompts: Prompts, completions: Sequence[str]) -> list[Rating]:
        ratings = []
        for prompt, text in zip(prompts, completions, strict=True):
            said = self._single.get(item_code(prompt, text), {})
            who_said = [who for who in self.annotators if who in said]
            verdicts = [self._verdict(who, parse_rating(f"Rating: {said[who]}"), said[who]) for who in who_said]
            ratings.append(Rating(mean([float(v.value) for v in verdicts if isinstance(v.value, float)]), verdicts))
        return ratings

    def check(self, prompts: Prompts, completions: Sequence[str], principles: Sequence[Principle]) -> list[Rating]:
        raise ValueError("judge: human: people are asked for ratings, rankings or pairs; way: principle is not on their sheets")

    def compare(
        self, prompts: Prompts, first: Sequence[str], second: Sequence[str], principles: Sequence[Principle] | None = None
    ) -> list[Comparison]:
        found = []
        for prompt, a, b in zip(prompts, first, second, strict=True):
            codes = item_code(prompt, a), item_code(prompt, b)
            opinions, verdicts = [], []
            for order, pair in (("ab", codes), ("ba", codes[::-1])):
                for annotator, reply in self._pairs.get(pair, {}).items():
                    value = parse_choice(f"Verdict: {reply}", COMPARISON)
                    verdicts.append(self._verdict(annotator, value, reply, order))
                    opinions.append("unparsed" if value is None else value if order == "ab" else swapped(value))
            outcome = TIE if a == b else self._from_ranks(codes) if not opinions else majority(opinions)
            found.append(Comparison(outcome, verdicts, opinions or [outcome]))
        return found

    def _from_ranks(self, codes: tuple[str, str]) -> str:
        """The majority of the annotators who ranked both."""
        ranked = [self._single.get(code, {}) for code in codes]
        opinions = []
        for annotator in self.annotators:
            if all(annotator in said for said in ranked):
                a, b = (float(said[annotator]) for said in ranked)
                opinions.append(A if a < b else B if b < a else TIE)
        return majority(opinions)

    def rank(self, prompts: Prompts, groups: Sequence[Sequence[str]]) -> list[Ranking]:
        rankings = []
        for prompt, group in zip(prompts, groups, strict=True):
            codes = [item_code(prompt, text) for text in group]
            verdicts, columns = [], []
            for annotator in self.annotators:
                places = [self._single.get(code, {}).get(annotator) for code in codes]
                if None in places:
                    continue
                ranks = _ranks([float(str(place)) for place in places])
                order = " ".join(map(str, range(len(group))))
                verdicts.append(self._verdict(annotator, ranks, " ".join(map(str, places)), order))
                columns.append(scores_from_ranks(ranks))
            scores = [mean([column[at] for column in columns]) for at in range(len(group))]
            rankings.append(Ranking(scores, verdicts, 0, 0))
        return rankings


def _ranks(places: Sequence[float]) -> Ranks:
    """Ranks from whatever numbers an annotator wrote, the smallest the best; equals share the mean."""
    return tuple(sum(o < own for o in places) + (sum(o == own for o in places) + 1) / 2 for own in places)


def load_annotations(config: HumanJudge) -> AnnotatorsJudge:
    """The judge that a file of filled sheets makes.

    Raises:
        FileNotFoundError: nobody has filled a sheet yet; the message says how to make one.
    """
    path = Path(config.annotations)
    if not path.exists():
        raise FileNotFoundError(
            f"judge: human: {path} is missing. `python -m stages.judging.human artifacts/sample/<entry>/completions.jsonl "
            f"{path.with_suffix('')}` writes a blank sheet; put the filled one there."
        )
    return AnnotatorsJudge(read_sheet(path))


def main() -> None:
    """Writes a blank sheet."""
    parser = argparse.ArgumentParser(description="Writes a blank, blind sheet for annotators.")
    parser.add_argument("completions", type=Path, help="artifacts/sample/<entry>/completions.jsonl")
    parser.add_argument("stem", type=Path, help="where to write, without a suffix")
    parser.add_argument("--way", choices=WAYS, default="ranking")
    parser.add_argument("--seed", type=int, default=17)
    arguments = parser.parse_args()
    for path in export(read_jsonl(arguments.completions), arguments.stem, arguments.way, arguments.seed):
        print(path)


if __name__ == "__main__":
    main()
