"""The one interface to whatever answers a judge's questions: rendered messages in, text out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from plumbline.rows import Message

ESTIMATED = "estimated"
"""How a reply ends in a dry run: nobody was asked, and asking again would not help."""

CUT_OFF = frozenset(
    {"length", "max_tokens", "model_length", "content_filter", "tool_calls", "function_call", "error", "abort",
     "insufficient_system_resource"}
)  # fmt: skip
"""How an incomplete reply ends, in the words of various endpoints."""


class Request(NamedTuple):
    """One question."""

    messages: list[Message]
    sample: int = 0
    """The index among several samples of the same question; part of what identifies the reply."""
    attempt: int = 1
    """The number of this try at a readable verdict, from 1; part of what identifies the reply."""
    choices: tuple[str, ...] = ()
    """The verdicts to choose from, for structured output and probabilities; empty for ratings and rankings."""
    form: str = "verdict"
    """What is asked for: verdict, rating or ranking."""
    version: str = ""
    """Digest of the template that rendered the messages."""


class Reply(NamedTuple):
    """What a model answered. A call that failed in transport has no reply: it is an error of the backend."""

    text: str
    finish: str = "stop"
    """Why the reply ended: `stop`, `length` (cut off), `content_filter` (refused by the endpoint), …"""
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    logprobs: Mapping[str, float] | None = None
    """Top log-probabilities of the token that names the verdict, if the endpoint was asked for them and gives them."""


@dataclass
class Ledger:
    """What a judge's replies cost. It depends on what was cached before: for logs, never for outputs."""

    calls: int = 0
    """Replies used; equal questions count once."""
    bought: int = 0
    cached: int = 0
    failed: int = 0
    """Tries that failed in transport and were made again."""
    input_tokens: int = 0
    """Tokens of the questions whose replies were bought."""
    output_tokens: int = 0
    """Tokens of the bought replies."""
    cost: float = 0.0
    """Money for the bought replies."""

    def add(self, other: "Ledger") -> "Ledger":
        """The sum of two ledgers."""
        return Ledger(**{name: value + vars(other)[name] for name, value in vars(self).items()})

    def less(self, earlier: "Ledger") -> "Ledger":
        """What was added since an earlier state of the same ledger."""
        return Ledger(**{name: value - vars(earlier)[name] for name, value in vars(self).items()})


class Chat(Protocol):
    """A model that answers questions."""

    model: str
    """The model's name, for provenance."""
    identity: str
    """Everything that determines a reply besides the request: backend, model, endpoint, sampling parameters."""
    ledger: Ledger
    share: float
    """The share of all questions that the next call completes, so that a progress bar can estimate the time left."""

    def complete(self, requests: Sequence[Request]) -> list[Reply]:
        """The replies, in the order of the requests."""
        ...

    def close(self) -> None:
        """Closes what is open; nothing more will be asked."""
        ...

    def finish(self) -> None:
        """Closes what is open; a dry run ends here, with what it found out."""
        ...
