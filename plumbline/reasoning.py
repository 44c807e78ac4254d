"""Which part of a completion is its answer: what stands between marks of reasoning, such as `<think>` and `</think>`, is not.

Every place that asks what a completion answers asks here: maths, programs, rules, judges, verdicts and lengths. Reasoning may lack its
opening mark, because some templates end the prompt with it (DeepSeek-R1), or its closing mark, because the completion was cut off.
"""

import re
from collections.abc import Mapping
from functools import cache

MARKS: Mapping[str, tuple[str, str]] = {
    "think": ("<think>", "</think>"),  # DeepSeek-R1, Qwen 3, SmolLM 3, OLMo 3
    "thinking": ("<thinking>", "</thinking>"),
    "thought": ("<thought>", "</thought>"),  # EXAONE Deep
    "reasoning": ("<reasoning>", "</reasoning>"),
    "bracketed": ("[THINK]", "[/THINK]"),  # Magistral
    "seed": ("<seed:think>", "</seed:think>"),  # Seed-OSS
    "channel": ("<|channel|>analysis<|message|>", "<|end|>"),  # gpt-oss
    "gemma": ("<|channel>thought", "<channel|>"),  # Gemma 4
    "command": ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
}
"""A name for each pair of marks → the opening and the closing mark, which are read without regard to case."""

ALL = "all"
NONE = "none"
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.IGNORECASE | re.DOTALL)


def mark_problems(marks: str, key: str = "thinking_marks") -> list[str]:
    """What does not fit in a choice of marks: `all`, `none`, or names from MARKS separated by spaces; empty if all does."""
    names = marks.split()
    if names in ([ALL], [NONE]) or (names and set(names) <= set(MARKS)):
        return []
    return [f"{key}: expected {ALL}, {NONE}, or one or more of {' '.join(MARKS)}, separated by spaces, found {marks!r}"]


def without_reasoning(text: str, marks: str = ALL) -> str:
    """A completion without its reasoning; all of it if it has none.

    marks: which marks set reasoning apart: `all`, `none`, or names from MARKS separated by spaces.
    """
    if marks == NONE:
        return text
    kept, depth, position, removed = "", 0, 0, False
    for mark in _expression(marks).finditer(text):
        if not depth:
            kept += text[position : mark.start()]
        if mark.lastgroup == "opening":
            depth += 1
        elif depth:
            depth -= 1
        else:
            kept = ""  # the prompt ended with the opening mark
        position, removed = mark.end(), True
    if not depth:
        kept += text[position:]
    return kept.strip() if removed else text


def answer_block(text: str) -> str | None:
    """What stands in the last `<answer>…</answer>` of a completion; None if there is no such block."""
    blocks = _ANSWER.findall(text)
    return str(blocks[-1]).strip() if blocks else None


def first_mark(text: str) -> int | None:
    """Where the first mark of reasoning begins; None if there is none."""
    mark = _expression(ALL).search(text)
    return mark.start() if mark else None


def opening_at_end(text: str) -> str:
    """The opening mark in which a rendered prompt ends, with the white space after it; "" if it does not end in one."""
    marks = [*_expression(ALL).finditer(text)]
    ends = marks and marks[-1].lastgroup == "opening" and not text[marks[-1].end() :].strip()
    return text[marks[-1].start() :] if ends else ""


@cache
def _expression(marks: str) -> re.Pattern[str]:
    """Matches an opening or a closing mark."""
    pairs = [MARKS[name] for name in (MARKS if marks == ALL else marks.split())]
    opening, closing = ("|".join(map(re.escape, side)) for side in zip(*pairs, strict=True))
    return re.compile(rf"(?P<opening>{opening})|(?P<closing>{closing})", re.IGNORECASE)
