"""An OpenAI-compatible chat endpoint on loopback that answers by the text alone and fails as often as configured.

It runs in a thread (`running`), or as a process: `python tests/judging_server.py --latency 0.2` prints its port. `GET /stats` returns how
many complete answers it has delivered.
"""

import argparse
import asyncio
import hashlib
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

FAULTS = ("429", "500", "timeout", "drop", "truncated", "html", "slow", "empty", "refusal")
ANSWERED = ("", "empty", "refusal")  # the faults that are nevertheless complete answers, and are billed


@dataclass
class Server:
    """The endpoint's settings, and counts of what it has done."""

    fault_rate: float = 0.0
    faults: tuple[str, ...] = FAULTS
    latency: float = 0.0
    gather: int = 0  # how many calls have to be under way at once before the first is answered
    on_call: Callable[[], None] = lambda: None  # called when a call arrives, before it is answered
    hang_seconds: float = 1.5
    seed: int = 0
    retry_after: float = 0.05
    refuses: tuple[str, ...] = ()  # parameters that get HTTP 400
    refuses_text: tuple[str, ...] = ()  # questions with these words get `error`
    error: tuple[int, dict[str, Any]] = (400, {})  # a status and what the body says
    structured: bool = False  # honours response_format
    logprobs: bool = False
    text: str | None = None  # a fixed answer
    status: int = 200
    echo: str = ""  # put into error messages
    extra: dict[str, Any] = field(default_factory=dict)  # put over the fields of an answer
    choice: dict[str, Any] = field(default_factory=dict)  # put over the fields of its choice
    delivered: Counter[str] = field(default_factory=Counter)  # complete answers, by the digest of the request's body
    faulty: Counter[str] = field(default_factory=Counter)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    input_tokens: int = 0
    output_tokens: int = 0
    calls: int = 0
    under_way: int = 0
    most_under_way: int = 0
    arrivals: list[float] = field(default_factory=list)
    gathered: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0
    keep: bool = True  # the bodies and headers of requests

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(length[1]) if length else 0)
                if head.startswith(b"GET"):
                    await self.send(writer, json.dumps(self.page()).encode(), self.status)
                    continue
                self.under_way += 1
                self.most_under_way = max(self.most_under_way, self.under_way)
                if self.under_way >= self.gather:
                    self.gathered.set()
                try:
                    await self.gathered.wait()
                    if not await self.answer(head.decode(), body, writer):
                        break
                finally:
                    self.under_way -= 1
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    def page(self) -> dict[str, Any]:
        """What is returned for GET."""
        return {"delivered": self.delivered, "calls": self.calls}

    async def answer(self, head: str, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Answers one call; returns whether the connection is still good."""
        number, self.calls = self.calls, self.calls + 1
        self.on_call()
        self.arrivals.append(time.monotonic())
        rng = random.Random(f"{self.seed}:{number}")
        fault = rng.choice(self.faults) if rng.random() < self.fault_rate else ""
        request = json.loads(body)
        if self.keep:
            self.bodies.append(request)
            self.headers.append(head)
        await asyncio.sleep(self.latency)
        self.faulty[fault] += 1
        if refusal := self.refusal(request, fault):
            await self.send(writer, *refusal)
            return True
        if fault in ("drop", "timeout"):
            await asyncio.sleep(self.hang_seconds if fault == "timeout" else 0)
            return False
        complete = self.reply(request, fault)
        if fault in ("truncated", "slow"):
            await self.send_part(writer, complete, fault)
            return False
        # Counted before it is sent: a client that is killed now may or may not have received it.
        self.delivered[hashlib.sha256(body).hexdigest()] += 1
        if usage := json.loads(complete)["usage"]:
            self.input_tokens += usage["prompt_tokens"] or 0
            self.output_tokens += usage["completion_tokens"] or 0
        await self.send(writer, complete)
        return True

    def refusal(self, request: dict[str, Any], fault: str) -> tuple[bytes, int, str] | None:
        """The body, status and headers of an answer without a reply; None if the call gets a reply or none at all."""
        refused = [name for name in self.refuses if name in request]
        if any(text in request["messages"][0]["content"] for text in self.refuses_text):
            return json.dumps({"error": self.error[1]}).encode(), self.error[0], ""
        if self.status != 200 or refused:
            message = f"Unsupported parameter: {refused[0]}" if refused else f"no {self.echo}"
            return json.dumps({"error": {"message": message}}).encode(), 400 if refused else self.status, ""
        if fault == "429":
            return b'{"error": {"message": "slow down"}}', 429, f"retry-after: {self.retry_after}\r\n"
        if fault == "500":
            return b"oops", 500, ""
        if fault == "html":
            return b"<html>gateway</html>", 200, "content-type: text/html\r\n"
        return None

    async def send_part(self, writer: asyncio.StreamWriter, complete: bytes, fault: str) -> None:
        """Sends half of an answer at once (`truncated`), or the beginning of it byte by byte (`slow`)."""
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(complete)}\r\n\r\n".encode())
        if fault == "truncated":
            writer.write(complete[: len(complete) // 2])
            await writer.drain()
            return
        for position in range(20):
            writer.write(complete[position : position + 1])
            await writer.drain()
            await asyncio.sleep(self.hang_seconds / 20)

    def reply(self, request: dict[str, Any], fault: str) -> bytes:
        question = next(message["content"] for message in request["messages"] if message["role"] == "user")
        text = self.text if self.text is not None else verdict(question)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if self.structured and "response_format" in request:
            key, value = text.splitlines()[-1].split(": ")
            message["content"] = json.dumps({"reasoning": "so", key.lower(): value})
        if fault == "empty":
            message["content"] = ""
        if fault == "refusal":
            message |= {"content": None, "refusal": "I cannot judge that."}
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": "stop"}
        if self.logprobs and request.get("logprobs"):
            token = text.split()[-1]
            tops = [{"token": token, "logprob": -0.1}, {"token": "B" if token == "A" else "A", "logprob": -2.5}]
            choice["logprobs"] = {"content": [{"token": "Verdict:", "top_logprobs": []}, {"token": token, "top_logprobs": tops}]}
        usage = {"prompt_tokens": len(question.split()), "completion_tokens": len(text.split())}
        answer = {"id": "1", "object": "chat.completion", "choices": [choice | self.choice], "usage": usage}
        return json.dumps(answer | self.extra).encode()

    async def send(self, writer: asyncio.StreamWriter, body: bytes, status: int = 200, extra: str = "") -> None:
        head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n"
        writer.write((head + (extra or "content-type: application/json\r\n") + "\r\n").encode() + body)
        await writer.drain()


def worth(text: str) -> int:
    """This judge's rating of an answer, from 1 to 10, which depends on its digest alone."""
    return hashlib.sha256(text.strip().encode()).digest()[0] % 10 + 1


def verdict(question: str) -> str:
    """A rating, or a comparison that does not depend on the order shown."""
    answers = re.findall(r"<response\w*>\n(.*?)\n</response\w*>", question, re.DOTALL)
    if len(answers) == 1:
        return f"Some reasons.\nRating: {worth(answers[0])}"
    first, second = (worth(answer) for answer in answers)
    return f"Some reasons.\nVerdict: {'tie' if first == second else 'A' if first > second else 'B'}"


@contextmanager
def running(**settings: Any) -> Iterator[Server]:
    """Runs the endpoint in a thread."""
    with serving(Server(**settings)) as server:
        yield server


@contextmanager
def serving(server: Any) -> Iterator[Any]:
    """Runs a server in a thread."""
    started, loop = threading.Event(), asyncio.new_event_loop()

    async def serve() -> None:
        listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
        server.port = listener.sockets[0].getsockname()[1]
        started.set()
        async with listener:
            await stop.wait()

    stop = asyncio.Event()

    def run() -> None:
        loop.run_until_complete(serve())
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


async def serve_forever(server: Server) -> None:
    listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    print(listener.sockets[0].getsockname()[1], flush=True)
    async with listener:
        await listener.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--fault-rate", type=float, default=0.0)
    arguments = parser.parse_args()
    faults = tuple(fault for fault in FAULTS if fault not in ANSWERED)
    server = Server(latency=arguments.latency, fault_rate=arguments.fault_rate, faults=faults, hang_seconds=0.3, keep=False)
    asyncio.run(serve_forever(server))
