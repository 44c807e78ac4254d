"""The one interface to whatever answers a judge's questions: rendered messages in, text out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

Message = dict[str, str]

ESTIMATED = "estimated"
"""How a reply of a dry run ends: nobody was asked, and asking again would say no more."""

CUT_OFF = frozenset(
    {"length", "max_tokens", "model_length", "content_filter", "tool_calls", "function_call", "error", "abort",
     "insufficient_system_resource"}
)  # fmt: skip
"""How replies end that are not whole, by the names that endpoints give it."""


class Request(NamedTuple):
    """One question."""

    messages: list[Message]
    sample: int = 0
    """Which of several samples of the same question; part of what identifies the reply."""
    attempt: int = 1
    """Which try at a readable verdict; an unread reply is not asked for under the same name again."""
    choices: tuple[str, ...] = ()
    """The verdicts to choose from, for structured output and probabilities; empty: a number or a ranking."""
    form: str = "verdict"
    """What is asked for: verdict, rating or ranking."""
    version: str = ""
    """Digest of the template that rendered the messages."""


class Reply(NamedTuple):
    """What came back. Only a whole answer is a reply: transport that failed is an error of the backend."""

    text: str
    finish: str = "stop"
    """Why it ended: `stop`, `length` (cut off) or `content_filter` (refused by the endpoint)."""
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    logprobs: Mapping[str, float] | None = None
    """Top log-probabilities at the last token that names a choice, where asked for and given."""


@dataclass
class Ledger:
    """What a judge's replies took. Depends on what was cached before: for logs, never for outputs."""

    calls: int = 0
    """Replies used; each distinct question counts once."""
    bought: int = 0
    cached: int = 0
    failed: int = 0
    """Tries that failed in transport and were made again."""
    input_tokens: int = 0
    output_tokens: int = 0
    """Of the bought replies."""
    cost: float = 0.0
    """Money for the bought replies."""

    def add(self, other: "Ledger") -> "Ledger":
        """The sum of two."""
        mine, theirs = vars(self), vars(other)
        return Ledger(**{name: mine[name] + theirs[name] for name in mine})


class Chat(Protocol):
    """A model that answers."""

    model: str
    """Its name, for provenance."""
    identity: str
    """All that determines a reply besides the request: backend, model, endpoint, sampling parameters."""
    ledger: Ledger
    share: float
    """Which share of all questions will have been asked with the next ones, for the time left on a progress bar."""

    def complete(self, requests: Sequence[Request]) -> list[Reply]:
        """The replies, in the order of the requests."""
        ...

    def finish(self) -> None:
        """Says that nothing more will be asked."""
        ...
