"""Tokenizers ready for chat: trained here from scratch, or a hub model's own, completed with documented defaults."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from plumbline.models.architecture import HubModel, ScratchModel
from plumbline.models.chat import DEFAULT_TEMPLATE, END, PAD, SPECIAL_TOKENS, TINY_TEMPLATE, end_of_turn_id
from plumbline.models.loading import context_of, unknown_ids
from plumbline.models.model_files import ModelFiles
from plumbline.models.proving import keep_marks, prove

SMALLEST_VOCABULARY = len(pre_tokenizers.ByteLevel.alphabet()) + len(SPECIAL_TOKENS)

# Tokens of published vocabularies (Llama 2 and 3.1, Mistral, Qwen, BERT and its descendants) that text never uses.
_PAD_CANDIDATES = (PAD, "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|vision_pad|>", "<|endoftext|>", "<unk>")

FIXED_DATE = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"
"""Put before a template that asks for the day's date. It replaces transformers' own function; the date is Llama 3's fallback."""


class ReadyTokenizer(NamedTuple):
    """A tokenizer with a chat template and a padding token, and notes on what had to be set."""

    tokenizer: PreTrainedTokenizerBase
    notes: list[str]


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer of at most `vocabulary_size` tokens, including special tokens, on `texts`.

    Every byte is a token, so no text is unknown. Every digit is a token of its own, so numbers align digit by digit. `texts` are message
    contents and not rendered conversations, so special tokens are never merged. The same texts give the same bytes on disk.

    Raises:
        ValueError: the vocabulary is too small for all bytes and the special tokens.
    """
    if vocabulary_size < SMALLEST_VOCABULARY:
        raise ValueError(
            f"vocabulary_size: expected at least {SMALLEST_VOCABULARY} (256 bytes and {len(SPECIAL_TOKENS)} special tokens), "
            f"found {vocabulary_size}. Raise it in conf/model/<name>.yaml."
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
    path: str,
    revision: str | None = None,
    *,
    chat_template: str | None = None,
    template_variables: Mapping[str, Any] | None = None,
    pad_token: str | None = None,
) -> ReadyTokenizer:
    """Loads the tokenizer of a model folder or hub id and makes it ready for chat.

    Raises:
        ValueError: no tokenizer loads from there, or `make_ready` fails.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
    except Exception as error:  # a file that is damaged may raise anything, and the library tokenizers a bare Exception
        raise ValueError(_not_loading(path, revision, error)) from error
    return make_ready(tokenizer, chat_template=chat_template, template_variables=template_variables, pad_token=pad_token)


def _not_loading(path: str, revision: str | None, error: Exception) -> str:
    """Why a tokenizer does not load, with the file that is to blame if that can be told."""
    files = ModelFiles(Path(path), whole=True)
    if files.folder.is_dir() and not files.has_vocabulary():
        return f"path: expected a tokenizer in {path}, found no tokenizer.json and no other vocabulary. Copy the files of the model's tokenizer there"
    reason = " ".join(str(error).split()) or type(error).__name__
    try:
        _ = files.json("tokenizer.json"), files.json("tokenizer_config.json")
    except ValueError as unreadable:
        reason = str(unreadable)
    where = path if revision is None else f"{path} (revision {revision})"
    return f"path: expected a tokenizer in {where} that loads, found one that does not: {reason}. Download its files again, or take another model"


def own_tokenizer(model: HubModel, folder: Path | None = None) -> ReadyTokenizer:
    """The tokenizer of an existing model, made ready for chat by what the model's file in conf/model says.

    folder: where the model's files lie, if the hub is not to be asked.

    Raises:
        ValueError: none loads, it cannot be made ready, or it has tokens that the model does not know; the message begins with the key.
    """
    path, revision = (model.path, model.revision) if folder is None else (str(folder), None)
    ready = load_tokenizer(
        path,
        revision,
        chat_template=model.chat_template,
        template_variables=model.template_variables,
        pad_token=model.pad_token,
    )
    rows = getattr(AutoConfig.from_pretrained(path, revision=revision).get_text_config(), "vocab_size", None)
    if rows and (complaint := unknown_ids(ready.tokenizer, rows)):
        raise ValueError(complaint)
    return ready


