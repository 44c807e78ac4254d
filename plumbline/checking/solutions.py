r"""Finds the final answer of a worked solution.

It is what follows the last mark (`####`, `\boxed{…}`, `A:`, `Answer:`, "the answer is", `정답:`, `답은`), or what stands in `<answer>…</answer>`.
Without a mark it is the last formula (`$…$`, `\(…\)`, `\[…\]`) if no number comes after it, or else the last number. What stands in a block of
reasoning is never an answer. A solution that names several different final numbers ("5 or 6 or 7") does not have one.
"""

import re
from fractions import Fraction
from typing import NamedTuple

from plumbline.checking.quantities import NUMBER, number, quantity, simplified, unified
from plumbline.reasoning import ALL, answer_block, without_reasoning

_HASHES = r"####(?!\s*(?!sqrt|pi\b|infinity)[^\W\d_]{2}[^\n]*\n\s*\S)"  # `#### 12` is an answer; `#### Step 2` above other lines is a heading
_BOX = r"\\(?:boxed|fbox)\s*\{"
_MARK = re.compile(rf"{_HASHES}|{_BOX}|\bA:|\banswers?(?:\s+(?:is|are)\b|\s*[:=])|정?답\s*[은:]", re.IGNORECASE)
_BOLD = re.compile(r"(?<!\w)\*\*([^*\n]+)\*\*")
_FORMULA = r"\$\$[^$]+\$\$|(?<!\\)\$[^$\n]+(?<!\\)\$(?!\d)|\\\([^\n]{1,500}?\\\)|\\\[.{1,500}?\\\]"  # `$5 or $6` is not a formula
_FORMULAS = re.compile(rf"(?:{_FORMULA})(?:\s*(?:,|,?\s*and\b|,?\s*or\b)\s*(?:{_FORMULA}))*", re.DOTALL)
_DELIMITER = re.compile(r"\$+|\\[()\[\]]")

_OR = (
    r"(?:\b(?:or|maybe|perhaps|possibly|probably|alternatively|to|but|else|versus|vs|may|might|could|no)\b"
    r"|\b(?:xor|ou|oder|o)\b|或者?|または|もしくは|또는|혹은|아니면|아마|이거나|거나|이나|나(?=\s)|내지|에서)"
)
_FILLER = r"(?:\b(?:and|be|also|it|is|if|either|even|then|wait|x|y)\b)"
_STOPS = r"[\s,;.|&~・()\[\]{}\"'!?:*$=/—-]*"
_BETWEEN_EQUALS = re.compile(
    r"(?:[\s,;|&~・?{}]|\n\s*(?:[-*•]|\w[.)]|\(\w\))\s|\band\b|\b[A-Za-z]\s*=|그리고|와(?=\s)|과(?=\s))*", re.IGNORECASE
)
_BETWEEN_CHOICES = re.compile(rf"{_STOPS}(?:{_FILLER}{_STOPS})*{_OR}{_STOPS}(?:(?:{_OR}|{_FILLER}){_STOPS})*", re.IGNORECASE)
_DOUBT = re.compile(r"\b(?:also|possible|possibly|maybe|perhaps|probably|might|alternatively)\b|수도|가능|아마", re.IGNORECASE)
_ARITHMETIC = re.compile(r"\A(?=[^=]*[-+*/×·÷x])[\d\s+*×·/÷().,x⟨⟩-]+=\s*(?=[-+\d.⟨])")  # `2*36 = ` before a result
_LINE = re.compile(rf"[^\n]*(?:\n\W*{_OR}[^\n]*)*", re.IGNORECASE)  # and the next one, if it goes on with `or`
_DENIED = re.compile(
    rf"(?:\b(?:not|isn't|never|rather than|instead of))\s+(?:{NUMBER.pattern})(?:\s*[^\W\d_]+(?=\s*,?\s*but\b))?"
    rf"|(?:(?:more|greater|larger|less|fewer|smaller)\s+than|\A\s*[<>])\s*(?:{NUMBER.pattern})"
    rf"|(?:{NUMBER.pattern})\s?[^\W\d_]{{0,3}}\s*아(?:니|닌|닙|님)",
    re.IGNORECASE,
)
_FACTOR = re.compile(r"\s*[√^α-λν-ω]")  # of which a number is only a part
_UNIT = re.compile(r"\s*(?:[^\W\d_]{1,3}?(?=에서|이나|이거나|거나|나\s)|[^\W\d_]+)")
_EXPLANATION = re.compile(rf"(?<!\s)\s+\((?!\s*{_OR})([^()]*)\)\s*[.!]?\s*\Z", re.IGNORECASE)


class Answer(NamedTuple):
    """The final answer of a solution."""

    text: str  # the answer alone, as far as that can be told
    line: str  # where its number is looked for: the line after the mark, or all of a solution without a mark
    marked: bool  # it follows a mark
    formula: bool  # all of it is in a box or between the delimiters of a formula


