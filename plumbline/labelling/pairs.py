"""Decides by a judge's scores which completion of a prompt is preferred to which.

Every function takes the scores of one prompt's completions (None: no verdict) and returns positions in them. A pair never consists of two
equal texts, and never contains a completion without a score. `choosable` says which completions may be chosen: one that was cut off may only
be rejected, since it would teach not to stop. The caller counts the pairs that margins and ties keep out.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

Scores = Sequence[float | None]
Scored = tuple[int, float]
"""A completion's position and its score."""


class Pair(NamedTuple):
    """Two completions of one prompt, by position, and the difference of their scores."""

    chosen: int
    rejected: int
    margin: float

    @property
    def tie(self) -> bool:
        """Whether neither is better; then their order in the sample decides which is called chosen."""
        return self.margin == 0


def _scored(scores: Scores) -> list[Scored]:
    return [(position, score) for position, score in enumerate(scores) if score is not None]


def _pair(first: Scored, second: Scored) -> Pair:
    better, worse = (second, first) if second[1] > first[1] else (first, second)
    return Pair(better[0], worse[0], round(better[1] - worse[1], 9))  # so that 0.6 - 0.2 reaches a min_margin of 0.4


def _best(scores: Scores, texts: Sequence[str], choosable: Sequence[bool]) -> tuple[Scored, list[Scored]] | None:
    """The best completion that may be chosen, and those that it may be paired with; None if either is missing."""
    scored = _scored(scores)
    best = max((item for item in scored if choosable[item[0]]), key=lambda item: item[1], default=None)
    if best is None:
        return None
    others = [item for item in scored if texts[item[0]] != texts[best[0]] and item[1] <= best[1]]
    return (best, others) if others else None


def best_vs_worst(scores: Scores, texts: Sequence[str], choosable: Sequence[bool], seed: str) -> list[Pair]:
    """Pairs the best with the worst; among equals, with the first sampled."""
    if (candidates := _best(scores, texts, choosable)) is None:
        return []
    best, others = candidates
    return [_pair(best, min(others, key=lambda item: item[1]))]


def best_vs_random(scores: Scores, texts: Sequence[str], choosable: Sequence[bool], seed: str) -> list[Pair]:
    """Pairs the best with a random other (Zephyr's dDPO, arXiv:2310.16944, §3); `seed` decides with which."""
    if (candidates := _best(scores, texts, choosable)) is None:
        return []
    best, others = candidates
    return [_pair(best, random.Random(seed).choice(others))]


def all_pairs(scores: Scores, texts: Sequence[str], choosable: Sequence[bool], seed: str) -> list[Pair]:
    """Makes all K·(K−1)/2 pairs of a prompt's distinct completions (InstructGPT, arXiv:2203.02155, §3.5)."""
    scored = list({texts[position]: (position, score) for position, score in reversed(_scored(scores))}.values())[::-1]
    pairs = [_pair(first, second) for position, first in enumerate(scored) for second in scored[position + 1 :]]
    return [pair for pair in pairs if choosable[pair.chosen]]


def strong_vs_weak(policies: Sequence[str], texts: Sequence[str], strong: str, weak: str) -> list[Pair]:
    """Pairs the stronger policy's n-th completion with the weaker one's n-th, without a judge (neural-chat); the margin is 1."""
    stronger = [position for position, policy in enumerate(policies) if policy == strong]
    weaker = [position for position, policy in enumerate(policies) if policy == weak]
    return [Pair(s, w, 1.0) for s, w in zip(stronger, weaker, strict=False) if texts[s] != texts[w]]


def unpaired(scores: Scores, min_margin: float) -> list[tuple[int, bool]]:
    """Good (True) and bad completions for KTO (arXiv:2402.01306): those more than half of `min_margin` from the prompt's mean."""
    scored = _scored(scores)
    if not scored:
        return []
    centre = sum(score for _, score in scored) / len(scored)
    return [(position, score > centre) for position, score in scored if abs(score - centre) > min_margin / 2]


def kept(pairs: Sequence[Pair], min_margin: float, keep_ties: bool) -> list[Pair]:
    """The pairs with a margin of at least `min_margin`, and the ties if `keep_ties`."""
    return [pair for pair in pairs if (keep_ties if pair.tie else pair.margin >= min_margin)]


def drawn(pairs: Sequence[Pair], most: int, seed: str) -> list[Pair]:
    """At most `most` of a prompt's pairs (0: all), drawn at random and kept in their order."""
    if not most or len(pairs) <= most:
        return list(pairs)
    return [pairs[position] for position in sorted(random.Random(seed).sample(range(len(pairs)), most))]


BUILDERS = {"best_vs_worst": best_vs_worst, "best_vs_random": best_vs_random, "all_pairs": all_pairs}
"""`pairs:` in params.yaml → the function that builds them from scores."""
