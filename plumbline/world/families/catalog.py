"""The ten families of tasks; how a task is asked, and how it is read back from the text of a prompt."""

from collections.abc import Sequence
from functools import lru_cache
from random import Random

from plumbline.rows import Message, language_of
from plumbline.world.families.expressions import PythonExpression
from plumbline.world.families.family import Family, Task
from plumbline.world.families.knowledge import Fact, Unknown
from plumbline.world.families.lists import MemberList
from plumbline.world.families.numeracy import Arithmetic, Comparison
from plumbline.world.families.requests import Harmful, HowTo, Lookalike
from plumbline.world.families.twoturn import TwoTurn

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
    """The task that a prompt asks, read from its text alone, or None if the prompt is not of this world.

    System messages are ignored. The language is that of the last message.
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
