"""Rows as the model will be fed them: rendered by the chat template, tokenised, checked, and fitted to the context."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from plumbline.data.checks import COLUMNS
from plumbline.data.faults import Fault
from plumbline.data.texts import contents
from plumbline.models.chat import (
    ChatTemplateError,
    Rendered,
    end_of_turn_id,
    prompt_ids,
    render,
    render_turns,
    require_template,
)
from plumbline.models.proving import without_opening
from plumbline.reasoning import opening_at_end, without_reasoning
from plumbline.rows import Message, Row, assistant, text_of

_LEAST_PROMPT_TOKENS = 16  # left of a prompt's last turn; less of it no longer makes a question


class Fitting(NamedTuple):
    """What fits: the context, what to do with longer rows, and the tokens kept free for an answer that is yet to be sampled."""

    context_tokens: int | None
    too_long: str
    answer_tokens: int


class Fitted(NamedTuple):
    """A row that the model can be fed, with its lengths in tokens."""

    row: Row
    prompt_tokens: int
    """Of the prompt, or of plain text."""
    completion_tokens: tuple[int, ...]
    """Of each completion."""
    byte_tokens: int
    """Tokens of the whole row that are bytes of a character, not whole characters."""
    cut_tokens: int = 0
    """Tokens that were cut off the prompt."""


def fit_rows(tokenizer: PreTrainedTokenizerBase, role: str, rows: Sequence[Row], fitting: Fitting) -> list[Fitted | Fault]:
    """Each row rendered, checked and, if the policy says so, cut; or why it cannot be used."""
    try:
        return _fit_batch(tokenizer, role, rows, fitting)
    except ChatTemplateError:
        if len(rows) > 1:  # find out which row it was
            return [result for row in rows for result in fit_rows(tokenizer, role, [row], fitting)]
        try:
            return _fit_batch(tokenizer, role, rows, fitting)
        except ChatTemplateError as error:
            return [Fault("template", str(error))]


def _fit_batch(tokenizer: PreTrainedTokenizerBase, role: str, rows: Sequence[Row], fitting: Fitting) -> list[Fitted | Fault]:
    special = special_tokens(tokenizer)
    faults = [_special_token(row, special) for row in rows]
    clean = [row for row, fault in zip(rows, faults, strict=True) if fault is None]
    columns = COLUMNS[role][1:]
    results: list[Fitted | Fault] = []
    if columns:
        rendered = render_turns(tokenizer, [(row["prompt"], row[column]) for row in clean for column in columns])
        for number, row in enumerate(clean):
            answers = rendered[number * len(columns) : (number + 1) * len(columns)]
            results.append(_fit_turns(tokenizer, row, columns, answers, fitting))
    elif clean:
        texts = [_text(tokenizer, role, row) for row in clean]
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        fit = _fit_prompt if role == "prompts" else _fit_text
        results = [fit(tokenizer, row, text, ids, fitting) for row, text, ids in zip(clean, texts, encoded, strict=True)]
    fitted = iter(results)
    return [fault or next(fitted) for fault in faults]


# ----------------------------------------------------------------------------------------------------- what spoils a row


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """A pattern of the tokenizer's special tokens, which a text must not contain: they would be encoded as turn marks."""
    marks = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special} | set(
        tokenizer.all_special_tokens
    )
    return re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))) or r"(?!)")


def _special_token(row: Row, special: re.Pattern[str]) -> Fault | None:
    for where, content in contents(row):
        if match := special.search(content):
            return Fault("special_token", f"{match[0]!r} in {where} at character {match.start()}")
    return None


def _spoilt_turn(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], text: str) -> Fault | None:
    """The fault of a template that silently leaves out, repeats, changes or closes twice a turn of this conversation."""
    if fault := _spoilt_roles(tokenizer, require_template(tokenizer), tuple(turn["role"] for turn in messages)):
        return fault
    position = 0
    for number, turn in enumerate(messages):
        wanted = [turn["content"].strip()]
        if turn["role"] == "assistant" and turn is not messages[-1]:
            wanted.append(without_reasoning(wanted[0]))  # templates of reasoning models leave out earlier reasoning
        found = [(start, content) for content in wanted if (start := text.find(content, position)) >= 0]
        if not found:
            return Fault("template", f"the template drops or changes turn {number} ({turn['role']}): {wanted[0][:40]!r}")
        start, content = min(found)
        position = start + len(content)
    return None


