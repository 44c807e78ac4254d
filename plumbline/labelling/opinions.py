"""Asks a judge about whole groups of completions, and counts what the judge says."""

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from plumbline.judging.aggregation import INCONSISTENT, UNPARSED, mean
from plumbline.judging.gate import Quality
from plumbline.judging.judge import Comparison, Judge, Principle, Rating, Verdict, rater_names
from plumbline.judging.judges import JudgeConfig
from plumbline.judging.verdicts import TIE, A, B
from plumbline.labelling.agreement import agreement_scores
from plumbline.labelling.entry import LabelEntry
from plumbline.reasoning import ALL, without_reasoning
from plumbline.rows import Row, text_of

Group = list[Row]
"""The completions of one prompt."""

Values = dict[str, str | float | None]
"""Each rater's verdict on one case; None if it could not be read."""

LONGEST_LINE = 80


class Compared(NamedTuple):
    """Two completions of a prompt, by position, and their comparison."""

    first: int
    second: int
    comparison: Comparison
    principle: str
    """The name of the principle drawn for this pair; empty if the judge has no principles."""


class Judged(NamedTuple):
    """The judgement of one prompt's completions."""

    scores: list[float | None]
    evidence: list[list[str]]
    """For each completion, the last line of every reply about it, with the judge's name and the order shown."""
    costs: list[float]
    """For each completion, money for the replies about it; the cost of a reply about several is divided among them."""
    comparisons: list[Compared]
    """The comparisons, if completions were judged in pairs."""


def unjudged(count: int) -> Judged:
    """The judgement of so many completions that nobody judged."""
    return Judged([None] * count, [[] for _ in range(count)], [0.0] * count, [])


class Opinion(NamedTuple):
    """The judgement of a group, and what its verdicts say of the judge."""

    judged: Judged
    rows: list[Row]
    """The verdicts as rows of a file of verdicts."""
    opinions: list[Values]
    """Each rater's verdict on each case; empty if there is only one rater."""
    flipped: list[tuple[bool, str]]
    """For each case that was asked in two orders and could be read in both: whether the two disagree, and the evidence."""
    verdicts: list[Verdict]


def opinions_on(judge: Judge | None, groups: Sequence[Group], entry: LabelEntry, config: JudgeConfig, seed: int) -> list[Opinion]:
    """The judge's opinion of each group, by the entry's way of judging; without a judge, how far each group agrees."""
    if judge is None:
        return agree(groups, config.thinking_marks)
    principles = {name: principle["judge"] for name, principle in config.principles.items()}
    if entry.way == "pairwise":
        return compare(judge, groups, principles, entry.opponents, seed)
    if entry.way == "ranking":
        return rank(judge, groups)
    if entry.way == "principle":
        return check(judge, groups, principles)
    return rate(judge, groups)


def rate(judge: Judge, groups: Sequence[Group]) -> list[Opinion]:
    """Has each completion rated on its own."""
    rows = [row for group in groups for row in group]
    ratings = iter(judge.rate([row["prompt"] for row in rows], [text_of(row["completion"]) for row in rows]))
    return [_rated([next(ratings) for _ in group], group) for group in groups]


def check(judge: Judge, groups: Sequence[Group], principles: Mapping[str, Principle]) -> list[Opinion]:
    """Has each completion checked against each principle; its score is the share of principles that it keeps to."""
    rows = [row for group in groups for row in group]
    prompts, texts = [row["prompt"] for row in rows], [text_of(row["completion"]) for row in rows]
    columns = [judge.check(prompts, texts, [principle] * len(rows)) for principle in principles.values()]
    joined = iter(
        [
            Rating(mean([rating.score for rating in ratings]), [verdict for rating in ratings for verdict in rating.verdicts])
            for ratings in zip(*columns, strict=True)
        ]
    )
    return [_rated([next(joined) for _ in group], group, same_question=False) for group in groups]


