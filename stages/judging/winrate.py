"""Win rate: one policy's answers against another's, each pair of answers shown to the judge in both orders."""

from collections.abc import Sequence

from stages.judging.judge import Judge, Prompts


def compare(judge: Judge, prompts: Prompts, answers_a: Sequence[str], answers_b: Sequence[str]) -> list[float | None]:
    """What each comparison is worth to A: 1 a win in both orders, 0 a loss in both, 0.5 else.

    A tie counts one half, and so do two orders that disagree; equal answers are a tie that nobody is asked about. None where a
    verdict could not be read after retries: leave these out, and say how many.
    """
    return [comparison.win for comparison in judge.compare(prompts, answers_a, answers_b)]
