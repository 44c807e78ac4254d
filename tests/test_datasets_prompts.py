"""Every role and format reads a prompt by one function: what stands beside the question is part of it, or the row is dropped."""

import json
from pathlib import Path
from typing import Any

import pytest

from plumbline.data.overview import source_rows
from plumbline.data.schema import source_problems
from tests.preparing import prepare_rows, source

REPLY = {"role": "assistant", "content": "b."}
PAIR = {"chosen": "b.", "rejected": "c."}
ANSWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "a pair": ("preferences", PAIR),
    "a comparison": ("preferences", {"output_1": "b.", "output_2": "c.", "label": 1}),
    "scored answers": ("preferences", {"completions": ["b.", "c."], "scores": [2, 1]}),
    "ranked answers": ("preferences", {"ranked": ["b.", "c."]}),
    "answers with scores of their own": (
        "preferences",
        {"completions": [{"response": "b.", "overall_score": 2}, {"response": "c.", "overall_score": 1}]},
    ),
    "a labelled answer": ("unpaired", {"completion": "b.", "label": True}),
    "a tagged answer": ("unpaired", {"output": "b.", "kto_tag": True}),
    "a demonstration": ("sft", {"response": "b."}),
    "no answer": ("prompts", {}),
    "an answer to read": ("pretrain", {"response": "b."}),
}
"""Every kind of answer that stands beside a prompt: its role, and the fields of the answer."""

BESIDE: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "input": ({"input": "Long."}, [("user", "a?\n\nLong.")]),
    "context": ({"context": "Long."}, [("user", "a?\n\nLong.")]),
    "system": ({"system": "s"}, [("system", "s"), ("user", "a?")]),
    "system_prompt": ({"system_prompt": "s"}, [("system", "s"), ("user", "a?")]),
    "history in pairs": ({"history": [["q?", "r."]]}, [("user", "q?"), ("assistant", "r."), ("user", "a?")]),
    "history as text": ({"history": "[['q?', 'r.']]"}, [("user", "q?"), ("assistant", "r."), ("user", "a?")]),
    "history in messages": (
        {"history": [{"role": "user", "content": "q?"}, {"role": "assistant", "content": "r."}]},
        [("user", "q?"), ("assistant", "r."), ("user", "a?")],
    ),
    "all of them": (
        {"input": "Long.", "system": "s", "history": [["q?", "r."]]},
        [("system", "s"), ("user", "q?"), ("assistant", "r."), ("user", "a?\n\nLong.")],
    ),
    "blank ones": ({"input": " ", "system": "", "history": [], "context": None}, [("user", "a?")]),
}
"""What may stand beside the question "a?", and the turns of the whole prompt."""


def turns(row: dict[str, Any]) -> list[tuple[str, str]]:
    """The turns before a row's answer."""
    messages = row["prompt"] if "prompt" in row else row["messages"]
    return [(turn["role"], turn["content"]) for turn in messages if turn != REPLY]


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_stands_beside_the_prompt_is_part_of_it_in_every_role(answer: str, tmp_path: Path) -> None:
    role, fields = ANSWERS[answer]
    for key in ("prompt", "instruction", "question"):
        rows = [{key: "a?", **beside, **fields} for beside, _ in BESIDE.values()]
        kept = prepare_rows(tmp_path / key, role, rows).kept(role)
        assert [turns(row) for row in kept] == [expected for _, expected in BESIDE.values()], key


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "Answer in a word.", "question": "a?", **PAIR}, "Answer in a word.\n\na?"),
        ({"instruction": "Answer in a word.", "query": "a?", **PAIR}, "Answer in a word.\n\na?"),
        ({"prompt": "Sum up: Long.", "input": "Long.", **PAIR}, "Sum up: Long."),
        ({"prompt": [{"role": "user", "content": "a?"}], "context": "Long.", **PAIR}, "a?\n\nLong."),
        ({"input": "a?", "context": "Long.", **PAIR}, "a?\n\nLong."),
    ],
)
def test_a_text_beside_the_question_is_in_the_prompt_once(row: dict[str, Any], prompt: str, tmp_path: Path) -> None:
    (kept,) = prepare_rows(tmp_path, "preferences", [row]).kept("preferences")
    assert [turn["content"] for turn in kept["prompt"]] == [prompt]


@pytest.mark.parametrize(
    "beside",
    [
        {"input": ["a", "b"]},
        {"context": {"title": "x"}},
        {"history": "We spoke before."},
        {"history": ["q?", "r."]},
        {"history": [["q?", None]]},
        {"system": ["Be brief."]},
        {"image": "cat.png"},
    ],
)
@pytest.mark.parametrize("answer", ["a pair", "a labelled answer", "a demonstration", "no answer"])
def test_what_cannot_be_part_of_a_prompt_drops_the_row(answer: str, beside: dict[str, Any], tmp_path: Path) -> None:
    role, fields = ANSWERS[answer]
    good = {"prompt": "Good?", **fields}
    prepared = prepare_rows(tmp_path, role, [good, {"prompt": "a?", **beside, **fields}])
    assert prepared.examples(role) == {("rows.jsonl", 2, "wrong_type")}
    assert len(prepared.kept(role)) == 1


