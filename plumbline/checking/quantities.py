r"""Reads numbers exactly, with their units: `1,234.50`, `-3 1/2`, `3\frac{1}{2}`, `1e-5`, `$5`, `50%`, `5 cm`, `1.5 million`, `3만 5천`.

A text is a quantity only if the whole of it is one. What may be two things (`1,234,5`, `20 25`, `3\frac{5}{2}`) is not a quantity, and `ambiguity`
says why a reference should not be written so.
"""

import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

# `\d++` gives nothing back, so that a long row of digits costs no more than its length
_DIGITS = r"(?:[1-9]\d{0,2}(?:,\d{3})++(?!\d)(?:\.\d++)?|\d++(?:\.\d++)?|\.\d++)(?:[eE][-+]?\d{1,3}(?![\w.]))?"
_RATIO = rf"{_DIGITS}\s*/\s*{_DIGITS}"
_MIXED = r"(?P<whole>\d+)\s*(?:\s(?P<above>\d+)\s*/\s*(?P<below>\d+)|⟨(?P<top>\d+)/(?P<bottom>\d+)⟩)"
_SIGN = r"(?:(?<![\w)\]}%.])[-+])?"
NUMBER = re.compile(rf"{_SIGN}(?<!\d)(?:\d++\s+\d++\s*/\s*\d++(?![./])|(?:\d++\s*)?⟨-?\d+/-?\d+⟩|{_RATIO}|{_DIGITS})")
"""A number inside a text that `simplified` has gone over."""

_WHOLE = re.compile(
    rf"(?P<sign>[-+])?\s*(?:{_MIXED}|⟨(?P<ratio>-?\d+/-?\d+)⟩|(?P<plain>{_RATIO}|{_DIGITS}))(?P<unit>.*)",
    re.DOTALL,
)
_LONGEST_NUMBER = 60  # characters; a longer number answers nothing and costs time
_LONGEST_QUANTITY = 400

_DASHES = dict.fromkeys(map(ord, "\u02d7\u207b\u2010\u2011\u2012\u2013\u2212\u2796\ufe63\uff0d"), "-")
_SPACES = dict.fromkeys(map(ord, "\u00a0\u2002\u2003\u2007\u2009\u200a\u202f\u3000"), " ")
_UNSEEN = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"))
_WIDE = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_OTHERS = {ord(wide): plain for wide, plain in zip("⁄∕∶、，．", ["/", "/", ":", ",", ",", "."], strict=True)}
_CHARACTERS = {**_SPACES, **_UNSEEN, **_WIDE, **_OTHERS, **_DASHES, ord("（"): " ("}

# a unit's name in tables → its other names; a plural `s` is ignored
_SAME_UNITS = {
    "mm": "millimeter millimetre 밀리미터", "cm": "centimeter centimetre 센티미터", "m": "meter metre 미터", "km": "kilometer kilometre 킬로미터",
    "in": "inch inche", "ft": "foot feet", "yd": "yard", "mi": "mile 마일", "mg": "milligram", "g": "gram 그램", "kg": "kilogram 킬로그램",
    "lb": "pound", "oz": "ounce", "s": "sec second 초", "min": "minute 분", "h": "hr hour 시간", "day": "일", "week": "주", "month": "달 개월",
    "year": "년", "ml": "milliliter millilitre mL", "l": "L liter litre 리터", "degree": "deg °", "%": "percent 퍼센트 프로", "dollar": "usd 달러",
    "cent": "¢ 센트", "won": "원",
}  # fmt: skip
_UNITS = {name: unit for unit, names in _SAME_UNITS.items() for name in (unit, *names.split())}
# the powers of ten that words and Korean numerals stand for
_SCALES = {
    "hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "백만": 6, "천만": 7, "천": 3, "만": 4, "억": 8,
}  # fmt: skip
_SCALE = "|".join(_SCALES)
_FIGURES = r"(?:\d{1,3}(?:,\d{3})++|\d{1,15}(?:\.\d{1,15})?)"
_SCALED = rf"(?<![\d.,/⟨])(?:{_FIGURES}\s*(?:{_SCALE})s?(?![A-Za-z큼])\s*){{1,4}}(?:\d{{1,4}}(?![\d.,/]))?"
_NOT_UNITS = {
    "and", "or", "to", "not", "but", "then", "mod", "pi", "sqrt", "sin", "cos", "tan", "cot", "sec", "log", "ln", "exp", "oo", "inf", "infinity",
    "choose", "if", "when", "because", "since", "is", "are", "또는", "혹은", "그리고", *_SCALES,
}  # fmt: skip


class Quantity(NamedTuple):
    """A number with its unit."""

    value: Fraction
    unit: str  # empty if there is none

    def equals(self, other: "Quantity") -> bool:
        """Whether both are the same number, and not of two different units; a unit that only one of them has does not count."""
        mine, theirs = measured_in(self.unit), measured_in(other.unit)
        return self.value == other.value and (not mine or not theirs or mine == theirs)


