"""A sample of what a judge was asked and answered, for people to look at: MLflow shows it as traces (conf/tracking.yaml, `judge_traces`)."""

import random
import time
from typing import Any, NamedTuple

from plumbline.judging.judge import Verdict
from plumbline.pipeline.tracking_values import tracking_values
from plumbline.rows import Message


class Conversation(NamedTuple):
    """A question, and the verdict that was read from its reply."""

    messages: list[Message]
    verdict: Verdict
    nanoseconds: int
    """When the reply had been read, since the epoch."""


class Conversations:
    """A uniform sample of all conversations, of fixed size (Vitter's algorithm R), drawn by a generator of its own."""

    def __init__(self) -> None:
        self._most = tracking_values().judge_traces
        self._kept: list[Conversation] = []
        self._seen = 0
        self._generator = random.Random(0)

    def add(self, messages: list[Message], verdict: Verdict) -> None:
        """Takes a conversation into the sample, or not."""
        self._seen += 1
        position = len(self._kept) if len(self._kept) < self._most else self._generator.randrange(self._seen)
        if position < self._most:
            self._kept[position : position + 1] = [Conversation(messages, verdict, time.time_ns())]

    def traces(self, name: str) -> list[dict[str, Any]]:
        """The sample as `Run.log_traces` takes it."""
        return [
            {
                "name": name,
                "messages": [dict(message) for message in one.messages],
                "reply": one.verdict.reply,
                "verdict": list(one.verdict.value) if isinstance(one.verdict.value, tuple) else one.verdict.value,
                "judge": one.verdict.model,
                "nanoseconds": one.nanoseconds,
                "attributes": {
                    "judge": one.verdict.judge,
                    "template": one.verdict.template,
                    "attempts": one.verdict.attempts,
                    "input_tokens": one.verdict.input_tokens,
                    "output_tokens": one.verdict.output_tokens,
                },
            }
            for one in self._kept
        ]
