"""Puts an answer into the LaTeX that Math-Verify reads best: symbols, plain notation, lists, units and words.

The members of a list may stand in any order. A comma with a space after it separates them; a comma without one separates thousands if three digits
follow, unless brackets enclose it.
"""

import re

from plumbline.checking.quantities import measured_in, unified

LONGEST = 400  # characters of an answer; a longer one is not read
DEEPEST = 24  # nested brackets

_SYMBOLS = {
    "×": r"\times ", "·": r"\cdot ", "÷": "/", "±": r"\pm ", "π": r"\pi ", "∞": r"\infty ", "∪": r"\cup ",
    "∩": r"\cap ", "∅": r"\emptyset ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "<=": r"\le ", ">=": r"\ge ", "!=": r"\ne ",
    "**": "^", r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\$": "", "$": "", r"\%": "", "%": "", r"\!": "", r"\,": " ",
    r"\;": " ", r"\:": " ", "{,}": ",", r"\displaystyle": "", r"\varnothing": r"\emptyset ",
}  # fmt: skip
_PLAIN = (
    (
        re.compile(r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)|√\s*\(([^()]*)\)|√\s*(\w+)"),
        lambda m: rf"\sqrt{{{m[1] or m[2] or m[3] or ''}}}",
    ),
    (re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])"), lambda m: r"\pi "),
    (re.compile(r"(?<![\\A-Za-z])(?:oo|inf|infinity)(?![A-Za-z])"), lambda m: r"\infty "),
    (re.compile(r"(?<![\d./^_])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d./])"), lambda m: rf"{m[1]}\frac{{{m[2]}}}{{{m[3]}}}"),
    (re.compile(r"(?<=\d)[eE]([-+]?\d+)"), lambda m: rf"\times 10^{{{m[1]}}}"),
    (re.compile(r"\^\s*\(([^()]*)\)"), lambda m: f"^{{{m[1]}}}"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)(?!\d)"), lambda m: rf"\frac{{{m[1]}}}{{{m[2]}}}"),
)
_UNIT = re.compile(
    r"(?<=[\w)}\]%])\s*(?:\\(?:text|mathrm|mbox|textbf)\s*\{([^{}]*)\}|([A-Za-z]{2,}))(\s*\^\s*\{?[23]\}?)?\s*(?=,|\Z)"
)
# what Math-Verify reads only the beginning of
PARTLY_READ = re.compile(r"\d\s*_|[:;?@#~`\"]|(?<![\d,._])\d+\s+\d|!.*!|\A(?!.*\\begin).*\\\\")
_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf)\s*\{([^{}]*)\}")
_WORDS_OF_A_LIST = re.compile(
    r"\s*;\s*|\s*,?\s*(?:\\(?:text|mbox|mathrm)\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b|그리고|또는|(?<=\d)[와과](?=\s))\s*",
    re.IGNORECASE,
)
_WORD = re.compile(r"[A-Za-z]{3,}|\b(?:as|so|is|by|of|we|it|at)\b|[^\x00-\x7f]")
_NAMES = {
    "sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "sqrt", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "and", "mod", "gcd",
    "lcm", "max", "min",
}  # fmt: skip


def as_latex(text: str, listed: bool = False) -> str:
    """An answer in LaTeX: symbols and plain notation (`sqrt(2)`, `1 1/2`, `x**2`) become commands; currency, per cent and units are removed.

    listed: whether a list is expected, in which commas separate members even if three digits follow.
    """
    text = separated(_WORDS_OF_A_LIST.sub(", ", " ".join(unified(text).split()).rstrip(".")), listed)
    text = _UNIT.sub(lambda match: "" if match[1] is not None or measured_in(match[2]) else match[0], text)
    for symbol, command in _SYMBOLS.items():
        text = text.replace(symbol, command)
    for pattern, replacement in _PLAIN:
        text = pattern.sub(replacement, text)
    return text.strip()


def last_side(latex: str) -> str:
    """What an equation or a chain of them ends in, which is its value: `x = 2 + 3 = 5` → `5`. Lists of equations stay as they are."""
    if "=" not in latex or "," in re.sub(r"\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}", "", latex):
        return latex
    sides = [side.strip() for side in latex.split("=")]
    return next((side for side in reversed(sides) if not re.fullmatch("[A-Za-z]?", side)), latex)


def unit_of(text: str) -> str:
    """The unit of measurement that an answer ends with, as `measured_in` writes it; empty if there is none."""
    units = _UNIT.findall(unified(text).strip().rstrip("."))
    return measured_in("".join(units[-1])) if units else ""


def separated(text: str, listed: bool = False) -> str:
    """A list with a space after each comma that separates members, and without those of thousands."""
    if re.search(r",\s", text):
        return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    if (
        listed
        or re.search(r"[\[({]", text.replace("{,}", ""))
        or not re.fullmatch(r"[-+$\s]*\d{1,3}(?:,\d{3})+(?:\.\d+)?\D*", text)
    ):
        return text.replace("{,}", "").replace(",", ", ")
    return text


def is_text(answer: str) -> bool:
    """Whether an answer is words: `\\text{east}`."""
    return bool(_TEXT.fullmatch(answer.strip().rstrip(".")))


def as_words(text: str) -> str:
    """An answer in words, without LaTeX, case and punctuation: `\\text{(East)}` → `east`."""
    return " ".join(re.sub(r"[^\w\s+-]", " ", _TEXT.sub(r" \1 ", text)).casefold().split())


def too_large(text: str) -> bool:
    """Whether an answer is too long or too deeply nested to be read."""
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return len(text) > LONGEST or deepest > DEEPEST


def words_in(text: str) -> list[str]:
    """The words that are not mathematics, which Math-Verify would read as products of their letters."""
    bare = re.sub(r"\\(?:text|mathrm|mbox|textbf|begin|end|operatorname)\s*\{[^{}]*\}|\\[A-Za-z]+", " ", text)
    return [word for word in _WORD.findall(bare) if word.lower() not in _NAMES]


def tokens(text: str) -> list[str]:
    """The numbers, names and symbols of an answer, whatever spaces stand between them; `20 25` is not `2025`."""
    return re.findall(r"\d+|[^\W\d_]+|[^\w\s]|_", text)
