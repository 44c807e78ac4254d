"""Chat templates after the families of open models, in our own words, each with a small tokenizer that knows its marks."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "What is 12 plus 34? It is 46.\n\n",
    "안녕하세요, 무엇을 도와드릴까요?",
    "def f(x):\n    return x",
    "user system assistant\n\nmodel\n",
] * 20

AS_IT_IS, MENDED = "as it is", "mended"


_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How Llama 3 and Qwen cut text before they merge bytes."""


def byte_level(
    special: Sequence[str], ordinary: Sequence[str] = (), *, like_gpt2: bool = False, prefix_space: bool = False, **names: str
) -> Any:
    """A byte-level BPE, in which two new lines are one token; `ordinary` tokens are added without being special.

    like_gpt2: cut text as GPT-2 does, so that the last of several new lines is a token of its own if a word follows.
    prefix_space: write a space before each stretch of text.
    """
    tokenizer = Tokenizer.from_str(_trained_on_bytes())
    if like_gpt2 or prefix_space:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    return _finished(tokenizer, special, ordinary, names)


@cache
def _trained_on_bytes() -> str:
    tokenizer = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False))
    return tokenizer.to_str()


def sentencepiece(special: Sequence[str], ordinary: Sequence[str] = (), *, metaspace: str = "", **names: str) -> Any:
    """A BPE like Llama 2's: a space before the text, spaces as ▁, and bytes for what it does not know.

    metaspace: where a space is put by a pre-tokenizer instead, before the "first" or "always" before each stretch of text, or "never".
    """
    tokenizer = Tokenizer.from_str(_trained_on_pieces())
    if metaspace:
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=metaspace)
        spaces = decoders.Metaspace(prepend_scheme=metaspace)
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), spaces])
    return _finished(tokenizer, special, ordinary, {"unk_token": "<unk>", **names})


@cache
def _trained_on_pieces() -> str:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    spaces = decoders.Replace("▁", " ")
    tokenizer.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    lines = [line for text in TEXTS for line in text.splitlines()]  # new lines are bytes, as in SentencePiece
    tokenizer.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=700, special_tokens=pieces, show_progress=False))
    state = json.loads(tokenizer.to_str()) | {"added_tokens": []}  # bytes are pieces of the model, not special tokens
    return json.dumps(state)


def _finished(tokenizer: Tokenizer, special: Sequence[str], ordinary: Sequence[str], names: dict[str, str]) -> Any:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ordinary])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


class Family(NamedTuple):
    """A family's template, its tokenizer's marks, and what becomes of it."""

    template: str
    special: Sequence[str]
    eos: str
    outcome: str
    """`AS_IT_IS`, `MENDED`, or an expression that the refusal matches."""
    ordinary: Sequence[str] = ()
    bos: str | None = None
    make: Any = byte_level

    def tokenizer(self) -> Any:
        names = {"eos_token": self.eos} | ({"bos_token": self.bos} if self.bos else {})
        made = self.make(self.special, self.ordinary, **names)
        made.chat_template = self.template
        return made


THINK = ("<think>", "</think>")
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

