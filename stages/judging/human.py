"""People as judges: blank sheets out, filled sheets in.

`python -m stages.judging.human artifacts/sample/round1/completions.jsonl scratch/round1 --way ranking` writes one
sheet as CSV and as JSON Lines: each prompt's distinct completions, shuffled and without the policy's name. Annotators fill in
`annotator` and `verdict`: for each row a rank (1 the best) or a rating from 1 to 10, as its column `way` says, or `A`, `B` or
`tie` for each pair. Any number of filled sheets may stand in one file, or in one folder: a sheet for each annotator.

Items are known by a digest of their text, so the sheets need no key, and a judgement stays valid in another sample.
"""

import argparse
import csv
import hashlib
import json
import random
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.judging.aggregation import UNPARSED, both_orders, majority, mean
from stages.judging.chat import Ledger
from stages.judging.config import HumanJudge
from stages.judging.judge import Comparison, Judge, Principle, Prompts, Ranking, Rating, Verdict
from stages.judging.templates import conversation_text
from stages.judging.verdicts import COMPARISON, TIE, A, B, Ranks, parse_choice, parse_rating, scores_from_ranks, swapped
from stages.pipeline.records import Message, read_jsonl, write_jsonl

WAYS = ("ranking", "rating", "pairwise")
Row = dict[str, Any]


def item_code(prompt: Sequence[Message], completion: str) -> str:
    """What identifies a completion of a prompt on a sheet: 16 hex digits of their digest, which say nothing about its policy.

    The letter before them keeps spreadsheets from taking 12e4… for a number and saving another.
    """
    return "c" + hashlib.sha256(json.dumps([prompt, completion], ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]


def sheet(rows: Iterable[Mapping[str, Any]], way: str, seed: int, prompts: int = 0) -> list[Row]:
    """The rows to annotate: prompts in order, each one's distinct completions shuffled, nothing that tells who wrote them.

    Prompts with fewer than two distinct completions are left out where these are to be compared; `prompts` bounds how many (0: all).
    """
    groups: dict[str, tuple[list[Message], list[str]]] = {}
    for row in rows:
        texts = groups.setdefault(row["id"], (row["prompt"], []))[1]
        if row["completion"][0]["content"] not in texts:
            texts.append(row["completion"][0]["content"])
    blank = []
    chosen = [group for group in groups.values() if way == "rating" or len(group[1]) > 1][: prompts or None]
    for number, (prompt, texts) in enumerate(chosen, 1):
        random.Random(f"{seed}:{conversation_text(prompt)}").shuffle(texts)
        question: Row = {"task": number, "way": way, "conversation": "\n".join(f"{m['role']}: {m['content']}" for m in prompt)}
        if way == "pairwise":
            for first, second in zip(texts[::2], texts[1::2], strict=False):
                items = {"item_a": item_code(prompt, first), "item_b": item_code(prompt, second)}
                blank.append({**question, "answer_a": first, "answer_b": second, "annotator": "", "verdict": "", **items})
        else:
            for text in texts:
                blank.append({**question, "answer": text, "annotator": "", "verdict": "", "item": item_code(prompt, text)})
    return blank


def export(rows: Iterable[Mapping[str, Any]], stem: Path, way: str, seed: int, prompts: int = 0) -> list[Path]:
    """Writes the blank sheet as `<stem>.csv` and `<stem>.jsonl`.

    Raises:
        FileExistsError: one of them is there already; a filled sheet is not to be lost.
        ValueError: there is nothing to annotate.
    """
    blank = sheet(rows, way, seed, prompts)
    paths = [stem.with_name(stem.name + suffix) for suffix in (".csv", ".jsonl")]
    if existing := [str(path) for path in paths if path.exists()]:
        raise FileExistsError(
            f"export: {', '.join(existing)} is there already, perhaps filled in: choose another name or remove it"
        )
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
        ValueError: a filled row lacks a column, has a verdict that cannot be read, or repeats another; the message names it.
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
            annotator, items = str(row.get("annotator") or "").strip(), _items(row)
            if not annotator or not items:
                raise ValueError(f"{where}: a verdict needs annotator and item, or item_a and item_b; found {row}")
            way = "pairwise" if len(items) == 2 else str(row.get("way") or "")
            if not _readable(way, verdict):
                raise ValueError(f"{where}: expected {EXPECTED.get(way, f'one of the ways {WAYS}')}, found {verdict!r} ({way=})")
            earlier, place = seen.setdefault((way, annotator, *items), (verdict, where))
            if earlier != verdict:
                raise ValueError(f"{where}: {annotator!r} says {verdict!r} of what they said {earlier!r} of in {place}")
            filled.append({**row, "way": way, "annotator": annotator, "verdict": verdict})
    if not filled:
        raise ValueError(f"{path}: expected rows with a verdict, found none: annotators fill in `annotator` and `verdict`")
    return filled


EXPECTED = {"ranking": "a rank (1 the best)", "rating": "a rating from 1 to 10", "pairwise": "A, B or tie"}


def _numbered(path: Path) -> list[tuple[int, Row]]:
    """A sheet's rows, with numbers as a spreadsheet or an editor shows them."""
    if path.suffix != ".csv":
        return [*enumerate(read_jsonl(path), 1)]
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            start = file.readline()
            file.seek(0)
            # Spreadsheets of some countries save with semicolons.
            return [*enumerate(csv.DictReader(file, delimiter=";" if start.count(";") > start.count(",") else ","), 2)]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected UTF-8, found {error.object[error.start : error.end]!r}: save as `CSV UTF-8`"
        ) from error


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