@pytest.mark.parametrize("repeated", ["a?", "a?\n\nLong."])
def test_answers_that_repeat_the_question_keep_what_stands_beside_it(repeated: str, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": repeated}]
    row = {
        "prompt": "a?",
        "context": "Long.",
        "system": "s",
        "chosen": [*turns, REPLY],
        "rejected": [*turns, {**REPLY, "content": "c."}],
    }
    (kept,) = prepare_rows(tmp_path, "preferences", [row]).kept("preferences")
    assert [turn["content"] for turn in kept["prompt"]] == ["s", "a?\n\nLong."]


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "\n\nHuman: a?\n\nAssistant: b.", "rejected": "\n\nHuman: a?\n\nAssistant: c."},
        {
            "chosen": [{"role": "user", "content": "a?"}, REPLY],
            "rejected": [{"role": "user", "content": "a?"}, {**REPLY, "content": "c."}],
        },
        {"prompt": [{"role": "user", "content": "a?"}], "chosen": [REPLY], "rejected": [{**REPLY, "content": "c."}]},
    ],
)
def test_the_system_turn_beside_conversations_is_part_of_the_prompt(row: dict[str, Any], tmp_path: Path) -> None:
    (kept,) = prepare_rows(tmp_path, "preferences", [{**row, "system": "s"}]).kept("preferences")
    assert [turn["content"] for turn in kept["prompt"]] == ["s", "a?"]


def test_fields_of_the_prompt_are_not_reported_as_unused(tmp_path: Path) -> None:
    row = {"prompt": "a?", "context": "Long.", "system": "s", "history": json.dumps([["q?", "r."]]), "topic": "x", **PAIR}
    (reported,) = source_rows(prepare_rows(tmp_path, "preferences", [row]).pools)
    assert reported["unused"] == "topic"


def test_a_reference_that_can_be_read_in_two_ways_is_dropped_with_its_row(tmp_path: Path) -> None:
    answers = ["5", "0,1", "20 25", "3 1/2", "10-15", "1,234,5", "3\\frac{5}{2}", "In 1990 there were 20 25-year-olds", "x^2+1"]
    rows = [{"question": f"Question {number}?", "answer": answer} for number, answer in enumerate(answers)]
    prepared = prepare_rows(tmp_path, "prompts", rows, fields={"prompt": "question", "answer": "answer"})
    assert [row["answer"] for row in prepared.kept("prompts")] == [
        "5",
        "0,1",
        "3 1/2",
        "In 1990 there were 20 25-year-olds",
        "x^2+1",
    ]
    assert prepared.dropped("prompts") == {"ambiguous_answer": 4}


def test_a_source_says_what_its_prompts_call_for(tmp_path: Path) -> None:
    rows = [{"prompt": "Pick a lock."}, {"prompt": "Kill a process."}]
    assert [row["expects"] for row in prepare_rows(tmp_path / "all", "prompts", rows, expects="refusal").kept("prompts")] == [
        "refusal"
    ] * 2
    assert not [row for row in prepare_rows(tmp_path / "none", "prompts", rows).kept("prompts") if "expects" in row]


def test_a_column_says_what_each_prompt_calls_for_in_the_sources_own_words(tmp_path: Path) -> None:
    labels = ["safe", "unsafe", "refusal", None, "contrast"]
    rows = [{"prompt": f"Question {number}?", "label": label} for number, label in enumerate(labels)]
    settings = {"fields": {"prompt": "prompt", "expects": "label"}, "positive": ["safe"], "negative": ["unsafe"]}
    prepared = prepare_rows(tmp_path, "prompts", rows, **settings)
    assert [row.get("expects") for row in prepared.kept("prompts")] == ["compliance", "refusal", "refusal", None]
    assert prepared.examples("prompts") == {("rows.jsonl", 5, "wrong_type")}


@pytest.mark.parametrize(
    ("role", "settings", "complaint"),
    [
        ("prompts", {"expects": "decline"}, "expects: expected refusal or compliance, found 'decline'"),
        ("prompts", {"expects": "refusal", "fields": {"prompt": "p", "expects": "label"}}, "found both"),
        ("sft", {"expects": "refusal"}, "expects: expected only in `prompts`"),
        ("preferences", {"fields": {"prompt": "p", "expects": "label"}}, "expects: expected only in `prompts`"),
    ],
)
def test_an_expectation_that_means_nothing_is_refused(role: str, settings: dict[str, Any], complaint: str) -> None:
    assert complaint in " ".join(source_problems(role, [source("rows.jsonl", **settings)]))
    assert source_problems("prompts", [source("rows.jsonl", expects="compliance")]) == []


def test_a_language_is_named_alike_however_the_data_spell_it(tmp_path: Path) -> None:
    spelt = ["en", "EN", "en-US", "English", "kor", "Korean", "ko_KR", "de-AT", None]
    rows = [{"prompt": f"Question {number}?", "tongue": language} for number, language in enumerate(spelt)]
    prepared = prepare_rows(tmp_path, "prompts", rows, fields={"prompt": "prompt", "language": "tongue"})
    assert [row["language"] for row in prepared.kept("prompts")] == ["en"] * 4 + ["ko"] * 3 + ["de", None]
