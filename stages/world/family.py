"""What a task is, and what every family of tasks can do with one."""

from abc import ABC, abstractmethod
from random import Random
from typing import Any, ClassVar, NamedTuple

Message = dict[str, str]
Content = tuple[Any, ...]  # strings and numbers, in English whatever the language of the question


class Task(NamedTuple):
    """One question of the closed world, apart from how it is worded."""

    family: str
    language: str
    content: Content

    @property
    def intent(self) -> str:
        """What is asked, whatever the wording and the language; splits are disjoint by it."""
        return "/".join(map(str, (self.family, *self.content)))


class Family(ABC):
    """A kind of question: its intents, its wordings, its answers, and how an answer is checked.

    `ask` and `understand` are inverse to each other, as are `write_right` and `is_right`. An answer here is the bare
    content, without courtesies and without rambling: `answers.py` adds these and `manners.py` takes them off.
    """

    name: ClassVar[str]
    word_budget: ClassVar[dict[str, int]]  # words of an answer that still counts as concise, by language

    @abstractmethod
    def intents(self) -> list[Content]:
        """Everything that the family can ask, in a fixed order."""

    @abstractmethod
    def ask(self, content: Content, language: str, rng: Random) -> list[Message]:
        """A prompt that asks it, in one of the wordings."""

    @abstractmethod
    def understand(self, turns: tuple[str, ...], language: str) -> Content | None:
        """What the turns of a conversation (user first) ask, or None if it is not a question of this family."""

    @abstractmethod
    def write_right(self, content: Content, language: str, rng: Random) -> str:
        """A right answer."""

    @abstractmethod
    def write_wrong(self, content: Content, language: str, rng: Random) -> str:
        """An answer that is wrong, and that somebody might well give."""

    @abstractmethod
    def is_right(self, content: Content, language: str, answer: str) -> bool:
        """Whether a bare answer is right: it must say one thing, in the language of the question."""


def user_turn(text: str) -> list[Message]:
    """A prompt of a single user message."""
    return [{"role": "user", "content": text}]
