"""A sample of what a judge was asked and answered, for people to look at: MLflow shows it as traces (conf/tracking.yaml, `judge_traces`)."""

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

from plumbline.judging.judge import Verdict
from plumbline.pipeline.tracking_values import tracking_values
from plumbline.rows import Message


class Conversations:
    """A uniform sample of all conversations, of fixed size (Vitter's algorithm R), drawn by a generator of its own."""

    def __init__(self) -> None:
        self._most = tracking_values().judge_traces
        self._kept: list[Mapping[str, Any]] = []
        self._seen = 0
        self._generator = random.Random(0)

    def add(self, messages: Sequence[Message], verdict: Verdict) -> None:
        """Takes a conversation into the sample, or not."""
        self._seen += 1
        position = len(self._kept) if len(self._kept) < self._most else self._generator.randrange(self._seen)
        if position < self._most:
            self._kept[position : position + 1] = [_conversation(messages, verdict)]

    def state(self) -> dict[str, Any]:
        """The sample as a JSON object, which `merge` takes."""
        return {"seen": self._seen, "kept": self._kept}

    def merge(self, state: Mapping[str, Any]) -> None:
        """Joins another sample, so that every conversation of both is as likely to be in the sample as any other."""
        pools, left = [self._kept, [*state["kept"]]], [self._seen, state["seen"]]
        for pool in pools:
            self._generator.shuffle(pool)
        self._seen, joined = sum(left), []
        for _ in range(min(self._most, self._seen)):
            side = int(self._generator.randrange(sum(left)) >= left[0])
            left[side] -= 1
            if pools[side]:  # empty if judge_traces was smaller then
                joined.append(pools[side].pop())
        self._kept = joined

    def traces(self, name: str) -> list[dict[str, Any]]:
        """The sample as `Run.log_traces` takes it."""
        return [{"name": name, **one} for one in self._kept]


def _conversation(messages: Sequence[Message], verdict: Verdict) -> dict[str, Any]:
    """A question, and the verdict that was read from its reply just now."""
    return {
        "messages": [dict(message) for message in messages],
        "reply": verdict.reply,
        "verdict": list(verdict.value) if isinstance(verdict.value, tuple) else verdict.value,
        "judge": verdict.model,
        "nanoseconds": time.time_ns(),
        "attributes": {
            "judge": verdict.judge,
            "template": verdict.template,
            "attempts": verdict.attempts,
            "input_tokens": verdict.input_tokens,
            "output_tokens": verdict.output_tokens,
        },
    }
