"""Calls to an OpenAI-compatible endpoint: what is sent, and what an answer or a refusal means.

A call first asks for everything that was configured (structured output, log-probabilities). What the endpoint refuses or ignores is noticed
once and not asked for again. The key comes from the environment and is given to the client only.
"""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from plumbline.judging.asking import Reply, Request
from plumbline.judging.judges import OpenaiJudge
from plumbline.pipeline.endpoint_calls import Caller, EndpointError, RefusedError, TransientError

TOP_LOGPROBS = 5
OVERHEAD_TOKENS = 32  # of a chat template, for each message
OPTIONAL = {
    "response_format": "structured output",
    "logprobs": "token log-probabilities",
    "max_tokens": "a limit by its first name; max_completion_tokens is asked for instead",
}


class EndpointClient:
    """Makes single calls to the endpoint of a judge."""

    def __init__(self, config: OpenaiJudge) -> None:
        self._config = config
        base_url = config.base_url or os.environ.get(config.address_env) or "https://api.openai.com/v1"
        needs_key = config.needs_key and not config.dry_run
        self.caller = Caller(config, base_url, "The replies received so far", key_needed=needs_key)
        self.address = self.caller.address
        self._lacks: set[str] = set()

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
        body = self._body(request)
        try:
            answer = await self.caller.post("/chat/completions", body)
        except RefusedError as error:
            return await self._refused(error, request, body)
        return self._reply(answer, request)

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

    async def _refused(self, error: RefusedError, request: Request, body: Mapping[str, Any]) -> Reply:
        """Handles a refusal: calls again without what was refused, returns an empty reply, or raises."""
        if error.status in (400, 403, 413, 422) and (finish := _finish_of_refused_question(error)):
            tqdm.write(f"judge: {self.address} does not answer one question ({finish}): {error.message}", file=sys.stderr)
            return Reply("", finish)
        refused = [name for name in OPTIONAL if name in body and name in error.message]
        if error.status in (400, 422) and refused:
            self._note_lack(refused[0])
            return await self.call(request)
        raise EndpointError(
            f"judge: {self.address} refused a call to {self._config.model!r} with HTTP {error.status}: {error.message}. Check "
            f"judge.model, judge.base_url and the key in {self._config.api_key_env}."
        ) from None

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


def _finish_of_refused_question(error: RefusedError) -> str:
    """How the reply ends if the endpoint refuses this question alone, not the way it is asked; empty if it would refuse any question."""
    if re.search(r"content_filter|content_policy|invalid_prompt|responsible ai", error.words, re.IGNORECASE):
        return "content_filter"
    return (
        "length" if re.search(r"context_length_exceeded|(?:maximum|model's) context length", error.words, re.IGNORECASE) else ""
    )


def _count(usage: Any, name: str, default: int) -> int:
    value = usage.get(name) if isinstance(usage, Mapping) else None
    return value if isinstance(value, int) and value >= 0 else default
