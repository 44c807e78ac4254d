"""Whether a worked solution ends in the right answer: 1 or 0 (RLVR, Tülu 3, arXiv:2411.15124; GSM8K, arXiv:2110.14168).

The answer is what stands behind the last mark (`####`, `\\boxed{…}`, `A:`, `Answer:`, "the answer is", `정답:`, `답은`). Without a mark it is the
last number of the text, or the last formula (`$…$`, `\\(…\\)`, `\\[…\\]`) or line where a formula is asked for or stands behind that number.

Numbers are compared exactly: `1,234.50`, `$1234.5` and `2469/2` are one number, `50%` and `50` count as one too, as GSM8K has no marks for
units. Where the reference or the answer is more than a number, `stages/rewards/algebra.py` compares them as mathematics and says what it does
not know. Whatever is not right is 0 and counted by its outcome: wrong, missing, unreadable, timeout or crashed.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

from stages.pipeline.records import Message
from stages.rewards.algebra import Algebra
from stages.rewards.references import References

_PLAIN = r"-?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(rf"{_PLAIN}(?:\s*/\s*{_PLAIN})?")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{(-?\d+)\}\s*\{(-?\d+)\}")
_HASHES = r"####(?!\s*(?!sqrt|pi\b|infinity)[^\W\d_]{2}[^\n]*\n\s*\S)"  # `#### 12` is an answer, `#### Step 2` above other lines a heading
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
_LONGEST_NUMBER = 60  # characters: a longer one is no answer to anything, and costs time
_REMEMBERED = 1 << 16  # comparisons: policies say the same again


class Answer(NamedTuple):
    """What a solution ends in."""

    text: str
    marked: bool  # it stands behind a mark
    formula: bool  # it stands in a box or between marks of a formula, as a whole


def answer_of(text: str) -> Answer:
    """What stands behind the last mark of a solution; without a mark, its last formula, or else what its last line says that it `is`."""
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
        _DELIMITER.sub("", found[0]).strip()
        for found in re.finditer(_FORMULA, formulas, re.DOTALL)
        if _DELIMITER.sub("", found[0])
    )


def _to_closing_brace(text: str) -> str:
    depth = 1
    for place, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if not depth:
            return text[:place]
    return text.split("\n", 1)[0]


def more_than_a_number(answer: Answer) -> bool:
    """Whether an answer is to be read as mathematics: it has operators, commands, variables, or several numbers."""
    text = _FRACTION.sub(r"\1/\2", answer.text)
    text = _FORMAT.sub(lambda found: "" if found[0] in (r"\!", r"\,") else " ", text)
    text = text.replace("{", "").replace("}", "")
    return bool(_MIXED.search(answer.text) or _MORE_THAN_A_NUMBER.search(text) or (answer.formula and _SEVERAL.search(text)))


def final_answer(text: str) -> Fraction | None:
    """The number that a solution ends in, or None if it gives none."""
    text = _BOLD.sub(r"\1", _FRACTION.sub(r"\1/\2", text.replace("−", "-")))
    marks = list(_MARK.finditer(text))
    if marks:
        line = text[marks[-1].end() :].lstrip().split("\n", 1)[0]
        found = _NUMBER.search(re.sub(r"\\[!,]|[$€£₩*{}\\]", "", line))
        return number(found[0]) if found else None
    numbers = _NUMBER.findall(text)
    return number(numbers[-1]) if numbers else None


def number(text: str) -> Fraction | None:
    """A number as it is written, commas and all; None if it is none."""
    if len(text) > _LONGEST_NUMBER or "_" in text:  # Python's own digits' groups are another base's mark here
        return None
    above, _, below = text.replace(",", "").replace(" ", "").partition("/")
    try:
        return Fraction(above) / Fraction(below or "1")
    except (ValueError, ZeroDivisionError):
        return None


def reference_number(reference: str) -> Fraction | None:
    """The number that a reference is, if it is one."""
    return number(_FRACTION.sub(r"\1/\2", reference.strip()))


def require_readable(references: Iterable[str], algebra: Algebra) -> None:
    """Requires references that a completion can be compared with.

    Raises:
        ValueError: naming one that is neither a number nor mathematics.
    """
    found = algebra.unreadable(reference for reference in references if reference_number(reference) is None)
    if found is not None:
        raise ValueError(
            f"kind: math: expected a number or a formula in LaTeX as `answer`, found {found!r}. Words, if they are meant, stand in \\text{{…}}"
        )


class MathReward:
    """1 for the right answer, else 0; `outcomes` counts what became of each.

    Raises:
        ValueError: a reference is neither a number nor mathematics.
    """

    def __init__(self, references: References, algebra: Algebra | None = None) -> None:
        self.references = references
        self.algebra = algebra or Algebra()
        self.outcomes: Counter[str] = Counter()
        self.known: dict[tuple[str, str], str] = {}
        self.readable: set[str] = set()

    def __call__(self, prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
        return [self._score(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]

    def _score(self, prompt: list[Message], completion: str) -> float:
        outcome = self.outcome(str(self.references.of(prompt)), completion)
        self.outcomes[outcome] += 1
        return float(outcome == "right")

    def outcome(self, reference: str, completion: str) -> str:
        """What the answer of a completion is, beside the reference: right, wrong, missing, unreadable, timeout or crashed."""
        expected, answer = reference_number(reference), answer_of(completion)
        if expected is None and reference not in self.readable:
            require_readable([reference], self.algebra)
            self.readable.add(reference)
        found = final_answer(completion)
        plain = "missing" if found is None else "right" if found == expected else "wrong"
        if expected is not None and not ((answer.marked or answer.formula) and more_than_a_number(answer)):
            return plain
        if not answer.text.strip():
            return "missing"
        pair = reference, answer.text
        if pair not in self.known:
            if len(self.known) >= _REMEMBERED:
                self.known.clear()
            self.known[pair] = self.algebra.outcome(*pair)
        outcome = self.known[pair]
        # "A: 12 (that is, 3 + 9)": a number and prose
        return plain if outcome == "unreadable" and expected is not None and not answer.formula else outcome
