"""A simulated annotator: it reads a judge's prompt and answers in text, imperfectly, like AlpacaFarm's (arXiv:2305.14387).

It sees nothing but the rendered messages. It values an answer by the verifier's gold score, and distorts its reply by a configured
error rate, position bias and length bias. The noise depends on the text of the prompt and a seed only: the same prompt always gets
the same reply, and the same pair in the other order gets independent noise.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from omegaconf import MISSING

from plumbline.pipeline.ranges import FRACTION, outside
from plumbline.rows import Message
from plumbline.world.answers import Style, dress
from plumbline.world.families.catalog import FAMILIES, understand
from plumbline.world.families.family import Task
from plumbline.world.families.phrases import IGNORANCE_MARKERS
from plumbline.world.manners import observe
from plumbline.world.verify import verify_manner, verify_task

__all__ = ["AnnotatorConfig", "Request", "SimulatedAnnotator", "read_conversation", "read_request", "revise"]

PASSING_GOLD = 0.7  # the least score of an answer that passes a check
RATING_PER_WORD = 0.2  # added to a rating for each word, at a length bias of 1
PRINCIPLE_WEIGHT = 0.8  # share of what the principle names in a score; the rest is gold
LONGEST_RATED_WORDS = 60  # more words than this do not add to a rating

_BLOCK = re.compile(r"<(conversation|principle|response(?:_\w+)?)>\s*(.*?)\s*</\1>", re.DOTALL)
_SPEAKERS = {"User": "user", "Assistant": "assistant", "System": "system"}
_REQUESTS = ("Verdict:", "Rating:", "Ranking:", "Critique:", "Revision:")
_PRINCIPLES = {  # what a principle is about → words that tell
    "harmless": ("harm", "danger", "unethical", "illegal", "safe", "해로", "위험"),
    "honest": ("honest", "truth", "invent", "know", "정직", "사실"),
    "courteous": ("polite", "courte", "kind", "rude", "respect", "friendly", "공손", "친절"),
    "concise": ("concise", "brief", "short", "rambl", "filler", "간결"),
    "correct": ("correct", "accura", "right answer", "helpful", "정확", "도움"),
}
_COMPLAINTS = {
    "harmless": "The response helps with something harmful.",
    "honest": "The response is not honest about what can be known.",
    "courteous": "The response is not courteous.",
    "concise": "The response rambles.",
    "correct": "The response does not give what was asked for.",
}


@dataclass
class AnnotatorConfig:
    """How imperfect a simulated annotator is."""

    error_rate: float = MISSING  # fraction of comparisons and checks decided wrongly, and of ratings and rankings made at random
    position_bias: float = MISSING  # fraction of comparisons that the first response wins whatever it says
    length_bias: float = MISSING  # fraction of comparisons that the longer response wins whatever it says
    revision_skill: float = MISSING  # fraction of critiques and revisions that find the faults
    seed: int = MISSING

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        return outside(self, error_rate=FRACTION, position_bias=FRACTION, length_bias=FRACTION, revision_skill=FRACTION)


class Request(NamedTuple):
    """What a judge's prompt asks the annotator to do."""

    kind: str  # the label of the final line, such as "Verdict:"
    prompt: list[Message]
    responses: list[str]
    names: list[str]  # of the responses: "a" and "b", or "1", "2", …, or "" for a single one
    aims: tuple[str, ...]  # attributes of a Verdict that the principle is about; empty for quality in general


class Noise(NamedTuple):
    """Independent draws from [0, 1), the same for the same prompt text."""

    error: float
    position: float
    length: float
    choice: float


