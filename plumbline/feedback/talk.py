"""A conversation with one policy, or with two that are hidden behind the letters A and B, and what is said of their answers.

All of it but the page: which policies there are, what each reads, how its answer is drawn, and the lines that a vote, a thumb or a correction
becomes. The conversation has one thread. It goes on with the last correction if somebody typed one, else with the
better answer, else with A, which is either policy's by chance. So both policies always answer the same messages, and a vote is a preference.
"""

import random
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from plumbline.feedback.lines import CORRECTION, THUMB, VOTE, Answer, B, Line, require_whole_characters
from plumbline.models.decoding_values import Decoding, DecodingFields
from plumbline.pipeline.digests import content_digest
from plumbline.rows import Message, assistant

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

POLICIES = Path("artifacts/policy")
DIGITS = 16
"""Of a digest, as in the `revision` of a model folder."""

LARGEST_SEED = 2**31


class Speaker(NamedTuple):
    """A policy that can be asked."""

    name: str
    weights: str
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    decoding: Decoding
    max_new_tokens: int


def weights_of(folder: Path) -> str:
    """What identifies a policy's weights: the digest of its folder, which takes a second for each gigabyte."""
    return content_digest(folder)[:DIGITS]


def load_speaker(name: str, section: Mapping[str, Any]) -> Speaker:
    """Loads a policy of artifacts/policy, with the decoding that params.yaml's `evaluate` section gives it.

    Raises:
        ValueError: its tokenizer has no usable chat template, or a value of the decoding is out of range.
    """
    from transformers import AutoTokenizer

    from plumbline.models.chat import ChatTemplateError, end_of_turn_id
    from plumbline.models.loading import load_policy

    folder = POLICIES / name
    values = {key: section[key] for key in Decoding._fields if key in section}
    decoding = DecodingFields(**values).decoding(folder)
    if problems := decoding.problems():
        raise ValueError(f"params.yaml: evaluate.{problems[0]}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    try:
        end_of_turn_id(tokenizer)
    except ChatTemplateError as error:
        raise ValueError(
            f"expected a chat template that ends each turn in {folder}, found none that does. Set chat_template in the model's file of "
            "conf/model, then run `make repro`"
        ) from error
    return Speaker(name, weights_of(folder), load_policy(folder), tokenizer, decoding, int(section.get("max_new_tokens", 64)))


class Draft(NamedTuple):
    """An answer as it grows."""

    text: str
    tokens: int
    finished: bool


def answer(speaker: Speaker, messages: Sequence[Message], seed: int) -> Iterator[Draft]:
    """The policy's answer to a conversation, a draft for each token.

    Raises:
        ValueError: the chat template cannot render the conversation, or the context has no room for an answer.
    """
    from plumbline.models.chat import end_of_turn_id, openings, prompt_ids
    from plumbline.models.loading import context_of
    from plumbline.models.streaming import stream

    prompt = prompt_ids(speaker.tokenizer, messages)
    context = context_of(speaker.model.config)
    if context and len(prompt) + speaker.max_new_tokens > context:
        raise ValueError(
            f"expected a conversation of at most {context - speaker.max_new_tokens} tokens, which leaves room for max_new_tokens in the "
            f"context of {context}, found {len(prompt)}. Start a new conversation"
        )
    opening, end = openings(speaker.tokenizer, [messages])[0], end_of_turn_id(speaker.tokenizer)
    ids: list[int] = []
    tokens = stream(
        speaker.model,
        speaker.tokenizer,
        prompt,
        max_new_tokens=speaker.max_new_tokens,
        decoding=speaker.decoding,
        seed=seed,
    )
    for token in tokens:
        ids.append(token)
        text = str(speaker.tokenizer.decode(ids, skip_special_tokens=True))
        yield Draft(opening + text, len(ids), token == end)


@dataclass
class Turn:
    """A question and its answers, and what has been said of them."""

    messages: list[Message]
    """The conversation up to the question."""
    speakers: tuple[Speaker, ...]
    """One, or A and B."""
    seed: int
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    drafts: list[Draft] = field(init=False)
    vote: str | None = None
    thumbs: dict[int, str] = field(default_factory=dict)
    corrections: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.drafts = [Draft("", 0, False) for _ in self.speakers]

    @property
    def is_settled(self) -> bool:
        """Whether the names may be shown and the conversation may go on: with two policies, after the vote."""
        return len(self.speakers) == 1 or self.vote is not None

    def answers(self) -> list[Answer]:
        """The answers as lines of feedback keep them."""
        return [
            Answer(
                draft.text,
                speaker.name,
                speaker.weights,
                draft.finished,
                self.seed,
                speaker.max_new_tokens,
                speaker.decoding._asdict(),
            )
            for speaker, draft in zip(self.speakers, self.drafts, strict=True)
        ]

    def voted(self, verdict: str) -> Line:
        """A vote, as a line; a later one replaces it."""
        self.vote = verdict
        return self._line(VOTE, verdict)

    def thumbed(self, about: int, verdict: str) -> Line:
        """A thumb on one answer, as a line."""
        self.thumbs[about] = verdict
        return self._line(THUMB, verdict, about)

    def corrected(self, about: int, text: str) -> Line:
        """A better answer than one that was given, as a line.

        Raises:
            ValueError: it is empty, or the same answer.
        """
        if not text.strip() or text.strip() == self.drafts[about].text.strip():
            raise ValueError(
                f"expected a better answer, found {'the same one' if text.strip() else 'none'}: type what it should have said"
            )
        self.corrections.pop(about, None)  # the last correction stands last
        self.corrections[about] = text.strip()
        return self._line(CORRECTION, text.strip(), about)

    def reply(self) -> str:
        """The answer with which the conversation goes on."""
        corrections = [*self.corrections.values()]
        return corrections[-1] if corrections else self.drafts[1 if self.vote == B else 0].text

    def _line(self, kind: str, verdict: str, about: int = 0) -> Line:
        part = "vote" if kind == VOTE else f"{kind}-{about}"
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return Line(f"{self.id}-{part}", kind, now, self.messages, self.answers(), verdict, about)


@dataclass
class Talk:
    """One person's conversation with one or two policies."""

    speakers: tuple[Speaker, ...]
    turns: list[Turn] = field(default_factory=list)

    def ask(self, question: str, seed: int) -> Turn:
        """The next turn, whose answers are yet to be drawn; two policies change sides by chance, whatever the seed.

        Raises:
            ValueError: there is no question, it holds a lone surrogate, the seed is out of range, or the last answers wait for a vote.
        """
        if not question.strip():
            raise ValueError("expected a question, found none")
        require_whole_characters(question)
        if not 0 <= seed < LARGEST_SEED:
            raise ValueError(f"expected a seed from 0 to {LARGEST_SEED - 1}, found {seed}")
        if self.turns and not self.turns[-1].is_settled:
            raise ValueError("expected a vote on the last answers, found none: vote, or start a new conversation")
        sides = random.SystemRandom().sample(self.speakers, len(self.speakers))
        asked = [{"role": "user", "content": question.strip()}]
        turn = Turn([*self.history(), *asked], tuple(sides), seed)
        self.turns.append(turn)
        return turn

    def history(self) -> list[Message]:
        """The conversation so far."""
        last = self.turns[-1:] and self.turns[-1]
        return [*last.messages, *assistant(last.reply())] if last else []
