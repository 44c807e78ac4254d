"""Rows as the model will be fed them: rendered by the chat template, tokenised, checked, and fitted to the context."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from stages.datasets.checks import contents
from stages.datasets.formats import Message
from stages.datasets.reading import Fault
from stages.models.chat import (
    ChatTemplateError,
    Rendered,
    end_of_turn_id,
    prompt_ids,
    render,
    render_turns,
    require_template,
)

_LEAST_PROMPT_TOKENS = 16  # of its last turn: a prompt cut shorter than that asks nothing


class Fitting(NamedTuple):
    """What fits: the context, what to do with longer rows, and the tokens kept free for an answer that is yet to be sampled."""

    context_tokens: int | None
    too_long: str
    answer_tokens: int


class Fitted(NamedTuple):
    """A row that the model can be fed, with its lengths: of the prompt (or text), of each completion, and of all that the
    tokenizer had to spell in bytes.
    """

    row: dict[str, Any]
    prompt_tokens: int
    completion_tokens: tuple[int, ...]
    byte_tokens: int
    cut_tokens: int = 0


def fit_rows(
    tokenizer: PreTrainedTokenizerBase, role: str, rows: Sequence[dict[str, Any]], fitting: Fitting
) -> list[Fitted | Fault]:
    """Each row rendered, checked and, by the policy, cut; or why it cannot be used."""
    try:
        return _fit_batch(tokenizer, role, rows, fitting)
    except ChatTemplateError:
        if len(rows) > 1:  # find out which
            return [result for row in rows for result in fit_rows(tokenizer, role, [row], fitting)]
        try:
            return _fit_batch(tokenizer, role, rows, fitting)
        except ChatTemplateError as error:
            return [Fault("template", str(error))]


def _fit_batch(
    tokenizer: PreTrainedTokenizerBase, role: str, rows: Sequence[dict[str, Any]], fitting: Fitting
) -> list[Fitted | Fault]:
    special = special_tokens(tokenizer)
    marked = [_special_token(row, special) for row in rows]
    clean = [row for row, fault in zip(rows, marked, strict=True) if fault is None]
    columns = {"sft": ["completion"], "unpaired": ["completion"], "preferences": ["chosen", "rejected"]}.get(role, [])
    results: list[Fitted | Fault] = []
    if columns:
        rendered = render_turns(tokenizer, [(row["prompt"], row[column]) for row in clean for column in columns])
        for number, row in enumerate(clean):
            pair = rendered[number * len(columns) : (number + 1) * len(columns)]
            results.append(_fit_turns(tokenizer, row, columns, pair, fitting))
    elif clean:
        texts = [_text(tokenizer, role, row) for row in clean]
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        fit = _fit_prompt if role == "prompts" else _fit_text
        results = [fit(tokenizer, row, text, ids, fitting) for row, text, ids in zip(clean, texts, encoded, strict=True)]
    fitted = iter(results)
    return [fault or next(fitted) for fault in marked]


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """What must not stand in a text, for it would be encoded as a mark of the template."""
    marks = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special} | set(
        tokenizer.all_special_tokens
    )
    return re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))) or r"(?!)")


def _special_token(row: dict[str, Any], special: re.Pattern[str]) -> Fault | None:
    for where, content in contents(row):
        if found := special.search(content):
            return Fault("special_token", f"{found[0]!r} in {where} at character {found.start()}")
    return None


def _fit_turns(
    tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], columns: list[str], rendered: list[Rendered], fitting: Fitting
) -> Fitted | Fault:
    end = end_of_turn_id(tokenizer)
    for column, one in zip(columns, rendered, strict=True):
        fault = _spoilt_turn(tokenizer, [*row["prompt"], *row[column]], one.text)
        fault = fault or _end_of_turn(one.turn.completion, end, tokenizer)
        if fault:
            return fault
    completions = tuple(len(one.turn.completion) for one in rendered)
    ids = chain(rendered[0].turn.prompt, *(one.turn.completion for one in rendered))
    fitted = Fitted(row, len(rendered[0].turn.prompt), completions, _byte_tokens(tokenizer, ids))
    if fitting.context_tokens is None or fitted.prompt_tokens + max(completions) <= fitting.context_tokens:
        return fitted
    return _fit_longer(tokenizer, fitted, fitting, fitting.context_tokens - max(completions))


def _spoilt_turn(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], text: str) -> Fault | None:
    """A template may leave turns out (system ones, earlier reasoning), repeat or close them twice without a word."""
    if fault := _spoilt_roles(tokenizer, require_template(tokenizer), tuple(turn["role"] for turn in messages)):
        return fault
    place = 0
    for number, turn in enumerate(messages):
        content = turn["content"].strip()
        place = text.find(content, place)
        if place < 0:
            return Fault("template", f"the template drops or changes turn {number} ({turn['role']}): {content[:40]!r}")
        place += len(content)
    return None


@lru_cache(maxsize=1024)
def _spoilt_roles(tokenizer: PreTrainedTokenizerBase, template: str, roles: tuple[str, ...]) -> Fault | None:
    """What the template does wrong with turns of these roles, whatever they say: shown by turns that say where they stand."""
    marks = [f"turn-{number:06d}" for number in range(len(roles))]
    turns = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    text = render(tokenizer, turns, add_generation_prompt=roles[-1] != "assistant")
    for number, (role, mark) in enumerate(zip(roles, marks, strict=True)):
        if text.count(mark) != 1:
            return Fault("template", f"the template writes turn {number} ({role}) {text.count(mark)} times")
    places = [text.index(mark) for mark in marks]
    if places != sorted(places):
        return Fault("template", f"the template changes the order of turns {' '.join(roles[:12])}")
    end = str(tokenizer.convert_ids_to_tokens(end_of_turn_id(tokenizer)))
    for number, (role, start, stop) in enumerate(zip(roles[:-1], places, places[1:], strict=False)):
        count = text.count(end, start, stop)
        if count > 1 or (count < 1 and role == "assistant"):
            return Fault("end_of_turn", f"{count} of {end!r} after turn {number} ({role}), which is followed by others")
    return None


@lru_cache(maxsize=4)
def byte_flags(tokenizer: PreTrainedTokenizerBase) -> bytes:
    """For each id 1 if the token is no whole characters, but bytes of one: by these a tokenizer spells what it does not know."""
    said = tokenizer.batch_decode([[token] for token in range(len(tokenizer))], clean_up_tokenization_spaces=False)
    return bytes("\ufffd" in text for text in said)


def _byte_tokens(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> int:
    return sum(map(byte_flags(tokenizer).__getitem__, ids))


def _end_of_turn(completion: list[int], end: int, tokenizer: PreTrainedTokenizerBase) -> Fault | None:
    if completion.count(end) != 1:
        return Fault("end_of_turn", f"{completion.count(end)} of {tokenizer.convert_ids_to_tokens(end)!r} in the completion")
    if len(completion) < 2:
        return Fault("no_loss", "the completion is its end-of-turn token only")
    return None


def _text(tokenizer: PreTrainedTokenizerBase, role: str, row: dict[str, Any]) -> str:
    if role == "prompts":
        return render(tokenizer, row["prompt"], add_generation_prompt=True)
    return row["text"] if "text" in row else render(tokenizer, row["messages"], add_generation_prompt=False)


def _fit_prompt(
    tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], text: str, ids: list[int], fitting: Fitting
) -> Fitted | Fault:
    if fault := _spoilt_turn(tokenizer, row["prompt"], text):
        return fault
    fitted = Fitted(row, len(ids), (), _byte_tokens(tokenizer, ids))
    if fitting.context_tokens is None or len(ids) + fitting.answer_tokens <= fitting.context_tokens:
        return fitted
    return _fit_longer(tokenizer, fitted, fitting, fitting.context_tokens - fitting.answer_tokens)


def _fit_text(
    tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], text: str, ids: list[int], fitting: Fitting
) -> Fitted | Fault:
    """Pretraining text is packed and cut into blocks, so no length is too long."""
    fault = _spoilt_turn(tokenizer, row["messages"], text) if "messages" in row else None
    return fault or Fitted(row, len(ids), (), _byte_tokens(tokenizer, ids))


def _fit_longer(tokenizer: PreTrainedTokenizerBase, fitted: Fitted, fitting: Fitting, room: int) -> Fitted | Fault:
    tokens = fitted.prompt_tokens + max(fitted.completion_tokens, default=fitting.answer_tokens)
    found = f"{tokens} tokens; {fitting.context_tokens} fit"
    if fitting.too_long == "truncate":
        before = fitted.row["prompt"]
        prompt = cut_start(tokenizer, before, room)
        if prompt is not None:
            ids, lost = prompt_ids(tokenizer, prompt), prompt_ids(tokenizer, before)
            spelt = fitted.byte_tokens - _byte_tokens(tokenizer, lost) + _byte_tokens(tokenizer, ids)
            return fitted._replace(
                row={**fitted.row, "prompt": prompt},
                prompt_tokens=len(ids),
                byte_tokens=spelt,
                cut_tokens=fitted.prompt_tokens - len(ids),
            )
        found += ", whatever is cut off the prompt's start"
    return Fault("too_long", found)


def cut_start(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], room: int) -> list[Message] | None:
    """The prompt without its oldest turns, and if need be without the start of its last one, so that it takes at most `room`
    tokens; None if less than 16 tokens of that turn would be left. A system turn stays.
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
