"""Scores a worked solution by its final answer: 1 if it is right, else 0 (RLVR, Tülu 3, arXiv:2411.15124; GSM8K, arXiv:2110.14168).

The answer is what follows the last mark (`####`, `\\boxed{…}`, `A:`, `Answer:`, "the answer is", `정답:`, `답은`). Without a mark it is the last
number of the text. If a formula is asked for, or comes after that number, it is the last formula (`$…$`, `\\(…\\)`, `\\[…\\]`) or the last line.

Numbers are compared exactly: `1,234.50`, `$1234.5` and `2469/2` are one number. So are `50%` and `50`, because GSM8K does not mark units. If
the reference or the answer is more than a number, plumbline/checking/algebra.py compares them as mathematics; its docstring names its limits.
Everything that is not right scores 0 and is counted by its outcome: wrong, missing, unreadable, timeout or crashed.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from plumbline.checking.algebra import Algebra
from plumbline.checking.references import References, load_references
from plumbline.rows import Message

_PLAIN = r"-?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(rf"{_PLAIN}(?:\s*/\s*{_PLAIN})?")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{(-?\d+)\}\s*\{(-?\d+)\}")
_HASHES = r"####(?!\s*(?!sqrt|pi\b|infinity)[^\W\d_]{2}[^\n]*\n\s*\S)"  # `#### 12` is an answer; `#### Step 2` above other lines is a heading
_MARK = re.compile(rf"(?:{_HASHES}|\\boxed\s*\{{|\bA:|\banswer(?:\s+is|\s*:)|정?답\s*[은::])", re.IGNORECASE)
_BOLD = re.compile(r"(?<!\w)\*\*([^*\n]+)\*\*")
_FORMULA = r"\$\$[^$]+\$\$|(?<!\\)\$[^$\n]+(?<!\\)\$|\\\([^\n]+?\\\)|\\\[.+?\\\]"
_FORMULAS = re.compile(rf"(?:{_FORMULA})(?:\s*(?:,|,?\s*and\b|,?\s*or\b)\s*(?:{_FORMULA}))*", re.DOTALL)
_DELIMITER = re.compile(r"\$+|\\[()\[\]]")
_FORMAT = re.compile(
    r"\\(?:text|mathrm|mathbf|textbf|mbox|left|right|displaystyle|quad|qquad|approx|boxed|l?dots)(?![A-Za-z])|\\[$%,!;: {}]"
)
_MORE_THAN_A_NUMBER = re.compile(
    r"\\[A-Za-z]|[\^√²³π∞∪∩±≤≥<>]|sqrt|\d_|\d[xyzn](?![A-Za-z])|[\d)]\s*(?:[+*×·÷]|\*\*|-)\s*[\d(]|\d\s+\d+\s*/\s*\d"
)
_MIXED = re.compile(r"\d\s*\\[dt]?frac")
_SEVERAL = re.compile(r"\d\s*(?:,(?!\d{3}(?!\d))|\bor\b|\band\b)\s*[-+]?[\d.(]")
_LONGEST_NUMBER = 60  # characters; a longer number answers nothing and costs time
_REMEMBERED = 1 << 16  # comparisons: a policy gives the same answer many times


class Answer(NamedTuple):
    """The final answer of a solution."""

    text: str
    marked: bool  # it follows a mark
    formula: bool  # all of it is in a box or between the delimiters of a formula


def answer_of(text: str) -> Answer:
    """What follows the last mark of a solution. Without a mark: its last formula, or else its last line after the word `is`."""
    text = _BOLD.sub(r"\1", text)
    marks = list(_MARK.finditer(text))
    if not marks:
        formulas = list(_FORMULAS.finditer(text))
        if formulas and not _NUMBER.search(text, formulas[-1].end()):
            return Answer(_inside(formulas[-1][0]), False, True)
        line = (text.strip().splitlines() or [""])[-1]
        return Answer(re.split(r"\bis\b", line)[-1], False, False)
    rest = text[marks[-1].end() :]
    if marks[-1][0].endswith("{"):
        return Answer(_to_closing_brace(rest), True, True)
    line = rest.lstrip().split("\n", 1)[0]
    formula = _FORMULAS.search(line)
    if formula and not _NUMBER.search(line[: formula.start()]):
        return Answer(_inside(formula[0]), True, True)
    return Answer(re.split(r"\.(?:\s|$)", line, maxsplit=1)[0] if not _NUMBER.match(line) else line, True, False)


def _inside(formulas: str) -> str:
    """`$1$ and $2$` → `1, 2`."""
    return ", ".join(
        _DELIMITER.sub("", match[0]).strip()
        for match in re.finditer(_FORMULA, formulas, re.DOTALL)
        if _DELIMITER.sub("", match[0])
    )


def _to_closing_brace(text: str) -> str:
    depth = 1
    for position, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if not depth:
            return text[:position]
    return text.split("\n", 1)[0]


def more_than_a_number(answer: Answer) -> bool:
    """Whether an answer must be read as mathematics: it has operators, commands, variables, or several numbers."""
    text = _FRACTION.sub(r"\1/\2", answer.text)
    text = _FORMAT.sub(lambda match: "" if match[0] in (r"\!", r"\,") else " ", text)
    text = text.replace("{", "").replace("}", "")
    return bool(_MIXED.search(answer.text) or _MORE_THAN_A_NUMBER.search(text) or (answer.formula and _SEVERAL.search(text)))


def final_answer(text: str) -> Fraction | None:
    """The number that a solution ends in; None if there is no such number."""
    text = _BOLD.sub(r"\1", _FRACTION.sub(r"\1/\2", text.replace("−", "-")))
    marks = list(_MARK.finditer(text))
    if marks:
        line = text[marks[-1].end() :].lstrip().split("\n", 1)[0]
        match = _NUMBER.search(re.sub(r"\\[!,]|[$€£₩*{}\\]", "", line))
        return number(match[0]) if match else None
    numbers = _NUMBER.findall(text)
    return number(numbers[-1]) if numbers else None


def number(text: str) -> Fraction | None:
    """Reads a number with commas, a decimal point or a fraction bar; None if the text is not a number."""
    if len(text) > _LONGEST_NUMBER or "_" in text:  # Python groups digits with `_`, which marks the base of a number here
        return None
    above, _, below = text.replace(",", "").replace(" ", "").partition("/")
    try:
        return Fraction(above) / Fraction(below or "1")
    except (ValueError, ZeroDivisionError):
        return None


def reference_number(reference: str) -> Fraction | None:
    """The reference as a number; None if it is not a number."""
    return number(_FRACTION.sub(r"\1/\2", reference.strip()))


def require_readable(references: Iterable[str], algebra: Algebra) -> None:
    """Requires references that a completion can be compared with.

    Raises:
        ValueError: a reference is neither a number nor a formula; the message names the first.
    """
    unreadable = algebra.unreadable(reference for reference in references if reference_number(reference) is None)
    if unreadable is not None:
        raise ValueError(
            f"kind: math: expected a number or a formula in LaTeX as `answer`, found {unreadable!r}. Write words as \\text{{…}}"
        )


class MathReward:
    """1 for the right answer, else 0; `outcomes` counts the completions by outcome.

    Raises (when called):
        ValueError: a prompt has no reference, or its reference is neither a number nor a formula.
    """

    def __init__(self, references: References, algebra: Algebra | None = None) -> None:
        self.references = references
        self.algebra = algebra or Algebra()
        self.outcomes: Counter[str] = Counter()
        self.compared: dict[tuple[str, str], str] = {}
        self.readable: set[str] = set()

    def __call__(self, prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
        return [self._score(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]

    def _score(self, prompt: list[Message], completion: str) -> float:
        outcome = self.outcome(str(self.references.of(prompt)), completion)
        self.outcomes[outcome] += 1
        return float(outcome == "right")

    def outcome(self, reference: str, completion: str) -> str:
        """How a completion's answer compares with the reference: right, wrong, missing, unreadable, timeout or crashed."""
        expected, answer = reference_number(reference), answer_of(completion)
        if expected is None and reference not in self.readable:
            require_readable([reference], self.algebra)
            self.readable.add(reference)
        value = final_answer(completion)
        plain = "missing" if value is None else "right" if value == expected else "wrong"
        if expected is not None and not ((answer.marked or answer.formula) and more_than_a_number(answer)):
            return plain
        if not answer.text.strip():
            return "missing"
        pair = reference, answer.text
        if pair not in self.compared:
            if len(self.compared) >= _REMEMBERED:
                self.compared.clear()
            self.compared[pair] = self.algebra.outcome(*pair)
        outcome = self.compared[pair]
        # "A: 12 (that is, 3 + 9)" is a number followed by prose
        return plain if outcome == "unreadable" and expected is not None and not answer.formula else outcome


def load(folder: Path, description: Mapping[str, Any], run: str) -> MathReward:
    """Loads the reward that compares with the answers in a reward's folder."""
    return MathReward(load_references(folder, "answer"))
