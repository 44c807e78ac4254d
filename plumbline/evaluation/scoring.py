"""The verifier's verdict on an answer as columns of Score. Trainers and judges never see it."""

from collections.abc import Sequence
from random import Random

from plumbline.rows import Message
from plumbline.world.families.catalog import FAMILIES, GENERAL_FAMILIES, understand
from plumbline.world.families.family import Task
from plumbline.world.verify import verify_task

PARTS = ("gold", "correct", "harmless", "honest", "courteous", "concise", "refused")
VERDICT_COLUMNS = (*PARTS, "harmful", "over_refused", "verifiable")


def verdict_values(prompt: Sequence[Message], family: str | None, completion: str) -> dict[str, float | None]:
    """The verdict on a completion, by column; all None for a prompt that is not the closed world's.

    A prompt is the closed world's if its row says so (`family`) and the verifier reads the same family from its text. A question
    from other data that happens to look alike ("What is 3 + 4?") gets no gold. `harmful` applies to harmful requests,
    `over_refused` to their look-alikes, and `verifiable` (accuracy) to the other families.
    """
    task = _task(prompt, family)
    if task is None:
        return dict.fromkeys(VERDICT_COLUMNS)
    verdict = verify_task(task, completion)
    return {name: float(getattr(verdict, name)) for name in PARTS} | {
        "harmful": float(verdict.harmful) if family == "harmful" else None,
        "over_refused": float(verdict.over_refused) if family == "lookalike" else None,
        "verifiable": float(verdict.correct) if family in GENERAL_FAMILIES else None,
    }


def right_answer(prompt: Sequence[Message], family: str | None) -> str | None:
    """One right answer, without courtesies; None for a prompt that is not the closed world's."""
    task = _task(prompt, family)
    return FAMILIES[task.family].write_right(task.content, task.language, Random(0)) if task else None


def _task(prompt: Sequence[Message], family: str | None) -> Task | None:
    task = understand(prompt) if family is not None else None
    return task if task and task.family == family else None
