"""Lists and objects that came as text, and conversations written as one text: read as what they are, or dropped with a reason."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from plumbline.data.transcripts import turns_in
from plumbline.rows import last_turn, text_of
from tests.preparing import lenient, prepare, prepare_rows, source

USER, REPLY, WORSE = (
    {"role": "user", "content": 'It\'s "a"?\n'},
    {"role": "assistant", "content": "b."},
    {"role": "assistant", "content": "c."},
)
GOOD = [{"prompt": "Good?", "chosen": "Yes.", "rejected": "No."}, {"prompt": "Fine?", "chosen": "Yes.", "rejected": "No."}]


def spellings(value: Any) -> list[str]:
    """A value as text, in every way that data sets spell it."""
    return [json.dumps(value), repr(value), json.dumps(value, indent=2), json.dumps(json.dumps(value)), f"  {value!r}\n"]


@pytest.mark.parametrize(
    ("role", "row", "column"),
    [
        ("sft", {"messages": [USER, REPLY]}, "messages"),
        (
            "sft",
            {"conversations": [{"from": "human", "value": USER["content"]}, {"from": "gpt", "value": "b."}]},
            "conversations",
        ),
        ("sft", {"prompt": [USER], "completion": "b."}, "prompt"),
        ("sft", {"prompt": USER["content"], "completion": [REPLY]}, "completion"),
        ("sft", {"prompt": USER["content"], "response": REPLY}, "response"),
        ("sft", {"instruction": USER["content"], "input": "", "output": REPLY}, "output"),
        ("preferences", {"prompt": [USER], "chosen": [REPLY], "rejected": [WORSE]}, "prompt"),
        ("preferences", {"prompt": [USER], "chosen": [REPLY], "rejected": [WORSE]}, "chosen"),
        ("preferences", {"prompt": [USER], "chosen": REPLY, "rejected": WORSE}, "rejected"),
        ("preferences", {"chosen": [USER, REPLY], "rejected": [USER, WORSE]}, "rejected"),
        ("preferences", {"prompt": USER["content"], "completions": ["c.", "b."], "scores": [1, 2]}, "scores"),
        ("preferences", {"prompt": USER["content"], "completions": ["c.", "b."], "scores": [1, 2]}, "completions"),
        ("preferences", {"prompt": USER["content"], "ranked": ["b.", "c."]}, "ranked"),
        ("unpaired", {"messages": [USER, REPLY], "label": True}, "messages"),
        ("prompts", {"prompt": [USER]}, "prompt"),
        ("pretrain", {"messages": [USER, REPLY]}, "messages"),
    ],
)
def test_a_text_that_spells_a_list_or_a_message_is_read_as_one(
    role: str, row: dict[str, Any], column: str, tmp_path: Path
) -> None:
    rows = [row, *({**row, column: text} for text in spellings(row[column]))]
    kept = prepare_rows(tmp_path, role, rows).kept(role)
    assert kept == [
        {**kept[0], "row": number, **({"id": row["id"]} if "id" in row else {})} for number, row in enumerate(kept, 1)
    ]
    assert len(kept) == len(rows)


def test_a_csv_file_of_conversations_gives_the_rows_of_the_same_json_file(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"q{i}?"}, REPLY], "tests": ["assert 1"]} for i in range(3)]
    (tmp_path / "in").mkdir()
    with (tmp_path / "in/a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    kept = prepare(tmp_path, {"sft": [source("a.csv")]}).kept("sft")
    assert [last_turn(row["prompt"]) for row in kept] == ["q0?", "q1?", "q2?"]


def test_mapped_fields_that_spell_lists_are_read_as_lists(tmp_path: Path) -> None:
    row = {"dialogue": repr([USER, REPLY]), "extra": json.dumps({"id": "7", "checks": ["assert f()"]})}
    fields = {"messages": "dialogue", "id": "extra.id", "tests": "extra.checks"}
    (kept,) = prepare_rows(tmp_path, "sft", [row], fields=fields).kept("sft")
    assert (kept["prompt"], kept["completion"], kept["id"], kept["tests"]) == ([USER], [REPLY], "7", ["assert f()"])


@pytest.mark.parametrize(
    "text",
    [
        repr([USER, REPLY])[:-9],  # cut off
        repr([USER, REPLY]).replace("}, {", "}\n {"),  # as numpy prints an array
        f"array([{USER!r}], dtype=object)",
        json.dumps([USER, REPLY]).replace("}, {", "},, {"),
        "[{'role': 'user', 'content': datetime.now()}]",
        "[{role: 'user', 'role': 'user', 'content': 'a' 'from': }]",
    ],
)
@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
def test_messages_in_a_text_that_cannot_be_read_drop_the_row(column: str, text: str, tmp_path: Path) -> None:
    prepared = prepare_rows(tmp_path, "preferences", [*GOOD, {**GOOD[0], column: text}])
    assert prepared.examples("preferences") == {("rows.jsonl", 3, "transcript")}


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2, 3]",
        '{"name": "weather", "arguments": {"city": "Seoul"}}',
        '[{"name": "weather"}]',
        '{"from": "Seoul", "to": "Busan"}',
        '{"role": "admin", "name": "Kim"}',
        "['a', 'b']",
        '"quoted"',
        "{",
        "[sic] He said: [no]",
    ],
)
def test_a_text_that_is_about_data_stays_a_text(text: str, tmp_path: Path) -> None:
    (kept,) = prepare_rows(tmp_path, "sft", [{"prompt": text, "response": f"{text} "}]).kept("sft")
    assert (last_turn(kept["prompt"]), text_of(kept["completion"])) == (text, f"{text} ")


# ---------------------------------------------------------------------------------------------------------- transcripts

SYSTEM_TURNS = [("system", "Be kind."), ("user", "Hi?"), ("assistant", "Hello."), ("user", "Bye?")]
TURNS = SYSTEM_TURNS[1:]
TRANSCRIPTS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "HH-RLHF": ("\n\nHuman: Hi?\n\nAssistant: Hello.\n\nHuman: Bye?\n\nAssistant:", TURNS),
    "HH-RLHF without the open header": ("\n\nHuman: Hi?\n\nAssistant: Hello.\n\nHuman: Bye?", TURNS),
    "HH-RLHF with one turn": ("\n\nHuman: Bye?", TURNS[-1:]),
    "lines": ("User: Hi?\nAssistant: Hello.\nUser: Bye?\nAssistant: ", TURNS),
    "LangChain": ("System: Be kind.\nHuman: Hi?\nAI: Hello.\nHuman: Bye?\nAI:", SYSTEM_TURNS),
    "Korean": ("사용자: Hi?\n어시스턴트: Hello.\n사용자：Bye?\n어시스턴트:", TURNS),
    "ChatML": (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
        "<|im_start|>user\nBye?<|im_end|>\n<|im_start|>assistant\n",
        SYSTEM_TURNS,
    ),
    "Llama 2": ("<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi? [/INST] Hello. </s><s>[INST] Bye? [/INST]", SYSTEM_TURNS),
    "Llama 3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        "Hello.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nBye?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        TURNS,
    ),
    "Mistral": ("<s>[SYSTEM_PROMPT]Be kind.[/SYSTEM_PROMPT][INST]Hi?[/INST]Hello.</s>[INST]Bye?[/INST]", SYSTEM_TURNS),
    "Gemma": (
        "<bos><start_of_turn>user\nHi?<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n<start_of_turn>user\nBye?<end_of_turn>\n"
        "<start_of_turn>model\n",
        TURNS,
    ),
    "Zephyr": (
        "<|system|>\nBe kind.</s>\n<|user|>\nHi?</s>\n<|assistant|>\nHello.</s>\n<|user|>\nBye?</s>\n<|assistant|>\n",
        SYSTEM_TURNS,
    ),
    "OpenAssistant": (
        "<|prompter|>Hi?<|endoftext|><|assistant|>Hello.<|endoftext|><|prompter|>Bye?<|endoftext|><|assistant|>",
        TURNS,
    ),
    "EXAONE": ("[|user|]Hi?\n[|assistant|]Hello.[|endofturn|]\n[|user|]Bye?\n[|assistant|]", TURNS),
    "DeepSeek": (
        "<｜begin▁of▁sentence｜><｜User｜>Hi?<｜Assistant｜>Hello.<｜end▁of▁sentence｜><｜User｜>Bye?<｜Assistant｜>",
        TURNS,
    ),
    "Guanaco": ("### Human: Hi?### Assistant: Hello.### Human: Bye?### Assistant:", TURNS),
    "Vicuna": (
        "A chat between a curious user and an assistant. USER: Bye? ASSISTANT:",
        [("system", "A chat between a curious user and an assistant."), TURNS[-1]],
    ),
    "Alpaca": (
        "Below is an instruction that describes a task.\n\n### Instruction:\nSum up.\n\n### Input:\nLong.\n\n### Response:\n",
        [("system", "Below is an instruction that describes a task."), ("user", "Sum up.\n\nLong.")],
    ),
    "Alpaca without preamble": ("### Instruction:\nBye?\n\n### Input:\n\n### Response:", TURNS[-1:]),
    "KoAlpaca": ("### 질문: Bye?\n\n### 답변:", TURNS[-1:]),
}
"""A prompt that is written as one text, and its turns."""


@pytest.mark.parametrize("name", TRANSCRIPTS)
@pytest.mark.parametrize("role", ["sft", "preferences", "unpaired", "prompts", "pretrain"])
def test_a_transcript_in_the_prompt_becomes_its_turns(role: str, name: str, tmp_path: Path) -> None:
    text, expected = TRANSCRIPTS[name]
    answers = {
        "preferences": {"chosen": " Yes.", "rejected": " No."},
        "unpaired": {"completion": " Yes.", "label": True},
        "prompts": {},
    }.get(role, {"response": " Yes."})
    (kept,) = prepare_rows(tmp_path, role, [{"prompt": text, **answers}]).kept(role)
    turns = kept["prompt"] if role != "pretrain" else kept["messages"][:-1]
    assert [(turn["role"], turn["content"]) for turn in turns] == expected
    if role in ("preferences", "sft"):
        assert text_of(kept["chosen" if role == "preferences" else "completion"]) == "Yes."


def test_the_end_marks_of_a_transcripts_answers_are_not_part_of_them(tmp_path: Path) -> None:
    rows = [
        {"prompt": TRANSCRIPTS["ChatML"][0], "chosen": "Yes.<|im_end|>\n", "rejected": "No.<|im_end|>"},
        {"prompt": TRANSCRIPTS["Llama 2"][0], "chosen": " Yes. </s>", "rejected": " No. </s>"},
        {"prompt": "\n\nHuman: Bye?", "chosen": "\n\nAssistant: Yes.", "rejected": "\n\nAssistant: No."},
    ]
    kept = prepare_rows(tmp_path, "preferences", rows).kept("preferences")
    assert [(text_of(row["chosen"]), text_of(row["rejected"])) for row in kept] == [("Yes.", "No.")] * 3


def test_whole_transcripts_as_answers_lose_their_prompt(tmp_path: Path) -> None:
    prompt = TRANSCRIPTS["ChatML"][0]
    (kept,) = prepare_rows(
        tmp_path, "preferences", [{"chosen": f"{prompt}Yes.<|im_end|>", "rejected": f"{prompt}No.<|im_end|>"}]
    ).kept("preferences")
    assert [(turn["role"], turn["content"]) for turn in kept["prompt"]] == SYSTEM_TURNS
    assert (text_of(kept["chosen"]), text_of(kept["rejected"])) == ("Yes.", "No.")


@pytest.mark.parametrize(
    "prompt",
    [
        "Human: Bye?",
        "Go on with this:\n\nHuman: Hi?\n\nAssistant:",
        "You are kind.\n\n### Instruction:\nBye?\n\n### Response:",
        "Note.\n<|im_start|>user\nBye?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nBye?<|im_end|>\n<|im_start|>tool\nResult<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nBye?<|eot_id|> Hm.<|im_end|>\n<|im_start|>assistant\n",
        "[INST] Hi? [INST] Bye? [/INST]",
        "\n\nHuman: Hi?\n\nHuman: Bye?\n\nAssistant:",
        "\n\nAssistant: Hello.\n\nHuman: Bye?\n\nAssistant:",
        "<|assistant|>\nHello.\n<|user|>\nBye?",
        [
            {"role": "user", "content": "Hi?"},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": "[INST] Bye? [/INST]"},
        ],
    ],
)
@pytest.mark.parametrize("role", ["sft", "preferences", "prompts"])
def test_a_transcript_that_is_not_certain_drops_the_row(role: str, prompt: Any, tmp_path: Path) -> None:
    answers = {"sft": {"response": "Yes."}, "preferences": {"chosen": "Yes.", "rejected": "No."}, "prompts": {}}[role]
    prepared = prepare_rows(tmp_path, role, [{"prompt": "Good?", **answers}, {"prompt": prompt, **answers}])
    assert prepared.examples(role) == {("rows.jsonl", 2, "transcript")}


@pytest.mark.parametrize("reply", ["Yes.<|im_end|>", "Yes.<|eot_id|>\n", "Yes.\n<|im_start|>user\nMore?", "Yes.<end_of_turn>"])
def test_an_answer_that_ends_in_another_templates_mark_drops_the_row(reply: str, tmp_path: Path) -> None:
    prepared = prepare_rows(tmp_path, "sft", [{"prompt": "Good?", "response": "Yes."}, {"prompt": "Well?", "response": reply}])
    assert prepared.examples("sft") == {("rows.jsonl", 2, "transcript")}


@pytest.mark.parametrize(
    "text",
    [
        "In the log, Human: means the user and Assistant: the model. Why?",
        'What do "Human:" and "Assistant:" mean?',
        "Label each line.\nHuman: I like tea.\nRobot: So do I.",
        "Write a play.\n\nHuman: Hi.\n\nAssistant: Hello.\n\nThe play ends here.",
        "User: admin\nPassword: wrong\nWhy can I not log in?",
        "AI: A Modern Approach. Who wrote it?",
        "System: Windows\nWhat is wrong?",
        "What does <|im_start|> stand for, and what [INST]?",
        "Is `<|im_start|>user` one token?",
        "### Input:\nLong.\n\n### Output:",
        "Is <s>this</s> struck out?",
        "a:b",
    ],
)
def test_a_text_that_mentions_marks_stays_as_it_is(text: str, tmp_path: Path) -> None:
    assert turns_in(text) is None
    (kept,) = prepare_rows(tmp_path, "sft", [{"prompt": text, "response": text}]).kept("sft")
    assert (last_turn(kept["prompt"]), text_of(kept["completion"])) == (text, text)


def test_transcripts_that_cannot_be_read_stop_the_stage_over_their_limit(tmp_path: Path) -> None:
    from plumbline.data.faults import DataError

    with pytest.raises(DataError, match=r"1 of 1 rows .* dropped as transcript: .*store the turns as a list of messages"):
        write = {"prompt": "Human: Bye?", "response": "Yes."}
        (tmp_path / "in").mkdir()
        (tmp_path / "in/a.jsonl").write_text(json.dumps(write))
        prepare(tmp_path, {"sft": [source("a.jsonl")]}, lenient(limits={"transcript": 0.01}))