def answer_of(solution: str, marks: str = ALL) -> Answer:
    """What follows the last mark of a solution. Without a mark: its last formula, or else its last line after the word `is`.

    marks: what sets reasoning apart, by plumbline/reasoning.py.
    """
    shown = without_reasoning(solution, marks)
    block = answer_block(shown)
    text = _BOLD.sub(r"\1", unified(shown if block is None else block))
    found = list(_MARK.finditer(text))
    if found and found[-1][0].endswith("{"):
        return _boxed(text)
    if found:
        return _after_mark(text[found[-1].end() :])
    if block is not None and not re.search(r"[^\W\d_]{3}", re.sub(r"\\[A-Za-z]+", "", block)):
        return Answer(block, block, True, True)
    formulas = list(_FORMULAS.finditer(text))
    if formulas and not NUMBER.search(text, formulas[-1].end()):
        return Answer(_inside(formulas[-1][0]), text, False, True)
    line = (text.strip().splitlines() or [""])[-1]
    return Answer(re.split(r"\b(?:is|are)\b", line)[-1], text, False, False)


def _boxed(text: str) -> Answer:
    """The content of the last box, and of those before it if nothing but `or`, `and` or a comma stands between them."""
    contents: list[str] = []
    following = len(text)
    for box in reversed(list(re.finditer(_BOX, text))):
        content = _to_closing_brace(text[box.end() :])
        between = simplified(text[box.end() + len(content) + 1 : following]).replace("$", " ")
        inner = box.end() + len(content) > following
        if contents and (inner or not (_BETWEEN_EQUALS.fullmatch(between) or _BETWEEN_CHOICES.fullmatch(between))):
            break
        contents.insert(0, content)
        following = box.start()
    listed = ", ".join(dict.fromkeys(content.strip() for content in contents))
    return Answer(listed, listed, True, True)


def _to_closing_brace(text: str) -> str:
    depth = 1
    for position, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if not depth:
            return text[:position]
    return text.split("\n", 1)[0]


def _after_mark(rest: str) -> Answer:
    """The answer on the line that follows a mark which is not a box."""
    rest = re.sub(r"\A\s*:", "", rest)
    rest = re.sub(r"\A\s*\n[^\S\n]*[-*•>]\s", "", rest).lstrip()  # an item of a list or a quotation, not a sign
    formula = _FORMULAS.match(rest)  # which may be of several lines
    match = _LINE.match(rest, formula.end() if formula else 0)
    line = rest[: match.end()] if match else ""
    formula = _FORMULAS.search(line)
    if formula and not NUMBER.search(line[: formula.start()]):
        return Answer(_inside(formula[0]), line, True, True)
    text = line if NUMBER.match(line) else re.split(r"\.(?:\s|$)", line, maxsplit=1)[0]
    text = re.sub(r"(?<=\S)\s*(?:입니다|이에요|예요|이다)\Z", "", text.rstrip("!. "))
    return Answer(_without_explanation(text), line, True, False)


def _without_explanation(text: str) -> str:
    """`72 (36*2)` → `72` and `x + 1 (after expanding)` → `x + 1`; `x \\in (1, 2)` stays as it is."""
    match = _EXPLANATION.search(text)
    if (
        match
        and not _DOUBT.search(match[1])
        and (quantity(text[: match.start()]) or re.search(r"(?<!\\)\b[^\W\d_]{3}", match[1]))
    ):
        return text[: match.start()]
    return text


def _inside(formulas: str) -> str:
    """`$1$ and $2$` → `1, 2`."""
    return ", ".join(
        _DELIMITER.sub("", match[0]).strip()
        for match in re.finditer(_FORMULA, formulas, re.DOTALL)
        if _DELIMITER.sub("", match[0])
    )


def final_numbers(answer: Answer) -> list[Fraction]:
    """The different numbers that an answer in prose states: the first of a marked answer, or the last of a solution without a mark.

    Several numbers that are offered beside it ("72, 71, 70 or 69") are returned with it. Denied ones ("not 5 but 6") are passed over.
    """
    text = _ARITHMETIC.sub("", _DENIED.sub(" ; ", simplified(answer.line)))
    matches = list(NUMBER.finditer(text))
    if not answer.marked:
        matches.reverse()
    offered = matches[:1]
    doubtful = answer.marked and bool(offered) and bool(_DOUBT.search(text, offered[0].end()))
    for match in matches[1:]:
        first, second = sorted((offered[-1], match), key=lambda number: number.start())
        if not (doubtful or _offered_together(text, first, second)):
            break
        offered.append(match)
    if any(_FACTOR.match(text, match.end()) for match in offered):
        return []
    values = (number(match[0]) for match in offered)
    return list(dict.fromkeys(value for value in values if value is not None))


def _offered_together(text: str, first: re.Match[str], second: re.Match[str]) -> bool:
    """Whether two neighbouring numbers are alternatives: `5, 6`, `5 apples or 6`, and `5 apples, 6 apples`; not `15 hours and 30 minutes`."""
    between = text[first.end() : second.start()]
    unit = _UNIT.match(between)
    after_unit = between[unit.end() :] if unit else between
    if _BETWEEN_CHOICES.fullmatch(between) or _BETWEEN_CHOICES.fullmatch(after_unit) or _BETWEEN_EQUALS.fullmatch(between):
        return True
    next_unit = _UNIT.match(text, second.end())
    same = bool(unit and next_unit and unit[0].strip().lower() == next_unit[0].strip().lower())
    return same and bool(_BETWEEN_EQUALS.fullmatch(after_unit))


def final_answer(solution: str) -> Fraction | None:
    """The number that a solution ends in; None if there is no such number, or more than one."""
    numbers = final_numbers(answer_of(solution))
    return numbers[0] if len(numbers) == 1 else None
