"""Scores a worked solution by its final answer: 1 if it is right, else 0 (RLVR, Tülu 3, arXiv:2411.15124; GSM8K, arXiv:2110.14168).

plumbline/checking/solutions.py finds the answer. Numbers are compared exactly: `1,234.50`, `$1234.5`, `2469/2` and `1234 1/2` are one number. So are
`50%` and `50`, because GSM8K does not mark units; but `5 cm` is not `5 m`. If the reference or the answer is more than a number,
plumbline/checking/algebra.py compares them as mathematics; its docstring names its limits. Everything that is not right scores 0 and is counted
by its outcome: wrong, several, missing, unreadable, timeout or crashed.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plumbline.checking.algebra import Algebra
from plumbline.checking.notation import is_text
from plumbline.checking.quantities import ambiguity, quantity, simplified
from plumbline.checking.references import References, load_references
from plumbline.checking.solutions import Answer, answer_of, final_numbers
from plumbline.reasoning import ALL
from plumbline.rows import Message, last_turn

_MORE_THAN_A_NUMBER = re.compile(
    r"\\[A-Za-z]|[\^√α-λν-ω∞∪∩±≤≥<>]|sqrt|\bmod\b|\d%\d|\d\s*\+\s*[A-Za-z]\b|\d_|\d[a-fi-kn-rt-zA-KM-Z](?![A-Za-z])|[\d)⟩]\s*(?:[+*×·÷]|\*\*|-)\s*[\d(⟨]|[\d)⟩]\s*/\s*[\d(⟨]"
)
_SEVERAL = re.compile(r"\d\s*(?:,(?!\d{3}(?!\d))|\bor\b|\band\b)\s*[-+]?[\d.(⟨]")
_REMEMBERED = 1 << 16  # comparisons: a policy gives the same answer many times


def more_than_a_number(answer: Answer) -> bool:
    """Whether an answer that is not a quantity must be read as mathematics: it has operators, commands, variables, or several numbers."""
    text = simplified(answer.text).replace("{", "").replace("}", "")
    return bool(_MORE_THAN_A_NUMBER.search(text) or (answer.formula and _SEVERAL.search(text)))


def require_readable(references: Mapping[str, str], algebra: Algebra) -> None:
    """Requires references that a completion can be compared with.

    references: each reference → the question that it answers, which a message quotes.

    Raises:
        ValueError: a reference is neither a quantity nor mathematics, or may be read in two ways; the message names the first.
    """
    others = [reference for reference in references if quantity(reference) is None and not is_text(reference)]
    for reference in others:
        if why := ambiguity(reference):
            raise ValueError(
                f"kind: math: expected an `answer` that can be read in one way only, found {reference!r} for "
                f"{references[reference][:80]!r}: {why}"
            )
    unreadable = algebra.unreadable(others)
    if unreadable is not None:
        raise ValueError(
            f"kind: math: expected a number or a formula in LaTeX as `answer`, found {unreadable!r} for "
            f"{references[unreadable][:80]!r}. Write words as \\text{{…}}"
        )


class MathReward:
    """1 for the right answer, else 0; `outcomes` counts the completions by outcome.

    reasoning: which marks set a completion's reasoning apart (plumbline/reasoning.py).

    Raises (when called):
        ValueError: a prompt has no reference, or its reference is neither a quantity nor mathematics.
    """

    def __init__(self, references: References, algebra: Algebra | None = None, reasoning: str = ALL) -> None:
        self.references = references
        self.algebra = algebra or Algebra()
        self.reasoning = reasoning
        self.outcomes: Counter[str] = Counter()
        self.compared: dict[tuple[str, str], str] = {}
        self.readable: set[str] = set()

    def __call__(self, prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
        return [self._score(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]

    def _score(self, prompt: list[Message], completion: str) -> float:
        outcome = self.outcome(str(self.references.of(prompt)), completion, last_turn(prompt))
        self.outcomes[outcome] += 1
        return float(outcome == "right")

    def outcome(self, reference: str, completion: str, question: str = "") -> str:
        """How a completion's answer compares with the reference: right, wrong, several, missing, unreadable, timeout or crashed.

        question: quoted if the reference cannot be read.
        """
        expected, answer = quantity(reference), answer_of(completion, self.reasoning)
        if expected is None:
            if reference not in self.readable:
                require_readable({reference: question}, self.algebra)
                self.readable.add(reference)
            return self._compared(reference, answer.text) if answer.text.strip() else "missing"
        if stated := quantity(answer.text):
            return "right" if expected.equals(stated) else "wrong"
        values = final_numbers(answer)
        plain = "missing" if not values else "several" if len(values) > 1 else "right" if values[0] == expected.value else "wrong"
        mathematical = more_than_a_number(answer)
        if not (answer.formula or (answer.marked and mathematical)):
            return plain
        outcome = self._compared(reference, answer.text)
        # prose after a number ("12 apples, since 3 + 9 = 12") or in a box ("72 apples in 3 boxes") is not mathematics
        return plain if outcome == "unreadable" and not (answer.formula and mathematical) else outcome

    def _compared(self, reference: str, answer: str) -> str:
        pair = reference, answer
        if pair not in self.compared:
            if len(self.compared) >= _REMEMBERED:
                self.compared.clear()
            self.compared[pair] = self.algebra.outcome(*pair)
        return self.compared[pair]


def load(folder: Path, description: Mapping[str, Any], run: str) -> MathReward:
    """Loads the reward that compares with the answers in a reward's folder."""
    return MathReward(load_references(folder, "answer"), reasoning=description.get("thinking_marks", ALL))
