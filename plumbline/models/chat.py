"""The one chat template: how messages become the token ids that SFT, the reward model, DPO, PPO and evaluation read.

Everything rests on one split. A conversation is a prompt (all messages but the last assistant one) and a completion (that one):

    prompt_ids      = template(prompt, add_generation_prompt=True)      never carries loss
    completion_ids  = the rest of template(prompt + completion), up to and including its end-of-turn token      carries loss

So `prompt_ids + completion_ids` is what every trainer learns from, and what `generate` continues. Some templates cannot be split like
this: they render the prompt alone differently, drop turns, or write no end-of-turn token. `prepare` mends or refuses a model's template
(plumbline/models/proving.py), and what still cannot be split raises an error here, instead of making a silent difference between stages.

If a prompt ends in a mark that opens reasoning (DeepSeek-R1's `<think>`), the mark's tokens are the prompt's. A completion's text begins
with it, and its tokens do not.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jinja2
from transformers import PreTrainedTokenizerBase

from plumbline.reasoning import opening_at_end
from plumbline.rows import Message

PAD, SYSTEM, USER, ASSISTANT, END = "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL_TOKENS = (PAD, SYSTEM, USER, ASSISTANT, END)

# The template itself checks roles, so that the check also holds where the model folder is loaded by another program.
_CHECK_ROLE = (
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{ raise_exception('expected role system, user or assistant, found ' + message['role']) }}{%- endif -%}"
)

# The template of models trained here from scratch. `generation` marks the assistant's words for TRL's assistant_only_loss.
TINY_TEMPLATE = (
    "{%- for message in messages -%}" + _CHECK_ROLE + "{{ '<|' + message['role'] + '|>' }}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{ message['content'] + '<|end|>' }}{%- endgeneration -%}"
    "{%- else -%}{{ message['content'] + '<|end|>' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)

# The template of a model that has none: Zephyr's (arXiv:2310.16944). It needs no new tokens: roles are plain text, and the
# tokenizer's own end-of-sequence token ends each turn.
DEFAULT_TEMPLATE = (
    "{%- for message in messages -%}" + _CHECK_ROLE + "{{ '<|' + message['role'] + '|>\\n' }}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{ message['content'] + eos_token }}{%- endgeneration -%}"
    "{%- else -%}{{ message['content'] + eos_token }}{%- endif -%}{{ '\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}"
)


class ChatTemplateError(ValueError):
    """The tokenizer's chat template cannot express a conversation."""


class Turn(NamedTuple):
    """Token ids of one prompt and its completion; only `completion` carries loss."""

    prompt: list[int]
    completion: list[int]


class Rendered(NamedTuple):
    """A conversation as the model reads it: the prompt's text, the whole text, and the token ids."""

    prompt_text: str
    text: str
    turn: Turn


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    """Text of a conversation as the model reads it.

    Raises:
        ChatTemplateError: the template cannot render it.
    """
    return _render(tokenizer, [messages], add_generation_prompt)[0]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message]) -> list[int]:
    """Token ids of a prompt, including the header of the assistant turn that follows."""
    return _tokenize(tokenizer, [render(tokenizer, prompt, add_generation_prompt=True)])[0]


def completion_ids(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], completion: Sequence[Message]) -> list[int]:
    """Token ids of the assistant turn that follows `prompt_ids`, up to and including its end-of-turn token."""
    return encode_turns(tokenizer, [(prompt, completion)])[0].completion


def openings(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[Message]]) -> list[str]:
    """The mark of reasoning, such as `<think>`, with which each rendered prompt ends; "" if it ends in none.

    It is not among a completion's tokens. A text begins with it nevertheless, or reasoning that was cut off would look like an answer.
    """
    return [opening_at_end(text) for text in _render(tokenizer, prompts, True)] if prompts else []


def encode_turns(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[tuple[Sequence[Message], Sequence[Message]]]
) -> list[Turn]:
    """Token ids of many (prompt, completion) pairs at once; raises as `render_turns` does."""
    return [rendered.turn for rendered in render_turns(tokenizer, conversations)]


def render_turns(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[tuple[Sequence[Message], Sequence[Message]]]
) -> list[Rendered]:
    """Text and token ids of many (prompt, completion) pairs at once.

    Raises:
        ChatTemplateError: the template cannot render one of them, or does not allow the split into prompt and completion.
    """
    if not conversations:
        return []
    prompts = _render(tokenizer, [prompt for prompt, _ in conversations], True)
    wholes = _render(tokenizer, [[*prompt, *completion] for prompt, completion in conversations], False)
    end = end_of_turn_id(tokenizer)
    rows = zip(prompts, wholes, _tokenize(tokenizer, prompts), _tokenize(tokenizer, wholes), strict=True)
    return [Rendered(row[0], row[1], _split(tokenizer, end, *row)) for row in rows]


def encode_demonstrations(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, list[int]]]:
    """Demonstrations in the tokenised form of TRL's SFT trainer: `input_ids`, and a `completion_mask` that is 1 where loss is.

    TRL's own tokenising would also train on what a template writes after the end of turn (often a newline), which is never generated.
    """
    turns = encode_turns(tokenizer, [(row["prompt"], row["completion"]) for row in rows])
    return [
        {"input_ids": turn.prompt + turn.completion, "completion_mask": [0] * len(turn.prompt) + [1] * len(turn.completion)}
        for turn in turns
    ]


