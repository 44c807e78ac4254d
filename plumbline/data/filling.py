"""Templates with {field}, in which {{ and }} stand for the braces themselves, as in Python's format strings."""

import re
from collections.abc import Callable

_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")


def is_template(value: str) -> bool:
    """Whether a value has braces, so that it is a template and not the name of a field."""
    return "{" in value or "}" in value


def problem(template: str) -> str | None:
    """What is wrong with the braces of a template; None if nothing is."""
    stray = next((match for match in _BRACES.finditer(template) if match[0] in ("{", "}")), None)
    if stray is None:
        return None
    return (
        f"expected a field's name in braces, as in {{question}}, and two braces for one in the text, as in \\boxed{{{{}}}}, found a single "
        f"'{stray[0]}' at character {stray.start()} of {template!r}"
    )


def fill(template: str, value_of: Callable[[str], str]) -> str:
    """A template with the value of each field that it names."""
    return _BRACES.sub(lambda match: value_of(match[1]) if match[1] else match[0][0], template)
