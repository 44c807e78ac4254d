"""A simple scan for personal data: e-mail addresses, phone numbers, Korean resident registration numbers.

It finds what is written in the usual ways. It guarantees nothing, and it does not look for names and postal addresses.
"""

import re
from collections import Counter
from typing import NamedTuple

from plumbline.data.faults import RowFault
from plumbline.data.texts import contents
from plumbline.letters import usual_marks
from plumbline.rows import Row

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
_POSSIBLE = re.compile(r"[@＠]|\d{3}")  # every pattern needs one or the other
_ANY = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in _PATTERNS.items()))
MASKS = {"email": "[EMAIL]", "resident_number": "[RESIDENT NUMBER]", "phone": "[PHONE]"}


class Scan(NamedTuple):
    """A text with its personal data masked, and the count of each kind."""

    masked: str
    counts: Counter[str]


def may_contain_any(text: str) -> bool:
    """A quick look: False only if a scan would find nothing."""
    return _POSSIBLE.search(text) is not None


def scan(text: str) -> Scan:
    """Finds personal data in a text, also in full-width letters and digits and with typographic dashes."""
    counts: Counter[str] = Counter()
    masked, end = "", 0
    for match in _ANY.finditer(usual_marks(text)):
        kind = str(match.lastgroup)
        counts[kind] += 1
        masked += text[end : match.start()] + MASKS[kind]
        end = match.end()
    return Scan(masked + text[end:], counts)


def apply_policy(row: Row, policy: str, totals: Counter[str]) -> Row:
    """The row, masked if that is the policy; what was found is added to `totals`. RowFault if the policy drops such rows."""
    counts: Counter[str] = Counter()
    for _, content in contents(row) if policy != "off" else ():
        if may_contain_any(content):
            counts.update(scan(content).counts)
    if counts and policy == "drop":
        raise RowFault("personal_data", ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))
    totals.update(counts)
    return _masked(row) if counts and policy == "mask" else row


def _masked(row: Row) -> Row:
    return {column: _masked_value(column, value) for column, value in row.items()}


def _masked_value(column: str, value: object) -> object:
    if column == "text":
        return scan(str(value)).masked
    if isinstance(value, list):
        return [{**turn, "content": scan(turn["content"]).masked} for turn in value]
    return value