def encode_pairs(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, list[int]]]:
    """Pairs in the tokenised form of TRL's DPO trainer: `prompt_ids`, and `chosen_ids` and `rejected_ids` without their prompt."""
    turns = encode_turns(tokenizer, [(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")])
    return [
        {"prompt_ids": chosen.prompt, "chosen_ids": chosen.completion, "rejected_ids": rejected.completion}
        for chosen, rejected in zip(turns[::2], turns[1::2], strict=True)
    ]


def encode_preferences(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Pairs in the tokenised form of TRL's reward trainer: `chosen_ids` and `rejected_ids`, each with its prompt.

    The other columns that a reward model trains on, a `margin` or the `signs` of a cost, are kept.

    Both end where generation ends. A reward is read at the last token, and TRL's own tokenising would add what the template writes
    after the end of turn (often a newline). The reward model would then be asked at a token at which it was never trained.
    """
    turns = encode_turns(tokenizer, [(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")])
    sequences = [turn.prompt + turn.completion for turn in turns]
    other_columns = [{column: row[column] for column in ("margin", "signs") if column in row} for row in rows]
    return [
        {"chosen_ids": chosen, "rejected_ids": rejected, **others}
        for chosen, rejected, others in zip(sequences[::2], sequences[1::2], other_columns, strict=True)
    ]


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token that the template writes at the end of an assistant turn, where generation stops.

    It is often `eos_token_id`, but not always: Gemma's turns end in `<end_of_turn>`, while its eos is `<eos>`.
    """
    return _end_of_turn_id(tokenizer, require_template(tokenizer))


def require_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template; ChatTemplateError if it has none."""
    template = tokenizer.chat_template
    if not isinstance(template, str):
        raise ChatTemplateError(
            f"expected a tokenizer with one chat template, found {'none' if template is None else sorted(template)} in "
            f"'{tokenizer.name_or_path}'. Load it with plumbline.models.tokenizers.load_tokenizer, which sets the documented "
            "default, or set chat_template in conf/model/<name>.yaml."
        )
    return template


def token_pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[tuple[str, int]]:
    """The text of `ids`, cut at token boundaries, as (text, number of tokens); tokens that share a character stay together."""
    pieces: list[tuple[str, int]] = []
    pending: list[int] = []
    for token in ids:
        pending.append(token)
        text = str(tokenizer.decode(pending, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        if not text.endswith("\ufffd") or len(pending) > 8:
            pieces.append((text, len(pending)))
            pending = []
    if pending:
        pieces.append((str(tokenizer.decode(pending, skip_special_tokens=False)), len(pending)))
    return pieces


def _render(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]], generation_prompt: bool) -> list[str]:
    require_template(tokenizer)
    try:
        batch: Any = [list(messages) for messages in conversations]
        rendered: Any = tokenizer.apply_chat_template(batch, tokenize=False, add_generation_prompt=generation_prompt)
        return rendered
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        roles = " ".join(str(message.get("role")) for message in conversations[0])
        where = f"roles: {roles}" if len(conversations) == 1 else f"in a batch of {len(conversations)}"
        raise ChatTemplateError(
            f"the chat template of '{tokenizer.name_or_path}' cannot render a conversation ({where}): {error}"
        ) from error


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    # Templates write special tokens themselves. Adding them here as well would double the beginning-of-sequence token.
    encoded: Any = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
    return encoded["input_ids"]


def _split(
    tokenizer: PreTrainedTokenizerBase, end: int, prompt_text: str, whole_text: str, prompt: list[int], whole: list[int]
) -> Turn:
    if not whole_text.startswith(prompt_text):
        raise ChatTemplateError(
            "expected the rendered conversation to begin with the rendered prompt, but the template renders the prompt alone "
            f"differently: {prompt_text[-60:]!r} against {whole_text[max(0, len(prompt_text) - 60) :][:90]!r}. "
            "Use a template that renders a prompt the same way in both cases."
        )
    # If tokens merge across the boundary, the completion is encoded on its own, because generation starts after a finished prompt.
    merged = whole[: len(prompt)] != prompt
    completion = _tokenize(tokenizer, [whole_text[len(prompt_text) :]])[0] if merged else whole[len(prompt) :]
    if end not in completion:
        raise ChatTemplateError(
            f"expected the completion to end in {tokenizer.convert_ids_to_tokens(end)!r}, found {whole_text[-40:]!r}. A model "
            "trained on it would never stop. Use a template that ends each assistant turn with that token."
        )
    last = len(completion) - 1 - completion[::-1].index(end)
    return Turn(prompt, completion[: last + 1])  # what follows the end-of-turn token (often a newline) is never generated


@lru_cache(maxsize=16)
def _end_of_turn_id(tokenizer: PreTrainedTokenizerBase, template: str) -> int:
    probe = "ANSWER"
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": probe}]
    try:
        text = render(tokenizer, messages, add_generation_prompt=False)
    except ChatTemplateError as error:
        raise ChatTemplateError(f"{error}. Correct it there, or set chat_template in conf/model/<name>.yaml") from error
    after = text[text.rfind(probe) + len(probe) :] if probe in text else ""
    added = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    for token in _tokenize(tokenizer, [after])[0]:
        if token in added:
            return token
    raise ChatTemplateError(
        f"expected the chat template of '{tokenizer.name_or_path}' to end an assistant turn with a special token, found "
        f"{after[:40]!r} after the message. Set chat_template in conf/model/<name>.yaml to one that writes eos_token there."
    )