@lru_cache(maxsize=1024)
def _spoilt_roles(tokenizer: PreTrainedTokenizerBase, template: str, roles: tuple[str, ...]) -> Fault | None:
    """What the template does wrong with turns of these roles, whatever they say: probed with turns that contain their number."""
    marks = [f"turn-{number:06d}" for number in range(len(roles))]
    turns = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    text = render(tokenizer, turns, add_generation_prompt=roles[-1] != "assistant")
    for number, (role, mark) in enumerate(zip(roles, marks, strict=True)):
        if text.count(mark) != 1:
            return Fault("template", f"the template writes turn {number} ({role}) {text.count(mark)} times")
    starts = [text.index(mark) for mark in marks]
    if starts != sorted(starts):
        return Fault("template", f"the template changes the order of turns {' '.join(roles[:12])}")
    end = str(tokenizer.convert_ids_to_tokens(end_of_turn_id(tokenizer)))
    for number, (role, start, stop) in enumerate(zip(roles[:-1], starts, starts[1:], strict=False)):
        count = text.count(end, start, stop)
        if count > 1 or (count < 1 and role == "assistant" and not _ends(tokenizer, text[start + len(marks[number]) : stop])):
            return Fault("end_of_turn", f"{count} of {end!r} after turn {number} ({role}), which is not the last")
    return None


def _ends(tokenizer: PreTrainedTokenizerBase, between: str) -> bool:
    """Whether an earlier answer ends in another special token than the last one (OLMo 3), which is not the next turn's header."""
    user: list[Message] = [{"role": "user", "content": "a"}]
    header = render(tokenizer, user, add_generation_prompt=True).removeprefix(
        render(tokenizer, user, add_generation_prompt=False)
    )
    special = special_tokens(tokenizer)
    tokens, opening = special.findall(between), special.findall(header)
    return len(tokens) > 1 and between.lstrip().startswith(tokens[0]) and tokens[0] not in opening


def _spoilt_end(completion: list[int], end: int, tokenizer: PreTrainedTokenizerBase) -> Fault | None:
    if completion.count(end) != 1:
        return Fault("end_of_turn", f"{completion.count(end)} of {tokenizer.convert_ids_to_tokens(end)!r} in the completion")
    if len(completion) < 2:
        return Fault("no_loss", "the completion is only its end-of-turn token")
    return None


def _only_reasoning(prompt_text: str, written: str) -> Fault | None:
    """The fault of an answer within the reasoning that its prompt has opened: the model would learn to answer there."""
    opening = opening_at_end(prompt_text)
    if not opening or without_reasoning(opening + written):
        return None
    return Fault(
        "template",
        f"the prompt ends in {opening.rstrip()!r}, and the answer {written[:40]!r} does not close it and go on: write the reasoning and its "
        "closing mark, or set a chat_template whose prompt does not open it",
    )


# ----------------------------------------------------------------------------------------------------------- what fits


def _fit_turns(
    tokenizer: PreTrainedTokenizerBase, row: Row, columns: Sequence[str], answers: list[Rendered], fitting: Fitting
) -> Fitted | Fault:
    end = end_of_turn_id(tokenizer)
    for column, answer in zip(columns, answers, strict=True):
        written = without_opening(answer.prompt_text, text_of(row[column]))
        fault = _spoilt_turn(tokenizer, [*row["prompt"], *assistant(written)], answer.text)
        fault = fault or _spoilt_end(answer.turn.completion, end, tokenizer) or _only_reasoning(answer.prompt_text, written)
        if fault:
            return fault
    prompt, completions = answers[0].turn.prompt, [answer.turn.completion for answer in answers]
    lengths = tuple(map(len, completions))
    fitted = Fitted(row, len(prompt), lengths, _byte_tokens(tokenizer, chain(prompt, *completions)))
    if fitting.context_tokens is None or len(prompt) + max(lengths) <= fitting.context_tokens:
        return fitted
    return _fit_longer(tokenizer, fitted, fitting, fitting.context_tokens - max(lengths))


