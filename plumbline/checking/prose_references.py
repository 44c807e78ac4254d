"""Whether a reference is prose, against which no answer can be compared as mathematics."""

import re

_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[^\W\d_]{3}")


def is_prose(reference: str) -> bool:
    """Whether a text has a word of three letters or more that is not a LaTeX command."""
    return bool(_WORD.search(_COMMAND.sub("", reference)))
