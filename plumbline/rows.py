"""Rows as every stage sees them: conversations in TRL's columns, what they say, in which language, and which are held out.

A prompt is a list of messages; so are `completion`, `chosen` and `rejected`, each with the one assistant turn that follows the prompt.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, str]
"""One turn of a conversation: {"role": "system" | "user" | "assistant", "content": text}."""

Row = dict[str, Any]
"""A row of a JSON Lines file: TRL's columns, and provenance beside them."""

PREFERENCES = ("prompt", "chosen", "rejected")
"""The columns of a preference, in TRL's words."""

DEMONSTRATIONS = "demonstrations"
"""The policy of completions that were not sampled but come from the data."""

LANGUAGES = ("en", "ko")
"""The languages that judges' templates, rules and the closed world know."""

HANGUL = "가-힣ㄱ-ㆎᄀ-ᇿꥠ-ꥼힰ-ퟻﾡ-ￜ"
"""All Hangul, as the content of a character class: syllables, and jamo for compatibility, conjoining (as macOS writes), archaic, half-width."""

_HANGUL = re.compile(f"[{HANGUL}]")


@dataclass(frozen=True)
class Preference:
    """Two completions of a prompt, the better one and the other, with whatever else is known of the pair."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    more: Mapping[str, Any]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Preference":
        """The preference in a row of a file."""
        more = {column: value for column, value in row.items() if column not in PREFERENCES}
        return cls(row["prompt"], row["chosen"], row["rejected"], more)

    def swapped(self) -> "Preference":
        """The same two completions, with the other one preferred."""
        return Preference(self.prompt, self.rejected, self.chosen, self.more)

    def row(self) -> Row:
        """The preference as a row of a file."""
        return {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected, **self.more}


def assistant(text: str) -> list[Message]:
    """A completion that says `text`."""
    return [{"role": "assistant", "content": text}]


def text_of(completion: Sequence[Mapping[str, str]]) -> str:
    """What a completion says."""
    return str(completion[0]["content"])


def last_turn(prompt: Sequence[Mapping[str, str]]) -> str:
    """What a prompt says last: its question."""
    return str(prompt[-1]["content"])


def prompt_key(prompt: Sequence[Mapping[str, str]]) -> str:
    """A prompt as a key: its turns, whatever else a file holds of them."""
    return json.dumps([[turn["role"], turn["content"]] for turn in prompt], ensure_ascii=False)


def conversation_text(messages: Iterable[Mapping[str, str]]) -> str:
    """A conversation as text for people, a line for each turn."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def language_of(text: str) -> str:
    """`ko` for a text that holds Hangul, else `en`."""
    return "ko" if _HANGUL.search(text) else "en"


def by_prompt(first: Sequence[Row], second: Sequence[Row]) -> list[Row]:
    """Two lots of completions with those of a prompt side by side, in order of first appearance, and numbered anew by `index`.

    A demonstration that both lots hold is kept once.
    """
    demonstrated = {row["id"] for row in first if row.get("policy") == DEMONSTRATIONS}
    groups: dict[str, list[Row]] = {}
    for row in [*first, *(row for row in second if not (row.get("policy") == DEMONSTRATIONS and row["id"] in demonstrated))]:
        groups.setdefault(row["id"], []).append(row)
    return [{**row, "index": index} for rows in groups.values() for index, row in enumerate(rows)]


def held_out(prompt_id: str, fraction: float, seed: int) -> bool:
    """Whether a prompt belongs to the validation split: by its own id, so the split does not move when prompts are added.

    Equal prompts, whose ids differ in a number at the end (`…-2`), go to the same split.
    """
    prompt_id = re.sub(r"\A([0-9a-f]{16})-\d+\Z", r"\1", prompt_id)
    digest = hashlib.sha256(f"{seed}:{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
