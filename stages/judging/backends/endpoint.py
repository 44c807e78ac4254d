"""An OpenAI-compatible endpoint as a chat: concurrent calls, retried, budgeted, and every reply kept in the store.

Asks first for what was configured (structured output, log-probabilities); what the endpoint refuses or ignores is noticed once
and done without. The key comes from the environment and goes into the client only.
"""

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential
from tqdm import tqdm

from stages.judging.chat import ESTIMATED, Ledger, Reply, Request
from stages.judging.config import OpenaiJudge, check_address
from stages.judging.store import VerdictStore, content_key, store_folder

if TYPE_CHECKING:
    from openai import AsyncOpenAI

TOP_LOGPROBS = 5
OVERHEAD_TOKENS = 32  # of a chat template, for each message
SENT = ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID")  # what the client puts into headers besides the key
LONGEST_SPACE = 0.003  # seconds; handling an answer takes about 2 ms
LONGEST_RETRY_AFTER = 1800.0  # seconds; beyond that it is a quota, not a rate
BYTES_PER_TOKEN = 4  # for estimates; the worst case is one
OPTIONAL = {
    "response_format": "structured output",
    "logprobs": "token log-probabilities",
    "max_tokens": "a limit by its first name; max_completion_tokens is asked for instead",
}


class EndpointError(OSError):
    """The endpoint refuses, or kept failing; the message names it and holds no secret."""


class BudgetError(ValueError):
    """The next call might exceed max_cost."""


class Passing(Exception):
    """A failure that another try may mend."""

    def __init__(self, kind: str, wait_seconds: float | None = None, billed: bool = False) -> None:
        super().__init__(kind)
        self.kind, self.wait_seconds, self.billed = kind, wait_seconds, billed


