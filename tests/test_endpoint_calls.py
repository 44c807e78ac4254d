"""Calls to a server after one has failed for good: none begins, none is tried again, and those under way are awaited."""

import asyncio
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from judging_server import running

from plumbline.judging.judges import OpenaiJudge
from plumbline.pipeline.endpoint_calls import Caller, RefusedError, TransientError


def caller(base_url: str = "http://127.0.0.1:9/v1", **changes: Any) -> Caller:
    quick: dict[str, Any] = {
        "model": "m",
        "needs_key": False,
        "retries": 8,
        "backoff_seconds": 0.01,
        "longest_wait_seconds": 0.05,
    }
    return Caller(OpenaiJudge(**{**quick, "concurrency": 3, "timeout_seconds": 5.0, **changes}), base_url, "Replies")


class Calls:
    """Calls that end as their names say."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.received: list[str] = []

    async def call(self, name: str) -> None:
        self.begun[name] += 1
        if name == "told to wait":
            raise TransientError("HTTP 429", wait_seconds=60.0)
        await asyncio.sleep(0.05 if name == "refused" else 0.3)
        if name == "refused":
            raise RefusedError(400, "no")
        if name == "hangs":
            raise TransientError("timeout")
        self.received.append(name)


def called(names: list[str]) -> Calls:
    """What becomes of calls with these names, of which one is refused."""
    calls, server = Calls(), caller()
    with pytest.raises(RefusedError, match="HTTP 400: no"):
        asyncio.run(server.at_once(names, lambda name: server.patiently(partial(calls.call, name))))
    return calls


def test_after_a_failure_for_good_no_call_begins_or_is_tried_again_and_what_is_under_way_is_received() -> None:
    calls = called(["hangs", "refused", "slow", "later", "later"])
    assert calls.begun == {"hangs": 1, "refused": 1, "slow": 1}
    assert calls.received == ["slow"]


def test_a_call_that_waits_for_its_next_try_ends_when_another_fails_for_good() -> None:
    began = time.monotonic()
    assert called(["told to wait", "refused"]).begun == {"told to wait": 1, "refused": 1}
    assert time.monotonic() - began < 50


def test_a_call_that_waits_for_the_rate_limit_is_not_sent_any_more(capsys: pytest.CaptureFixture[str]) -> None:
    with running(refuses=("top_k",)) as server:
        limited = caller(server.url, requests_per_minute=60)

        async def work(number: int) -> None:
            await limited.patiently(partial(limited.post, "/chat/completions", {"messages": [{"content": ""}], "top_k": number}))

        async def all_three() -> None:
            try:
                await limited.at_once(range(3), work)
            finally:
                await limited.close()

        with pytest.raises(RefusedError, match="Unsupported parameter: top_k"):
            asyncio.run(all_three())
        assert server.calls == 1
    assert capsys.readouterr().err == ""  # nothing was under way


def test_calls_after_those_that_failed_are_made_as_ever() -> None:
    calls, server = Calls(), caller()

    async def twice() -> None:
        for names in (["refused"], ["slow", "slow"]):
            with suppress(RefusedError):
                await server.at_once(names, lambda name: server.patiently(partial(calls.call, name)))

    asyncio.run(twice())
    assert calls.received == ["slow", "slow"]
