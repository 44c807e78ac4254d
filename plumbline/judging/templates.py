"""Renders questions to a judge from the Jinja2 files in conf/judge/templates, which are versioned by their content.

The texts to judge stand between tags. `<` in them is escaped, so that an answer can neither close its tag nor open another one, and a line
that looks like the next turn of the conversation is indented.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, TemplateNotFound

from plumbline.rows import Message, language_of

FOLDER = Path(__file__).parents[2] / "conf" / "judge" / "templates"
SPEAKERS = {"system": "System", "user": "User", "assistant": "Assistant"}
# Matches after any line break that Unicode knows, not only after a newline.
SPEAKER_LINE = re.compile(r"(?:\A|(?<=[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]))(?=(?:System|User|Assistant):)")


def escape(text: str) -> str:
    """A text in which nothing is a tag."""
    return text.replace("<", "&lt;")


def rendered_conversation(messages: Sequence[Message]) -> str:
    """A conversation as `User: …` and `Assistant: …` lines; no turn can forge another one."""
    return "\n".join(f"{SPEAKERS[m['role']]}: {SPEAKER_LINE.sub(' ', escape(m['content']))}" for m in messages)


def conversation_language(messages: Sequence[Message]) -> str:
    """`ko` for a conversation that contains Hangul, else `en`."""
    return language_of("\n".join(message["content"] for message in messages))


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(FOLDER), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )


@cache
def _template(name: str, language: str) -> Template:
    try:
        return _environment().get_template(f"{name}.{language}.j2")
    except TemplateNotFound as error:
        existing = ", ".join(sorted(file.name for file in FOLDER.glob("*.j2")))
        raise ValueError(f"judge: expected a template {name}.{language}.j2 in {FOLDER}, found only {existing}") from error


@cache
def _criteria_file() -> Mapping[str, Mapping[str, str]]:
    loaded: dict[str, dict[str, str]] = yaml.safe_load((FOLDER / "criteria.yaml").read_text(encoding="utf-8"))
    return loaded


def criteria_texts(names: Sequence[str], language: str) -> dict[str, str]:
    """The descriptions of criteria in a language, by name.

    Raises:
        ValueError: a name is not in conf/judge/templates/criteria.yaml.
    """
    known = _criteria_file()
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"judge.criteria: expected names in {FOLDER / 'criteria.yaml'} ({', '.join(known)}), found {', '.join(unknown)}"
        )
    return {name: in_language(known[name], language, f"the criterion {name!r}") for name in names}


def in_language(texts: Mapping[str, str], language: str, subject: str) -> str:
    """The text in a language, of texts by language; `subject` names it in messages.

    Raises:
        ValueError: there is no text in that language.
    """
    if language not in texts:
        raise ValueError(
            f"judge: expected {subject} in {language!r}, the language of a conversation, found it in {', '.join(texts)} only: "
            "add the text, or set judge.language"
        )
    return texts[language]


@cache
def template_digest(name: str) -> str:
    """The version of a template, in all its languages and with what it includes: 12 hex digits of the SHA-256 of the files."""
    digest = hashlib.sha256()
    files = [*sorted(FOLDER.glob(f"{name}.*.j2")), *sorted(FOLDER.glob("criteria.*")), *sorted(FOLDER.glob("reminder.*.j2"))]
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def render(name: str, language: str, **values: Any) -> str:
    """A template filled with values that are already escaped."""
    return _template(name, language).render(**values).strip()


def question(
    name: str,
    prompt: Sequence[Message],
    responses: Sequence[str],
    *,
    criteria: Sequence[str] = (),
    principle: Mapping[str, str] | None = None,
    critique: str = "",
    reasoning: bool = False,
    language: str = "auto",
) -> list[Message]:
    """The messages that ask a judge about responses to a prompt; `principle` holds a principle's text by language."""
    language = chosen_language(language, prompt)
    text = render(
        name,
        language,
        conversation=rendered_conversation(prompt),
        responses=[escape(response) for response in responses],
        criteria=criteria_texts(criteria, language),
        principle=in_language(principle, language, "a principle of the constitution") if principle else None,
        critique=escape(critique),
        reasoning=reasoning,
    )
    return [{"role": "user", "content": text}]


def chosen_language(language: str, prompt: Sequence[Message]) -> str:
    """The language of the templates: the configured one, or with `auto` the conversation's."""
    return conversation_language(prompt) if language == "auto" else language


FORMS = {
    "pairwise": "Verdict: A|B|tie",
    "rating": "Rating: 1-10",
    "ranking": "Ranking: 2 > 1 > 3",
    "principle": "Verdict: pass|fail",
    "critique": "Critique: …",
    "revision": "Revision: …",
}
"""The last line that each template asks for."""


def reminded(messages: Sequence[Message], reply: str, name: str, language: str) -> list[Message]:
    """The question, the reply whose verdict could not be read, and a reminder of the form."""
    reminder = render("reminder", language, form=FORMS[name])
    # Endpoints refuse an empty assistant turn.
    return [*messages, {"role": "assistant", "content": reply or "…"}, {"role": "user", "content": reminder}]
