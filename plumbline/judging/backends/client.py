"""Calls to an OpenAI-compatible endpoint: what is sent, and what an answer or a refusal means.

A call first asks for everything that was configured (structured output, log-probabilities). What the endpoint refuses or ignores is noticed
once and not asked for again. The key comes from the environment and is given to the client only.
"""

import asyncio
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tqdm import tqdm

from plumbline.judging.asking import Reply, Request
from plumbline.judging.judges import OpenaiJudge, check_address

if TYPE_CHECKING:
    from openai import AsyncOpenAI

TOP_LOGPROBS = 5
OVERHEAD_TOKENS = 32  # of a chat template, for each message
IN_HEADERS = ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID")  # what the client sends in headers besides the key
LONGEST_SPACE_SECONDS = 0.003  # handling an answer takes about 2 ms
LONGEST_RETRY_AFTER_SECONDS = 1800.0  # a longer wait is a quota, not a rate limit
OPTIONAL = {
    "response_format": "structured output",
    "logprobs": "token log-probabilities",
    "max_tokens": "a limit by its first name; max_completion_tokens is asked for instead",
}


class EndpointError(OSError):
    """The endpoint refuses, or kept failing; the message names it and holds no secret."""


class TransientError(Exception):
    """A failure after which another try may succeed; `billed` if the endpoint may charge for it."""

    def __init__(self, kind: str, wait_seconds: float | None = None, billed: bool = False) -> None:
        super().__init__(kind)
        self.kind, self.wait_seconds, self.billed = kind, wait_seconds, billed


