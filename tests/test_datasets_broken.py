"""Broken rows: each kind is counted under its reason with file and row, never a traceback and never dropped in silence."""

from pathlib import Path
from typing import Any

import pytest

from plumbline.data.faults import REASONS, DataError
from tests.preparing import lenient, prepare, source, write_rows

GOOD = {"instruction": "Name a colour.", "input": "", "output": "Blue."}
PAIR = {"prompt": "Which is better?", "chosen": "This one.", "rejected": "That one."}
GOOD_ROWS = {"sft": GOOD, "preferences": PAIR, "unpaired": {"prompt": "Well?", "completion": "Good.", "label": True}}
USER, REPLY = [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]
HH = "\n\nHuman: Hello\n\nAssistant: "


def chat(*turns: tuple[str, Any]) -> dict[str, Any]:
    """A row of messages."""
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


# Role, format, row, and the reason under which it is counted.
BROKEN_ROWS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "an assistant that begins": ("sft", "messages", chat(("assistant", "a"), ("user", "b"), ("assistant", "c")), "role_order"),
    "two users in a row": ("sft", "messages", chat(("user", "a"), ("user", "b"), ("assistant", "c")), "role_order"),
    "a system turn before the answer": (
        "sft",
        "messages",
        chat(("user", "a"), ("system", "b"), ("assistant", "c")),
        "role_order",
    ),
    "two system turns": (
        "sft",
        "messages",
        chat(("system", "a"), ("system", "b"), ("user", "c"), ("assistant", "d")),
        "role_order",
    ),
    "a conversation that ends in a question": ("sft", "messages", chat(("user", "a")), "no_completion"),
    "only a system turn": ("sft", "messages", chat(("system", "a")), "no_completion"),
    "only an answer": ("sft", "messages", chat(("assistant", "a")), "no_prompt"),
    "no messages": ("sft", "messages", {"messages": []}, "no_completion"),
    "messages null": ("sft", "messages", {"messages": None}, "missing_field"),
    "messages a string": ("sft", "messages", {"messages": "user: a"}, "wrong_type"),
    "a message that is a string": ("sft", "messages", {"messages": ["a", "b"]}, "wrong_type"),
    "a message that is null": ("sft", "messages", {"messages": [None]}, "wrong_type"),
    "content null": ("sft", "messages", chat(("user", None), ("assistant", "b")), "missing_field"),
    "content a number": ("sft", "messages", chat(("user", 3), ("assistant", "b")), "wrong_type"),
    "a picture": ("sft", "messages", chat(("user", [{"type": "image", "url": "x"}]), ("assistant", "b")), "wrong_type"),
    "role null": ("sft", "messages", {"messages": [{"role": None, "content": "a"}]}, "missing_field"),
    "a part that is null": ("sft", "messages", chat(("user", [None]), ("assistant", "b")), "wrong_type"),
    "a part whose text is null": (
        "sft",
        "messages",
        chat(("user", [{"type": "text", "text": None}]), ("assistant", "b")),
        "wrong_type",
    ),
    "a value that is null": (
        "sft",
        "sharegpt",
        {"conversations": [{"from": "human", "value": None}, {"from": "gpt", "value": "b"}]},
        "missing_field",
    ),
    "a role that is a number": ("sft", "messages", {"messages": [{"role": 1, "content": "a"}]}, "unknown_role"),
    "a system turn that comes twice": (
        "sft",
        "messages",
        {"system": "x", **chat(("system", "y"), ("user", "a"), ("assistant", "b"))},
        "role_order",
    ),
    "several prompts in one": ("sft", "prompt_response", {"prompt": ["a", "b"], "response": "c"}, "wrong_type"),
    "a label in our own format that means nothing": (
        "sft",
        "plumbline",
        {"prompt": USER, "completion": REPLY, "label": "perhaps"},
        "wrong_type",
    ),
    "a label in our own format that means bad, in words": (
        "sft",
        "plumbline",
        {"prompt": USER, "completion": REPLY, "label": "false"},
        "undesirable",
    ),
    "columns of no kind": ("sft", "plumbline", {"question": "a"}, "missing_field"),
    "a call of a tool": (
        "sft",
        "messages",
        {"messages": [*USER, {"role": "assistant", "content": "b", "tool_calls": [{"id": 1}]}]},
        "wrong_type",
    ),
    "a tool's turn": ("sft", "messages", chat(("user", "a"), ("tool", "b"), ("assistant", "c")), "unknown_role"),
    "an empty earlier turn": (
        "sft",
        "messages",
        chat(("user", "a"), ("assistant", ""), ("user", "b"), ("assistant", "c")),
        "empty_turn",
    ),
    "chosen equal to rejected": ("preferences", "preference", PAIR | {"rejected": "This one."}, "identical"),
    "chosen null": ("preferences", "preference", PAIR | {"chosen": None}, "missing_field"),
    "rejected empty": ("preferences", "preference", PAIR | {"rejected": ""}, "empty_turn"),
    "no prompt": ("preferences", "preference", {"chosen": "a", "rejected": "b"}, "no_prompt"),
    "different prompts": (
        "preferences",
        "preference",
        {
            "chosen": chat(("user", "a"), ("assistant", "b"))["messages"],
            "rejected": chat(("user", "A"), ("assistant", "c"))["messages"],
        },
        "prompts_differ",
    ),
    "a prompt that the answers do not answer": (
        "preferences",
        "preference",
        {
            "prompt": "Another question?",
            "chosen": chat(("user", "a"), ("assistant", "b"))["messages"],
            "rejected": chat(("user", "a"), ("assistant", "c"))["messages"],
        },
        "prompts_differ",
    ),
    "different transcripts": (
        "preferences",
        "hh",
        {"chosen": HH + "a\n\nHuman: b\n\nAssistant: c", "rejected": HH + "A\n\nHuman: b\n\nAssistant: d"},
        "prompts_differ",
    ),
    "a transcript that ends in a question": (
        "preferences",
        "hh",
        {"chosen": HH + "a\n\nHuman: b", "rejected": HH + "a\n\nHuman: c"},
        "no_completion",
    ),
    "a transcript without speakers": ("preferences", "hh", {"chosen": "a", "rejected": "b"}, "wrong_type"),
    "a transcript with an empty turn": ("preferences", "hh", {"chosen": HH, "rejected": HH + "b"}, "empty_turn"),
    "a transcript that is null": ("preferences", "hh", {"chosen": HH + "a", "rejected": None}, "missing_field"),
    "no ranked answers": ("preferences", "ranked", {"prompt": "a", "ranked": []}, "no_preference"),
    "a ranked answer that is null": ("preferences", "ranked", {"prompt": "a", "ranked": ["b", None]}, "missing_field"),
    "a scored answer that is a string": ("preferences", "ultrafeedback", {"prompt": "a", "completions": ["b"]}, "wrong_type"),
    "an infinite score": (
        "preferences",
        "scored",
        {"prompt": "a", "completions": ["b", "c"], "scores": [1, "inf"]},
        "wrong_type",
    ),
    "a score that is not a number among others": (
        "preferences",
        "scored",
        {"prompt": "a", "completions": ["b", "c", "d"], "scores": [1, "nan", 2]},
        "wrong_type",
    ),
    "a score that is true": (
        "preferences",
        "scored",
        {"prompt": "a", "completions": ["b", "c"], "scores": [1, True]},
        "wrong_type",
    ),
    "one ranked answer": ("preferences", "ranked", {"prompt": "a", "ranked": ["b"]}, "no_preference"),
    "ranked answers that are numbers": ("preferences", "ranked", {"prompt": "a", "ranked": [1, 2]}, "wrong_type"),
    "a tie of scores": ("preferences", "scored", {"prompt": "a", "completions": ["b", "c"], "scores": [1, 1]}, "no_preference"),
    "a score that is a word": (
        "preferences",
        "scored",
        {"prompt": "a", "completions": ["b", "c"], "scores": [1, "x"]},
        "wrong_type",
    ),
    "scores that are not numbers": (
        "preferences",
        "scored",
        {"prompt": "a", "completions": ["b", "c"], "scores": ["nan", "nan"]},
        "wrong_type",
    ),
    "fewer scores than answers": (
        "preferences",
        "scored",
        {"prompt": "a", "completions": ["b", "c"], "scores": [1]},
        "wrong_type",
    ),
    "a completion without score": (
        "preferences",
        "ultrafeedback",
        {"prompt": "a", "completions": [{"response": "b"}, {"response": "c"}]},
        "missing_field",
    ),
    "an empty verdict": (
        "preferences",
        "comparison",
        {"input": "a", "output_1": "b", "output_2": "c", "label": ""},
        "no_preference",
    ),
    "a tied verdict": (
        "preferences",
        "comparison",
        {"input": "a", "output_1": "b", "output_2": "c", "label": 0},
        "no_preference",
    ),
    "an answer to compare that is null": (
        "preferences",
        "comparison",
        {"input": "a", "output_1": None, "output_2": "c", "label": 1},
        "missing_field",
    ),
    "a labelled answer that is missing": ("unpaired", "kto", {"prompt": "a", "label": True}, "missing_field"),
    "a label that is a word": ("unpaired", "kto", {"prompt": "a", "completion": "b", "label": "perhaps"}, "wrong_type"),
    "a label that is null": ("unpaired", "kto", {"prompt": "a", "completion": "b", "label": None}, "no_preference"),
    "a bad answer as demonstration": ("sft", "kto", {"prompt": "a", "completion": "b", "label": False}, "undesirable"),
    "a prompt as demonstration": ("sft", "prompts", {"prompt": "a"}, "wrong_kind"),
    "an answer without a final number": ("sft", "gsm8k", {"question": "a", "answer": "so 4"}, "missing_field"),
    "a final answer in words": ("sft", "gsm8k", {"question": "a", "answer": "so\n#### four"}, "missing_field"),
    "a final answer with commas out of place": ("sft", "gsm8k", {"question": "a", "answer": "so\n#### 1,2"}, "missing_field"),
    "tests that are not strings": ("sft", "mbpp", {"text": "a", "code": "b", "test_list": [None]}, "wrong_type"),
    "tests that are not a list": ("sft", "mbpp", {"text": "a", "code": "b", "test_list": "assert"}, "wrong_type"),
}


