"""A task of the closed world, and what a family of tasks can do."""

from abc import ABC, abstractmethod
from random import Random
from typing import Any, ClassVar, NamedTuple

from plumbline.rows import Message

Content = tuple[Any, ...]  # strings and numbers; the strings are English even if the question is Korean


class Task(NamedTuple):
    """One question of the closed world, apart from how it is worded."""

    family: str
    language: str
    content: Content

    @property
    def intent(self) -> str:
        """What is asked, independent of wording and language. No two splits share an intent."""
        return "/".join(map(str, (self.family, *self.content)))


class Family(ABC):
    """A kind of question: its intents, its wordings, its answers, and how an answer is checked.

    `understand` reads back every prompt that `ask` writes, and `is_right` accepts every answer that `write_right` writes. Answers
    here are bare, without courtesies and filler: `answers.py` adds these, and `manners.py` removes them.
    """

    name: ClassVar[str]
    word_budget: ClassVar[dict[str, int]]  # by language, the most words of a concise answer

    @abstractmethod
    def intents(self) -> list[Content]:
        """Everything that the family can ask, in a fixed order."""

    @abstractmethod
    def ask(self, content: Content, language: str, rng: Random) -> list[Message]:
        """A prompt that asks the question, in one of its wordings."""

    @abstractmethod
    def understand(self, turns: tuple[str, ...], language: str) -> Content | None:
        """What the turns of a conversation (user first) ask, or None if this family does not ask it."""

    @abstractmethod
    def write_right(self, content: Content, language: str, rng: Random) -> str:
        """A right answer."""

    @abstractmethod
    def write_wrong(self, content: Content, language: str, rng: Random) -> str:
        """An answer that is wrong, and that somebody might well give."""

    @abstractmethod
    def is_right(self, content: Content, language: str, answer: str) -> bool:
        """Whether a bare answer is right. It must say one thing only, in the language of the question."""


def user_turn(text: str) -> list[Message]:
    """A prompt of a single user message."""
    return [{"role": "user", "content": text}]
