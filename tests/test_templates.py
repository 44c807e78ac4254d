"""Chat templates of real models: accepted with the round trip proven, or refused with the reason, and none in between."""

import itertools
import json
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from chat_families import AS_IT_IS, CHATML, FAMILIES, MENDED, THINK, byte_level, sentencepiece
from ppo_tiny import llama_config, word_tokenizer
from preparing import lenient, prepare, source, write_rows
from transformers import AutoTokenizer, LlamaForCausalLM, LlamaTokenizer

from plumbline.methods.online.groups import reward_functions
from plumbline.methods.online.ppo.rollout import Sampler
from plumbline.models.chat import TINY_TEMPLATE, ChatTemplateError, encode_turns, end_of_turn_id, openings, prompt_ids, render
from plumbline.models.completions import Completer, Draws, fitting_of
from plumbline.models.saving import save_policy
from plumbline.models.tokenizers import FIXED_DATE, make_ready
from plumbline.reasoning import without_reasoning
from plumbline.rows import Message, assistant

SYSTEM = {"role": "system", "content": "You are brief."}
ASK = {"role": "user", "content": "How much is 2 + 2?"}
PROMPTS: list[list[Message]] = [
    [ASK],
    [SYSTEM, ASK],
    [ASK, {"role": "assistant", "content": "Four."}, ASK],
    [SYSTEM, ASK, {"role": "assistant", "content": "<think>\nEasy.\n</think>\n\nFour."}, ASK],
    [
        ASK,
        {"role": "assistant", "content": "Four."},
        ASK,
        {"role": "assistant", "content": " Still four.\n"},
        {"role": "user", "content": "감사합니다"},
    ],
]
ANSWERS = [
    "Four.",
    "넷이에요.\n감사합니다!",
    " one space before",
    "one space after ",
    "\tTabs and\n\n\nmany lines\n\n\n",
    "\n",
    "```sh\n$ echo \"[/INST]\" '<|user|>' {{ x }} {%- y -%} \\n\n```",
    "a . b , c ' s ? !",
    "<think>\nTwo and two.\n</think>\n\nFour.",
    "<think>Two and two.</think>Four.",
    "Two and two.\n</think>\n\nFour.",
    "<thought>\nTwo.\n</thought>\nFour.",
    "<think>\nTwo and two, cut o",
    "Unicode: é é 😀 漢字 ½ \u200b.",
]


def require_round_trip(tokenizer: Any, *, whole: bool = True, merges: bool = False) -> int:
    """Checks every prompt with every answer, and returns the number of conversations; a prompt that the template refuses is left out.

    whole: check the text of prompt and answer together, which a tokenizer like Llama 2's gives back without some spaces.
    merges: the tokenizer joins the end of the prompt to an answer, so the two are tokenised apart.
    """
    end, count = end_of_turn_id(tokenizer), 0
    mark = str(tokenizer.convert_ids_to_tokens(end))
    for prompt, answer in itertools.product(PROMPTS, ANSWERS):
        try:
            asked = render(tokenizer, prompt, add_generation_prompt=True)
        except ChatTemplateError:
            continue
        if any(token.special and token.content in answer for token in tokenizer.added_tokens_decoder.values()):
            continue  # `prepare` drops such rows
        rendered = render(tokenizer, [*prompt, *assistant(answer)], add_generation_prompt=False)
        rendered = rendered[: rendered.rindex(mark) + len(mark)]
        (turn,) = encode_turns(tokenizer, [(prompt, assistant(answer))])
        (opening,) = openings(tokenizer, [prompt])
        text = tokenizer.decode(turn.completion, skip_special_tokens=True)
        start = next((start for start in (opening, opening.strip()) if start and answer.startswith(start)), "")
        assert turn.prompt == prompt_ids(tokenizer, prompt)
        assert start + text == answer, "the completion's ids give back its content"
        assert (turn.completion[-1], turn.completion.count(end)) == (end, 1)
        # what was sampled, trained on and sampled again gives the same tokens
        assert encode_turns(tokenizer, [(prompt, assistant(opening + text))])[0] == turn
        if whole:
            assert tokenizer.decode(turn.prompt + turn.completion) == rendered == asked + text + mark
        if not merges and answer[0] not in " \t\n":
            assert turn.prompt + turn.completion == tokenizer(rendered, add_special_tokens=False)["input_ids"]
        count += 1
    return count