def make_ready(
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat_template: str | None = None,
    template_variables: Mapping[str, Any] | None = None,
    pad_token: str | None = None,
) -> ReadyTokenizer:
    """Sets what alignment needs and `tokenizer` lacks: a chat template, and a padding token that is not the end-of-turn token.

    Changes `tokenizer` in place. A `chat_template` or `pad_token` argument comes first, then what the tokenizer has, then a documented
    default, which `notes` mention. The template is proven and, if need be, mended (plumbline/models/proving.py). A padding token outside
    the vocabulary is added to it, and the model's embeddings must then grow by a row.

    template_variables: values for variables that the template reads, such as Qwen 3's `enable_thinking`.

    Raises:
        ValueError: there is no end-of-sequence token or no usable chat template, the template reads no such variable, or `pad_token` is the
            end-of-turn token.
    """
    notes = []
    if tokenizer.clean_up_tokenization_spaces:
        tokenizer.clean_up_tokenization_spaces = False
        notes.append("clean_up_tokenization_spaces: set to false, because decoding would drop spaces before punctuation")
    if tokenizer.eos_token is None:
        raise ValueError(
            f"eos_token: expected an end-of-sequence token, found none in '{tokenizer.name_or_path}'. Without one no turn can end: set "
            "eos_token in its tokenizer_config.json."
        )
    if chat_template is not None:
        tokenizer.chat_template = chat_template
        notes.append("chat template: the one in the model's conf file")
    elif tokenizer.chat_template is None:
        tokenizer.chat_template = DEFAULT_TEMPLATE
        notes.append(f"chat template: the model has none, so the default (Zephyr's) is set; turns end in {tokenizer.eos_token!r}")
    elif isinstance(tokenizer.chat_template, dict):
        templates = tokenizer.chat_template
        if "default" not in templates:
            raise ValueError(
                f"chat_template: expected one named 'default', found {', '.join(sorted(templates))}. Set chat_template in the model's conf file."
            )
        tokenizer.chat_template = templates["default"]
        notes.append(f"chat template: 'default' of {sorted(templates)}")
    if "strftime_now" in str(tokenizer.chat_template):
        tokenizer.chat_template = FIXED_DATE + tokenizer.chat_template
        notes.append("chat template: it writes the day's date, which is now fixed, so that prompts do not change from day to day")
    if template_variables:
        tokenizer.chat_template = with_variables(str(tokenizer.chat_template), template_variables)
    notes += [*keep_marks(tokenizer), *prove(tokenizer)]
    end = str(tokenizer.convert_ids_to_tokens(end_of_turn_id(tokenizer)))
    if pad_token is not None or tokenizer.pad_token in (None, end):
        notes.append(_set_pad_token(tokenizer, end, pad_token))
    tokenizer.padding_side = "right"
    return ReadyTokenizer(tokenizer, notes)


def with_variables(template: str, values: Mapping[str, Any]) -> str:
    """A template with fixed values for variables that it reads, so that every program that loads it uses them.

    Raises:
        ValueError: the template does not read a variable.
    """
    if unknown := [name for name in values if not re.search(rf"\b{re.escape(name)}\b", template)]:
        raise ValueError(
            f"template_variables: expected variables that the chat template reads, found {', '.join(unknown)}, which it does not mention. Look "
            "for the name in the model's chat_template.jinja"
        )
    assigned = "".join(f"{{%- set {name} = {value!r} %}}" for name, value in values.items())
    return f"{assigned}\n{template}"  # Jinja drops the new line


def context_tokens(model: ScratchModel | HubModel) -> int | None:
    """The longest sequence of the model in tokens: the conf file's number, else the hub model's own; None if there is no limit."""
    if model.context_tokens is not None or isinstance(model, ScratchModel):
        return model.context_tokens
    return context_of(AutoConfig.from_pretrained(model.path, revision=model.revision))


def _set_pad_token(tokenizer: PreTrainedTokenizerBase, end: str, wanted: str | None) -> str:
    vocabulary = tokenizer.get_vocab()
    if wanted == end:
        raise ValueError(
            f"pad_token: expected a token that is not the end-of-turn token, found {end!r}. Masked as padding, it would never be learnt and "
            "no completion would stop: set pad_token in conf/model/<name>.yaml to a token that text never uses."
        )
    former = "none" if tokenizer.pad_token is None else f"{tokenizer.pad_token!r}, its end-of-turn token"
    candidates = [token for token in _PAD_CANDIDATES if token in vocabulary and token != end]
    pad = wanted or (candidates[0] if candidates else PAD)
    tokenizer.add_special_tokens({"pad_token": pad})
    added = "" if pad in vocabulary else "; it is new, so the embeddings grow by one row"
    reason = "set in the model's conf file" if wanted else f"the model has {former}"
    return f"padding token: {pad!r} ({reason}){added}"
