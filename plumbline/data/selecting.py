"""Which valid rows are kept: no evaluation prompts in training, no duplicates, sources in the proportions of the mixture."""

import json

import numpy as np

from plumbline.data.decontamination import Overlaps, index_prompts, overlapping
from plumbline.data.duplicates import PERMUTATIONS, first_of_equal, first_of_near
from plumbline.data.faults import REASONS, DataError, Fault
from plumbline.data.schema import DEFAULT_LIMITS, Policy, Source
from plumbline.data.spool import CHUNK_ROWS, TRAIN, Pool, Tally
from plumbline.data.texts import question_text
from plumbline.pipeline.records import chunked


def select(pool: Pool, policy: Policy) -> None:
    """Decides which rows of a pool are kept; what is dropped or only reported is counted in its tally."""
    keep = pool.keep
    rows = np.arange(len(keep))
    training = pool.columns["split"] == TRAIN
    _apply(pool, pool.columns["overlap"] & training, policy.decontaminate, "evaluation_overlap", None)
    first = _expand(keep, first_of_equal(pool.columns["digest"][keep])) if policy.duplicates != "off" else None
    if first is not None:
        _apply(pool, first != rows, policy.duplicates, "duplicate", first)
    if policy.near_duplicates != "off":
        distinct = keep.copy()
        if first is not None:
            distinct &= first == rows
        near = _expand(distinct, first_of_near(pool.signatures[distinct], policy.near_duplicate_similarity))
        _apply(pool, near != rows, policy.near_duplicates, "near_duplicate", near)
    mixed = mixture(pool.columns["source"], pool.columns["digest"], keep, pool.sources)
    _apply(pool, keep & ~mixed, "drop", "mixture", None)
    pool.signatures = np.zeros((0, PERMUTATIONS), dtype=np.uint32)  # frees half a GiB for a million rows


def index_evaluation(pool: Pool, policy: Policy) -> Overlaps:
    """An index of the prompts to evaluate on, for decontamination. Rollout prompts of the same pool that overlap are marked."""
    evaluated = pool.columns["split"] != TRAIN
    prompts = (question_text(json.loads(line)) for _, line in pool.lines(evaluated))
    index = index_prompts(prompts, policy.ngram_words, policy.ngram_overlap)
    for chunk in chunked(pool.lines(~evaluated), CHUNK_ROWS):
        questions = [question_text(json.loads(line)) for _, line in chunk]
        pool.columns["overlap"][[number for number, _ in chunk]] = overlapping(index, questions, questions)
    return index


def _expand(selected: np.ndarray, first: np.ndarray) -> np.ndarray:
    """`first` in indices of all rows, (rows,), from `first` in indices of the selected rows; any other row is its own first."""
    expanded = np.arange(len(selected))
    rows = np.flatnonzero(selected)
    expanded[rows] = rows[first]
    return expanded


def _apply(pool: Pool, hits: np.ndarray, policy: str, reason: str, first: np.ndarray | None) -> None:
    """Drops or notes the kept rows that are hits; `first` is the row that each repeats."""
    for index in np.flatnonzero(hits & pool.keep).tolist() if policy != "off" else []:
        detail = "" if first is None else "of {}:{}".format(*pool.position(first[index]))
        drop = pool.drop_of(index, Fault(reason, detail))
        if policy == "drop":
            pool.tally.drop(drop)
            pool.keep[index] = False
        else:
            pool.tally.note(drop)


def mixture(source: np.ndarray, digests: np.ndarray, keep: np.ndarray, sources: list[Source]) -> np.ndarray:
    """Which rows belong to the mixture, (rows,) bool: as many as possible in the proportions of the weights; without weights, all.

    No row is repeated, so the source that is shortest for its weight sets the size. Of each other source, the rows with the smallest
    digests are taken: a random choice with respect to content, but always the same.
    """
    weights = [float(item.weight) for item in sources if item.weight is not None]
    if not weights:
        return keep.copy()
    counts = [int((keep & (source == number)).sum()) for number in range(len(sources))]
    size = min(count / weight for count, weight in zip(counts, weights, strict=True))
    mixed = np.zeros_like(keep)
    for number, weight in enumerate(weights):
        rows = np.flatnonzero(keep & (source == number))
        order = np.argsort(digests[rows], kind="stable")
        mixed[rows[order[: int(size * weight + 1e-9)]]] = True
    return mixed


def check_limits(role: str, tally: Tally, policy: Policy, limit_at: str = "policy.limits.{} in the data conf") -> None:
    """Raises a DataError if a reason dropped a larger share of a source than its limit allows.

    limit_at: where the user can raise the limit of the reason `{}`.
    """
    overlap = DEFAULT_LIMITS["evaluation_overlap"] + tally.held_out
    limits = {**DEFAULT_LIMITS, "evaluation_overlap": overlap, **policy.limits}
    if policy.too_long == "fail":
        limits["too_long"] = 0.0
    exceeded = []
    for (source, reason), count in sorted(tally.dropped.items()):
        rows, limit = tally.rows_in[source], limits.get(reason, limits["default"])
        if count > limit * rows:
            examples = "; ".join(f"{drop.file}:{drop.row} ({drop.detail})" for drop in tally.examples[(source, reason)][:3])
            exceeded.append(
                f"{role}: {count} of {rows} rows of '{source}' dropped as {reason}: {REASONS[reason].what} (limit {limit:g} of "
                f"rows); first: {examples}. Remedy: {REASONS[reason].remedy}; or raise {limit_at.format(reason)}."
            )
    if exceeded:
        raise DataError("\n".join(exceeded))