def outcome(tokenizer: Any) -> str:
    """What becomes of a template: `as it is`, `mended`, or the reason for which it is refused."""
    before = str(tokenizer.chat_template)
    try:
        make_ready(tokenizer)
    except ChatTemplateError as error:
        return str(error)
    return AS_IT_IS if str(tokenizer.chat_template).endswith(before) else MENDED


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_is_proven_or_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family = FAMILIES[name]
    tokenizer = family.tokenizer()
    found = outcome(tokenizer)
    with capsys.disabled():
        print(f"\n    {name:32}{found[:160]}", end="")
    if family.outcome not in (AS_IT_IS, MENDED):
        assert re.search(family.outcome, found)
        with pytest.raises(AssertionError):
            require_round_trip(tokenizer)
        return
    assert found == family.outcome
    whole = family.make is byte_level
    count = require_round_trip(tokenizer, whole=whole)
    assert count > (20 if name == "Gemma" else 60)
    tokenizer.save_pretrained(tmp_path)
    assert require_round_trip(AutoTokenizer.from_pretrained(tmp_path), whole=whole) == count


REFUSED_BY_TRL = {
    "glm4moe": "end an assistant turn with a special token",
    "gptoss": "found '<|channel|>final<|message|>' after it",
    "idefics3": "end an assistant turn with a special token",  # contents are lists, for images
    "llava_next": "cannot render a conversation",
    "muse_glimmer": "found ' to=user<|message|>' after it",
    "smolvlm": "end an assistant turn with a special token",
}
SHIPPED = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
_MARK = re.compile(r"<[|｜][^<>\n'\"{}]{1,40}[|｜]>|<start_of_turn>|<end_of_turn>|<\|?[a-z_]+\|?>|\[gMASK\]|<end_of_utterance>")


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_each_template_that_trl_ships_is_proven_or_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = file.read_text(encoding="utf-8")
    ordinary = [mark for mark in (*THINK, "<tool_call>", "</tool_call>") if mark in template]
    special = sorted({"<BOS>", "<EOS>", *_MARK.findall(template)} - {*ordinary, "<tools>", "<b>", "<answer>"})
    tokenizer = byte_level(special, ordinary, bos_token="<BOS>", eos_token="<EOS>")
    tokenizer.chat_template = template
    found = outcome(tokenizer)
    with capsys.disabled():
        print(f"\n    {file.stem:40}{found[:160]}", end="")
    refused = [
        reason for name, reason in REFUSED_BY_TRL.items() if file.stem.startswith(name) and file.stem != "glm4moe_training"
    ]
    if refused:
        assert refused[0] in found
    else:
        assert found in (AS_IT_IS, MENDED)
        assert require_round_trip(tokenizer) > 20


@pytest.mark.skipif("SMOLLM2" not in os.environ, reason="no folder of SmolLM2 in $SMOLLM2")
def test_a_real_models_template_is_proven() -> None:
    tokenizer = AutoTokenizer.from_pretrained(os.environ["SMOLLM2"])
    assert outcome(tokenizer) == AS_IT_IS
    assert require_round_trip(tokenizer) == len(PROMPTS) * len(ANSWERS)


# ------------------------------------------------------------------------------------------------------ planted faults

