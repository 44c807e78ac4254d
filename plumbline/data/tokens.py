"""A text as words and meaningful symbols, by which texts are compared: what is asked, and not how it is typeset.

Symbols count where they carry the meaning: `12 - 7` and `12 * 7`, `12.7`, `C` and `C++`, `x < y` and `x > y`, `(1 + 2) * 3`, `5!`, `£5` and `$5`.
Spaces, case, quotes, final punctuation, hyphens between words, brackets around mere words, the marks of Markdown and LaTeX's dollars do not
count, nor does which of several characters stands for a letter, a minus or a product.
"""

import re
from collections.abc import Iterator
from itertools import groupby
from unicodedata import category

from plumbline.letters import folded

_SAME = str.maketrans(
    {**dict.fromkeys("‐‑‒–−﹣", "-"), **dict.fromkeys("×⋅∙∗·", "*"), **dict.fromkeys("÷∕⁄", "/"), **dict.fromkeys("’′", "'")}
    | dict.fromkeys("[{", "(") | dict.fromkeys("]}", ")")
    | {"≤": "<=", "≥": ">=", "≠": "!=", "™": "", "©": "", "®": ""}
)  # fmt: skip
"""Typographic signs → those of a keyboard; brackets of all kinds → round ones."""
_OTHER = re.compile(f"[{''.join(re.escape(chr(point)) for point in _SAME)}]")

_LINE_MARKS = re.compile(r"^[ \t]*(?:(?:[#>]+|[-*+•])[ \t]+)+", re.MULTILINE)  # Markdown's headings, quotations and lists
_EMPHASIS = re.compile(r"(?<![\w)*])(\*{1,3}|__?)(?=[^\s*_])(.+?)(?<=[^\s*_])\1(?![\w(*])")
# As Pandoc reads dollars: `$5 and $3` holds no formula
_FORMULA = re.compile(r"\$\$?(?=\S)([^$]+?)(?<=\S)\$\$?(?!\d)|\\[()\[\]]")
_PRIME = re.compile(r"(?<=\W[^\W\d_])'+(?=\()")  # f'(x)
_DEEPEST = 20  # brackets within brackets
_INNERMOST = re.compile(r"\(([^()]*)\)")


def _ranges(points: Iterator[int]) -> str:
    """Code points as the content of a character class."""
    runs = ([point for _, point in run] for _, run in groupby(enumerate(points), lambda item: item[1] - item[0]))
    return "".join(f"{re.escape(chr(run[0]))}-{re.escape(chr(run[-1]))}" for run in runs)


_HAN = "\u3040-\u30ff\u3400-\u9fff"
_LETTER, _ALPHANUMERIC = r"[^\W\d_]", rf"[^\W_{_HAN}]"
# What a sign stands before: a number, a bracket, a letter by itself. After a space, `a` and `i` are words.
_OPERAND = rf"(?: ?[\d.(⦅√π]|{_LETTER}(?!\w)| [^\W\d_ai](?!\w))"
# Signs of mathematics, currencies and pictures; the other marks have rules of their own
_SIGNS = _ranges(
    p for p in (*range(0x21, 0x7F), *range(0xA1, 0x10000)) if category(chr(p)) in ("Sm", "Sc", "So") and p != ord("$")
)
_SIGNS += "\U0001f000-\U0001faff"  # a few ranges beyond U+FFFF would slow down every search
_SYMBOL = "|".join(
    (
        rf"[{_SIGNS}*/%&@^′⦅⦆]",
        rf"-(?<!{_LETTER}{_LETTER}-)(?={_OPERAND})",  # a minus; not the hyphen of `well-known`, nor of `covid-19`
        rf"-(?<=\W{_LETTER}-)-",
        r"\$(?:(?= ?\d)|(?<=\d\$)|(?<=\d \$))",
        r"!(?:(?<=[\d)⦆]!)|(?<=\W[^\W\d_aio]!)|(?==))",  # factorials, and unequal; after a, i and o it ends an exclamation
        r"#(?<=[^\W_]#)|_(?<=[^\W_]_)(?=[^\W_]|[(⦅])",  # C#, x_1
    )
)
_SYMBOL = rf"(?=[{_SIGNS}*/%&@^′⦅⦆$!#_-])(?:{_SYMBOL})"
# A word is a run of letters and digits, with the points of numbers. Han and kana, which are written without spaces, are words one by one.
_WORD = rf"{_ALPHANUMERIC}+(?:[.:](?<=\d.)(?=\d){_ALPHANUMERIC}+)*|[{_HAN}]"
_FRACTION = rf"\.(?<![\w.]\.)(?=\d){_ALPHANUMERIC}+"
_HAS_SYMBOL = re.compile(_SYMBOL)
_TOKEN = re.compile(rf"{_WORD}|{_SYMBOL}|{_FRACTION}")
_PLAIN = re.compile(rf"{_ALPHANUMERIC}+|[{_HAN}]")
_SPECIAL = re.compile(
    rf"(?=[{_SIGNS}*/%&@^$#_′.:!'\\-])"
    rf"(?:[{_SIGNS}*/%&@^$#_′\\]|[.:](?<=\d.)\d|\.(?<![\w.]\.)\d|!(?:=|(?<=[\d)]!)|(?<=\b\w!))|-(?:{_OPERAND}|-|\s)|'\()"
)
"""What makes the rules above differ from mere words; most prose has none of it."""


def tokens(text: str) -> list[str]:
    """The words and the meaningful symbols of a text, in order."""
    plain = folded(text).lower()
    if _OTHER.search(plain):
        plain = plain.translate(_SAME)
    if not _SPECIAL.search(plain):
        return _PLAIN.findall(plain)
    plain = _LINE_MARKS.sub("", _FORMULA.sub(r" \1 ", plain))
    if "*" in plain or "_" in plain:
        plain = _EMPHASIS.sub(r"\2", plain)
    plain = f" {' '.join(plain.split())} "
    if "(" in plain:
        plain = _with_brackets(_PRIME.sub("′", plain))
    return _TOKEN.findall(plain)


def _with_brackets(text: str) -> str:
    """The text with the brackets that hold a symbol, which group it, as ⦅ and ⦆, and without the others."""
    if not _HAS_SYMBOL.search(text):
        return text
    for _ in range(_DEEPEST):
        text, pairs = _INNERMOST.subn(_grouped, text)
        if not pairs:
            break
    return text


def _grouped(match: re.Match[str]) -> str:
    return f" ⦅{match[1]}⦆ " if _HAS_SYMBOL.search(f" {match[1]} ") else f" {match[1]} "
