"""People as judges: their verdicts on filled sheets, aggregated over annotators.

`python -m plumbline.judging.human artifacts/sample/round1 scratch/round1 --way ranking` writes a blank sheet as CSV and
as JSON Lines (plumbline/judging/sheets.py says what is on it).
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from plumbline.judging.aggregation import UNPARSED, both_orders, majority, mean
from plumbline.judging.asking import Ledger
from plumbline.judging.judge import Comparison, Judge, Principle, Prompts, Ranking, Rating, Verdict
from plumbline.judging.judges import HumanJudge
from plumbline.judging.sheets import EXPECTED, WAYS, export, item_code, read_sheet
from plumbline.judging.verdicts import COMPARISON, TIE, A, B, Ranks, parse_choice, parse_rating, ranks_of, scores_from_ranks
from plumbline.pipeline.shard_files import read_shards
from plumbline.reasoning import ALL, mark_problems
from plumbline.rows import Message, Row


class AnnotatorsJudge(Judge):
    """What people said of the same texts, aggregated over annotators; None if nobody said anything."""

    def __init__(self, rows: Sequence[Row], name: str = "human", thinking_marks: str = ALL) -> None:
        self.name = name
        self.thinking_marks = thinking_marks
        self.ledger = Ledger()
        self.annotators = sorted({str(row["annotator"]) for row in rows})
        self._ratings: dict[str, dict[str, str]] = defaultdict(dict)
        self._ranks: dict[str, dict[str, str]] = defaultdict(dict)
        self._pairs: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        self._asked: set[str] = set()
        for row in rows:
            verdict, annotator = str(row["verdict"]).strip(), str(row["annotator"])
            if row.get("item"):
                verdicts = self._ratings if row.get("way") == "rating" else self._ranks
                verdicts[row["item"]][annotator] = verdict
            else:
                self._pairs[row["item_a"], row["item_b"]][annotator] = verdict

    def rate(self, prompts: Prompts, completions: Sequence[str]) -> list[Rating]:
        if not self._ratings:
            way = "ranking" if self._ranks else "pairwise"
            raise ValueError(
                f"judge: human: way: rating needs a sheet of ratings, found one of way {way}: set label's way to that"
            )
        ratings = []
        for prompt, text in zip(prompts, completions, strict=True):
            replies = self._ratings.get(self._code(prompt, text), {})
            verdicts = [
                self._verdict(annotator, parse_rating(f"Rating: {replies[annotator]}"), replies[annotator])
                for annotator in self.annotators
                if annotator in replies
            ]
            ratings.append(Rating(mean([float(v.value) for v in verdicts if isinstance(v.value, float)]), verdicts))
        return ratings

    def check(self, prompts: Prompts, completions: Sequence[str], principles: Sequence[Principle]) -> list[Rating]:
        raise ValueError(
            "judge: human: expected way: rating, ranking or pairwise, found principle, which is not on people's sheets"
        )

    def compare(
        self, prompts: Prompts, first: Sequence[str], second: Sequence[str], principles: Sequence[Principle] | None = None
    ) -> list[Comparison]:
        comparisons = []
        for prompt, a, b in zip(prompts, first, second, strict=True):
            codes = self._code(prompt, a), self._code(prompt, b)
            opinions: dict[str, str] = {}
            verdicts = []
            for order, pair in (("ab", codes), ("ba", codes[::-1])):
                for annotator, reply in self._pairs.get(pair, {}).items():
                    verdict = self._verdict(annotator, parse_choice(f"Verdict: {reply}", COMPARISON), reply, order)
                    verdicts.append(verdict)
                    outcome = cast("str | None", verdict.in_order_ab().value) or UNPARSED
                    # Somebody who was shown both orders has one opinion, as a judge has.
                    opinions[annotator] = both_orders(opinions[annotator], outcome) if annotator in opinions else outcome
            equal = self.answer(a) == self.answer(b)
            if not verdicts and not equal:
                opinions = self._preferences(codes)
            comparisons.append(Comparison(TIE if equal else majority([*opinions.values()]), verdicts, opinions))
        return comparisons

    def rank(self, prompts: Prompts, groups: Sequence[Sequence[str]]) -> list[Ranking]:
        rankings = []
        for prompt, group in zip(prompts, groups, strict=True):
            codes = [self._code(prompt, text) for text in group]
            verdicts, columns = [], []
            for annotator in self.annotators:
                values, replies = self._values(annotator, codes)
                if not values:
                    continue
                ranks = ranks_of(values)
                order = " ".join(map(str, range(len(group))))
                verdicts.append(self._verdict(annotator, ranks, " ".join(replies), order))
                columns.append(scores_from_ranks(ranks))
            scores = [mean([column[index] for column in columns]) for index in range(len(group))]
            rankings.append(Ranking(scores, verdicts, flipped=0, compared=0))
        return rankings

    def finish(self) -> None:
        """Prints how many judged items were never asked about: they belong to another sample, or their codes were altered."""
        judged = {*self._ranks, *self._ratings, *(code for pair in self._pairs for code in pair)}
        if unknown := len(judged - self._asked):
            print(f"judge: human: {unknown} of {len(judged)} judged completions are not among those to label", file=sys.stderr)

    def _code(self, prompt: Sequence[Message], completion: str) -> str:
        code = item_code(prompt, self.answer(completion))
        self._asked.add(code)
        return code

    def _verdict(self, annotator: str, value: str | float | Ranks | None, reply: str, order: str = "") -> Verdict:
        self.ledger.calls += 1
        return Verdict(annotator, self.name, "", order, value, reply)

    def _preferences(self, codes: tuple[str, str]) -> dict[str, str]:
        """The outcomes that follow from the ranks or ratings of each annotator who gave both answers one."""
        opinions = {}
        for annotator in self.annotators:
            if values := self._values(annotator, codes)[0]:
                a, b = values
                opinions[annotator] = A if a < b else B if b < a else TIE
        return opinions

    def _values(self, annotator: str, codes: Sequence[str]) -> tuple[list[float], list[str]]:
        """An annotator's ranks or ratings of these answers, the smallest the best, and as written; empty unless all have one."""
        ranks = [self._ranks[code][annotator] for code in codes if annotator in self._ranks.get(code, {})]
        if len(ranks) == len(codes):
            return [float(rank) for rank in ranks], ranks
        replies = [self._ratings[code][annotator] for code in codes if annotator in self._ratings.get(code, {})]
        ratings = [parse_rating(f"Rating: {reply}") for reply in replies]
        if len(ratings) == len(codes):
            return [-rating for rating in ratings if rating is not None], replies
        return [], []


