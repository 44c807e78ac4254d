"""Judging whole groups of completions, and turning what was judged into rows of preferences."""

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stages.judging.aggregation import INCONSISTENT, UNPARSED, mean
from stages.judging.agreement import agreement_scores
from stages.judging.gate import Quality
from stages.judging.judge import Comparison, Judge, Principle, Rating, Verdict, rater_names
from stages.judging.pairs import BUILDERS, Pair, strong_vs_weak
from stages.judging.verdicts import TIE, A, B

Row = dict[str, Any]
Group = list[Row]
"""The completions of one prompt."""

LONGEST_LINE = 80


class Compared(NamedTuple):
    """Two completions of a prompt, by position, and what came of comparing them."""

    first: int
    second: int
    comparison: Comparison
    principle: str
    """The name of the one drawn for this pair; empty without a constitution."""


class Judged(NamedTuple):
    """What a judge found about the completions of one prompt."""

    scores: list[float | None]
    evidence: list[list[str]]
    """Of each completion: the last line of every reply about it, with the judge's name and the order shown."""
    costs: list[float]
    """Of each completion: money for the replies about it, shared ones divided."""
    comparisons: list[Compared]
    """Pairwise only."""


def text_of(row: Mapping[str, Any]) -> str:
    """A completion's text."""
    return str(row["completion"][0]["content"])


def line_of(verdict: Verdict) -> str:
    """A verdict in one line: who said what of which order."""
    last = (verdict.reply.strip().splitlines() or [str(verdict.value)])[-1]
    return f"{verdict.judge}{f' [{verdict.order}]' if verdict.order else ''}: {last[:LONGEST_LINE]}"


def verdict_row(row: Row, indexes: Sequence[int], verdict: Verdict) -> Row:
    """A verdict as a row of verdicts.jsonl: what was asked about, what came back, how it was read."""
    value = list(verdict.value) if isinstance(verdict.value, tuple) else verdict.value
    return {"id": row["id"], "indexes": list(indexes), **verdict._asdict(), "value": value}


class Opinion(NamedTuple):
    """A group as judged, and its verdicts as rows."""

    judged: Judged
    rows: list[Row]
    opinions: list[dict[str, str | float | None]]
    """What each judge or sample said of each case; empty where there is only one."""
    flipped: list[tuple[bool, str]]
    """For each case asked in two orders, and read in both: whether they disagreed, and what was said."""
    verdicts: list[Verdict]


def rate(judge: Judge, groups: Sequence[Group]) -> list[Opinion]:
    """Each completion rated by itself."""
    rows = [row for group in groups for row in group]
    ratings = iter(judge.rate([row["prompt"] for row in rows], [text_of(row) for row in rows]))
    return [_single([next(ratings) for _ in group], group) for group in groups]


def check(judge: Judge, groups: Sequence[Group], principles: Mapping[str, Principle]) -> list[Opinion]:
    """Each completion checked against each principle; its score is the share that it keeps to."""
    rows = [row for group in groups for row in group]
    columns = [
        judge.check([row["prompt"] for row in rows], [text_of(row) for row in rows], [principle] * len(rows))
        for principle in principles.values()
    ]
    joined = iter(
        [
            type(ratings[0])(mean([rating.score for rating in ratings]), [v for rating in ratings for v in rating.verdicts])
            for ratings in zip(*columns, strict=True)
        ]
    )
    return [_single([next(joined) for _ in group], group, same_question=False) for group in groups]


def agree(groups: Sequence[Group]) -> list[Opinion]:
    """Each completion scored by how far its prompt's others agree with it: nobody is asked, so nothing counts as a verdict."""
    opinions = []
    for group in groups:
        scores = agreement_scores([text_of(row) for row in group], [row.get("finished", True) for row in group])
        found = [Rating(score, [Verdict("agreement", "none", "", "", score, "")]) for score in scores]
        opinions.append(_single(found, group)._replace(verdicts=[]))
    return opinions


def _single(ratings: Sequence[Any], group: Group, same_question: bool = True) -> Opinion:
    verdicts = [verdict for rating in ratings for verdict in rating.verdicts]
    judged = Judged(
        [rating.score for rating in ratings],
        [[line_of(verdict) for verdict in rating.verdicts] for rating in ratings],
        [sum(verdict.cost for verdict in rating.verdicts) for rating in ratings],
        [],
    )
    rows = [verdict_row(row, [row["index"]], v) for row, rating in zip(group, ratings, strict=True) for v in rating.verdicts]
    opinions = [_by_rater(rating.verdicts) for rating in ratings] if same_question else []
    return Opinion(judged, rows, opinions, [], verdicts)