def unified(text: str) -> str:
    """A text with one character for each meaning: every minus is `-`, every space is a space, full-width forms are ASCII."""
    if text.isascii():
        return text
    text = re.sub(r"(?<=\d)[\u2013\u2014](?=\d)(?![^\n]*=)", "~", text)  # a range
    text = re.sub(r"(?<![^\s:({$=])[\u2014\u2015](?=[\d.])", "-", text)
    text = re.sub("(?<=[\\w)\\]}])[⁻⁰¹²³⁴-⁹]+", lambda match: f"^{{{unicodedata.normalize('NFKC', match[0])}}}", text)
    text = text.translate(_CHARACTERS)
    return re.sub("[¼-¾⅐-⅞]", lambda match: " " + unicodedata.normalize("NFKC", match[0]).replace("⁄", "/"), text)


def _ratio(match: re.Match[str]) -> str:
    r"""`\frac{1}{2}` and `\frac12` → `⟨1/2⟩`."""
    return f"⟨{match[1] or match[3]}/{match[2] or match[4]}⟩"


def _repeating(match: re.Match[str]) -> str:
    r"""`0.1\overline{6}` → `⟨15/90⟩`."""
    before, once, again = match[1] or "0", match[2], match[3]
    above = int(before + once + again) - int(before + once)
    return f"⟨{above}/{(10 ** len(again) - 1) * 10 ** len(once)}⟩"


def _scaled(match: re.Match[str]) -> str:
    """`1.5 million` → `⟨1500000/1⟩` and `3만 5천` → `⟨35000/1⟩`; `5천 3만` stays as it is."""
    found = re.findall(rf"({_FIGURES})\s*({_SCALE})?", match[0], re.IGNORECASE)
    parts = [(figures, _SCALES[name.lower()] if name else 0) for figures, name in found]
    if any(after >= before for (_, before), (_, after) in pairwise(parts)):
        return match[0]
    value = sum(Fraction(figures.replace(",", "")) * 10**power for figures, power in parts)
    return f"⟨{value.numerator}/{value.denominator}⟩ "


_BEFORE_A_SIGN = r"(?:(?<=\bis)|(?<=\bare)|(?<=\bget)|(?<=\bequals)|(?<=\bto)|(?<=[=:(은는이가])|\A)"
_SIMPLER: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"\\left|\\right|\\displaystyle|\\!|\*\*", ""),
    (r"\{,\}|(?<=\d)(?:\\,|\\ )(?=\d{3}(?!\d))", ","),  # commas of thousands, and spaces in their place
    (r"\\[dtc]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(-?\d+)\s*\}|\\[dt]?frac\s*(\d)\s*(\d)(?!\d)", _ratio),
    (r"(?<!\d)(\d*+)\.(\d*+)\\(?:overline|bar|dot)\s*\{(\d{1,9})\}", _repeating),
    (r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![A-Za-z])|°", " degree"),
    (r"(?<=[\d\s~;,])\{\s*(?:\\(?:rm|it|bf)(?=\s)([^{}\\]*)|\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}\s*)\}", r" \1\2 "),
    (r"\\(?:text|mathrm|mbox|textbf|textrm|operatorname|mathbf|boldsymbol)\s*\{([^{}]*)\}", r" \1 "),
    (_SCALED, _scaled),
    (r"\\[,;: ]|~(?=\D)|\\q?quad(?![A-Za-z])", " "),
    (r"\\?[$€£₩](?=\s*[-\d.⟨])|(?<=[\d.⟩])\s*\\?[$€£₩]", ""),
    (r"\\%", "%"),
    (r"\{\s*([-+])\s*\}", r"\1"),
    (rf"{_BEFORE_A_SIGN}(\s*)(?:-\s+|(?:minus|negative|마이너스|음수|영하)\s*)(?=[\d.⟨])", r"\1 -"),
)


def simplified(text: str) -> str:
    r"""A text in which numbers are plain: no currency, no LaTeX around them, `\frac{1}{2}` as `⟨1/2⟩`, units as words."""
    text = unified(text)
    for pattern, replacement in _SIMPLER:
        text = re.sub(pattern, replacement, text, flags=re.IGNORECASE)
    return text


def quantity(text: str) -> Quantity | None:
    """The quantity that the whole text is; None if it is anything else."""
    if len(text) > _LONGEST_QUANTITY:
        return None
    text = re.sub(r"\A\s*(?:=|≈|\\approx(?![A-Za-z]))", "", simplified(text).strip().strip("$")).strip().rstrip(".").strip()
    match = _WHOLE.fullmatch(text)
    if not match:
        return None
    unit = _unit(match["unit"])
    value = _value(match)
    return None if unit is None or value is None else Quantity(value, unit)


def _value(match: re.Match[str]) -> Fraction | None:
    if match["whole"]:
        above, below = int(match["above"] or match["top"]), int(match["below"] or match["bottom"])
        if not 0 < above < below:
            return None
        value: Fraction | None = int(match["whole"]) + Fraction(above, below)
    else:
        value = number(match["ratio"] or match["plain"])
    return -value if value is not None and match["sign"] == "-" else value