def load_annotations(config: HumanJudge) -> AnnotatorsJudge:
    """The judge made of a file of filled sheets, or of a folder of them.

    Raises:
        FileNotFoundError: there is no filled sheet yet; the message says how to make one.
    """
    path = Path(config.annotations)
    if not path.exists():
        raise FileNotFoundError(
            f"judge: human: {path} is missing. `python -m plumbline.judging.human artifacts/sample/<entry> "
            f"scratch/{path.stem}` writes a blank sheet; put the filled one there (data/annotations/README.md)."
        )
    return AnnotatorsJudge(read_sheet(path), thinking_marks=config.thinking_marks)


def main() -> None:
    """Writes a blank sheet."""
    parser = argparse.ArgumentParser(description="Writes a blank, blind sheet for annotators.")
    parser.add_argument("sample", type=Path, help="artifacts/sample/<entry>")
    parser.add_argument("stem", type=Path, help="where to write, without a suffix")
    parser.add_argument("--way", choices=WAYS, default="ranking", help="rank all, rate each or compare pairs (default: ranking)")
    parser.add_argument("--prompts", type=int, default=0, help="how many prompts to annotate (default: all)")
    parser.add_argument(
        "--thinking-marks", default=ALL, help="which marks set reasoning apart, as conf/judge says (default: all)"
    )
    parser.add_argument("--seed", type=int, default=17, help="decides the order in which answers are shown (default: 17)")
    options = parser.parse_args()
    if complaints := mark_problems(options.thinking_marks, "--thinking-marks"):
        sys.exit(complaints[0])
    try:
        rows = (row for shard in read_shards(options.sample) for row in shard)
        written = export(rows, options.stem, options.way, options.seed, options.prompts, options.thinking_marks)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(f"wrote {written[0]} and {written[1]}; fill in `annotator` and `verdict` ({EXPECTED[options.way]}) of either")


if __name__ == "__main__":
    main()