def agree(groups: Sequence[Group], marks: str = ALL) -> list[Opinion]:
    """Scores each completion, without its reasoning, by its agreement with the others of its prompt. Nobody is asked: there are no verdicts."""
    opinions = []
    for group in groups:
        texts = [without_reasoning(text_of(row["completion"]), marks) for row in group]
        scores = agreement_scores(texts, [row.get("finished", True) for row in group])
        ratings = [Rating(score, [Verdict("agreement", "none", "", "", score, "")]) for score in scores]
        opinions.append(_rated(ratings, group)._replace(verdicts=[]))
    return opinions


def compare(
    judge: Judge, groups: Sequence[Group], principles: Mapping[str, Principle], opponents: int, seed: int
) -> list[Opinion]:
    """Has completions compared in pairs: each with the next `opponents` of its prompt's circle, or with all (0).

    With principles, one is drawn for each pair (Constitutional AI, arXiv:2212.08073, §4). A completion's score is its mean win.
    """
    pairs_by_group = [_circle(len(group), opponents) for group in groups]
    pairs = [(group, i, j) for group, pairs in zip(groups, pairs_by_group, strict=True) for i, j in pairs]
    drawn = [random.Random(f"{seed}:{g[i]['id']}:{i}:{j}").choice(sorted(principles)) for g, i, j in pairs if principles]
    comparisons = iter(
        judge.compare(
            [group[i]["prompt"] for group, i, _ in pairs],
            [text_of(group[i]["completion"]) for group, i, _ in pairs],
            [text_of(group[j]["completion"]) for group, _, j in pairs],
            [principles[name] for name in drawn] or None,
        )
    )
    names = iter(drawn or [""] * len(pairs))
    return [
        _compared(group, [Compared(i, j, next(comparisons), next(names)) for i, j in group_pairs])
        for group, group_pairs in zip(groups, pairs_by_group, strict=True)
    ]


def rank(judge: Judge, groups: Sequence[Group]) -> list[Opinion]:
    """Has all completions of a prompt ranked; a completion's score is the share of the others that it beats."""
    texts = [[text_of(row["completion"]) for row in group] for group in groups]
    rankings = judge.rank([group[0]["prompt"] for group in groups], texts)
    opinions = []
    for group, ranking in zip(groups, rankings, strict=True):
        lines = [line_of(verdict) for verdict in ranking.verdicts]
        cost = sum(verdict.cost for verdict in ranking.verdicts) / len(group)
        judged = Judged(ranking.scores, [lines for _ in group], [cost] * len(group), [])
        rows = [verdict_row(group[0], [row["index"] for row in group], verdict) for verdict in ranking.verdicts]
        flipped = [(number < ranking.flipped, "; ".join(lines)) for number in range(ranking.compared)]
        opinions.append(Opinion(judged, rows, _pairwise_values(ranking.verdicts, len(group)), flipped, ranking.verdicts))
    return opinions


def line_of(verdict: Verdict) -> str:
    """A verdict in one line: the judge's name, the order shown and the last line of the reply."""
    last = (verdict.reply.strip().splitlines() or [str(verdict.value)])[-1]
    return f"{verdict.judge}{f' [{verdict.order}]' if verdict.order else ''}: {last[:LONGEST_LINE]}"


def verdict_row(row: Row, indexes: Sequence[int], verdict: Verdict) -> Row:
    """A verdict on the completions with these indexes as a row of a file of verdicts."""
    value = list(verdict.value) if isinstance(verdict.value, tuple) else verdict.value
    return {"id": row["id"], "indexes": list(indexes), **verdict._asdict(), "value": value}


def _rated(ratings: Sequence[Rating], group: Group, same_question: bool = True) -> Opinion:
    """The opinion in ratings of single completions; `same_question` unless a rating joins answers to different questions."""
    judged = Judged(
        [rating.score for rating in ratings],
        [[line_of(verdict) for verdict in rating.verdicts] for rating in ratings],
        [sum(verdict.cost for verdict in rating.verdicts) for rating in ratings],
        [],
    )
    rows = [verdict_row(row, [row["index"]], v) for row, rating in zip(group, ratings, strict=True) for v in rating.verdicts]
    values = [_values(rating.verdicts) for rating in ratings] if same_question else []
    return Opinion(judged, rows, values, [], [verdict for rating in ratings for verdict in rating.verdicts])