def number(text: str) -> Fraction | None:
    """Reads a number with commas, a decimal point, an exponent or a fraction bar; None if the text is not a number."""
    text = text.replace("⟨", " ").replace("⟩", "")
    mixed = re.fullmatch(r"\s*([-+]?)\s*(\d+)\s+(\d+)\s*/\s*(\d+)\s*", text)
    if len(text) > _LONGEST_NUMBER or "_" in text:  # Python groups digits with `_`, which marks the base of a number here
        return None
    try:
        if mixed:
            return Fraction(f"{mixed[1]}1") * (int(mixed[2]) + Fraction(int(mixed[3]), int(mixed[4])))
        above, _, below = text.replace(",", "").replace(" ", "").partition("/")
        return Fraction(above) / Fraction(below or "1")
    except (ValueError, ZeroDivisionError):
        return None


def _unit(text: str) -> str | None:
    """What follows a number, if it is nothing or the words of a unit; None if it is something else."""
    words = text.strip().rstrip(".,").strip()
    if not words:
        return ""
    if not re.fullmatch(r"%|[^\W\d_][^\d_]*(?:\^?\{?[23²³]\}?)?(?:\s*/\s*[^\W\d_]+(?:\^?\{?[23²³]\}?)?)?", words):
        return None
    if re.search(r"[-+*=<>(){}\[\]\\,;:|^]", re.sub(r"\^?\{?[23²³]\}?", "", words)):
        return None
    if re.search("[α-λν-ω]", words):
        return None
    names = re.findall(r"[^\W\d_]+|%", words)
    letters_of_a_product = (
        not text[:1].isspace() and words.isascii() and words != "%" and (len(words) == 1 or not measured_in(words))
    )
    if letters_of_a_product or any(name.lower() in _NOT_UNITS or re.match("아[니닌닙님]", name) for name in names):
        return None
    if any(len(name) == 1 and name.isascii() and name not in _UNITS and name != "%" for name in names[:1]):
        return None
    return words


def measured_in(unit: str) -> str:
    """A unit in one spelling (`square centimetres` → `cm^2`); empty if it is not a unit of measurement, such as `apples`."""
    power = {"square": "2", "sq": "2", "제곱": "2", "cubic": "3", "세제곱": "3"}
    names, exponents = [], ""
    for name, exponent, bar in re.findall(r"([^\W\d_]+|%|°|¢)(?:\s*\^?\{?([23²³])\}?)?|(/|\bper\b)", unit):
        if bar or name == "per":
            names.append("/")
        elif name.lower() in power:
            exponents = power[name.lower()]
        else:
            singular = name.lower().rstrip("s")  # `hrs`; but `ms` is not metres
            known = _UNITS.get(name) or _UNITS.get(name.lower()) or (_UNITS.get(singular) if len(singular) > 1 else None)
            if not known:
                return ""
            exponents = {"²": "2", "³": "3"}.get(exponent, exponent) or exponents
            names.append(known + (f"^{exponents}" if exponents else ""))
            exponents = ""
    return " ".join(names)


def ambiguity(reference: str) -> str | None:
    """Why a reference may be read in two ways; None if it cannot."""
    text = simplified(reference).strip().strip("$").strip()
    if quantity(reference):
        return None
    if re.search(r"[?#`\"@]|--|\d'\d|\.{3}|\\(?:boxed|fbox|[lc]?dots)(?![A-Za-z])|</?\w+>|\A[Nn]/?[Aa]\Z", text):
        return "it has marks that belong to no value: write the value alone"
    if re.search(r"(?<![\d.:])0\d(?!\d*_)", re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)):
        return "no number begins with a zero before other figures: write decimals with a point"
    mixed = re.fullmatch(r"-?\d+\s*⟨(\d+)/(\d+)⟩|-?\d+\s+(\d+)\s*/\s*(\d+)", text)
    if mixed and not 0 < int(mixed[1] or mixed[3]) < int(mixed[2] or mixed[4]):
        return "a number before a fraction that is not below 1 is a product or a mistake: write the product with \\cdot"
    if re.search(r"(?<![\d./^_{])\d+\s+\d++(?!\s*/|\.)|/\s*\d+\s+\d", text):
        return "numbers with spaces between them are a list or one number: write `20, 25` or `2025`"
    if not re.search(r",\s", text) and re.search(r"(?<!\d)[1-9]\d{0,2},\d{3}(?!\d)", text) and not re.search(r"[\[({]", text):
        return "commas separate thousands or the members of a list: write a space after the comma of a list"
    if re.fullmatch(r"[-+]?(?:\d{1,3}(?:\.\d{3})+,\d+|\d+(?:\.\d+){2,})", text):
        return "points and commas are mixed: write thousands with commas and decimals with a point"
    if re.fullmatch(r"\d+(?:\.\d+)?(?:\s*(?:[-~]|to)\s*\d+(?:\.\d+)?)+", text):
        return "it is a range or a difference: write an interval, `[10, 15]`, or the value"
    if re.fullmatch(r"\d+\s*/\s*\d+\s*/\s*\d+", text):
        return "it is a date or a quotient: write the value, or a date as \\text{…}"
    return None
