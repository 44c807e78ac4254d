"""From a judge's scores to training data: which completion of a prompt is preferred to which.

Every function takes the scores of one prompt's completions (None: no verdict) and returns positions in them. A pair is never
made of two equal texts, and never of a completion without a score. `choosable` says which may be chosen: a completion that was
cut off may only be rejected, for as the chosen one it would teach not to stop. What margins and ties keep out is the caller's to
count.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

Scores = Sequence[float | None]


class Pair(NamedTuple):
    """Two completions of one prompt, by position; the margin is the difference of their scores."""

    chosen: int
    rejected: int
    margin: float

    @property
    def tie(self) -> bool:
        """Whether neither is better, and only their order in the sample decides which is called chosen."""
        return self.margin == 0


def _scored(scores: Scores) -> list[tuple[int, float]]:
    return [(position, score) for position, score in enumerate(scores) if score is not None]


def _pair(first: tuple[int, float], second: tuple[int, float]) -> Pair:
    better, worse = (second, first) if second[1] > first[1] else (first, second)
    return Pair(better[0], worse[0], round(better[1] - worse[1], 9))  # 0.6 - 0.2 is 0.4, as min_margin is written


Scored = tuple[int, float]


def _best(scores: Scores, texts: Sequence[str], choosable: Sequence[bool]) -> tuple[Scored, list[Scored]] | None:
    """The best that may be chosen, and the others that are not better; None if there is no such pair."""
    scored = _scored(scores)
    best = max((item for item in scored if choosable[item[0]]), key=lambda item: item[1], default=None)
    if best is None:
        return None
    others = [item for item in scored if texts[item[0]] != texts[best[0]] and item[1] <= best[1]]
    return (best, others) if others else None


def best_vs_worst(scores: Scores, texts: Sequence[str], choosable: Sequence[bool], seed: str) -> list[Pair]:
    """The best against the worst; among equals the first sampled."""
    found = _best(scores, texts, choosable)
    return [_pair(found[0], min(found[1], key=lambda item: item[1]))] if found else []


def best_vs_random(scores: Scores, texts: Sequence[str], choosable: Sequence[bool], seed: str) -> list[Pair]:
    """The best against a random other (Zephyr's dDPO, arXiv:2310.16944, §3); `seed` decides which."""
    found = _best(scores, texts, choosable)
    return [_pair(found[0], random.Random(seed).choice(found[1]))] if found else []


def all_pairs(scores: Scores, texts: Sequence[str], choosable: Sequence[bool], seed: str) -> list[Pair]:
    """All K·(K−1)/2 pairs of a prompt's distinct completions, adjacent (InstructGPT, arXiv:2203.02155, §3.5)."""
    scored = list({texts[position]: (position, score) for position, score in reversed(_scored(scores))}.values())[::-1]
    pairs = [_pair(first, second) for at, first in enumerate(scored) for second in scored[at + 1 :]]
    return [pair for pair in pairs if choosable[pair.chosen]]


def strong_vs_weak(policies: Sequence[str], texts: Sequence[str], strong: str, weak: str) -> list[Pair]:
    """The stronger policy's n-th completion against the weaker one's n-th, with no judge (neural-chat); margin 1."""
    stronger = [position for position, policy in enumerate(policies) if policy == strong]
    weaker = [position for position, policy in enumerate(policies) if policy == weak]
    return [Pair(s, w, 1.0) for s, w in zip(stronger, weaker, strict=False) if texts[s] != texts[w]]


def unpaired(scores: Scores, min_margin: float) -> list[tuple[int, bool]]:
    """Good and bad completions for KTO (arXiv:2402.01306): those more than half of `min_margin` off the prompt's mean."""
    scored = _scored(scores)
    if not scored:
        return []
    centre = sum(score for _, score in scored) / len(scored)
    return [(position, score > centre) for position, score in scored if abs(score - centre) > min_margin / 2]


def kept(pairs: Sequence[Pair], min_margin: float, keep_ties: bool) -> list[Pair]:
    """The pairs with a margin of at least `min_margin`, and the ties only if they are to be kept."""
    return [pair for pair in pairs if (keep_ties if pair.tie else pair.margin >= min_margin)]


def drawn(pairs: Sequence[Pair], most: int, seed: str) -> list[Pair]:
    """At most so many of a prompt's pairs, drawn at random and in their order; all of them where `most` is 0."""
    if not most or len(pairs) <= most:
        return list(pairs)
    return [pairs[place] for place in sorted(random.Random(seed).sample(range(len(pairs)), most))]


BUILDERS = {"best_vs_worst": best_vs_worst, "best_vs_random": best_vs_random, "all_pairs": all_pairs}
"""`pairs:` in params.yaml → the function that builds them from scores."""
