"""Win rate: one policy's answers against another's, each pair of answers shown to the judge in both orders."""

from collections.abc import Sequence

from plumbline.judging.judge import Judge, Prompts


def compare(judge: Judge, prompts: Prompts, answers_a: Sequence[str], answers_b: Sequence[str]) -> list[float | None]:
    """A's score in each comparison: 1 for a win in both orders, 0 for a loss in both, 0.5 otherwise.

    A tie counts one half, and so do two orders that disagree. Equal answers tie without asking the judge. None stands for a verdict
    that could not be read after retries: leave these out, and report how many there were.
    """
    return [comparison.win for comparison in judge.compare(prompts, answers_a, answers_b)]
