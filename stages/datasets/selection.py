"""Which valid rows are kept: no evaluation prompts in training, no duplicates, sources in the proportions of the mixture."""

import json

import numpy as np

from stages.datasets.checks import REASONS
from stages.datasets.config import DEFAULT_LIMITS, Policy, Source
from stages.datasets.decontamination import Overlaps, index_prompts, overlapping
from stages.datasets.duplicates import PERMUTATIONS, first_of_equal, first_of_near
from stages.datasets.gathering import CHUNK_ROWS, Pool, Tally, question_text
from stages.datasets.parallel import chunked
from stages.datasets.reading import DataError, Fault

_TRAIN = 0


def select(pool: Pool, policy: Policy) -> None:
    """Decides which rows of a pool are kept; what is dropped or only reported is counted in its tally."""
    keep = pool.keep
    training = pool.columns["split"] == _TRAIN
    _apply(pool, pool.columns["overlap"] & training, policy.decontaminate, "evaluation_overlap", None)
    first = _firsts(keep, first_of_equal(pool.columns["digest"][keep])) if policy.duplicates != "off" else None
    if first is not None:
        _apply(pool, first != np.arange(len(keep)), policy.duplicates, "duplicate", first)
    if policy.near_duplicates != "off":
        once = keep.copy()
        if first is not None:
            once &= first == np.arange(len(keep))
        near = _firsts(once, first_of_near(pool.signatures[once], policy.near_duplicate_similarity))
        _apply(pool, near != np.arange(len(keep)), policy.near_duplicates, "near_duplicate", near)
    taken = mixture(pool.columns["source"], pool.columns["digest"], keep, pool.sources)
    _apply(pool, keep & ~taken, "drop", "mixture", None)
    pool.signatures = np.zeros((0, PERMUTATIONS), dtype=np.uint32)  # half a GiB for a million rows


def index_evaluation(pool: Pool, policy: Policy) -> Overlaps:
    """An index of the prompts to evaluate on, for decontamination; rollout prompts of the same pool are marked by it."""
    evaluated = pool.columns["split"] != _TRAIN
    asked = (question_text(json.loads(line)) for _, line in pool.lines(evaluated))
    index = index_prompts(asked, policy.ngram_words, policy.ngram_overlap)
    for chunk in chunked(pool.lines(~evaluated), CHUNK_ROWS):
        questions = [question_text(json.loads(line)) for _, line in chunk]
        pool.columns["overlap"][[number for number, _ in chunk]] = overlapping(index, questions, questions)
    return index


def _firsts(among: np.ndarray, first: np.ndarray) -> np.ndarray:
    """`first`, given for the rows of `among` in numbers among these, for all rows in numbers of all."""
    found = np.arange(len(among))
    rows = np.flatnonzero(among)
    found[rows] = rows[first]
    return found


def _apply(pool: Pool, hit: np.ndarray, policy: str, reason: str, first: np.ndarray | None) -> None:
    for index in np.flatnonzero(hit & pool.keep).tolist() if policy != "off" else []:
        where = "" if first is None else f"of {pool.files[pool.places[first[index], 0]]}:{pool.places[first[index], 1]}"
        drop = pool.drop_of(index, Fault(reason, where))
        if policy == "drop":
            pool.tally.drop(drop)
            pool.keep[index] = False
        else:
            pool.tally.noted[(drop.source, reason)] += 1
            pool.tally.example(drop)


def mixture(source: np.ndarray, digests: np.ndarray, keep: np.ndarray, sources: list[Source]) -> np.ndarray:
    """Which rows belong to the mixture, (rows,) bool: as many as there can be in the proportions of the weights.

    Without weights all. No row is repeated: the source that is shortest for its weight sets the size, and of each other
    source the rows with the smallest digests are taken, a choice that is random in content but always the same.
    """
    weights = [item.weight for item in sources]
    if all(weight is None for weight in weights):
        return keep.copy()
    if any(weight is None or not weight > 0 for weight in weights):
        stated = {item.name: item.weight for item in sources}
        raise DataError(f"expected a weight above 0 for every source of a role or for none, found {stated}. Set or remove them.")
    counts = [int((keep & (source == number)).sum()) for number in range(len(sources))]
    size = min(count / float(weight or 0) for count, weight in zip(counts, weights, strict=True))
    taken = np.zeros_like(keep)
    for number, weight in enumerate(weights):
        rows = np.flatnonzero(keep & (source == number))
        order = np.argsort(digests[rows], kind="stable")
        taken[rows[order[: int(size * float(weight or 0) + 1e-9)]]] = True
    return taken


def check_limits(role: str, tally: Tally, policy: Policy) -> None:
    """Fails if a reason dropped a larger share of a source than its limit allows."""
    limits = {**DEFAULT_LIMITS, **policy.limits}
    over = []
    for (source, reason), count in sorted(tally.dropped.items()):
        rows, limit = tally.rows_in[source], limits.get(reason, limits["default"])
        if policy.too_long == "fail" and reason == "too_long":
            limit = 0.0
        if count > limit * rows:
            places = "; ".join(f"{drop.file}:{drop.row} ({drop.found})" for drop in tally.examples[(source, reason)][:3])
            over.append(
                f"{role}: {count} of {rows} rows of '{source}' dropped as {reason}: {REASONS[reason].what} (limit {limit:g} of "
                f"rows); first: {places}. Remedy: {REASONS[reason].remedy}; or raise policy.limits.{reason} in the data conf."
            )
    if over:
        raise DataError("\n".join(over))
