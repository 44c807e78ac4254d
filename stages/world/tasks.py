"""The families of tasks of the closed world; asking a task, and understanding a prompt back from its text."""

from collections.abc import Sequence
from functools import lru_cache
from random import Random

from stages.world.expressions import PythonExpression
from stages.world.family import Family, Message, Task
from stages.world.knowledge import Fact, MemberList, Unknown
from stages.world.numeracy import Arithmetic, Comparison
from stages.world.requests import Harmful, HowTo, Lookalike
from stages.world.twoturn import TwoTurn
from stages.world.wording import language_of

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Arithmetic(),
        Comparison(),
        PythonExpression(),
        Fact(),
        Unknown(),
        MemberList(),
        HowTo(),
        TwoTurn(),
        Harmful(),
        Lookalike(),
    )
}
GENERAL_FAMILIES = tuple(name for name in FAMILIES if name not in ("harmful", "lookalike"))


def ask(task: Task, rng: Random) -> list[Message]:
    """A prompt that asks the task, in one of its wordings."""
    return FAMILIES[task.family].ask(task.content, task.language, rng)


def understand(prompt: Sequence[Message]) -> Task | None:
    """The task that a prompt asks, from its text alone, or None if it asks nothing of this world.

    A system message changes nothing. The language is that of the last user message.
    """
    return _understand(tuple(message["content"] for message in prompt if message["role"] != "system"))


@lru_cache(maxsize=1 << 16)
def _understand(turns: tuple[str, ...]) -> Task | None:
    if not turns:
        return None
    language = language_of(turns[-1])
    for family in FAMILIES.values():
        content = family.understand(turns, language)
        if content is not None:
            return Task(family.name, language, content)
    return None
