"""The report's templates, which escape whatever they are given, and the files beside them that go into a page as they are."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

FOLDER = Path(__file__).parent / "templates"


def template(name: str, filters: Mapping[str, Callable[..., Any]]) -> Template:
    """A template with these filters; a name that it is not given is an error."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= filters
    return environment.get_template(name)


def verbatim(name: str) -> Markup:
    """A style sheet or script, to be put into a page without escaping."""
    return Markup((FOLDER / name).read_text(encoding="utf-8"))