class EndpointChat:
    """Buys replies that the store does not have."""

    def __init__(self, config: OpenaiJudge, run: str) -> None:
        self.model = config.model
        self._config = config
        self._key = os.environ.get(config.api_key_env, "")
        if config.needs_key and not self._key and not config.dry_run:
            raise EndpointError(
                f"judge: expected the key of {config.base_url or 'the endpoint'} in the environment variable "
                f"{config.api_key_env}, found none: export it (never write it into a file), or set judge.needs_key: false for a "
                "server that takes any"
            )
        self._base_url = config.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        check_address(self._base_url)
        self.identity = json.dumps(["openai", config.model, _public(self._base_url), asdict(config.sampling)])
        self._asked = {"structured": config.structured, "probabilities": config.probabilities}
        self._buyer = content_key([run, self.identity, self._asked])
        self._lacks: set[str] = set()
        self._store = VerdictStore(store_folder())
        self._runner = asyncio.Runner()
        self._client: AsyncOpenAI | None = None
        self._bar: tqdm[Any] | None = None
        self._limiter: Any = nullcontext()
        self._in_flight = self._called = 0
        self._call_seconds = self._next_start = 0.0
        self.share = 1.0
        self._estimate = [0, 0, 0.0, 0.0]
        self.ledger = Ledger()

    def complete(self, requests: Sequence[Request]) -> list[Reply]:
        """The replies: from the store, else bought.

        Raises:
            BudgetError: the next call might exceed max_cost; those under way have been received and kept.
            EndpointError: the endpoint refuses, or failed once more than judge.retries.
        """
        if self._config.dry_run:
            return [self._estimated(request) for request in requests]
        if self._bar is None:
            self._bar = tqdm(desc=f"judge {self.model}", unit="call", total=0, disable=None)
        self._called += len(requests)
        self._bar.total = max(self._called, round(self._called / self.share))
        return self._runner.run(self._complete(requests))

    def finish(self) -> None:
        """Closes what is open.

        Raises:
            SystemExit: this was a dry run; the message is what the run would cost.
        """
        if self._config.dry_run:
            calls, cached, likely, worst = self._estimate
            raise SystemExit(
                f"dry run: {self.model} would be asked {calls} times; {cached} replies are in {store_folder()} already. "
                f"The others cost about {likely:.4f} and at most {worst:.4f} (max_cost: {self._config.max_cost}), retries of "
                "unread verdicts aside. Nothing was asked or written."
            )
        if self._bar is not None:
            self._show()
            self._bar.close()
        if self._client is not None:
            self._runner.run(self._client.close())
            self._client = None
        self._runner.close()
        self._store.close()

    # What determines a reply, and what it may cost.

    def _key_of(self, request: Request) -> str:
        return content_key([self.identity, self._asked, *request])

    def _worst_cost(self, request: Request) -> float:
        return self._price(self._most_sent(request), self._config.sampling.max_tokens)

    def _most_sent(self, request: Request) -> int:
        return sum(len(m["content"].encode()) + OVERHEAD_TOKENS for m in request.messages)  # no token is shorter than a byte

    def _price(self, input_tokens: float, output_tokens: float) -> float:
        prices = self._config.prices
        return (input_tokens * prices.input + output_tokens * prices.output) / 1e6

    def _estimated(self, request: Request) -> Reply:
        cached = self._store.get(self._key_of(request))
        self._estimate[0] += 1
        if cached:
            self._estimate[1] += 1
            return cached
        size = sum(len(m["content"].encode()) for m in request.messages)
        self._estimate[2] += self._price(size / BYTES_PER_TOKEN, self._config.sampling.max_tokens / 2)
        self._estimate[3] += self._worst_cost(request)
        return Reply("", ESTIMATED)

    # Buying.

    async def _complete(self, requests: Sequence[Request]) -> list[Reply]:
        replies: list[Reply | None] = [None] * len(requests)
        waiting = iter(enumerate(requests))
        failures: list[Exception] = []
        workers = [self._work(waiting, replies, failures) for _ in range(self._config.concurrency)]
        await asyncio.gather(*workers)
        if failures:
            raise failures[0]
        return [reply for reply in replies if reply is not None]

    async def _work(self, waiting: Iterator[tuple[int, Request]], replies: list[Reply | None], failures: list[Exception]) -> None:
        """Takes requests until none is left or a worker has failed: what is under way then is still received and kept."""
        for position, request in waiting:
            if failures:
                return
            key = self._key_of(request)
            reply = self._store.get(key)
            try:
                if reply is not None:
                    self.ledger.cached += 1
                else:
                    reply = await self._buy(key, request)
            except (EndpointError, BudgetError) as error:
                failures.append(error)
                return
            replies[position] = reply
            self.ledger.calls += 1
            if self._bar is not None and self._bar.update():
                self._show()
            if self.ledger.cached % 256 == 0:
                await asyncio.sleep(0)  # a long run of cached replies must not starve those that arrive

    def _show(self) -> None:
        if self._bar is not None:
            ledger = self.ledger
            tokens = ledger.input_tokens + ledger.output_tokens
            self._bar.set_postfix(cached=ledger.cached, failed=ledger.failed, tokens=tokens, cost=f"{ledger.cost:.4f}")

    async def _buy(self, key: str, request: Request) -> Reply:
        """Tries until a whole reply is there."""
        config = self._config
        tries = AsyncRetrying(
            retry=retry_if_exception_type(Passing),
            stop=stop_after_attempt(config.retries + 1),
            wait=self._wait,
            reraise=True,
        )
        try:
            return await tries(self._try, key, request)
        except Passing as error:
            raise EndpointError(
                f"judge: {_public(self._base_url)} failed {config.retries + 1} times for one call, at last with {error.kind}. "
                "What was received is kept: run again to go on from here, or raise judge.retries or judge.timeout_seconds."
            ) from None

    def _wait(self, state: RetryCallState) -> float:
        """Exponential backoff with jitter, or what the endpoint asked for in Retry-After, where that is longer."""
        config = self._config
        backoff = wait_random_exponential(multiplier=config.backoff_seconds, max=config.longest_wait_seconds)(state)
        error = state.outcome.exception() if state.outcome else None
        asked = error.wait_seconds if isinstance(error, Passing) else None
        return backoff if asked is None else max(asked, min(backoff, asked + config.backoff_seconds))

    async def _try(self, key: str, request: Request) -> Reply:
        if (kept := self._store.get(key)) is not None:  # bought by another process in the meantime
            self.ledger.cached += 1
            return kept
        number = await self._reserve(key, request)
        self._in_flight += 1
        try:
            reply = await self._call(request)
        except Passing as error:
            self._store.fail(number, error.kind, billed=error.billed)
            self.ledger.failed += 1
            raise
        except EndpointError:
            self._store.fail(number, "refused", billed=False)
            raise
        finally:
            self._in_flight -= 1
        self._store.receive(number, key, reply)
        self.ledger.bought += 1
        self.ledger.input_tokens += reply.input_tokens
        self.ledger.output_tokens += reply.output_tokens
        self.ledger.cost += reply.cost
        return reply

    async def _reserve(self, key: str, request: Request) -> int:
        """Waits until the budget holds the call's worst case: calls under way give back what they did not use."""
        worst = self._worst_cost(request)
        while (number := self._store.begin(key, self._buyer, worst, self._config.max_cost)) is None:
            if not self._in_flight:
                spent = self._store.totals(self._buyer)
                raise BudgetError(
                    f"judge: stopped before judge.max_cost {self._config.max_cost}: {spent.cost:.4f} spent, {spent.at_risk:.4f} "
                    f"perhaps billed for calls without an answer, and the next call may cost {worst:.4f}. What was received is "
                    "kept: raise max_cost and run again to go on from here."
                )
            await asyncio.sleep(0.02)
        return number

    async def _call(self, request: Request) -> Reply:
        """One HTTP call: a whole reply, Passing or EndpointError."""
        import openai

        body = self._body(request)
        try:
            client = self._opened()
            await self._space()
            async with self._limiter, asyncio.timeout(self._config.timeout_seconds):
                started = time.monotonic()
                # Not `chat.completions.create`, which spends a quarter of a call's time on checking what is well formed.
                answer = await client.post("/chat/completions", body=body, cast_to=object)
                seconds = time.monotonic() - started
                self._call_seconds = 0.9 * self._call_seconds + 0.1 * seconds if self._call_seconds else seconds
        except (openai.APITimeoutError, TimeoutError):
            raise Passing("timeout", billed=True) from None
        except openai.APIConnectionError as error:
            cause = type(error.__cause__).__name__  # ConnectError, ConnectTimeout: nothing was sent, so nothing can be billed
            raise Passing(f"connection dropped ({cause})", billed=not cause.startswith("Connect")) from None
        except openai.APIStatusError as error:
            return await self._refused(error, request, body)
        except (openai.APIResponseValidationError, ValueError):  # not JSON, or cut off
            raise Passing("unreadable body", billed=True) from None
        return self._reply(answer, request)

    async def _space(self) -> None:
        """Lets calls begin a moment apart: those that begin together return together, and each waits while the others are handled.

        At most twice as often as there is room for, so that it never limits the rate.
        """
        now = time.monotonic()
        apart = min(LONGEST_SPACE, self._call_seconds / self._config.concurrency / 2)
        self._next_start = max(now, self._next_start + apart)
        if self._next_start > now:
            await asyncio.sleep(self._next_start - now)

    def _opened(self) -> "AsyncOpenAI":
        """The client, opened inside the event loop that it belongs to."""
        if self._client is None:
            from openai import AsyncOpenAI

            config = self._config
            self._client = AsyncOpenAI(
                api_key=self._key or "none", base_url=self._base_url, timeout=config.timeout_seconds, max_retries=0
            )
            if config.requests_per_minute:
                from aiolimiter import AsyncLimiter

                # A bucket of one second: a full minute's calls must not go out at once.
                self._limiter = AsyncLimiter(max(1.0, config.requests_per_minute / 60), max(1.0, 60 / config.requests_per_minute))
        return self._client

    def _body(self, request: Request) -> dict[str, Any]:
        sampling = self._config.sampling
        body: dict[str, Any] = {
            "model": self.model,
            "messages": request.messages,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            # Newer hosted models refuse the older name, local servers do not know the newer one.
            "max_completion_tokens" if "max_tokens" in self._lacks else "max_tokens": sampling.max_tokens,
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed + request.sample
        if self._config.structured and "response_format" not in self._lacks:
            body["response_format"] = response_format(request)
        if self._config.probabilities and request.choices and "logprobs" not in self._lacks:
            body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        return body

    async def _refused(self, error: Any, request: Request, body: Mapping[str, Any]) -> Reply:
        """What a status of 400 and above means."""
        text = self._without_secrets(str(error))
        if error.status_code in (408, 409, 425, 429) or error.status_code >= 500:
            if getattr(error, "code", None) == "insufficient_quota":
                raise EndpointError(f"judge: {_public(self._base_url)}: the account has no money left: {text}") from None
            seconds = _retry_after(error.response.headers)
            if seconds and seconds > LONGEST_RETRY_AFTER:
                raise EndpointError(
                    f"judge: {_public(self._base_url)} asks to be left alone for {seconds / 3600:.1f} hours (HTTP "
                    f"{error.status_code}): {text}. What was received is kept: run again then to go on from here."
                ) from None
            raise Passing(f"HTTP {error.status_code}", seconds) from None
        if error.status_code in (400, 403, 413, 422) and (finish := _ends_this_call_alone(error)):
            tqdm.write(f"judge: {_public(self._base_url)} does not answer one question ({finish}): {text}", file=sys.stderr)
            return Reply("", finish)
        refused = [name for name in OPTIONAL if name in body and name in text]
        if error.status_code in (400, 422) and refused:
            self._note_lack(refused[0])
            return await self._call(request)
        raise EndpointError(
            f"judge: {_public(self._base_url)} refused a call to {self.model!r} with HTTP {error.status_code}: {text}. Check "
            f"judge.model, judge.base_url and the key in {self._config.api_key_env}."
        ) from None

    def _without_secrets(self, text: str) -> str:
        """An endpoint's message, cut to 300 characters, without the key or anything that looks like one."""
        for secret in (self._key, *(os.environ.get(name, "") for name in SENT)):
            text = text.replace(secret, "[key]") if secret else text
        return re.sub(r"(?i)(bearer\s+)\S+|\bsk-[\w*.-]{6,}", "[key]", text)[:300]

    def _note_lack(self, name: str) -> None:
        if name not in self._lacks:
            self._lacks.add(name)
            offer = f"{OPTIONAL[name]} ({name})"
            tqdm.write(f"judge: {_public(self._base_url)} does not offer {offer}; going on without", file=sys.stderr)

    def _reply(self, answer: Any, request: Request) -> Reply:
        """A whole reply from the body of an answer."""
        try:
            choice, usage = answer["choices"][0], answer.get("usage")
            message, finish = choice["message"], choice.get("finish_reason") or "stop"
            text, refusal = message.get("content") or "", message.get("refusal") or ""
            if not (isinstance(text, str) and isinstance(refusal, str) and isinstance(finish, str)):
                raise TypeError
        except (KeyError, IndexError, TypeError, AttributeError):
            raise Passing("unreadable body", billed=True) from None
        if refusal:
            text, finish = text or refusal, "content_filter"
        logprobs = last_choice_logprobs(choice, request.choices) if self._config.probabilities else None
        whole = bool(text) and finish == "stop"  # of another nothing can be told
        if self._config.probabilities and request.choices and whole and not choice.get("logprobs"):
            self._note_lack("logprobs")
        if self._config.structured and whole and not re.match(r"\s*(?:```(?:json)?\s*)?\{", text):
            self._note_lack("response_format")
        # Without usage from the endpoint the cost is what it can be at most.
        sent = _count(usage, "prompt_tokens", self._most_sent(request))
        received = _count(usage, "completion_tokens", self._config.sampling.max_tokens)
        return Reply(text, finish, sent, received, self._price(sent, received), logprobs)


def _ends_this_call_alone(error: Any) -> str:
    """How a reply ends that the endpoint refuses for what is asked and not for how; empty if the next call would fare no better."""
    said = f"{getattr(error, 'code', None)} {error}"
    if re.search(r"content_filter|content_policy|invalid_prompt|responsible ai", said, re.IGNORECASE):
        return "content_filter"
    return "length" if re.search(r"context_length_exceeded|(?:maximum|model's) context length", said, re.IGNORECASE) else ""


def response_format(request: Request) -> dict[str, Any]:
    """The JSON schema of a verdict."""
    verdict: dict[str, Any] = {"type": "string", "enum": list(request.choices)} if request.choices else {"type": "string"}
    properties = {"reasoning": {"type": "string"}, request.form: verdict}
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": schema}}


def last_choice_logprobs(choice: Mapping[str, Any], choices: Sequence[str]) -> dict[str, float] | None:
    """The top log-probabilities where the verdict was given: at a choice that no more words follow; elsewhere it is a word of the reasoning."""
    try:
        for token in reversed((choice.get("logprobs") or {}).get("content") or []):
            if token["token"].strip() in choices:
                return {str(top["token"]): float(top["logprob"]) for top in token["top_logprobs"]}
            if re.search(r"\w", token["token"]):
                return None
    except (KeyError, TypeError, AttributeError, ValueError):  # of another shape: the answer itself is good
        return None
    return None


def _count(usage: Any, name: str, default: int) -> int:
    value = usage.get(name) if isinstance(usage, Mapping) else None
    return value if isinstance(value, int) and value >= 0 else default


def _retry_after(headers: Mapping[str, str]) -> float | None:
    value = headers.get("retry-after", "")
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _public(url: str) -> str:
    """An endpoint's address without user, password, query or fragment."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"
