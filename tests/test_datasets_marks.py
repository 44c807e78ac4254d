"""What rows say beside their texts: keys of messages, verdicts on demonstrations, scores of pairs. Used, or dropped and counted."""

from pathlib import Path
from typing import Any

import pytest

from plumbline.data.overview import metrics, source_rows
from plumbline.rows import last_turn, text_of
from tests.preparing import prepare, prepare_rows, source, write_rows

USER, REPLY = {"role": "user", "content": "a?"}, {"role": "assistant", "content": "b."}
MORE = [{"role": "user", "content": "c?"}, {"role": "assistant", "content": "d."}]
GOOD = {"messages": [{"role": "user", "content": "Good?"}, {"role": "assistant", "content": "Yes."}]}

UNTRAINED: list[dict[str, Any]] = [
    {"weight": 0},
    {"weight": 0.0},
    {"weight": "0"},
    {"train": False},
    {"training": False},
    {"loss": False},
    {"loss_mask": 0},
    {"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]},
    {"masked": True},
]
"""How messages are marked as not to be trained on: by OpenAI and Mistral, axolotl, ms-swift and XTuner, torchtune."""


@pytest.mark.parametrize("mark", UNTRAINED, ids=str)
def test_an_answer_that_is_marked_as_untrained_is_never_trained_on(mark: dict[str, Any], tmp_path: Path) -> None:
    last, earlier = {**MORE[1], **mark}, {**REPLY, **mark}
    rows = [
        {"messages": [USER, REPLY, MORE[0], last]},  # the demonstration ends earlier
        {"messages": [USER, earlier, *MORE]},  # an earlier answer carries no loss
        {"messages": [USER, earlier]},
        {"prompt": [USER], "completion": [earlier]},
    ]
    kept = prepare_rows(tmp_path / "sft", "sft", rows[:3]).kept("sft")
    assert [(len(row["prompt"]), text_of(row["completion"])) for row in kept] == [(1, "b."), (3, "d.")]
    assert all(set(turn) == {"role", "content"} for row in kept for turn in row["prompt"] + row["completion"])
    for folder, role, row in (
        ("a", "sft", rows[2]),
        ("b", "sft", rows[3]),
        ("c", "pretrain", rows[1]),
        ("d", "unpaired", {**rows[2], "label": True}),
        ("e", "preferences", {"prompt": "a?", "chosen": [earlier], "rejected": "c."}),
    ):
        prepared = prepare_rows(tmp_path / folder, role, [row])
        assert (prepared.kept(role), prepared.dropped(role)) == ([], {"untrained": 1})
    assert len(prepare_rows(tmp_path / "f", "prompts", rows[2:3]).kept("prompts")) == 1


@pytest.mark.parametrize(
    "mark", [{"weight": 1}, {"train": True}, {"weight": None}, {"loss_mask": "1"}, {"masked": False}], ids=str
)
def test_an_answer_that_is_marked_as_trained_is_a_demonstration(mark: dict[str, Any], tmp_path: Path) -> None:
    (kept,) = prepare_rows(tmp_path, "sft", [{"messages": [USER, {**REPLY, **mark}]}]).kept("sft")
    assert kept["completion"] == [REPLY]


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("weight", 0.5, "wrong_type"),
        ("train", "perhaps", "wrong_type"),
        ("reasoning_content", "I think.", "reasoning"),
        ("reasoning", "I think.", "reasoning"),
        ("thinking", "I think.", "reasoning"),
        ("tool_calls", [{"id": 1}], "wrong_type"),
        ("function_call", {"name": "f"}, "wrong_type"),
        ("images", ["cat.png"], "wrong_type"),
        ("content", None, "missing_field"),
        ("content", [{"type": "image_url", "image_url": {"url": "x"}}], "wrong_type"),
        ("content", "[{'type': 'text', 'text': 'b.'}, {'type': 'image', 'url': 'x'}]", "wrong_type"),
        ("role", "tool", "unknown_role"),
    ],
)
def test_a_key_of_an_answer_that_a_chat_cannot_express_drops_the_row(key: str, value: Any, reason: str, tmp_path: Path) -> None:
    rows = [GOOD, {"messages": [USER, {**REPLY, key: value}]}]
    for role in ("sft", "pretrain"):
        prepared = prepare_rows(tmp_path / role, role, rows)
        assert prepared.examples(role) == {("rows.jsonl", 2, reason)}