def test_every_broken_row_is_counted_with_its_reason(tmp_path: Path) -> None:
    roles = {role: [source(f"good-{role}.jsonl", name="good")] for role in GOOD_ROWS}
    for role, row in GOOD_ROWS.items():
        write_rows(tmp_path / f"in/good-{role}.jsonl", [row])
    names = {kind: f"{number}.jsonl" for number, kind in enumerate(BROKEN_ROWS)}
    for kind, (role, form, row, _) in BROKEN_ROWS.items():
        write_rows(tmp_path / "in" / names[kind], [row])
        roles[role].append(source(names[kind], name=kind, format=form))
    prepared = prepare(tmp_path, roles, lenient())
    counted = {kind: drop for role in roles for kind, drop in prepared.first_drops(role).items()}
    assert counted == {kind: (names[kind], 1, reason) for kind, (_, _, _, reason) in BROKEN_ROWS.items()}
    for role in roles:
        assert [row["source"] for row in prepared.kept(role)] == ["good"]


def test_answers_that_masking_makes_equal_are_identical(tmp_path: Path) -> None:
    write_rows(tmp_path / "in/a.jsonl", [PAIR | {"chosen": "me@example.org", "rejected": "you@example.org"}, PAIR])
    prepared = prepare(tmp_path, {"preferences": [source("a.jsonl")]}, lenient(personal_data="mask"))
    assert prepared.examples("preferences") == {("a.jsonl", 1, "identical")}