def _values(verdicts: Sequence[Verdict]) -> Values:
    """Each rater's verdict; empty if there is only one."""
    values: Values = {}
    for verdict, name in zip(verdicts, rater_names(verdicts), strict=True):
        values[name] = None if isinstance(verdict.value, tuple) else verdict.value
    return values if len(values) > 1 else {}


def _pairwise_values(verdicts: Sequence[Verdict], count: int) -> list[Values]:
    """Each ranker's verdict on each pair of `count` answers; empty if there is only one judge."""
    if len({verdict.judge for verdict in verdicts}) < 2:
        return []
    cases: list[Values] = []
    for i in range(count):
        for j in range(i + 1, count):
            values: Values = {}
            for verdict, name in zip(verdicts, rater_names(verdicts), strict=True):
                if isinstance(verdict.value, tuple):
                    shown = [int(position) for position in verdict.order.split()]
                    a, b = (verdict.value[shown.index(answer)] for answer in (i, j))
                    values[name] = A if a < b else B if b < a else TIE
            cases.append(values)
    return cases


def _circle(count: int, opponents: int) -> list[tuple[int, int]]:
    if not opponents or opponents >= count // 2:
        return [(i, j) for i in range(count) for j in range(i + 1, count)]
    return [(i, (i + step) % count) for step in range(1, opponents + 1) for i in range(count)]


def _compared(group: Group, comparisons: list[Compared]) -> Opinion:
    """The opinion in the comparisons of one prompt's completions."""
    wins: list[list[float | None]] = [[] for _ in group]
    evidence: list[list[str]] = [[] for _ in group]
    costs, rows, flipped, verdicts = [0.0] * len(group), [], [], []
    opinions: list[Values] = []
    for i, j, comparison, principle in comparisons:
        wins[i].append(comparison.score)
        wins[j].append(comparison.swapped().score)
        for verdict in comparison.verdicts:
            for position in (i, j):
                evidence[position].append(line_of(verdict))
                costs[position] += verdict.cost / 2
            rows.append(verdict_row(group[i], [group[i]["index"], group[j]["index"]], verdict) | {"principle": principle})
        if len(comparison.opinions) > 1:
            opinions.append({name: None if outcome == UNPARSED else outcome for name, outcome in comparison.opinions.items()})
        if len(comparison.verdicts) > len(comparison.opinions):
            lines = "; ".join(map(line_of, comparison.verdicts))
            case = f"{group[i]['index']} against {group[j]['index']}: {lines}"
            flipped += [(outcome == INCONSISTENT, case) for outcome in comparison.opinions.values() if outcome != UNPARSED]
        verdicts += comparison.verdicts
    judged = Judged([mean(column) for column in wins], evidence, costs, comparisons)
    return Opinion(judged, rows, opinions, flipped, verdicts)


def observe(quality: Quality, group: Group, opinion: Opinion, known: Mapping[tuple[int, int], float], marks: str = ALL) -> None:
    """Counts a judged group; `known` maps two positions to the known advantage of the first over the second.

    marks: what sets a completion's reasoning apart, which the judge did not see.
    """
    judged, prompt_id = opinion.judged, group[0]["id"]
    for verdict in opinion.verdicts:
        quality.unparsed.add(verdict.value is None, f"{prompt_id}: {verdict.reply!r}")
    for flipped, case in opinion.flipped:
        quality.inconsistent.add(flipped, f"{prompt_id}, {case}")
    for values in opinion.opinions:
        quality.add_opinions(values)
    differences = {(i, j): None if c.score is None else c.score - 0.5 for i, j, c, _ in judged.comparisons} or {
        (i, j): _difference(judged.scores[i], judged.scores[j]) for i in range(len(group)) for j in range(i + 1, len(group))
    }
    for (i, j), difference in differences.items():
        first, second = (without_reasoning(text_of(group[position]["completion"]), marks) for position in (i, j))
        quality.add_preference(first, second, difference, where=str(prompt_id))
        if (i, j) in known:
            quality.add_known(difference, known[i, j], where=f"{prompt_id}: {first!r} against {second!r}")


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second
