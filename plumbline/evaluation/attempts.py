"""pass@k: how many prompts are answered rightly at least once in k attempts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import comb

from plumbline.evaluation.statistics import Interval, Values, fraction_interval


def pass_at_k(right: Values, prompts: Sequence[str]) -> dict[int, Interval]:
    """pass@k for each k = 2, 4, 8 … up to the number of answers to a prompt (Chen et al. 2021, arXiv:2107.03374, Eq. 1).

    The unbiased estimator: of a prompt with n answers, c of them right, 1 − C(n − c, k) / C(n, k), averaged over prompts. pass@1 is accuracy.
    Prompts with fewer than k answers are left out.

    right: 1 or 0 of each answer, as a program or a reference says; None if neither can tell. Empty if no prompt has two answers.
    """
    outcomes: dict[str, list[float]] = defaultdict(list)
    for value, prompt in zip(right, prompts, strict=True):
        if value is not None:
            outcomes[prompt].append(value)
    figures, k = {}, 2
    most = max(map(len, outcomes.values()), default=0)
    while k <= most:
        kept = {prompt: of_prompt for prompt, of_prompt in outcomes.items() if len(of_prompt) >= k}
        chances = [1 - comb(of_prompt.count(0.0), k) / comb(len(of_prompt), k) for of_prompt in kept.values()]
        if interval := fraction_interval(chances, [*kept]):
            figures[k] = interval
        k *= 2
    return figures