class EndpointClient:
    """Makes single calls to the endpoint of a judge."""

    def __init__(self, config: OpenaiJudge) -> None:
        self._config = config
        self._key = os.environ.get(config.api_key_env, "")
        if config.needs_key and not self._key and not config.dry_run:
            raise EndpointError(
                f"judge: expected the key of {config.base_url or 'the endpoint'} in the environment variable "
                f"{config.api_key_env}, found none: export it (never write it into a file), or set judge.needs_key: false for a "
                "server that accepts any key"
            )
        self._base_url = config.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        check_address(self._base_url)
        self.address = public_address(self._base_url)
        self._lacks: set[str] = set()
        self._client: AsyncOpenAI | None = None
        self._limiter: Any = nullcontext()
        self._call_seconds = self._next_start = 0.0

    def most_sent(self, request: Request) -> int:
        """The most input tokens that a request can have; no token is shorter than a byte."""
        return sum(len(message["content"].encode()) + OVERHEAD_TOKENS for message in request.messages)

    def price(self, input_tokens: float, output_tokens: float) -> float:
        """Money for so many tokens."""
        prices = self._config.prices
        return (input_tokens * prices.input + output_tokens * prices.output) / 1e6

    async def call(self, request: Request) -> Reply:
        """Makes one HTTP call and returns a complete reply.

        Raises:
            TransientError: another try may succeed.
            EndpointError: the endpoint refuses, and would refuse another try.
        """
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
            raise TransientError("timeout", billed=True) from None
        except openai.APIConnectionError as error:
            cause = type(error.__cause__).__name__  # ConnectError, ConnectTimeout: nothing was sent, so nothing can be billed
            raise TransientError(f"connection dropped ({cause})", billed=not cause.startswith("Connect")) from None
        except openai.APIStatusError as error:
            return await self._refused(error, request, body)
        except (openai.APIResponseValidationError, ValueError):  # not JSON, or cut off
            raise TransientError("unreadable body", billed=True) from None
        return self._reply(answer, request)

    @property
    def is_open(self) -> bool:
        """Whether there are connections to close."""
        return self._client is not None

    async def close(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _space(self) -> None:
        """Lets calls begin a moment apart, since those that begin together return together and wait for each other to be handled.

        They begin at most twice as often as the concurrency allows, so that the rate is never limited.
        """
        now = time.monotonic()
        apart = min(LONGEST_SPACE_SECONDS, self._call_seconds / self._config.concurrency / 2)
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
            "model": self._config.model,
            "messages": request.messages,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            # Newer hosted models refuse the older name; local servers do not know the newer one.
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
        """Handles a status of 400 and above: calls again without what was refused, returns an empty reply, or raises."""
        message = self._without_secrets(str(error))
        if error.status_code in (408, 409, 425, 429) or error.status_code >= 500:
            raise self._temporary(error, message) from None
        if error.status_code in (400, 403, 413, 422) and (finish := _finish_of_refused_question(error)):
            tqdm.write(f"judge: {self.address} does not answer one question ({finish}): {message}", file=sys.stderr)
            return Reply("", finish)
        refused = [name for name in OPTIONAL if name in body and name in message]
        if error.status_code in (400, 422) and refused:
            self._note_lack(refused[0])
            return await self.call(request)
        raise EndpointError(
            f"judge: {self.address} refused a call to {self._config.model!r} with HTTP {error.status_code}: {message}. Check "
            f"judge.model, judge.base_url and the key in {self._config.api_key_env}."
        ) from None

    def _temporary(self, error: Any, message: str) -> TransientError | EndpointError:
        """What to raise for a status that may pass: too many calls, or a fault of the server."""
        if getattr(error, "code", None) == "insufficient_quota":
            return EndpointError(f"judge: {self.address}: the account has no money left: {message}")
        seconds = _retry_after(error.response.headers)
        if seconds and seconds > LONGEST_RETRY_AFTER_SECONDS:
            return EndpointError(
                f"judge: {self.address} asks to be left alone for {seconds / 3600:.1f} hours (HTTP {error.status_code}): {message}. "
                "The replies received so far are kept: run again then to go on from here."
            )
        return TransientError(f"HTTP {error.status_code}", seconds)

    def _without_secrets(self, text: str) -> str:
        """An endpoint's message, cut to 300 characters, without the key or anything that looks like one."""
        for secret in (self._key, *(os.environ.get(name, "") for name in IN_HEADERS)):
            text = text.replace(secret, "[key]") if secret else text
        return re.sub(r"(?i)(bearer\s+)\S+|\bsk-[\w*.-]{6,}", "[key]", text)[:300]

    def _note_lack(self, name: str) -> None:
        if name not in self._lacks:
            self._lacks.add(name)
            tqdm.write(f"judge: {self.address} does not offer {OPTIONAL[name]} ({name}); going on without", file=sys.stderr)

    def _reply(self, answer: Any, request: Request) -> Reply:
        """The reply in the body of an answer."""
        try:
            choice, usage = answer["choices"][0], answer.get("usage")
            message, finish = choice["message"], choice.get("finish_reason") or "stop"
            text, refusal = message.get("content") or "", message.get("refusal") or ""
            if not (isinstance(text, str) and isinstance(refusal, str) and isinstance(finish, str)):
                raise TypeError
        except (KeyError, IndexError, TypeError, AttributeError):
            raise TransientError("unreadable body", billed=True) from None
        if refusal:
            text, finish = text or refusal, "content_filter"
        logprobs = last_choice_logprobs(choice, request.choices) if self._config.probabilities else None
        if text and finish == "stop":  # an incomplete reply does not show what the endpoint ignores
            if self._config.probabilities and request.choices and not choice.get("logprobs"):
                self._note_lack("logprobs")
            if self._config.structured and not re.match(r"\s*(?:```(?:json)?\s*)?\{", text):
                self._note_lack("response_format")
        # If the endpoint states no usage, the cost is the most that it can be.
        input_tokens = _count(usage, "prompt_tokens", self.most_sent(request))
        output_tokens = _count(usage, "completion_tokens", self._config.sampling.max_tokens)
        return Reply(text, finish, input_tokens, output_tokens, self.price(input_tokens, output_tokens), logprobs)


def response_format(request: Request) -> dict[str, Any]:
    """The JSON schema of a verdict."""
    verdict: dict[str, Any] = {"type": "string", "enum": list(request.choices)} if request.choices else {"type": "string"}
    properties = {"reasoning": {"type": "string"}, request.form: verdict}
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": schema}}


def last_choice_logprobs(choice: Mapping[str, Any], choices: Sequence[str]) -> dict[str, float] | None:
    """The top log-probabilities at the token that names the verdict, or None if there is no such token.

    It is the last token that names a choice. If a word follows it, it is a word of the reasoning and not the verdict.
    """
    try:
        for token in reversed((choice.get("logprobs") or {}).get("content") or []):
            if token["token"].strip() in choices:
                return {str(top["token"]): float(top["logprob"]) for top in token["top_logprobs"]}
            if re.search(r"\w", token["token"]):
                return None
    except (KeyError, TypeError, AttributeError, ValueError):  # log-probabilities of another shape do not spoil the answer
        return None
    return None


def public_address(url: str) -> str:
    """An endpoint's address without user, password, query or fragment."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"


def _finish_of_refused_question(error: Any) -> str:
    """How the reply ends if the endpoint refuses this question alone, not the way it is asked; empty if it would refuse any question."""
    message = f"{getattr(error, 'code', None)} {error}"
    if re.search(r"content_filter|content_policy|invalid_prompt|responsible ai", message, re.IGNORECASE):
        return "content_filter"
    return "length" if re.search(r"context_length_exceeded|(?:maximum|model's) context length", message, re.IGNORECASE) else ""


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
