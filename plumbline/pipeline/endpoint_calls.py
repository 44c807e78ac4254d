"""Calls to a server that speaks OpenAI's protocol: what a failure means, when to try again, and how many calls are under way at once.

Judges and engines call their servers by it. The key comes from the environment and is given to the client only.
"""

import asyncio
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential
from tqdm import tqdm

from plumbline.pipeline.endpoints import Endpoint, check_address, public_address

if TYPE_CHECKING:
    from openai import AsyncOpenAI

Item = TypeVar("Item")
Result = TypeVar("Result")

IN_HEADERS = ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID")  # what the client sends in headers besides the key
CONNECT_SECONDS = 5.0  # a server that runs accepts a connection at once, however long it computes
LONGEST_SPACE_SECONDS = 0.003  # handling an answer takes about 2 ms
LONGEST_RETRY_AFTER_SECONDS = 1800.0  # a longer wait is a quota, not a rate limit
SHOWN = 300  # characters of a server's words


class EndpointError(OSError):
    """The server refuses, or kept failing; the message names it and holds no secret."""


class RefusedError(EndpointError):
    """The server refuses a call, and would refuse it again: its HTTP status, its words without secrets, and the start of them for messages."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(f"HTTP {status}: {words[:SHOWN]}")
        self.status, self.words, self.message = status, words, words[:SHOWN]


class TransientError(Exception):
    """A failure after which another try may succeed; `billed` if the server may charge for it."""

    def __init__(self, kind: str, wait_seconds: float | None = None, billed: bool = False) -> None:
        super().__init__(kind)
        self.kind, self.wait_seconds, self.billed = kind, wait_seconds, billed


class UnreachableError(TransientError):
    """No connection was made, so that nothing was sent, and nothing can be billed."""


class Caller:
    """Calls one server."""

    def __init__(self, config: Endpoint, base_url: str, kept: str, *, key_needed: bool | None = None) -> None:
        """Reads the key; nothing is sent yet.

        kept: what is not lost if calls fail, such as `The replies received so far`; messages say so. key_needed: None as `config` says.

        Raises:
            EndpointError: the key is missing.
            ValueError: the address is not one, or holds a secret.
        """
        self._config, self._base_url, self._kept = config, base_url, kept
        self._key = os.environ.get(config.api_key_env, "")
        section = config.section
        if (config.needs_key if key_needed is None else key_needed) and not self._key:
            raise EndpointError(
                f"{section}: expected the key of {config.base_url or 'the endpoint'} in the environment variable "
                f"{config.api_key_env}, found none: export it (never write it into a file), or set {section}.needs_key: false for a "
                "server that accepts any key"
            )
        check_address(base_url, section)
        self.address = public_address(base_url)
        self._client: AsyncOpenAI | None = None
        self._limiter: Any = nullcontext()
        self._ending = asyncio.Event()
        self._under_way = 0
        self._call_seconds = self._next_start = 0.0

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Sends one call and returns the answer's JSON; raises as `get`."""
        # Not the client's own methods, which spend a quarter of a call's time on checking what is well formed.
        return await self._answer(lambda client: client.post(path, body=body, cast_to=object))

    async def get(self, path: str) -> Any:
        """Asks once and returns the answer's JSON.

        Raises:
            TransientError: another try may succeed.
            RefusedError: the server refuses, and would refuse another try.
            EndpointError: the account is empty, the server asks for a long pause, or another call has failed for good (`at_once`).
        """
        return await self._answer(lambda client: client.get(path, cast_to=object))

    async def _answer(self, send: "Callable[[AsyncOpenAI], Awaitable[Any]]") -> Any:
        import openai

        try:
            client = self._opened()
            await self._space()
            async with self._limiter, asyncio.timeout(self._config.timeout_seconds):
                self._require_going_on()
                started = time.monotonic()
                with self._counted():
                    answer = await send(client)
                seconds = time.monotonic() - started
                self._call_seconds = 0.9 * self._call_seconds + 0.1 * seconds if self._call_seconds else seconds
        except (openai.APIConnectionError, TimeoutError) as error:  # of which the client's timeouts are a kind
            cause = type(error.__cause__).__name__
            if cause.startswith("Connect"):  # ConnectError, ConnectTimeout
                raise UnreachableError(cause) from None
            kind = "timeout" if isinstance(error, openai.APITimeoutError | TimeoutError) else f"connection dropped ({cause})"
            raise TransientError(kind, billed=True) from None
        except openai.APIStatusError as error:
            raise self._failure(error) from None
        except (openai.APIResponseValidationError, ValueError):  # not JSON, or cut off
            raise TransientError("unreadable body", billed=True) from None
        return answer

    async def patiently(self, call: Callable[[], Awaitable[Result]], most: int | None = None) -> Result:
        """The result of a call, made again after each failure that may pass, with at most so many tries; None: as many as `config` says.

        Raises:
            EndpointError: the server refuses, cannot be reached, or failed in all tries.
        """
        section, tries = self._config.section, self._config.retries + 1
        tries = tries if most is None else min(tries, most)
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(TransientError),
            stop=stop_after_attempt(tries),
            wait=self._wait,
            sleep=self._pause,
            reraise=True,
        )
        try:
            return await retrying(call)
        except UnreachableError as error:
            source = f"{section}.base_url" if self._config.base_url else f"{section}.base_url or {self._config.address_env}"
            raise EndpointError(
                f"{section}: expected a server at {self.address}, found none in {tries} tries ({error.kind}). Start it, or check {source}. "
                f"{self._kept} are kept: run again to go on from here."
            ) from None
        except TransientError as error:
            raise EndpointError(
                f"{section}: {self.address} failed {tries} times for one call, the last time with {error.kind}. "
                f"{self._kept} are kept: run again to go on from here, or raise {section}.retries or {section}.timeout_seconds."
            ) from None

    async def at_once(self, items: Iterable[Item], work: Callable[[Item], Awaitable[None]]) -> None:
        """Works on items, `concurrency` at once, until none is left or the work on one has failed.

        Then no call is tried again, and none begins. Calls under way are still awaited, for their answers may have to be paid for.

        Raises:
            OSError, ValueError: as the first work that failed.
        """
        waiting = iter(items)
        failures: list[Exception] = []
        self._ending = asyncio.Event()

        async def take() -> None:
            for item in waiting:
                try:
                    await work(item)
                except (OSError, ValueError) as error:
                    failures.append(error)
                    self._end()
                if failures:
                    return

        await asyncio.gather(*(take() for _ in range(self._config.concurrency)))
        if failures:
            raise failures[0]

    @property
    def is_open(self) -> bool:
        """Whether there are connections to close."""
        return self._client is not None

    async def close(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    def _end(self) -> None:
        """Lets no further call begin."""
        if self._under_way and not self._ending.is_set():
            tqdm.write(
                f"{self._config.section}: a call has failed for good: no other begins, and the stage ends when the {self._under_way} under way have "
                f"been answered, within {self._config.timeout_seconds:g} s",
                file=sys.stderr,
            )
        self._ending.set()

    def _require_going_on(self) -> None:
        if self._ending.is_set():
            raise EndpointError(f"{self._config.section}: no call begins after another has failed for good")

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    async def _pause(self, seconds: float) -> None:
        """Waits before another try, which a call that fails for good prevents at once."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ending.wait(), seconds)
        self._require_going_on()

    def _wait(self, state: RetryCallState) -> float:
        """Seconds to wait: exponential backoff with jitter, or the server's Retry-After if that is longer."""
        config = self._config
        backoff = wait_random_exponential(multiplier=config.backoff_seconds, max=config.longest_wait_seconds)(state)
        error = state.outcome.exception() if state.outcome else None
        asked = error.wait_seconds if isinstance(error, TransientError) else None
        return backoff if asked is None else max(asked, min(backoff, asked + config.backoff_seconds))

    async def _space(self) -> None:
        """Lets calls begin a moment apart, since those that begin together return together and wait for each other to be handled.

        They begin at most twice as often as the concurrency allows, so that the rate is never limited.
        """
        now = time.monotonic()
        spacing = min(LONGEST_SPACE_SECONDS, self._call_seconds / self._config.concurrency / 2)
        self._next_start = max(now, self._next_start + spacing)
        if self._next_start > now:
            await asyncio.sleep(self._next_start - now)

    def _opened(self) -> "AsyncOpenAI":
        """The client, opened inside the event loop that it belongs to."""
        if self._client is None:
            from openai import AsyncOpenAI, Timeout

            config = self._config
            timeout = Timeout(config.timeout_seconds, connect=min(CONNECT_SECONDS, config.timeout_seconds))
            self._client = AsyncOpenAI(api_key=self._key or "none", base_url=self._base_url, timeout=timeout, max_retries=0)
            if config.requests_per_minute:
                from aiolimiter import AsyncLimiter

                # A bucket of one second: a full minute's calls must not go out at once.
                self._limiter = AsyncLimiter(max(1.0, config.requests_per_minute / 60), max(1.0, 60 / config.requests_per_minute))
        return self._client

    def _failure(self, error: Any) -> TransientError | EndpointError:
        """What to raise for a status of 400 and above: too many calls and faults of the server may pass, refusals do not."""
        words, code = self._without_secrets(str(error)), getattr(error, "code", None)
        if error.status_code not in (408, 409, 425, 429) and error.status_code < 500:
            return RefusedError(error.status_code, words if code is None else f"{code}: {words}")
        message = words[:SHOWN]
        if code == "insufficient_quota":
            return EndpointError(f"{self._config.section}: {self.address}: the account has no money left: {message}")
        seconds = _retry_after(error.response.headers)
        if seconds and seconds > LONGEST_RETRY_AFTER_SECONDS:
            return EndpointError(
                f"{self._config.section}: {self.address} asks to be left alone for {seconds / 3600:.1f} hours (HTTP {error.status_code}): "
                f"{message}. {self._kept} are kept: run again then to go on from here."
            )
        return TransientError(f"HTTP {error.status_code}", seconds)

    def _without_secrets(self, text: str) -> str:
        """A server's words without the key or anything that looks like one."""
        for secret in (self._key, *(os.environ.get(name, "") for name in IN_HEADERS)):
            text = text.replace(secret, "[key]") if secret else text
        return re.sub(r"(?i)(bearer\s+)\S+|\bsk-[\w*.-]{6,}", "[key]", text)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    value = headers.get("retry-after", "")
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