class AnnotatorsJudge(Judge):
    """What people said of the same texts, aggregated over annotators; None where nobody said anything."""

    def __init__(self, rows: Sequence[Row], name: str = "human") -> None:
        self.name = name
        self.identity = hashlib.sha256(json.dumps(rows, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]
        self.ledger = Ledger()
        self._ratings: dict[str, dict[str, str]] = defaultdict(dict)
        self._ranks: dict[str, dict[str, str]] = defaultdict(dict)
        self._pairs: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        self._asked: set[str] = set()
        for row in rows:
            verdict, annotator = str(row["verdict"]).strip(), str(row["annotator"])
            if row.get("item"):
                single = self._ratings if row.get("way") == "rating" else self._ranks
                single[row["item"]][annotator] = verdict
            else:
                self._pairs[row["item_a"], row["item_b"]][annotator] = verdict
        self.annotators = sorted({str(row["annotator"]) for row in rows})

    def finish(self) -> None:
        """Says how many judged items were never asked about: they belong to another sample, or their codes were altered."""
        judged = {*self._ranks, *self._ratings, *(code for pair in self._pairs for code in pair)}
        if unknown := len(judged - self._asked):
            print(f"judge: human: {unknown} of {len(judged)} judged completions are not among those to label", file=sys.stderr)

    def _code(self, prompt: Sequence[Message], completion: str) -> str:
        code = item_code(prompt, completion)
        self._asked.add(code)
        return code

    def _verdict(self, annotator: str, value: str | float | Ranks | None, reply: str, order: str = "") -> Verdict:
        self.ledger.calls += 1
        return Verdict(annotator, self.name, "", order, value, reply)

    def rate(self, prompts: Prompts, completions: Sequence[str]) -> list[Rating]:
        if not self._ratings:
            found = "ranking" if self._ranks else "pairwise"
            raise ValueError(
                f"judge: human: way: rating needs a sheet of ratings, found one of way {found}: set label's way to that"
            )
        ratings = []
        for prompt, text in zip(prompts, completions, strict=True):
            said = self._ratings.get(self._code(prompt, text), {})
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
            codes = self._code(prompt, a), self._code(prompt, b)
            opinions: dict[str, str] = {}
            verdicts = []
            for order, pair in (("ab", codes), ("ba", codes[::-1])):
                for annotator, reply in self._pairs.get(pair, {}).items():
                    value = parse_choice(f"Verdict: {reply}", COMPARISON)
                    verdicts.append(self._verdict(annotator, value, reply, order))
                    said = UNPARSED if value is None else value if order == "ab" else swapped(value)
                    # Somebody who was shown both orders has one opinion, as a judge has.
                    opinions[annotator] = both_orders(opinions[annotator], said) if annotator in opinions else said
            if not verdicts and a != b:
                opinions = self._preferences(codes)
            found.append(Comparison(TIE if a == b else majority([*opinions.values()]), verdicts, opinions))
        return found

    def _preferences(self, codes: tuple[str, str]) -> dict[str, str]:
        """What follows from the ranks or ratings of the annotators who gave both answers one."""
        opinions = {}
        for annotator in self.annotators:
            if places := self._places(annotator, codes)[0]:
                a, b = places
                opinions[annotator] = A if a < b else B if b < a else TIE
        return opinions

    def _places(self, annotator: str, codes: Sequence[str]) -> tuple[list[float], list[str]]:
        """Somebody's ranks or ratings of all these answers, the least the best, and as written; empty if they left one out."""
        for said, sign in ((self._ranks, 1), (self._ratings, -1)):
            written = [said[code][annotator] for code in codes if annotator in said.get(code, {})]
            if len(written) == len(codes):
                return [sign * float(place.split("/")[0]) for place in written], written
        return [], []

    def rank(self, prompts: Prompts, groups: Sequence[Sequence[str]]) -> list[Ranking]:
        rankings = []
        for prompt, group in zip(prompts, groups, strict=True):
            codes = [self._code(prompt, text) for text in group]
            verdicts, columns = [], []
            for annotator in self.annotators:
                places, written = self._places(annotator, codes)
                if not places:
                    continue
                ranks = _ranks(places)
                order = " ".join(map(str, range(len(group))))
                verdicts.append(self._verdict(annotator, ranks, " ".join(written), order))
                columns.append(scores_from_ranks(ranks))
            scores = [mean([column[at] for column in columns]) for at in range(len(group))]
            rankings.append(Ranking(scores, verdicts, 0, 0))
        return rankings


def _ranks(places: Sequence[float]) -> Ranks:
    """Ranks from whatever numbers an annotator wrote, the smallest the best; equals share the mean."""
    return tuple(sum(o < own for o in places) + (sum(o == own for o in places) + 1) / 2 for own in places)


def load_annotations(config: HumanJudge) -> AnnotatorsJudge:
    """The judge that a file of filled sheets, or a folder of them, makes.

    Raises:
        FileNotFoundError: nobody has filled a sheet yet; the message says how to make one.
    """
    path = Path(config.annotations)
    if not path.exists():
        raise FileNotFoundError(
            f"judge: human: {path} is missing. `python -m stages.judging.human artifacts/sample/<entry>/completions.jsonl "
            f"scratch/{path.stem}` writes a blank sheet; put the filled one there (data/annotations/README.md)."
        )
    return AnnotatorsJudge(read_sheet(path))


def main() -> None:
    """Writes a blank sheet."""
    parser = argparse.ArgumentParser(description="Writes a blank, blind sheet for annotators.")
    parser.add_argument("completions", type=Path, help="artifacts/sample/<entry>/completions.jsonl")
    parser.add_argument("stem", type=Path, help="where to write, without a suffix")
    parser.add_argument("--way", choices=WAYS, default="ranking", help="rank all, rate each or compare pairs (default: ranking)")
    parser.add_argument("--prompts", type=int, default=0, help="how many prompts to annotate (default: all)")
    parser.add_argument("--seed", type=int, default=17, help="of the order in which answers are shown")
    options = parser.parse_args()
    try:
        written = export(read_jsonl(options.completions), options.stem, options.way, options.seed, options.prompts)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(f"wrote {written[0]} and {written[1]}; fill in `annotator` and `verdict` ({EXPECTED[options.way]}) of either")


if __name__ == "__main__":
    main()
