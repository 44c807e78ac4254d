"""Rows of training data from judged completions: preferences, and labelled completions for KTO."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from plumbline.labelling.entry import LabelEntry
from plumbline.labelling.opinions import Group, Judged, line_of
from plumbline.labelling.pairs import BUILDERS, Pair, drawn, kept, strong_vs_weak, unpaired
from plumbline.rows import Preference, Row, held_out, text_of

SPLITS = ("train", "validation")


class Labels(NamedTuple):
    """The rows made of one prompt's completions, the margins of its pairs, and counts of what was left out."""

    rows: list[Row]
    margins: list[float]
    counts: Counter[str]


def labels_by_split(
    groups: Sequence[Group], judged: Sequence[Judged], entry: LabelEntry, provenance: Mapping[str, Any], seed: int
) -> tuple[dict[str, list[Row]], dict[str, float | int]]:
    """The rows of each split, and counts of what was kept and left out.

    provenance: further columns of every row, such as who judged.
    """
    splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
    counted: Counter[str] = Counter(prompts=len(groups), completions=sum(map(len, groups)), dropped_ties=0, dropped_margin=0)
    counted.update(dropped_unfinished=0, not_drawn=0, prompts_without_labels=0)
    margins: list[float] = []
    for group, judgement in zip(groups, judged, strict=True):
        labels = labels_of(group, judgement, entry, provenance, f"{seed}:{group[0]['id']}")
        counted.update(labels.counts)
        counted["prompts_without_labels"] += not labels.rows
        margins += labels.margins
        splits["validation" if held_out(group[0]["id"], entry.validation_fraction, seed) else "train"] += labels.rows
    sizes = {split: len(rows) for split, rows in splits.items()}
    return splits, {**counted, **sizes, "margins": len(margins), "margin_sum": sum(margins)}


def labels_of(group: Group, judged: Judged, entry: LabelEntry, provenance: Mapping[str, Any], seed: str) -> Labels:
    """The rows made of one prompt's completions, as the entry says."""
    if entry.pairs == "unpaired":
        return kto_labels(group, judged, provenance, min_margin=entry.min_margin)
    candidates = pairs_of(group, judged, entry.pairs, seed, entry.strong, entry.weak)
    return preference_labels(
        group, judged, candidates, provenance,
        min_margin=entry.min_margin, keep_ties=entry.keep_ties, most=entry.pairs_per_prompt, seed=seed,
    )  # fmt: skip


def pairs_of(group: Group, judged: Judged, pairs: str, seed: str, strong: str | None, weak: str | None) -> list[Pair]:
    """The pairs of one prompt's completions, before margins and ties are looked at; `pairs` names the way to build them."""
    texts = [text_of(row["completion"]) for row in group]
    if pairs == "strong_vs_weak":
        return strong_vs_weak([row["policy"] for row in group], texts, str(strong), str(weak))
    if pairs == "compared":
        scored = [(i, j, c.score) for i, j, c, _ in judged.comparisons if c.score is not None and texts[i] != texts[j]]
        return [Pair(i, j, 2 * score - 1) if score >= 0.5 else Pair(j, i, 1 - 2 * score) for i, j, score in scored]
    return BUILDERS[pairs](judged.scores, texts, [row.get("finished", True) for row in group], seed)


def preference_labels(
    group: Group,
    judged: Judged,
    candidates: Sequence[Pair],
    provenance: Mapping[str, Any],
    *,
    min_margin: float,
    keep_ties: bool,
    most: int,
    seed: str,
) -> Labels:
    """The preferences among a prompt's candidates: those with a sufficient margin, and at most `most` of them (0: all)."""
    finished = [pair for pair in candidates if group[pair.chosen].get("finished", True)]
    eligible = kept(finished, min_margin, keep_ties)
    selected = drawn(eligible, most, seed)
    counts = Counter(
        dropped_unfinished=len(candidates) - len(finished),  # a chosen completion that was cut off would teach not to stop
        dropped_ties=sum(pair.tie for pair in finished) - sum(pair.tie for pair in eligible),
        dropped_margin=sum(not pair.tie for pair in finished) - sum(not pair.tie for pair in eligible),
        not_drawn=len(eligible) - len(selected),
    )
    rows = [preference_row(group, judged, pair, provenance) for pair in selected]
    return Labels(rows, [pair.margin for pair in selected], counts)


def kto_labels(group: Group, judged: Judged, provenance: Mapping[str, Any], *, min_margin: float) -> Labels:
    """A prompt's good and bad completions; those good ones that were cut off are left out."""
    labelled = unpaired(judged.scores, min_margin)
    selected = [(position, good) for position, good in labelled if not good or group[position].get("finished", True)]
    rows = [labelled_row(group, judged, position, good, provenance) for position, good in selected]
    return Labels(rows, [], Counter(dropped_unfinished=len(labelled) - len(selected)))


def preference_row(group: Group, judged: Judged, pair: Pair, provenance: Mapping[str, Any]) -> Row:
    """A pair as a preference, with the scores and verdicts that it comes from."""
    chosen, rejected = group[pair.chosen], group[pair.rejected]
    evidence = judged.evidence[pair.chosen], judged.evidence[pair.rejected]
    between = [compared for compared in judged.comparisons if {compared.first, compared.second} == {pair.chosen, pair.rejected}]
    if between:  # the two were compared with each other: only those verdicts count, in both orders
        lines = [line_of(verdict) for compared in between for verdict in compared.comparison.verdicts]
        evidence = lines, lines
        provenance = {**provenance, "principle": between[0].principle}
    details = {
        "margin": round(pair.margin, 6),
        "tie": pair.tie,
        "score_chosen": judged.scores[pair.chosen],
        "score_rejected": judged.scores[pair.rejected],
        "policy_chosen": chosen["policy"],
        "policy_rejected": rejected["policy"],
        "index_chosen": chosen["index"],
        "index_rejected": rejected["index"],
        "verdicts_chosen": evidence[0],
        "verdicts_rejected": evidence[1],
        "cost": round(judged.costs[pair.chosen] + judged.costs[pair.rejected], 9),
        **provenance,
    }
    return {"id": chosen["id"], **Preference(chosen["prompt"], chosen["completion"], rejected["completion"], details).row()}


def labelled_row(group: Group, judged: Judged, position: int, good: bool, provenance: Mapping[str, Any]) -> Row:
    """A good or bad completion as a row for KTO, with the score and verdicts that its label comes from."""
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