PLAIN = (
    "{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' if messages[0].role == 'system' else '' }}"
    "{% for m in messages if m.role != 'system' %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ASKS = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
END_OF_TURN = "'<|im_end|>\\n' }}{% endfor %}"

PLANTED = {
    "ignores the generation prompt": (PLAIN.replace(ASKS, ""), MENDED),
    "asks with half of the header": (PLAIN.replace(ASKS, ASKS.replace("assistant\\n", "")), "found 'assistant\\\\n' after it"),
    "strips answers": (PLAIN.replace("m.content", "m.content.strip()"), MENDED),
    "strips one new line": (PLAIN.replace("m.content", "m.content.lstrip('\\n')"), MENDED),
    "puts a space before answers": (
        PLAIN.replace("m.content", "(' ' if m.role == 'assistant' else '') + m.content"),
        MENDED,
    ),
    "puts a space after answers": (PLAIN.replace("m.content +", "m.content + ' ' +"), MENDED),
    "capitalises answers": (PLAIN.replace("m.content", "m.content | capitalize"), "to end an assistant turn|changes the answer"),
    "escapes text for HTML": (PLAIN.replace("m.content", "m.content | escape"), "to end an assistant turn with a special token"),
    "writes a preface before answers": (
        PLAIN.replace("m.content", "('Sure: ' if m.role == 'assistant' else '') + m.content"),
        "found 'Sure: ' after it",
    ),
    "ends only earlier turns": (
        PLAIN.replace(END_OF_TURN, "('' if loop.last else '<|im_end|>\\n') }}{% endfor %}"),
        "to end an assistant turn with a special token",
    ),
    "draws the system turn at random": ("{{ ['a', 'b'] | random }}" + PLAIN, "writes the same every time"),
    "writes the number of turns": ("{{ messages | length }}" + PLAIN, MENDED + "|renders the prompt alone differently"),
    "asks with reasoning opened": (PLAIN.replace(ASKS, ASKS.replace("assistant\\n", "assistant\\n<think>\\n")), MENDED),
    "refuses system turns": ("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + PLAIN, AS_IT_IS),
    "refuses everything": ("{{ raise_exception('no') }}", "cannot render a conversation"),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_template_with_a_fault_is_mended_or_refused(kind: str) -> None:
    template, expected = PLANTED[kind]
    assert template != PLAIN
    tokenizer = byte_level(CHATML, THINK, eos_token="<|im_end|>")
    tokenizer.chat_template = template
    found = outcome(tokenizer)
    assert re.search(expected, found), found
    if found in (AS_IT_IS, MENDED):
        assert require_round_trip(tokenizer, merges=kind == "puts a space before answers") > 20


# ---------------------------------------------------------------------------------------------------------- tokenizers

LEAD = PLAIN.replace("m.role + '\\n' +", "m.role + '<|im_sep|>' +").replace("assistant\\n", "assistant<|im_sep|>")
SPECIAL = (*CHATML, "<|im_sep|>")


@pytest.mark.parametrize("scheme", ["", "first", "always", "never"])
def test_a_tokenizer_like_sentencepiece_keeps_the_first_space_of_an_answer(scheme: str, tmp_path: Path) -> None:
    tokenizer = sentencepiece(SPECIAL, metaspace=scheme, eos_token="<|im_end|>")
    tokenizer.chat_template = PLAIN
    make_ready(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert require_round_trip(one, whole=False) == 70


def test_a_class_of_one_model_does_not_undo_the_mend_when_it_loads(tmp_path: Path) -> None:
    model = json.loads(sentencepiece(()).backend_tokenizer.to_str())["model"]
    vocabulary = model["vocab"] | {token: len(model["vocab"]) + number for number, token in enumerate(("<s>", "</s>"))}
    tokenizer = LlamaTokenizer(
        vocab=vocabulary, merges=[tuple(pair) for pair in model["merges"]], unk_token="<unk>", eos_token="</s>"
    )
    ready = make_ready(tokenizer)
    assert any("decoding keeps a space at the start" in note for note in ready.notes)
    ready.tokenizer.save_pretrained(tmp_path)
    assert require_round_trip(AutoTokenizer.from_pretrained(tmp_path), whole=False) == 70


@pytest.mark.parametrize("template", [PLAIN, LEAD])
def test_a_tokenizer_that_puts_a_space_before_answers_is_refused(template: str) -> None:
    tokenizer = byte_level(SPECIAL, prefix_space=True, eos_token="<|im_end|>")
    tokenizer.chat_template = template
    assert re.search(r"the tokens of the answer '(It is 46\.|.*new lines.*)' read ' ", outcome(tokenizer))


def test_prompts_and_answers_that_the_tokenizer_joins_are_tokenised_apart_and_noted() -> None:
    """GPT-2 makes one token of two new lines at the end of a prompt, and two of them before a word."""
    tokenizer = byte_level(SPECIAL, like_gpt2=True, eos_token="<|im_end|>")
    tokenizer.chat_template = PLAIN.replace("m.role + '\\n' +", "m.role + '\\n\\n' +").replace("assistant\\n", "assistant\\n\\n")
    assert any("joins the prompt's end" in note for note in make_ready(tokenizer).notes)
    assert require_round_trip(tokenizer, merges=True) == 70


def test_special_tokens_that_mark_reasoning_stay_in_the_text() -> None:
    tokenizer = FAMILIES["Qwen 3 (special marks)"].tokenizer()
    assert any("</think>, <think> are ordinary tokens" in note for note in make_ready(tokenizer).notes)
    answer = "<think>\nTwo.\n</think>\n\nFour."
    (turn,) = encode_turns(tokenizer, [([ASK], assistant(answer))])
    assert tokenizer.decode(turn.completion, skip_special_tokens=True) == answer


# ---------------------------------------------------------------------------------------------------------- reasoning


def prompt_of(name: str, **changes: Any) -> str:
    return render(make_ready(FAMILIES[name].tokenizer(), **changes).tokenizer, [ASK], add_generation_prompt=True)


def test_mended_prompts_end_as_the_models_own_template_ends_them() -> None:
    assert prompt_of("Qwen 3").endswith("<|im_start|>assistant\n")
    assert prompt_of("R1 distill (Qwen)").endswith("<｜Assistant｜><think>\n")
    assert prompt_of("OLMo 3 Think").endswith("<|im_start|>assistant\n<think>")
    assert prompt_of("EXAONE 4").endswith("[|assistant|]\n<think>\n\n</think>\n\n")
    for name in ("Qwen 3", "R1 distill (Qwen)", "Gemma", "SmolLM 3", "EXAONE Deep"):
        before, after = FAMILIES[name].tokenizer(), make_ready(FAMILIES[name].tokenizer()).tokenizer
        before.chat_template = FIXED_DATE + before.chat_template
        for prompt in PROMPTS[::2]:
            assert render(before, prompt, add_generation_prompt=True) == render(after, prompt, add_generation_prompt=True)


def test_variables_of_a_template_are_fixed_in_it(tmp_path: Path) -> None:
    ready = make_ready(FAMILIES["Qwen 3"].tokenizer(), template_variables={"enable_thinking": False})
    ready.tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert render(tokenizer, [ASK], add_generation_prompt=True).endswith("assistant\n<think>\n\n</think>\n\n")
    assert require_round_trip(tokenizer) == len(PROMPTS) * len(ANSWERS)
    assert prompt_of("EXAONE 4", template_variables={"enable_thinking": True}).endswith("[|assistant|]\n<think>\n")


def test_a_variable_that_the_template_does_not_read_is_refused() -> None:
    with pytest.raises(
        ValueError, match="template_variables: expected variables that the chat template reads, found enable_thinkng"
    ):
        make_ready(FAMILIES["Qwen 3"].tokenizer(), template_variables={"enable_thinkng": False})


def test_the_mark_that_opens_reasoning_is_the_prompts_and_is_not_doubled() -> None:
    tokenizer = make_ready(FAMILIES["R1 distill (Qwen)"].tokenizer()).tokenizer
    assert openings(tokenizer, [[ASK], PROMPTS[2]]) == ["<think>\n"] * 2
    answers = ["<think>\nTwo.\n</think>\n\nFour.", "<think>Two.\n</think>\n\nFour.", "Two.\n</think>\n\nFour."]
    turns = encode_turns(tokenizer, [([ASK], assistant(answer)) for answer in answers])
    assert turns[0] == turns[1] == turns[2]
    whole = tokenizer.decode(turns[0].prompt + turns[0].completion)
    assert whole.endswith("<｜Assistant｜><think>\nTwo.\n</think>\n\nFour.<｜end▁of▁sentence｜>")


# What the small tokenizer of tests/preparing.py can write of DeepSeek-R1 and of Qwen 3.
OPENING = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content.split('</think>')[-1] + '<|end|>' }}{% endfor %}" + (
    "{% if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif %}"
)
CLOSED = OPENING.replace("<think>\\n", "")


def chat(*contents: str) -> dict[str, Any]:
    return {"messages": [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(contents)]}


def test_earlier_reasoning_that_a_template_leaves_out_does_not_spoil_a_row(tmp_path: Path) -> None:
    reply = "<think>\nTwo.\n</think>\n\nFour."
    write_rows(tmp_path / "in/rows.jsonl", [chat("2 + 2?", reply, "Sure?", reply), chat("2 + 3?", reply)])
    for template in (OPENING, CLOSED):
        prepared = prepare(tmp_path, {"sft": [source("rows.jsonl")]}, lenient(), template=template)
        assert [row["row"] for row in prepared.kept("sft")] == [1, 2]


def test_an_answer_inside_the_reasoning_that_its_prompt_opens_is_dropped(tmp_path: Path) -> None:
    answers = ["Four.", "<think>\nTwo", "Two.\n</think>\n\nFour.", "<think>\nTwo.\n</think>\n\nFour."]
    write_rows(tmp_path / "in/rows.jsonl", [chat(f"{number} + 2?", answer) for number, answer in enumerate(answers)])
    prepared = prepare(tmp_path, {"sft": [source("rows.jsonl")]}, lenient(), template=OPENING)
    assert prepared.examples("sft") == {("rows.jsonl", row, "template") for row in (1, 2)}
    prepared = prepare(tmp_path, {"sft": [source("rows.jsonl")]}, lenient(), template=CLOSED)
    assert not prepared.dropped("sft")


def test_earlier_answers_may_end_in_another_token_than_the_last(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + ('<|end|>' if m.role != 'assistant' or loop.last else '<|system|>') }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    write_rows(tmp_path / "in/rows.jsonl", [chat("2 + 2?", "Four.", "Sure?", "Yes.")])
    assert not prepare(tmp_path, {"sft": [source("rows.jsonl")]}, lenient(), template=template).dropped("sft")


def test_a_sampled_text_begins_with_the_mark_that_its_prompt_opened(tmp_path: Path) -> None:
    """Reasoning that was cut off would otherwise look like the answer."""
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = TINY_TEMPLATE.replace("'<|assistant|>'", "'<|assistant|><think>'")
    torch.manual_seed(0)
    save_policy(LlamaForCausalLM(llama_config(len(tokenizer))), tokenizer, tmp_path)
    prompt = [{"role": "user", "content": "q"}]
    settings: dict[str, Any] = {"max_new_tokens": 5, "batch_size": 4, "seed": 1, "title": "test"}
    asked = [{"id": "1", "prompt": prompt}]
    [rows] = Completer(tmp_path, fitting_of(tmp_path, asked, 5, "test"), [Draws(4)], **settings).complete(asked)
    for row in rows:
        text = row["completion"][0]["content"]
        assert text == "<think>" + tokenizer.decode(row["ids"], skip_special_tokens=True)
        assert without_reasoning(text) == "" or "</think>" in text
    texts, _ = Sampler(None, tokenizer, lambda _, texts: [0.0] * len(texts), 5, 1.0, 4).score([prompt], [[5, 6]])
    assert texts == ["<think>a b"]
    reward, _ = reward_functions(
        lambda _, texts: [float(text == "<think>a b") for text in texts], (4,), 0.0, partial(openings, tokenizer)
    )
    assert reward(prompts=[prompt], completions=[assistant("a b")]) == [1.0]