def _by_rater(verdicts: Sequence[Verdict]) -> dict[str, str | float | None]:
    said: dict[str, str | float | None] = {}
    for verdict, name in zip(verdicts, rater_names(verdicts), strict=True):
        said[name] = None if isinstance(verdict.value, tuple) else verdict.value
    return said if len(said) > 1 else {}


def _pair_opinions(verdicts: Sequence[Verdict], count: int) -> list[dict[str, str | float | None]]:
    """What each of several rankers says of each pair of answers."""
    if len({verdict.judge for verdict in verdicts}) < 2:
        return []
    opinions: list[dict[str, str | float | None]] = []
    for i in range(count):
        for j in range(i + 1, count):
            said: dict[str, str | float | None] = {}
            for verdict, name in zip(verdicts, rater_names(verdicts), strict=True):
                if isinstance(verdict.value, tuple):
                    shown = [int(place) for place in verdict.order.split()]
                    a, b = (verdict.value[shown.index(answer)] for answer in (i, j))
                    said[name] = A if a < b else B if b < a else TIE
            opinions.append(said)
    return opinions


def compare(
    judge: Judge, groups: Sequence[Group], principles: Mapping[str, Principle], opponents: int, seed: int
) -> list[Opinion]:
    """Completions compared in pairs: each with the next `opponents` of its prompt's circle, 0 with all.

    With principles, one is drawn for each pair (Constitutional AI, arXiv:2212.08073, §4). A completion's score is its mean win.
    """
    places = [_circle(len(group), opponents) for group in groups]
    pairs = [(group, i, j) for group, pairs in zip(groups, places, strict=True) for i, j in pairs]
    drawn = [random.Random(f"{seed}:{g[i]['id']}:{i}:{j}").choice(sorted(principles)) for g, i, j in pairs if principles]
    results = iter(
        judge.compare(
            [group[i]["prompt"] for group, i, _ in pairs],
            [text_of(group[i]) for group, i, _ in pairs],
            [text_of(group[j]) for group, _, j in pairs],
            [principles[name] for name in drawn] or None,
        )
    )
    names = iter(drawn or [""] * len(pairs))
    return [
        _compared(group, [Compared(i, j, next(results), next(names)) for i, j in own])
        for group, own in zip(groups, places, strict=True)
    ]


def _circle(count: int, opponents: int) -> list[tuple[int, int]]:
    if not opponents or opponents >= count // 2:
        return [(i, j) for i in range(count) for j in range(i + 1, count)]
    return [(i, (i + step) % count) for step in range(1, opponents + 1) for i in range(count)]


def _compared(group: Group, comparisons: list[Compared]) -> Opinion:
    wins: list[list[float | None]] = [[] for _ in group]
    evidence: list[list[str]] = [[] for _ in group]
    costs, rows, flipped, verdicts = [0.0] * len(group), [], [], []
    opinions: list[dict[str, str | float | None]] = []
    for i, j, comparison, principle in comparisons:
        score = comparison.score
        wins[i].append(score)
        wins[j].append(None if score is None else 1 - score)
        for verdict in comparison.verdicts:
            for place in (i, j):
                evidence[place].append(line_of(verdict))
                costs[place] += verdict.cost / 2
            rows.append(verdict_row(group[i], [group[i]["index"], group[j]["index"]], verdict) | {"principle": principle})
        if len(comparison.opinions) > 1:
            opinions.append({name: None if said == UNPARSED else said for name, said in comparison.opinions.items()})
        if len(comparison.verdicts) > len(comparison.opinions):
            said = "; ".join(map(line_of, comparison.verdicts))
            where = f"{group[i]['index']} against {group[j]['index']}: {said}"
            flipped += [(opinion == INCONSISTENT, where) for opinion in comparison.opinions.values() if opinion != UNPARSED]
        verdicts += comparison.verdicts
    judged = Judged([mean(own) for own in wins], evidence, costs, comparisons)
    return Opinion(judged, rows, opinions, flipped, verdicts)


