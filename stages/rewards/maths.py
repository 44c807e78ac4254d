"""Whether a worked solution ends in the right number: 1 or 0 (RLVR, Tülu 3, arXiv:2411.15124; GSM8K, arXiv:2110.14168).

The answer is what stands behind the last mark (`####`, `\\boxed{…}`, `A:`, `Answer:`, "the answer is", `정답:`, `답은`) or, without a mark, the
last number of the text. It is right if it is the same number as the reference, exactly: `1,234.50`, `$1234.5` and `2469/2` are one number,
`50%` and `50` count as one too, as GSM8K has no marks for units. A plain check of numbers: it knows no algebra, intervals, sets or LaTeX
beyond `\\frac{a}{b}`; equivalent expressions that are no numbers count as wrong.
"""

import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from stages.pipeline.records import Message
from stages.rewards.references import References

_PLAIN = r"-?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(rf"{_PLAIN}(?:\s*/\s*{_PLAIN})?")
_FRACTION = re.compile(r"\\d?frac\s*\{(-?\d+)\}\s*\{(-?\d+)\}")
_MARK = re.compile(r"(?:####|\\boxed\s*\{|\bA:|\banswer(?:\s+is|\s*:)|정답[은:]|답[은:])", re.IGNORECASE)
_LONGEST_NUMBER = 60  # characters: a longer one is no answer to anything, and costs time


def final_answer(text: str) -> Fraction | None:
    """The number that a solution ends in, or None if it gives none."""
    text = _FRACTION.sub(r"\1/\2", text.replace("−", "-"))
    marks = list(_MARK.finditer(text))
    if marks:
        line = text[marks[-1].end() :].lstrip().split("\n", 1)[0]
        found = _NUMBER.search(re.sub(r"[$€£₩*{}\\]", "", line))
        return number(found[0]) if found else None
    numbers = _NUMBER.findall(text)
    return number(numbers[-1]) if numbers else None


def number(text: str) -> Fraction | None:
    """A number as it is written, commas and all; None if it is none."""
    if len(text) > _LONGEST_NUMBER:
        return None
    above, _, below = text.replace(",", "").replace(" ", "").partition("/")
    try:
        return Fraction(above) / Fraction(below or "1")
    except (ValueError, ZeroDivisionError):
        return None


class MathReward:
    """1 for the right number, else 0; `outcomes` counts right, wrong and missing answers."""

    def __init__(self, references: References) -> None:
        self.references = references
        self.outcomes: Counter[str] = Counter()

    def __call__(self, prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
        return [self._score(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]

    def _score(self, prompt: list[Message], completion: str) -> float:
        reference = str(self.references.of(prompt))
        expected = number(reference.strip())
        if expected is None:
            raise ValueError(f"kind: math: expected a number as `answer`, found {reference!r} for {prompt[-1]['content'][:80]!r}")
        found = final_answer(completion)
        self.outcomes["missing" if found is None else "right" if found == expected else "wrong"] += 1
        return float(found == expected)