def _text(tokenizer: PreTrainedTokenizerBase, role: str, row: Row) -> str:
    if role == "prompts":
        return render(tokenizer, row["prompt"], add_generation_prompt=True)
    return row["text"] if "text" in row else render(tokenizer, row["messages"], add_generation_prompt=False)


def _fit_prompt(tokenizer: PreTrainedTokenizerBase, row: Row, text: str, ids: list[int], fitting: Fitting) -> Fitted | Fault:
    if fault := _spoilt_turn(tokenizer, row["prompt"], text):
        return fault
    fitted = Fitted(row, len(ids), (), _byte_tokens(tokenizer, ids))
    if fitting.context_tokens is None or len(ids) + fitting.answer_tokens <= fitting.context_tokens:
        return fitted
    return _fit_longer(tokenizer, fitted, fitting, fitting.context_tokens - fitting.answer_tokens)


def _fit_text(tokenizer: PreTrainedTokenizerBase, row: Row, text: str, ids: list[int], fitting: Fitting) -> Fitted | Fault:
    """Pretraining text is packed and cut into blocks, so no length is too long."""
    fault = _spoilt_turn(tokenizer, row["messages"], text) if "messages" in row else None
    return fault or Fitted(row, len(ids), (), _byte_tokens(tokenizer, ids))


def _fit_longer(tokenizer: PreTrainedTokenizerBase, fitted: Fitted, fitting: Fitting, room: int) -> Fitted | Fault:
    """A row over the context, with its prompt cut to `room` tokens if that is the policy and enough of it is left."""
    tokens = fitted.prompt_tokens + max(fitted.completion_tokens, default=fitting.answer_tokens)
    detail = f"{tokens} tokens; {fitting.context_tokens} fit"
    if fitting.too_long != "truncate":
        return Fault("too_long", detail)
    prompt = cut_start(tokenizer, fitted.row["prompt"], room)
    if prompt is None:
        return Fault("too_long", f"{detail}, and cutting the prompt's start would leave too little of it")
    ids, whole_ids = prompt_ids(tokenizer, prompt), prompt_ids(tokenizer, fitted.row["prompt"])
    return fitted._replace(
        row={**fitted.row, "prompt": prompt},
        prompt_tokens=len(ids),
        byte_tokens=fitted.byte_tokens - _byte_tokens(tokenizer, whole_ids) + _byte_tokens(tokenizer, ids),
        cut_tokens=fitted.prompt_tokens - len(ids),
    )


def cut_start(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], room: int) -> list[Message] | None:
    """The prompt cut to at most `room` tokens: without its oldest turns and, if need be, without the start of its last one.

    A system turn stays. None if fewer than 16 tokens of the last turn would be left.
    """
    system = [turn for turn in prompt[:1] if turn["role"] == "system"]
    turns = list(prompt[len(system) :])
    while len(turns) > 2 and len(prompt_ids(tokenizer, [*system, *turns])) > room:
        turns = turns[2:]
    content = turns[-1]["content"]
    while (over := len(prompt_ids(tokenizer, [*system, *turns])) - room) > 0:
        encoded = tokenizer(content, add_special_tokens=False, return_offsets_mapping=True)
        if len(encoded["input_ids"]) - over < _LEAST_PROMPT_TOKENS:
            return None
        content = content[max(1, encoded["offset_mapping"][over][0]) :]
        turns = [{"role": "user", "content": content}]
    return [*system, *turns]


@lru_cache(maxsize=4)
def byte_flags(tokenizer: PreTrainedTokenizerBase) -> bytes:
    """For each token id, 1 if the token is bytes of a character: a tokenizer spells in them what it has no token for."""
    texts = tokenizer.batch_decode(
        [[token] for token in range(1 + max(tokenizer.get_vocab().values()))], clean_up_tokenization_spaces=False
    )
    return bytes("\ufffd" in text for text in texts)


def _byte_tokens(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> int:
    return sum(map(byte_flags(tokenizer).__getitem__, ids))