def rank(judge: Judge, groups: Sequence[Group]) -> list[Opinion]:
    """All completions of a prompt put in order; a score is the share of the others that a completion beats."""
    rankings = judge.rank([group[0]["prompt"] for group in groups], [[text_of(row) for row in group] for group in groups])
    opinions = []
    for group, ranking in zip(groups, rankings, strict=True):
        lines = [line_of(verdict) for verdict in ranking.verdicts]
        cost = sum(verdict.cost for verdict in ranking.verdicts) / len(group)
        judged = Judged(ranking.scores, [lines for _ in group], [cost] * len(group), [])
        rows = [verdict_row(group[0], [row["index"] for row in group], verdict) for verdict in ranking.verdicts]
        flipped = [(at < ranking.flipped, "; ".join(lines)) for at in range(ranking.compared)]
        said = _pair_opinions(ranking.verdicts, len(group))
        opinions.append(Opinion(judged, rows, said, flipped, ranking.verdicts))
    return opinions


def observe(quality: Quality, group: Group, opinion: Opinion, known: Mapping[tuple[int, int], float]) -> None:
    """Counts a judged group; `known` has the known advantage of the first of two positions over the second."""
    judged = opinion.judged
    for verdict in opinion.verdicts:
        quality.unparsed.add(verdict.value is None, f"{group[0]['id']}: {verdict.reply!r}")
    for flipped, said_of_it in opinion.flipped:
        quality.inconsistent.add(flipped, f"{group[0]['id']}, {said_of_it}")
    for said in opinion.opinions:
        quality.add_opinions(said)
    differences = {(i, j): None if c.score is None else c.score - 0.5 for i, j, c, _ in judged.comparisons} or {
        (i, j): _difference(judged.scores[i], judged.scores[j]) for i in range(len(group)) for j in range(i + 1, len(group))
    }
    for (i, j), difference in differences.items():
        first, second = text_of(group[i]), text_of(group[j])
        quality.add_preference(first, second, difference, where=str(group[i]["id"]))
        if (i, j) in known:
            quality.add_known(difference, known[i, j], where=f"{group[i]['id']}: {first!r} against {second!r}")


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def pairs_of(group: Group, judged: Judged, pairs: str, seed: str, strong: str | None, weak: str | None) -> list[Pair]:
    """The pairs of one prompt, before margins and ties are looked at."""
    texts = [text_of(row) for row in group]
    if pairs == "strong_vs_weak":
        return strong_vs_weak([row["policy"] for row in group], texts, str(strong), str(weak))
    if pairs == "compared":
        scored = [(i, j, c.score) for i, j, c, _ in judged.comparisons if c.score is not None and texts[i] != texts[j]]
        return [Pair(i, j, 2 * score - 1) if score >= 0.5 else Pair(j, i, 1 - 2 * score) for i, j, score in scored]
    return BUILDERS[pairs](judged.scores, texts, [row.get("finished", True) for row in group], seed)


def preference(group: Group, judged: Judged, pair: Pair, provenance: Mapping[str, Any]) -> Row:
    """A pair as a row of preferences, with where it comes from."""
    chosen, rejected = group[pair.chosen], group[pair.rejected]
    said = judged.evidence[pair.chosen], judged.evidence[pair.rejected]
    together = [found for found in judged.comparisons if {found.first, found.second} == {pair.chosen, pair.rejected}]
    if together:  # the two were compared with each other: those verdicts, in both orders, not all that each was part of
        lines = [line_of(verdict) for found in together for verdict in found.comparison.verdicts]
        said = lines, lines
        provenance = {**provenance, "principle": together[0].principle}
    return {
        "id": chosen["id"],
        "prompt": chosen["prompt"],
        "chosen": chosen["completion"],
        "rejected": rejected["completion"],
        "margin": round(pair.margin, 6),
        "tie": pair.tie,
        "score_chosen": judged.scores[pair.chosen],
        "score_rejected": judged.scores[pair.rejected],
        "policy_chosen": chosen["policy"],
        "policy_rejected": rejected["policy"],
        "index_chosen": chosen["index"],
        "index_rejected": rejected["index"],
        "verdicts_chosen": said[0],
        "verdicts_rejected": said[1],
        "cost": round(judged.costs[pair.chosen] + judged.costs[pair.rejected], 9),
        **provenance,
    }


def labelled(group: Group, judged: Judged, position: int, good: bool, provenance: Mapping[str, Any]) -> Row:
    """A good or bad completion as a row for KTO, with where its label comes from."""
    row = group[position]
    return {
        "id": row["id"],
        "prompt": row["prompt"],
        "completion": row["completion"],
        "label": good,
        "score": judged.scores[position],
        "policy": row["policy"],
        "index": row["index"],
        "verdicts": judged.evidence[position],
        "cost": round(judged.costs[position], 9),
        **provenance,
    }