def test_over_a_limit_the_stage_fails_with_numbers_examples_and_remedy(tmp_path: Path) -> None:
    write_rows(
        tmp_path / "in/hh.jsonl", [PAIR | {"prompt": f"Question {i}?"} for i in range(50)] + [PAIR | {"rejected": "This one."}]
    )
    with pytest.raises(DataError) as error:
        prepare(tmp_path, {"preferences": [source("hh.jsonl")]})
    assert str(error.value).startswith("preferences: 1 of 51 rows of 'hh.jsonl' dropped as identical")
    for part in ("limit 0.01", "hh.jsonl:51 (This one.)", REASONS["identical"].remedy, "policy.limits.identical"):
        assert part in str(error.value)


# --------------------------------------------------------------------------------------------------------- templates

TEMPLATES: dict[str, tuple[str, str]] = {
    "drops the system turn": (
        "{% for m in messages if m['role'] != 'system' %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "template",
    ),
    "refuses the system turn": (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "template",
    ),
    "doubles the end of turn": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}"
        "{% if messages[0]['role'] == 'system' and m['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "end_of_turn",
    ),
    "drops a system turn whose text occurs elsewhere": (
        "{% for m in messages if m['role'] != 'system' %}{{ '<|' + m['role'] + '|> Be brief.' + m['content'] + '<|end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|> Be brief.{% endif %}",
        "template",
    ),
    "repeats the system turn before each user turn": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if m['role'] == 'user' and messages[0]['role'] == 'system' %}"
        "{{ messages[0]['content'] }}{% endif %}{{ m['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "template",
    ),
    "puts the system turn last": (
        "{% for m in messages if m['role'] == 'user' %}{{ '<|user|>' + m['content'] + '<|end|>' }}{% endfor %}"
        "{% for m in messages if m['role'] == 'system' %}{{ '<|system|>' + m['content'] + '<|end|>' }}{% endfor %}"
        "{% for m in messages if m['role'] == 'assistant' %}{{ '<|assistant|>' + m['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "template",
    ),
    "doubles the end of turn after a user": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}"
        "{% if messages[0]['role'] == 'system' and m['role'] == 'user' %}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "end_of_turn",
    ),
    "forgets the end of turn": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
        "{% if messages[0]['role'] != 'system' %}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "template",
    ),
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_template_that_spoils_a_row_is_counted(kind: str, tmp_path: Path) -> None:
    template, reason = TEMPLATES[kind]
    rows = [chat(("system", "Be brief."), ("user", "a"), ("assistant", "b")), chat(("user", "c"), ("assistant", "d"))]
    write_rows(tmp_path / "in/rows.jsonl", rows)
    prepared = prepare(tmp_path, {"sft": [source("rows.jsonl")]}, lenient(), template=template)
    assert prepared.examples("sft") == {("rows.jsonl", 1, reason)}
    assert [row["row"] for row in prepared.kept("sft")] == [2]


