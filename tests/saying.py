"""Lines of feedback and policies to talk to, for the tests of what people say."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ppo_tiny import tiny_policy

from plumbline.feedback.folder import FOLDER, append
from plumbline.feedback.lines import CORRECTION, THUMB, UP, VOTE, A, Answer, Line
from plumbline.models.saving import save_policy
from plumbline.pipeline.records import write_jsonl
from tests.preparing import small_tokenizer

EVALUATE = {"temperature": 0.7, "max_new_tokens": 8}
"""The section `evaluate` of params.yaml, as far as answers depend on it."""


def save_named(*names: str) -> None:
    """Small policies with random weights in artifacts/policy, one for each name."""
    tokenizer = small_tokenizer()
    for number, name in enumerate(names):
        save_policy(tiny_policy(seed=number, vocab_size=300), tokenizer, Path("artifacts/policy") / name)


def vote(name: str, verdict: str = A, first: str = "One.", second: str = "Two.", **changes: Any) -> Line:
    """A vote on answers of `dpo` and `sft` to the question `name`."""
    answers = [Answer(first, "dpo", "d" * 16), Answer(second, "sft", "5" * 16)]
    messages = [{"role": "user", "content": f"What of {name}?"}]
    return replace(Line(f"{name}-vote", VOTE, "2026-01-01T00:00:00+00:00", messages, answers, verdict), **changes)


def thumb(name: str, verdict: str = UP, **changes: Any) -> Line:
    """A thumb on the answer `One.`"""
    line = vote(name)
    return replace(line, **{"id": f"{name}-thumb-0", "kind": THUMB, "verdict": verdict, "answers": line.answers[:1], **changes})


def correction(name: str, better: str = "Three.", **changes: Any) -> Line:
    """A better answer than `One.`"""
    return thumb(name, better, **{"id": f"{name}-correction-0", "kind": CORRECTION, **changes})


def say(*lines: Line, file: str = "chat.jsonl") -> None:
    """Writes lines to the folder of feedback."""
    append(FOLDER / file, lines)


def said(file: str = "chat.jsonl") -> list[dict[str, Any]]:
    """What the folder of feedback holds."""
    return [json.loads(line) for line in (FOLDER / file).read_text(encoding="utf-8").splitlines()]


def save_prompts(*questions: str) -> None:
    """Evaluation prompts: these questions in the split `test`, and one that nobody asks in `validation`."""
    rows = [{"id": question, "prompt": [{"role": "user", "content": question}]} for question in questions]
    write_jsonl("artifacts/data/prompts/test.jsonl", rows)
    write_jsonl(
        "artifacts/data/prompts/validation.jsonl", [{"id": "v", "prompt": [{"role": "user", "content": "Nobody asks this."}]}]
    )