def test_reasoning_is_not_lost_where_it_is_not_needed_or_already_written(tmp_path: Path) -> None:
    rows = [
        {"messages": [USER, {**REPLY, "reasoning_content": "I think."}, *MORE]},  # templates leave out earlier reasoning
        {"messages": [USER, {"role": "assistant", "content": "<think>I think.</think>b.", "reasoning": "I think."}]},
        {"messages": [USER, {**REPLY, "reasoning_content": ""}]},
    ]
    assert len(prepare_rows(tmp_path / "a", "sft", rows).kept("sft")) == 3
    assert len(prepare_rows(tmp_path / "b", "prompts", [{"messages": [USER, {**REPLY, "thinking": "x"}]}]).kept("prompts")) == 1


def test_parts_of_a_message_that_came_as_text_are_read(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "[{'type': 'text', 'text': 'a?'}]"}, REPLY]}
    (kept,) = prepare_rows(tmp_path, "sft", [row]).kept("sft")
    assert kept["prompt"] == [USER]


def test_keys_of_messages_that_nothing_uses_are_named_and_counted(tmp_path: Path) -> None:
    rows = [
        {"messages": [{**USER, "name": "Kim", "id": None}, {**REPLY, "ts": 3}]},
        {"messages": [{**USER, "name": "Lee"}, REPLY]},
    ]
    prepared = prepare_rows(tmp_path, "sft", rows)
    (row,) = source_rows(prepared.pools)
    assert row["unused"] == "name of 2 messages, ts of 1 messages"
    assert metrics(prepared.pools, {"sft": {}})["sft.noted.unused_message_keys"] == 3
    assert len(prepared.kept("sft")) == 2


# ------------------------------------------------------------------------------------------------- verdicts and scores

DEMONSTRATIONS: list[dict[str, Any]] = [
    {"instruction": "a?", "input": "", "output": "b."},
    {"prompt": "a?", "response": "b."},
    {"messages": [USER, REPLY]},
    {"prompt": [USER], "completion": [REPLY], "label": True},
]


@pytest.mark.parametrize("row", DEMONSTRATIONS, ids=lambda row: " ".join(row))
@pytest.mark.parametrize(("field", "bad", "good"), [("kto_tag", False, True), ("kto_tag", 0, 1), ("label", False, True)])
@pytest.mark.parametrize("format_name", ["auto", "stated"])
def test_an_answer_with_a_bad_verdict_is_not_a_demonstration(
    row: dict[str, Any], field: str, bad: Any, good: Any, format_name: str, tmp_path: Path
) -> None:
    stated = {"instruction": "alpaca", "prompt": "prompt_response", "messages": "messages"}[next(iter(row))]
    rows = [{**row, "label": True, field: bad}, {**row, "label": True, field: good}] if "label" in row else []
    rows = rows or [{**row, field: bad}, {**row, field: good}]
    prepared = prepare_rows(tmp_path, "sft", rows, format="auto" if format_name == "auto" else stated)
    assert [kept["row"] for kept in prepared.kept("sft")] == [2]
    assert prepared.dropped("sft") == {"undesirable": 1}
    assert source_rows(prepared.pools)[0]["unused"] == ""