_QWEN_2 = (
    "{%- if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou help people.<|im_end|>\\n' }}{% endif %}"
    "{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_QWEN_3 = (
    "{%- set ns = namespace(asked=0) %}{%- for m in messages %}{% if m.role == 'user' %}{% set ns.asked = loop.index0 %}{% endif %}{% endfor %}"
    "{%- for m in messages %}{%- if m.role != 'assistant' %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{%- else %}{%- set said = m.content.split('</think>')[-1].lstrip('\\n') %}"
    "{%- set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') if '</think>' in m.content else '' %}"
    "{{- '<|im_start|>assistant\\n' }}{%- if loop.index0 > ns.asked %}{{ '<think>\\n' + thought + '\\n</think>\\n\\n' }}{% endif %}"
    "{{- said + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)
_LLAMA_3 = (
    "{%- set date = strftime_now('%d %b %Y') if strftime_now is defined else '1 Jan 2024' %}{{ bos_token }}"
    "{%- if messages[0].role == 'system' %}{% set first = messages[0].content | trim %}{% set messages = messages[1:] %}"
    "{% else %}{% set first = '' %}{% endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + date + '\\n\\n' + first + '<|eot_id|>' }}"
    "{%- for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
_MISTRAL = (
    "{%- set system = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' %}"
    "{%- set turns = messages[1:] if system else messages %}{{ bos_token }}{%- for m in turns %}"
    "{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{%- if m.role == 'user' %}{{ '[INST]' + (system if loop.first else '') + m.content + '[/INST]' }}"
    "{%- else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
_LLAMA_2 = (
    "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}{% for m in turns %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') + m.content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_PHI_3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
_PHI_4 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
_SMOLLM_3 = (
    "{%- set thinks = enable_thinking if enable_thinking is defined else true %}"
    "{{- '<|im_start|>system\\nToday: ' + strftime_now('%d %B %Y') + '\\nReasoning mode: ' + ('/think' if thinks else '/no_think') + '\\n' }}"
    "{%- if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}{{ '<|im_end|>\\n' }}"
    "{%- for m in messages if m.role != 'system' %}{{ '<|im_start|>' + m.role + '\\n' }}{%- if m.role == 'assistant' %}"
    "{{- m.content.lstrip('\\n') if thinks else '<think>\\n\\n</think>\\n' + m.content.lstrip('\\n') }}"
    "{%- else %}{{ m.content }}{% endif %}{{ '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' + ('' if thinks else '<think>\\n\\n</think>\\n') }}{% endif %}"
)
_OLMO_2 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n<|assistant|>\\n' }}{% endif %}"
)
_OLMO_3_THINK = (
    "{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are Olmo.<|im_end|>\\n' }}{% endif %}{%- for m in messages %}"
    "{{- '<|im_start|>' + m.role + '\\n' + m.content }}{%- if m.role == 'assistant' and loop.last %}{{ eos_token }}"
    "{%- else %}{{ '<|im_end|>\\n' }}{% endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>' }}{% endif %}"
)
_EXAONE_3 = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}{{ '[|system|][|endofturn|]\\n' }}{% endif %}"
    "{{ '[|' + m.role + '|]' + m.content }}{% if m.role == 'user' %}{{ '\\n' }}{% else %}{{ '[|endofturn|]\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}"
)
_EXAONE_DEEP = _EXAONE_3.replace(
    "'[|' + m.role + '|]' + m.content", "'[|' + m.role + '|]' + m.content.split('</thought>')[-1]"
).replace("{{ '[|assistant|]' }}", "{{ '[|assistant|]<thought>\\n' }}")
_EXAONE_4 = (
    "{%- for m in messages %}{{ '[|' + m.role + '|]\\n' }}{%- if m.role == 'assistant' %}"
    "{%- set thought = '' if '</think>' in m.content else '<think>\\n\\n</think>\\n\\n' %}{{ (thought if loop.last else '') + m.content | trim }}"
    "{%- else %}{{ m.content }}{% endif %}{{ '[|endofturn|]\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{ '[|assistant|]\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking %}{{ '<think>\\n' }}{% else %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)
_R1 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}{% elif m.role == 'assistant' %}"
    "{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)
_GPT_OSS = (
    "{%- for m in messages %}{%- if m.role == 'assistant' %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
    "{{- '<|return|>' if loop.last else '<|end|>' }}{%- else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
_CHANNELS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>")
_EXAONE = ("[|system|]", "[|user|]", "[|assistant|]", "[|endofturn|]")
_HEADERS = ("<|begin|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eos|>")
_SENTENCES = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")

FAMILIES = {
    "Llama 2": Family(_LLAMA_2, ("<s>", "</s>"), "</s>", MENDED, bos="<s>", make=sentencepiece),
    "Llama 3": Family(_LLAMA_3, _HEADERS, "<|eot_id|>", MENDED, bos="<|begin|>"),
    "Qwen 2.5": Family(_QWEN_2, CHATML, "<|im_end|>", AS_IT_IS),
    "Qwen 3": Family(_QWEN_3, CHATML, "<|im_end|>", MENDED, THINK),
    "Gemma": Family(_GEMMA, ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<eos>", MENDED, bos="<bos>"),
    "Mistral": Family(_MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", AS_IT_IS, bos="<s>"),
    "Phi 3": Family(_PHI_3, ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), "<|endoftext|>", AS_IT_IS),
    "Phi 4": Family(_PHI_4, (*CHATML, "<|im_sep|>"), "<|im_end|>", AS_IT_IS),
    "SmolLM 2": Family(_QWEN_2, CHATML, "<|im_end|>", AS_IT_IS, bos="<|im_start|>"),
    "SmolLM 3": Family(_SMOLLM_3, CHATML, "<|im_end|>", MENDED, THINK),
    "OLMo 2": Family(_OLMO_2, ("<|endoftext|>",), "<|endoftext|>", AS_IT_IS, bos="<|endoftext|>"),
    "OLMo 3 Think": Family(_OLMO_3_THINK, CHATML, "<|endoftext|>", MENDED),
    "EXAONE 3.5": Family(_EXAONE_3, _EXAONE, "[|endofturn|]", AS_IT_IS),
    "EXAONE Deep": Family(_EXAONE_DEEP, _EXAONE, "[|endofturn|]", MENDED, ("<thought>", "</thought>")),
    "EXAONE 4": Family(_EXAONE_4, _EXAONE, "[|endofturn|]", MENDED, THINK),
    "R1 distill (Qwen)": Family(_R1, _SENTENCES, "<｜end▁of▁sentence｜>", MENDED, THINK, bos="<｜begin▁of▁sentence｜>"),
    "R1 distill (marks in pieces)": Family(_R1, _SENTENCES, "<｜end▁of▁sentence｜>", MENDED, bos="<｜begin▁of▁sentence｜>"),
    "Qwen 3 (special marks)": Family(_QWEN_3, (*CHATML, *THINK), "<|im_end|>", MENDED),
    "gpt-oss": Family(_GPT_OSS, _CHANNELS, "<|return|>", r"found '<\|channel\|>final<\|message\|>' after it"),
}
