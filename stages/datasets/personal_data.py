"""A simple scan for personal data: e-mail addresses, phone numbers, Korean resident registration numbers.

It finds what is written in the usual ways; it is a net with holes, not a guarantee (names and addresses are not looked for).
"""

import re
from collections import Counter
from typing import NamedTuple

_PATTERNS = {
    "email": r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*\.[A-Za-z]{2,24}",
    # YYMMDD with a valid month and day, then a digit 1-8 for century, sex and nationality, and six more
    "resident_number": r"(?<![\d-])\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])-?[1-8]\d{6}(?![\d-])",
    # Korean mobile and area numbers; +country; North American with its area code set off
    "phone": (
        r"(?<![\d.-])(?:01[016-9][ .-]?\d{3,4}[ .-]?\d{4}|0[2-6]\d?[ .-]\d{3,4}[ .-]\d{4}"
        r"|\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}"
        r"|(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4})(?![\d-])"
    ),
}
_POSSIBLE = re.compile(r"@|\d{3}")  # every kind has one or the other
_ANY = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in _PATTERNS.items()))
MASKS = {"email": "[EMAIL]", "resident_number": "[RESIDENT NUMBER]", "phone": "[PHONE]"}


class Scan(NamedTuple):
    """The text with its personal data masked, and how many of each kind were found."""

    masked: str
    found: Counter[str]


def may_hold_any(text: str) -> bool:
    """A quick look: False only if a scan would find nothing."""
    return _POSSIBLE.search(text) is not None


def scan(text: str) -> Scan:
    """Finds personal data in a text."""
    found: Counter[str] = Counter()

    def mask(match: re.Match[str]) -> str:
        kind = str(match.lastgroup)
        found[kind] += 1
        return MASKS[kind]

    return Scan(_ANY.sub(mask, text), found)