@pytest.mark.parametrize("field", ["is_good", "accepted", "desirable", "is_correct", "label"])
def test_a_verdict_in_words_of_a_csv_file_counts(field: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.csv").write_text(f"question,answer,{field}\na?,b.,False\nc?,d.,True\n")
    assert [row["row"] for row in prepare(tmp_path, {"sft": [source("a.csv")]}).kept("sft")] == [3]


def test_a_class_in_label_is_not_a_verdict_unless_the_conf_says_so(tmp_path: Path) -> None:
    rows = [{"Q": f"q{label}?", "A": "b.", "label": label} for label in ("0", "1", "2")]
    prepared = prepare_rows(tmp_path / "a", "sft", rows)
    assert (len(prepared.kept("sft")), source_rows(prepared.pools)[0]["unused"]) == (3, "label")
    stated = prepare_rows(tmp_path / "b", "sft", rows, positive=["1", "2"], negative=["0"])
    assert [last_turn(row["prompt"]) for row in stated.kept("sft")] == ["q1?", "q2?"]


SCORES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"score_chosen": 2.0, "score_rejected": 8.5}, {}),
    ({"chosen_score": 2, "rejected_score": 3}, {}),
    ({"chosen-rating": 1, "rejected-rating": 4.5}, {}),
    ({"rating_chosen": "1", "rating_rejected": "4.5"}, {}),
    ({"chosen_avg_rating": 1, "rejected_avg_rating": 2}, {}),
    ({"reward_chosen": -3.0, "reward_rejected": -1.0}, {}),
    ({"metadata": {"score_chosen": 2.0, "score_rejected": 8.5}}, {}),
    ({"margin": -0.5}, {}),
    ({"score_good": 1, "score_bad": 2}, {"prompt": "prompt", "chosen": "good", "rejected": "bad"}),
]
"""Scores that contradict the order of a pair, and the `fields` of its source."""


@pytest.mark.parametrize(("scores", "fields"), SCORES, ids=lambda value: " ".join(value) or "auto")
def test_a_pair_whose_scores_contradict_its_order_is_dropped(
    scores: dict[str, Any], fields: dict[str, str], tmp_path: Path
) -> None:
    names = (fields["chosen"], fields["rejected"]) if fields else ("chosen", "rejected")
    rows = [{"prompt": f"{number}?", names[0]: "b.", names[1]: "c."} for number in range(9)]
    for role in ("preferences", "sft"):
        prepared = prepare_rows(tmp_path / role, role, [*rows, {**rows[0], **scores}], fields=fields)
        assert prepared.examples(role) == {("rows.jsonl", 10, "against_scores")}
    assert len(prepare_rows(tmp_path / "prompts", "prompts", [{**rows[0], **scores}], fields=fields).kept("prompts")) == 1


@pytest.mark.parametrize(
    "scores",
    [
        {"score_chosen": 8.5, "score_rejected": 2.0},
        {"score_chosen": None, "score_rejected": 2.0},
        {"chosen_rank": 1, "rejected_rank": 2},
        {"chosen_tokens": 3, "rejected_tokens": 9},
        {"chosen_toxicity_score": 0.1, "rejected_toxicity_score": 0.9},
    ],
)
def test_a_pair_that_its_scores_do_not_contradict_is_kept(scores: dict[str, Any], tmp_path: Path) -> None:
    prepared = prepare_rows(tmp_path, "preferences", [{"prompt": "a?", "chosen": "b.", "rejected": "c.", **scores}])
    assert len(prepared.kept("preferences")) == 1


def test_swapping_the_answers_in_fields_swaps_what_their_scores_say(tmp_path: Path) -> None:
    row = {"prompt": "a?", "chosen": "c.", "rejected": "b.", "score_chosen": 1, "score_rejected": 2}
    fields = {"prompt": "prompt", "chosen": "rejected", "rejected": "chosen"}
    (kept,) = prepare_rows(tmp_path, "preferences", [row], fields=fields).kept("preferences")
    assert text_of(kept["chosen"]) == "b."


def test_pairs_with_equal_scores_are_kept_and_counted(tmp_path: Path) -> None:
    row = {"prompt": "a?", "chosen": "b.", "rejected": "c.", "score_chosen": 8.0, "score_rejected": 8.0}
    prepared = prepare_rows(tmp_path, "preferences", [row])
    assert len(prepared.kept("preferences")) == 1
    assert metrics(prepared.pools, {"preferences": {}})["preferences.noted.tied_scores"] == 1


def test_a_tagged_answer_with_an_instruction_is_a_labelled_completion(tmp_path: Path) -> None:
    write_rows(tmp_path / "in/a.jsonl", [{"instruction": "a?", "input": "Long.", "output": "b.", "kto_tag": False}])
    (kept,) = prepare(tmp_path, {"unpaired": [source("a.jsonl")]}).kept("unpaired")
    assert (last_turn(kept["prompt"]), text_of(kept["completion"]), kept["label"]) == ("a?\n\nLong.", "b.", False)
