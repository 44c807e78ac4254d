"""An OpenAI-compatible endpoint as a chat: concurrent calls, retried, within a budget, and every reply kept in the store."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from tqdm import tqdm

from plumbline.judging.asking import ESTIMATED, Ledger, Reply, Request
from plumbline.judging.backends.client import EndpointClient
from plumbline.judging.judges import OpenaiJudge
from plumbline.judging.store import VerdictStore, content_key, store_folder
from plumbline.pipeline.endpoint_calls import EndpointError, TransientError

BYTES_PER_TOKEN = 4  # for estimates; the worst case is one


class BudgetError(ValueError):
    """The next call might exceed max_cost."""


@dataclass
class Estimate:
    """What a dry run found out."""

    calls: int = 0
    cached: int = 0
    likely_cost: float = 0.0
    worst_cost: float = 0.0


class EndpointChat:
    """Buys the replies that the store does not have."""

    def __init__(self, config: OpenaiJudge, run: str) -> None:
        self.model = config.model
        self._config = config
        self._client = EndpointClient(config)
        self.identity = json.dumps(["openai", config.model, self._client.address, asdict(config.sampling)])
        self._asked = {"structured": config.structured, "probabilities": config.probabilities}
        self._buyer = content_key([run, self.identity, self._asked])
        self._store = VerdictStore(store_folder())
        self._runner = asyncio.Runner()
        self._bar: tqdm[Any] | None = None
        self._in_flight = self._called = 0
        self._estimate = Estimate()
        self.share = 1.0
        self.ledger = Ledger()

    def complete(self, requests: Sequence[Request]) -> list[Reply]:
        """The replies, from the store or else bought.

        Raises:
            BudgetError: the next call might exceed max_cost; the replies to calls under way have been received and kept.
            EndpointError: the endpoint refuses, or failed in all tries (judge.retries).
        """
        if self._config.dry_run:
            return [self._estimated(request) for request in requests]
        if self._bar is None:
            self._bar = tqdm(desc=f"judge {self.model}", unit="call", total=0, disable=None)
        self._called += len(requests)
        self._bar.total = max(self._called, round(self._called / self.share))
        return self._runner.run(self._complete(requests))

    def close(self) -> None:
        """Closes the progress bar, the connections and the store, unless they are closed."""
        if self._bar is not None:
            self._show()
            self._bar.close()
            self._bar = None
        if self._client.caller.is_open:
            self._runner.run(self._client.caller.close())
        self._runner.close()
        self._store.close()

    def finish(self) -> None:
        """Closes what is open.

        Raises:
            SystemExit: this was a dry run; the message says what the run would cost.
        """
        self.close()
        if self._config.dry_run:
            estimate = self._estimate
            raise SystemExit(
                f"dry run: {self.model} would be asked {estimate.calls} times; {estimate.cached} replies are in {store_folder()} already. "
                f"The others cost about {estimate.likely_cost:.4f} and at most {estimate.worst_cost:.4f} (max_cost: "
                f"{self._config.max_cost}), without retries of unread verdicts. Nothing was asked or written."
            )

    def _key_of(self, request: Request) -> str:
        return content_key([self.identity, self._asked, *request])

    def _worst_cost(self, request: Request) -> float:
        return self._client.price(self._client.most_sent(request), self._config.sampling.max_tokens)

    def _estimated(self, request: Request) -> Reply:
        """The stored reply, or an empty one whose cost is added to the estimate."""
        kept = self._store.get(self._key_of(request))
        self._estimate.calls += 1
        if kept:
            self._estimate.cached += 1
            return kept
        size = sum(len(message["content"].encode()) for message in request.messages)
        self._estimate.likely_cost += self._client.price(size / BYTES_PER_TOKEN, self._config.sampling.max_tokens / 2)
        self._estimate.worst_cost += self._worst_cost(request)
        return Reply("", ESTIMATED)

    async def _complete(self, requests: Sequence[Request]) -> list[Reply]:
        """The replies; if one fails, those to calls under way are still received and kept."""
        replies: list[Reply | None] = [None] * len(requests)

        async def answer(item: tuple[int, Request]) -> None:
            position, request = item
            replies[position] = await self._reply(request)

        await self._client.caller.at_once(enumerate(requests), answer)
        return [reply for reply in replies if reply is not None]

    async def _reply(self, request: Request) -> Reply:
        """The reply to one request, from the store or else bought."""
        key = self._key_of(request)
        reply = self._store.get(key)
        if reply is not None:
            self.ledger.cached += 1
        else:
            reply = await self._client.caller.patiently(partial(self._try, key, request))
        self.ledger.calls += 1
        if self._bar is not None and self._bar.update():
            self._show()
        if self.ledger.cached % 256 == 0:
            await asyncio.sleep(0)  # a long run of cached replies must not keep arriving replies waiting
        return reply

    def _show(self) -> None:
        if self._bar is not None:
            ledger = self.ledger
            tokens = ledger.input_tokens + ledger.output_tokens
            self._bar.set_postfix(cached=ledger.cached, failed=ledger.failed, tokens=tokens, cost=f"{ledger.cost:.4f}")

    async def _try(self, key: str, request: Request) -> Reply:
        if (kept := self._store.get(key)) is not None:  # another process bought it in the meantime
            self.ledger.cached += 1
            return kept
        number = await self._reserve(key, request)
        self._in_flight += 1
        try:
            reply = await self._client.call(request)
        except TransientError as error:
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
        """Waits until the budget can bear the call's worst case: calls under way return what they do not use."""
        worst = self._worst_cost(request)
        while (number := self._store.begin(key, self._buyer, worst, self._config.max_cost)) is None:
            if not self._in_flight:
                spent = self._store.totals(self._buyer)
                raise BudgetError(
                    f"judge: stopped before judge.max_cost {self._config.max_cost}: {spent.cost:.4f} spent, {spent.at_risk:.4f} "
                    f"perhaps billed for calls without an answer, and the next call may cost {worst:.4f}. The replies received so far "
                    "are kept: raise max_cost and run again to go on from here."
                )
            await asyncio.sleep(0.02)
        return number
