"""Proves that a chat template allows the one split on which every stage rests, mends it where that is safe, or refuses it.

The split (plumbline/models/chat.py) holds if, whatever an answer says,

    template(prompt + answer) = template(prompt, add_generation_prompt=True) + answer + end of turn,

and the answer's tokens decode to the answer. Published templates break it in a few ways: they ignore `add_generation_prompt`, trim
answers, or show an answer without its reasoning, with an empty block of reasoning, or without the `<think>` that ends their prompt. A
model then trains on other tokens than it samples, or its header becomes part of every completion.

What a policy is asked is the prompt, so a mended template renders prompts as before; only the last answer is written as it stands. The
mend is Jinja around the model's own template, which is saved with the tokenizer, so trainers and servers read it too.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from plumbline.models.chat import ChatTemplateError, Rendered, end_of_turn_id, render, render_turns, require_template
from plumbline.reasoning import MARKS, first_mark, opening_at_end
from plumbline.rows import Message, assistant

_SYSTEM = {"role": "system", "content": "Be brief."}
_TURNS = [
    {"role": "user", "content": "What is 1 plus 2?"},
    {"role": "assistant", "content": "It is 3."},
    {"role": "user", "content": "And 12 plus 34?"},
]
PROMPTS: Mapping[str, list[Message]] = {
    "one turn": _TURNS[:1],
    "a system turn": [_SYSTEM, *_TURNS[:1]],
    "several turns": _TURNS,
    "a system turn and several turns": [_SYSTEM, *_TURNS],
}
"""The prompts with which a template is tried."""

ANSWER = "It is 46."
ANSWERS = (
    ANSWER,
    "네, 답은 46입니다.",
    "  spaces around it  ",
    "\n\nnew lines around it\n\n",
    "before punctuation : a , b . It 's !",
    "```python\ndef double(x):\n    return {'x': 2 * x}\n```",
    "<b>1 < 2</b> &amp; {{ x }} {% y %} [/NO-TOKEN] <|no-token|>",
    "<think>\nFirst 12, then 34.\n</think>\n\nIt is 46.",
    "First 12, then 34.\n</think>\n\nIt is 46.",
)
"""The answers with which a template is tried."""

_RANDOM = re.compile(r"\|\s*random\b|\blipsum\b")
_REMEDY = "Set chat_template in conf/model/<name>.yaml to one that writes prompt, answer and end of turn one after the other"


def prove(tokenizer: Any) -> list[str]:
    """Checks the tokenizer's chat template, and replaces it by a mended one if it is wrong and can be mended.

    Returns notes on what was mended, and on conversations that the template refuses by itself.

    Raises:
        ChatTemplateError: the template is wrong and cannot be mended, or draws at random.
    """
    template = require_template(tokenizer)
    if match := _RANDOM.search(template):
        raise ChatTemplateError(
            f"expected a chat template that writes the same every time, found {match[0]!r} in that of '{tokenizer.name_or_path}'. {_REMEDY}"
        )
    prompts, notes = _renderable(tokenizer)
    first = fault = _first_fault(tokenizer, prompts)
    if fault is None:
        return [*notes, *_merging(tokenizer, prompts)]
    asked = [render(tokenizer, prompt, add_generation_prompt=True) for prompt in prompts]
    backend = getattr(tokenizer, "_tokenizer", None)
    for mended, changed, what in [*_mends(tokenizer, prompts)]:
        tokenizer.chat_template = mended
        if changed:
            tokenizer._tokenizer = changed
        rendered = [render(tokenizer, prompt, add_generation_prompt=True) for prompt in prompts]
        fault = "the mended template renders prompts differently"
        if all(text.startswith(before) for text, before in zip(rendered, asked, strict=True)):
            fault = _first_fault(tokenizer, prompts)
        if fault is None:
            if changed:
                _own(tokenizer, changed)
            return [*notes, f"chat template: {first}. It is mended: {what}", *_merging(tokenizer, prompts)]
        if changed:
            tokenizer._tokenizer = backend
    tokenizer.chat_template = template
    raise ChatTemplateError(
        f"the chat template of '{tokenizer.name_or_path}' cannot be used, because what is trained would differ from what is sampled: "
        f"{first}{'' if fault == first else f' (and with that mended, {fault})'}. {_REMEDY}"
    )


def fault_of(tokenizer: PreTrainedTokenizerBase, rendered: Rendered, answer: str) -> str | None:
    """What is wrong with a prompt and its answer as they are rendered; None if nothing is."""
    written = without_opening(rendered.prompt_text, answer)
    rest = rendered.text[len(rendered.prompt_text) :]
    start = rest.find(written)
    if start < 0:
        return f"it changes the answer {answer!r} to {rest[:80]!r}"
    if rest[:start].strip():
        return f"it writes {rest[:start]!r} after the prompt, which would be part of every completion"
    prompt, completion = rendered.turn
    decoded = str(tokenizer.decode(completion, skip_special_tokens=True))
    if decoded != written:
        return f"the tokens of the answer {written!r} read {decoded!r}"
    whole = tokenizer(rendered.text, add_special_tokens=False)["input_ids"]
    whole = whole[: len(whole) - whole[::-1].index(completion[-1])]
    joined, expected = (str(tokenizer.decode(ids, skip_special_tokens=False)) for ids in (prompt + completion, whole))
    # Equal texts may be other tokens: a new line at the start of an answer would merge with one at the end of the prompt.
    if joined != expected:
        return f"the tokens of prompt and answer read {joined[-80:]!r} together, and {expected[-80:]!r} in the whole conversation"
    return None


def without_opening(prompt_text: str, answer: str) -> str:
    """An answer without the mark that opens its reasoning, if the prompt ends in that mark."""
    opening = opening_at_end(prompt_text)
    starts = (start for start in (opening, opening.rstrip()) if start and answer.startswith(start))
    return answer.removeprefix(next(starts, ""))


def keep_marks(tokenizer: Any) -> list[str]:
    """Makes ordinary tokens of marks of reasoning that are special: decoding would drop them, and the reasoning would look like the answer.

    Returns notes on what was changed.
    """
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    special -= {str(tokenizer.convert_ids_to_tokens(end_of_turn_id(tokenizer))), *_named_tokens(tokenizer)}
    marks = {mark for pair in MARKS.values() if set(pair) <= special for mark in pair}
    if not marks or not tokenizer.is_fast:
        return []
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] &= token["content"] not in marks
    _own(tokenizer, Tokenizer.from_str(json.dumps(state)))
    tokenizer.extra_special_tokens = [token for token in tokenizer.extra_special_tokens if str(token) not in marks]
    return [f"special tokens: {', '.join(sorted(marks))} are ordinary tokens now, so that completions keep them"]


def _own(tokenizer: Any, backend: Tokenizer) -> None:
    """Gives the tokenizer another backend, which its saved files hold as it is; a class of one model would build its own when they load."""
    tokenizer.__class__ = PreTrainedTokenizerFast
    tokenizer._tokenizer = backend


def _named_tokens(tokenizer: Any) -> set[str]:
    names = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
    return {str(getattr(tokenizer, name, None)) for name in names}


def _renderable(tokenizer: PreTrainedTokenizerBase) -> tuple[list[list[Message]], list[str]]:
    """The prompts that the template takes, with notes on the others; `prepare` drops and counts rows of their kind."""
    prompts: list[list[Message]] = []
    notes = []
    for kind, prompt in PROMPTS.items():
        try:
            render(tokenizer, prompt, add_generation_prompt=True)
            text = render(tokenizer, [*prompt, *assistant(ANSWER)], add_generation_prompt=False)
        except ChatTemplateError as error:
            if not prompts:
                raise ChatTemplateError(f"{error}. {_REMEDY}") from error
            notes.append(f"chat template: it refuses {kind}, so that such rows are dropped ({error})")
            continue
        if str(tokenizer.convert_ids_to_tokens(end_of_turn_id(tokenizer))) in text:
            prompts.append(prompt)
        else:
            notes.append(f"chat template: it does not end the answer after {kind}, so that such rows are dropped")
    return prompts, notes


def _first_fault(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[Message]]) -> str | None:
    for prompt in prompts:
        for answer in ANSWERS:
            try:
                (rendered,) = render_turns(tokenizer, [(prompt, assistant(answer))])
            except ChatTemplateError as error:
                return str(error)
            if tokenizer.unk_token_id in rendered.turn.completion[:-1]:
                continue  # a small vocabulary cannot write this answer
            if fault := fault_of(tokenizer, rendered, answer):
                return fault
    return None


def _merging(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[Message]]) -> list[str]:
    """A note if an ordinary answer has other tokens after its prompt than in the whole text."""
    for rendered in render_turns(tokenizer, [(prompt, assistant(ANSWER)) for prompt in prompts]):
        parts_ids = rendered.turn.prompt + rendered.turn.completion
        whole = tokenizer(rendered.text, add_special_tokens=False)["input_ids"]
        if whole[: len(parts_ids)] != parts_ids:
            end = rendered.prompt_text[-20:]
            return [
                f"chat template: the tokenizer joins the prompt's end, {end!r}, to the answer, so every stage tokenises them apart"
            ]
    return []


# ------------------------------------------------------------------------------------------------------------- mending


def _mends(tokenizer: Any, prompts: Sequence[list[Message]]) -> Iterator[tuple[str, Tokenizer | None, str]]:
    """Templates that may be right, with another backend of the tokenizer or None, and what each changes."""
    template, backend = require_template(tokenizer), getattr(tokenizer, "_tokenizer", None)
    end = str(tokenizer.convert_ids_to_tokens(end_of_turn_id(tokenizer)))
    gaps = {_gap(tokenizer, prompt) for prompt in prompts}
    openings = {opening_at_end(render(tokenizer, prompt, add_generation_prompt=True)) for prompt in prompts}
    templates = []
    if len(gaps) == len(openings) == 1:
        (gap,), (opening,) = gaps, openings
        stands = "the last answer is written as it stands"
        templates = [(_around(template, header=gap, lead="", opening=opening, end=end), stands + f", after {gap!r}" * bool(gap))]
        if (
            gap and not gap.strip()
        ):  # a space that the tokenizer joins to the answer's first word (Llama 2), or writes itself (Mistral)
            templates.append((_around(template, header="", lead=gap, opening=opening, end=end), stands))
            templates.append((_around(template, header="", lead="", opening=opening, end=end), f"{stands}, without {gap!r}"))
    for mended, what in templates:
        yield mended, None, what
    if backend and (keeping := _keeping_spaces(backend)):
        spaces = "decoding keeps a space at the start"
        yield template, keeping, spaces
        for mended, what in templates:
            yield mended, keeping, f"{what}, and {spaces}"


def _keeping_spaces(backend: Tokenizer) -> Tokenizer | None:
    """The tokenizer with a decoder that does not drop the first space of a text; None if it drops none."""
    state = json.loads(backend.to_str())
    decoder = state["decoder"] or {}
    parts = decoder.get("decoders", [decoder])
    kept = [part for part in parts if part.get("type") != "Strip"]
    kept = [part | {"prepend_scheme": "never"} if part.get("type") == "Metaspace" else part for part in kept]
    if kept == parts:
        return None
    return Tokenizer.from_str(json.dumps(state | {"decoder": {"type": "Sequence", "decoders": kept}}))


def _gap(tokenizer: PreTrainedTokenizerBase, prompt: list[Message]) -> str:
    """What the template writes between a prompt, even with its generation prompt, and the answer; without reasoning.

    Raises:
        ChatTemplateError: that cannot belong to the prompt, or the prompt alone is rendered differently.
    """
    asked = render(tokenizer, prompt, add_generation_prompt=True)
    whole = render(tokenizer, [*prompt, *assistant(ANSWER)], add_generation_prompt=False)
    before = whole[: max(0, whole.rfind(ANSWER))]
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(asked, before, strict=False)))
    common = asked[:shared]
    common = common.removesuffix(opening_at_end(common))
    more, gap = asked[len(common) :], before[len(common) :]
    if gap and more and first_mark(more) != 0:
        raise ChatTemplateError(
            "expected the rendered conversation to begin with the rendered prompt, but the template renders the prompt alone differently: "
            f"{asked[-60:]!r} against {whole[max(0, len(asked) - 60) :][:90]!r}. {_REMEDY}"
        )
    if (mark := first_mark(gap)) is not None:
        gap = gap[:mark] if gap[:mark].strip() else ""
    if gap.strip() and asked != render(tokenizer, prompt, add_generation_prompt=False):
        raise ChatTemplateError(
            f"expected a template whose generation prompt is all that stands before an answer, found {gap!r} after it, with which a sampled "
            f"completion need not begin. {_REMEDY}"
        )
    return gap


def _around(template: str, *, header: str, lead: str, opening: str, end: str) -> str:
    """Jinja that renders prompts by `template`, followed by `header`, and then the last answer as it stands."""
    content = "messages[-1]['content']"
    answer = content
    for start in sorted({opening.rstrip(), opening} - {""}, key=len):
        answer = f"({content}[{len(start)}:] if {content}.startswith({_literal(start)}) else {answer})"
    return (
        f"{{%- set plumbline_answered = not add_generation_prompt and messages[-1]['role'] == 'assistant' and {content} is string %}}"
        f"{{%- set plumbline_answer = {_literal(lead)} + {answer} + {_literal(end)} if plumbline_answered else '' %}}"
        "{%- set add_generation_prompt = add_generation_prompt or plumbline_answered %}"
        f"{{%- set plumbline_header = {_literal(header)} if add_generation_prompt else '' %}}"
        "{%- set messages = messages[:-1] if plumbline_answered else messages %}\n"  # a new line that Jinja drops
        + template.removesuffix("\n")  # which Jinja drops at the end of a template
        + "{{ plumbline_header + plumbline_answer }}"
    )


def _literal(text: str) -> str:
    """A text as Jinja writes it."""
    return json.dumps(text, ensure_ascii=False)