def test_a_template_that_cuts_what_an_earlier_answer_says_is_counted(tmp_path: Path) -> None:
    """Whether a template cuts a turn may depend on its text; what it may cut of earlier turns is their reasoning only."""
    template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
        "{{ m['content'] if loop.last else m['content'].split('</think>')[-1].split('##')[-1] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    replies = ("b", "x ## y", "<think>x</think>y")
    rows = [chat(("user", "a"), ("assistant", reply), ("user", "c"), ("assistant", "d")) for reply in replies]
    write_rows(tmp_path / "in/rows.jsonl", rows)
    prepared = prepare(tmp_path, {"sft": [source("rows.jsonl")]}, lenient(), template=template)
    assert prepared.examples("sft") == {("rows.jsonl", 2, "template")}


def test_an_earlier_answer_that_does_not_end_is_counted(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% if m['role'] != 'assistant' or loop.last %}<|end|>"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    rows = [chat(("user", "a"), ("assistant", "b")), chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))]
    write_rows(tmp_path / "in/rows.jsonl", rows)
    for role in ("sft", "pretrain"):
        prepared = prepare(tmp_path, {role: [source("rows.jsonl")]}, lenient(), template=template)
        assert prepared.examples(role) == {("rows.jsonl", 2, "end_of_turn")}
