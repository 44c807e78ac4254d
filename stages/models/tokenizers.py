"""Tokenizers ready for chat: trained here from scratch, or a hub model's own with documented defaults filled in."""

from collections.abc import Iterable
from typing import NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from stages.models.architecture import HubModel, ScratchModel
from stages.models.chat import DEFAULT_TEMPLATE, END, PAD, SPECIAL_TOKENS, TINY_TEMPLATE, end_of_turn_id
from stages.models.loading import context_of

SMALLEST_VOCABULARY = len(pre_tokenizers.ByteLevel.alphabet()) + len(SPECIAL_TOKENS)

# Tokens of published vocabularies that text never uses: Llama 3.1, Qwen, Mistral and Llama 2, BERT's line.
_PAD_CANDIDATES = (PAD, "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|vision_pad|>", "<|endoftext|>", "<unk>")

FIXED_DATE = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"
"""Put before a template that asks what day it is, in place of transformers' own function: Llama 3's own fallback."""


class ReadyTokenizer(NamedTuple):
    """A tokenizer with a chat template and a padding token, and what had to be set for that, in words."""

    tokenizer: PreTrainedTokenizerBase
    notes: list[str]


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocabulary_size` tokens, specials included, learnt from `texts`.

    Every byte is a token, so no text is unknown; every digit is a token of its own, so numbers align place by place. `texts` are
    what is said, not rendered conversations: special tokens take part in no merge. The same texts give the same bytes on disk.
    """
    if vocabulary_size < SMALLEST_VOCABULARY:
        raise ValueError(
            f"expected vocabulary_size of at least {SMALLEST_VOCABULARY} (256 bytes and {len(SPECIAL_TOKENS)} special tokens), "
            f"found {vocabulary_size}. Raise vocabulary_size in conf/model/<name>.yaml."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[token for token in SPECIAL_TOKENS if token not in (END, PAD)],
        chat_template=TINY_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(
    path: str, revision: str | None = None, *, chat_template: str | None = None, pad_token: str | None = None
) -> ReadyTokenizer:
    """The tokenizer of a model folder or hub id, made ready for chat; OSError or ValueError where there is none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"expected a Hugging Face tokenizer at '{path}' (revision {revision or 'default'}), found none that loads: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}. "
            "Set `path` in conf/model/<name>.yaml to a folder that holds tokenizer.json, or to a hub id that is downloaded."
        ) from error
    return make_ready(tokenizer, chat_template=chat_template, pad_token=pad_token)


def make_ready(
    tokenizer: PreTrainedTokenizerBase, *, chat_template: str | None = None, pad_token: str | None = None
) -> ReadyTokenizer:
    """Set what alignment needs and `tokenizer` lacks, in place: a chat template, a padding token apart from end-of-turn.

    A given `chat_template` or `pad_token` is used; else what the tokenizer has; else a documented default, told in `notes`. A
    padding token outside the vocabulary is added to it, and the model's embeddings must then grow to `len(tokenizer)`.
    """
    notes = []
    if tokenizer.eos_token is None:
        raise ValueError(
            f"expected an end-of-sequence token, found none in '{tokenizer.name_or_path}'. Set eos_token in its "
            "tokenizer_config.json: without one no turn can end."
        )
    if chat_template is not None:
        tokenizer.chat_template = chat_template
        notes.append("chat template: the one given in the model's conf file")
    elif tokenizer.chat_template is None:
        tokenizer.chat_template = DEFAULT_TEMPLATE
        notes.append(f"chat template: the model has none, so the default (Zephyr's) is set; turns end in {tokenizer.eos_token!r}")
    elif isinstance(tokenizer.chat_template, dict):
        named = tokenizer.chat_template
        if "default" not in named:
            raise ValueError(f"expected a chat template named 'default', found {sorted(named)}. Set `chat_template` in the conf.")
        tokenizer.chat_template = named["default"]
        notes.append(f"chat template: 'default' of {sorted(named)}")
    if "strftime_now" in str(tokenizer.chat_template):
        tokenizer.chat_template = FIXED_DATE + tokenizer.chat_template
        notes.append("chat template: it writes the day's date, which is fixed, or prompts would change from day to day")
    end = str(tokenizer.convert_ids_to_tokens(end_of_turn_id(tokenizer)))
    if pad_token is not None or tokenizer.pad_token in (None, end):
        notes.append(_set_pad_token(tokenizer, end, pad_token))
    tokenizer.padding_side = "right"
    return ReadyTokenizer(tokenizer, notes)


def context_tokens(model: ScratchModel | HubModel) -> int | None:
    """How many tokens the model takes at once: the conf's number, else the hub model's own; None if that has none."""
    if model.context_tokens is not None or isinstance(model, ScratchModel):
        return model.context_tokens
    return context_of(AutoConfig.from_pretrained(model.path, revision=model.revision))


def _set_pad_token(tokenizer: PreTrainedTokenizerBase, end: str, wanted: str | None) -> str:
    vocabulary = tokenizer.get_vocab()
    if wanted == end:
        raise ValueError(
            f"expected a pad_token other than the end-of-turn token {end!r}: masked as padding, it would never be learnt and no "
            "completion would stop. Set pad_token in conf/model/<name>.yaml to a token that text never uses."
        )
    before = tokenizer.pad_token
    known = [token for token in _PAD_CANDIDATES if token in vocabulary and token != end]
    pad = wanted or (known[0] if known else PAD)
    tokenizer.add_special_tokens({"pad_token": pad})
    added = "" if pad in vocabulary else "; it is new, so the embeddings grow by one row"
    why = (
        "given in the model's conf file"
        if wanted
        else f"the model has {'none' if before is None else f'{before!r}, its end-of-turn'}"
    )
    return f"padding token: {pad!r} ({why}){added}"