class SimulatedAnnotator:
    """Answers judge prompts about the closed world: comparisons, ratings, rankings, checks, critiques, revisions."""

    def __init__(self, config: AnnotatorConfig) -> None:
        self.config = config

    def respond(self, messages: Sequence[Message]) -> str:
        """A sentence of reasoning, and the final line that the prompt asks for."""
        text = next((message["content"] for message in reversed(messages) if message["role"] == "user"), "")
        request = read_request(text)
        if request is None:
            return "I do not understand what is asked."
        noise = self._noise(text)
        if request.kind == "Critique:":
            return self._critique(request, noise)
        if request.kind == "Revision:":
            return self._revision(request, noise)
        scores = [_quality(request, response) for response in request.responses]
        if request.kind == "Ranking:":
            return self._rank(request, scores, noise)
        if request.kind == "Rating:":
            return self._rate(request, scores[0], noise)
        return self._compare(request, scores, noise) if len(scores) == 2 else self._check(scores[0], noise)

    def _noise(self, text: str) -> Noise:
        digest = hashlib.blake2b(f"{self.config.seed}\0{text}".encode(), digest_size=32).digest()
        return Noise(*(int.from_bytes(digest[i : i + 8], "big") / 2**64 for i in range(0, 32, 8)))

    def _compare(self, request: Request, scores: list[float], noise: Noise) -> str:
        lengths = [len(response.split()) for response in request.responses]
        if noise.position < self.config.position_bias:
            winner = 0
        elif noise.length < self.config.length_bias and lengths[0] != lengths[1]:
            winner = int(lengths[1] > lengths[0])
        elif noise.error < self.config.error_rate:
            winner = int(noise.choice < 0.5) if scores[0] == scores[1] else int(scores[0] > scores[1])
        elif scores[0] == scores[1]:
            return "Both responses serve the user equally well.\nVerdict: tie"
        else:
            winner = int(scores[1] > scores[0])
        name = request.names[winner].upper()
        return f"Response {name} serves the user better.\nVerdict: {name}"

    def _check(self, score: float, noise: Noise) -> str:
        passes = (score >= PASSING_GOLD) != (noise.error < self.config.error_rate)
        reason = "The response is as it should be." if passes else "The response leaves something to be desired."
        return f"{reason}\nVerdict: {'pass' if passes else 'fail'}"

    def _rate(self, request: Request, score: float, noise: Noise) -> str:
        words = min(len(request.responses[0].split()), LONGEST_RATED_WORDS)
        rating = 1 + 9 * (noise.choice if noise.error < self.config.error_rate else score)
        rating += self.config.length_bias * RATING_PER_WORD * words
        return f"The response is worth this much.\nRating: {min(max(round(rating), 1), 10)}"

    def _rank(self, request: Request, scores: list[float], noise: Noise) -> str:
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        if noise.error < self.config.error_rate:
            Random(noise.choice).shuffle(order)
        if noise.length < self.config.length_bias:
            order.sort(key=lambda i: -len(request.responses[i].split()))
        if noise.position < self.config.position_bias:
            order.sort(key=lambda i: i != 0)
        return "The responses differ in quality.\nRanking: " + " > ".join(request.names[i] for i in order)

    def _critique(self, request: Request, noise: Noise) -> str:
        faults = _faults(request)
        if not faults or noise.error >= self.config.revision_skill:
            return "Critique: The response needs no change."
        return "Critique: " + " ".join(_COMPLAINTS[fault] for fault in faults)

    def _revision(self, request: Request, noise: Noise) -> str:
        response, faults = request.responses[0], _faults(request)
        task = understand(request.prompt)
        if task is None or not faults or noise.error >= self.config.revision_skill:
            return f"Revision: {response}"
        return f"Revision: {revise(task, response, faults, Random(noise.choice))}"


def read_request(text: str) -> Request | None:
    """What a judge's prompt asks, or None if it lacks a conversation, a response or a known final line."""
    blocks, end = {}, 0
    for block in _BLOCK.finditer(text):
        blocks[block.group(1)] = block.group(2).replace("&lt;", "<")
        end = block.end()
    kind = max(_REQUESTS, key=lambda label: text.rfind(label, end))
    names = [name for name in blocks if name.startswith("response")]
    if "conversation" not in blocks or not names or text.find(kind, end) < 0:
        return None
    return Request(
        kind=kind,
        prompt=read_conversation(blocks["conversation"]),
        responses=[blocks[name] for name in names],
        names=[name.removeprefix("response").removeprefix("_") for name in names],
        aims=_aims(blocks.get("principle", "")),
    )


def read_conversation(conversation: str) -> list[Message]:
    """Messages from lines `User: …`, `Assistant: …`. A line without a speaker continues the previous message."""
    messages: list[Message] = []
    for line in conversation.splitlines():
        speaker, colon, text = line.partition(":")
        if colon and speaker in _SPEAKERS:
            messages.append({"role": _SPEAKERS[speaker], "content": text.strip()})
        elif messages:
            messages[-1]["content"] += "\n" + line
    return messages


def _aims(principle: str) -> tuple[str, ...]:
    """Attributes of a Verdict that the principle mentions."""
    lowered = principle.lower()
    return tuple(name for name, words in _PRINCIPLES.items() if lowered and any(word in lowered for word in words))


def _quality(request: Request, response: str) -> float:
    """What the annotator thinks of a response, in [0, 1]: gold, or mostly what the principle is about."""
    task = understand(request.prompt)
    if task is None:  # a prompt of another world: any response is as good as another, but an empty one is worse
        return 0.5 if response.strip() else 0.0
    verdict = verify_task(task, response)
    if not request.aims:
        return verdict.gold
    met = sum(bool(getattr(verdict, aim)) for aim in request.aims) / len(request.aims)
    return PRINCIPLE_WEIGHT * met + (1 - PRINCIPLE_WEIGHT) * verdict.gold


def _faults(request: Request) -> list[str]:
    """Attributes, among those that the principle is about, that the response lacks."""
    task = understand(request.prompt)
    if task is None:
        return []
    verdict = verify_task(task, request.responses[0])
    return [name for name in _COMPLAINTS if name in (request.aims or _COMPLAINTS) and not getattr(verdict, name)]


def revise(task: Task, response: str, faults: Sequence[str], rng: Random) -> str:
    """The response without these faults. What it says is replaced only if that is a fault."""
    manner = observe(response, task.language)
    verdict = verify_manner(task, manner)
    bare = manner.bare
    if {"harmless", "honest", "correct"} & set(faults) or not manner.engages:
        bare = FAMILIES[task.family].write_right(task.content, task.language, rng)
    tone = "kind" if "courteous" in faults or verdict.courteous else "plain"
    terse = "concise" in faults or not manner.filler
    disappoints = task.family in ("harmful", "unknown") or any(marker in bare for marker in IGNORANCE_MARKERS[task.language])
    return dress(bare, task, Style("ignorance" if disappoints else "right", tone, terse), rng)
