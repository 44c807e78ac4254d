"""What `prepare` does to data: formats in, policies, duplicates, decontamination, mixtures, personal data, lengths."""

import csv
import gzip
import json
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.datasets.checks import REASONS, contents
from stages.datasets.config import DEFAULT_LIMITS, Policy
from stages.datasets.decontamination import index_prompts, overlapping
from stages.datasets.duplicates import first_of_near, signatures
from stages.datasets.formats import FORMATS
from stages.datasets.parallel import map_chunks
from stages.datasets.personal_data import scan
from stages.datasets.report import source_rows
from stages.datasets.scripts import SCRIPTS, language, scripts_by_text
from stages.models.chat import completion_ids, prompt_ids
from tests.preparing import Prepared, lenient, prepare, small_tokenizer, source, write_rows

USER, SAID = {"role": "user", "content": "a?"}, {"role": "assistant", "content": "b."}
SYSTEM = {"role": "system", "content": "s"}
DEMONSTRATION = {"prompt": [USER], "completion": [SAID]}
PAIR = {"prompt": [USER], "chosen": [SAID], "rejected": [{"role": "assistant", "content": "c."}]}

# role, row, the format that is detected, what comes out
ACCEPTED: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "Alpaca": ("sft", {"instruction": "a?", "input": "", "output": "b."}, "alpaca", DEMONSTRATION),
    "Dolly": (
        "sft",
        {"instruction": "Sum up.", "context": "Long.", "response": "b.", "category": "x"},
        "dolly",
        {"prompt": [{"role": "user", "content": "Sum up.\n\nLong."}], "completion": [SAID]},
    ),
    "prompt and response": ("sft", {"prompt": "a?", "response": "b."}, "prompt_response", DEMONSTRATION),
    "Q and A": ("sft", {"Q": "a?", "A": "b.", "label": "0"}, "prompt_response", DEMONSTRATION),
    "messages": ("sft", {"messages": [SYSTEM, USER, SAID]}, "messages", {"prompt": [SYSTEM, USER], "completion": [SAID]}),
    "content in parts": (
        "sft",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a?"}]}, SAID]},
        "messages",
        DEMONSTRATION,
    ),
    "ShareGPT": (
        "sft",
        {"system": "s", "conversations": [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b."}]},
        "sharegpt",
        {"prompt": [SYSTEM, USER], "completion": [SAID]},
    ),
    "several turns": (
        "sft",
        {"messages": [USER, SAID, USER, SAID]},
        "messages",
        {"prompt": [USER, SAID, USER], "completion": [SAID]},
    ),
    "plain text": ("pretrain", {"text": "Once upon a time."}, "text", {"text": "Once upon a time."}),
    "a demonstration to read": ("pretrain", {"prompt": "a?", "response": "b."}, "prompt_response", {"messages": [USER, SAID]}),
    "a pair of strings": ("preferences", {"prompt": "a?", "chosen": "b.", "rejected": "c."}, "preference", PAIR),
    "a pair of whole conversations": (
        "preferences",
        {"prompt": "a?", "chosen": [USER, SAID], "rejected": [USER, *PAIR["rejected"]]},
        "preference",
        PAIR,
    ),
    "a pair without prompt column": (
        "preferences",
        {"chosen": [USER, SAID], "rejected": [USER, *PAIR["rejected"]]},
        "preference",
        PAIR,
    ),
    "a pair after ShareGPT turns": (
        "preferences",
        {
            "conversations": [{"from": "human", "value": "a?"}],
            "chosen": {"from": "gpt", "value": "b."},
            "rejected": {"from": "gpt", "value": "c."},
        },
        "preference",
        PAIR,
    ),
    "HH-RLHF": (
        "preferences",
        {"chosen": "\n\nHuman: a?\n\nAssistant: b.", "rejected": "\n\nHuman: a?\n\nAssistant: c."},
        "hh",
        PAIR,
    ),
    "UltraFeedback": (
        "preferences",
        {
            "instruction": "a?",
            "completions": [
                {"response": "c.", "overall_score": 2},
                {"response": "b.", "overall_score": "9"},
                {"response": "d.", "overall_score": 5.0},
            ],
        },
        "ultrafeedback",
        PAIR | {"score_chosen": 9.0, "score_rejected": 2.0},
    ),
    "scored": (
        "preferences",
        {"prompt": "a?", "completions": ["c.", "b."], "scores": [0.1, 0.9]},
        "scored",
        PAIR | {"score_chosen": 0.9, "score_rejected": 0.1},
    ),
    "ranked": ("preferences", {"prompt": "a?", "ranked": ["b.", "d.", "c."]}, "ranked", PAIR),
    "the second is better": ("preferences", {"input": "a?", "output_1": "c.", "output_2": "b.", "label": 2}, "comparison", PAIR),
    "the second is likely better": (
        "preferences",
        {"instruction": "a?", "output_1": "c.", "output_2": "b.", "preference": 1.93},
        "comparison",
        PAIR,
    ),
    "KTO": ("unpaired", {"prompt": "a?", "completion": "b.", "label": True}, "kto", DEMONSTRATION | {"label": True}),
    "KTO in messages": ("unpaired", {"messages": [USER, SAID], "label": False}, "kto", DEMONSTRATION | {"label": False}),
    "good ones as demonstrations": ("sft", {"prompt": "a?", "completion": "b.", "label": True}, "kto", DEMONSTRATION),
    "chosen as a demonstration": ("sft", {"prompt": "a?", "chosen": "b.", "rejected": "c."}, "preference", DEMONSTRATION),
    "GSM8K": (
        "sft",
        {"question": "a?", "answer": "It is 2*600=<<2*600=1200>>1,200.\n#### 1,200"},
        "gsm8k",
        {"prompt": [USER], "completion": [{"role": "assistant", "content": "It is 2*600=1,200.\n#### 1200"}], "answer": "1200"},
    ),
    "MBPP": (
        "sft",
        {"text": "a?", "code": "x = 1\r\ny = 2", "test_list": ["assert x"], "test_setup_code": ""},
        "mbpp",
        {
            "prompt": [{"role": "user", "content": "a?\nYour code should pass these tests:\nassert x"}],
            "completion": [{"role": "assistant", "content": "x = 1\ny = 2"}],
            "tests": ["assert x"],
        },
    ),
    "HumanEval": (
        "sft",
        {
            "task_id": "0",
            "prompt": "def f():\n",
            "canonical_solution": "    return 1\n",
            "test": "def check(f): ...",
            "entry_point": "f",
        },
        "humaneval",
        {
            "prompt": [{"role": "user", "content": "Complete this Python function.\n\ndef f():\n"}],
            "completion": [{"role": "assistant", "content": "def f():\n    return 1\n"}],
            "tests": ["def check(f): ...", "check(f)"],
        },
    ),
    "prompts": (
        "prompts",
        {"prompt": "a?", "type": "homonyms"},
        "prompts",
        {"prompt": [USER], "family": "homonyms", "language": None},
    ),
    "MT-Bench": (
        "prompts",
        {"question_id": 81, "category": "writing", "turns": ["a?", "b?"]},
        "prompts",
        {"prompt": [USER], "family": "writing"},
    ),
    "Korean prompts": (
        "prompts",
        {"question": "날씨가 어때요?"},
        "prompts",
        {"prompt": [{"role": "user", "content": "날씨가 어때요?"}], "language": "ko"},
    ),
    "our own rows": ("preferences", {**PAIR, "id": "7", "margin": 2}, "plumbline", {**PAIR, "id": "7", "margin": 2}),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_a_public_format_is_detected_and_converted(kind: str, tmp_path: Path) -> None:
    role, row, name, expected = ACCEPTED[kind]
    assert next(known for known, candidate in FORMATS.items() if candidate.fits(row)) == name
    write_rows(tmp_path / "in/rows.jsonl", [row])
    kept = prepare(tmp_path, {role: [source("rows.jsonl")]}).kept(role)
    assert len(kept) == 1
    assert {key: kept[0][key] for key in expected} == expected
    assert {key: kept[0][key] for key in ("source", "file", "row", "licence")} == {
        "source": "rows.jsonl",
        "file": "rows.jsonl",
        "row": 1,
        "licence": "MIT",
    }


def test_every_format_has_an_example_here() -> None:
    assert {name for _, _, name, _ in ACCEPTED.values()} == set(FORMATS)


# What stands beside the usual fields and belongs to what is asked: it must not be lost.
BESIDE: dict[str, tuple[str, dict[str, Any], list[dict[str, str]]]] = {
    "Alpaca's system and history": (
        "sft",
        {"instruction": "a?", "input": "i", "output": "b.", "system": "s", "history": [["q?", "r."]]},
        [
            SYSTEM,
            {"role": "user", "content": "q?"},
            {"role": "assistant", "content": "r."},
            {"role": "user", "content": "a?\n\ni"},
        ],
    ),
    "an input beside an instruction to answer": (
        "sft",
        {"instruction": "a?", "input": "i", "response": "b."},
        [{"role": "user", "content": "a?\n\ni"}],
    ),
    "an input beside an instruction to ask": (
        "prompts",
        {"instruction": "a?", "input": "i"},
        [{"role": "user", "content": "a?\n\ni"}],
    ),
    "an input beside two outputs": (
        "preferences",
        {"instruction": "a?", "input": "i", "output_1": "b.", "output_2": "c.", "preference": 1},
        [{"role": "user", "content": "a?\n\ni"}],
    ),
    "OpenOrca's system_prompt": ("sft", {"system_prompt": "s", "question": "a?", "response": "b."}, [SYSTEM, USER]),
    "a system turn beside conversations to compare": (
        "preferences",
        {"system": "s", "prompt": "a?", "chosen": [USER, SAID], "rejected": [USER, *PAIR["rejected"]]},
        [SYSTEM, USER],
    ),
}


@pytest.mark.parametrize("kind", BESIDE)
def test_what_stands_beside_the_prompt_is_asked_too(kind: str, tmp_path: Path) -> None:
    role, row, prompt = BESIDE[kind]
    write_rows(tmp_path / "in/rows.jsonl", [row])
    assert prepare(tmp_path, {role: [source("rows.jsonl")]}).kept(role)[0]["prompt"] == prompt


def test_a_mapped_system_turn_comes_once(tmp_path: Path) -> None:
    write_rows(tmp_path / "in/a.jsonl", [{"s": "Be brief.", "q": "a?", "good": "b.", "bad": "c."}])
    fields = {"system": "s", "prompt": "q", "chosen": "good", "rejected": "bad"}
    kept = prepare(tmp_path, {"preferences": [source("a.jsonl", fields=fields)]}).kept("preferences")
    assert [turn["content"] for turn in kept[0]["prompt"]] == ["Be brief.", "a?"]


def test_fields_that_a_format_takes_no_notice_of_are_told(tmp_path: Path) -> None:
    write_rows(tmp_path / "in/a.jsonl", [{"question": "a?", "answer": "b.", "context": "Long.", "id": 1}])
    fields = {"prompt": "{context}\n\n{question}", "completion": "answer"}
    sources = [source("a.jsonl"), source("a.jsonl", name="mapped", fields=fields)]
    told = {row["source"]: (row["format"], row["unused"]) for row in source_rows(prepare(tmp_path, {"sft": sources}).pools)}
    assert told == {"a.jsonl": ("prompt_response", "context, id"), "mapped": ("fields", "id")}


CONTAINERS = ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.csv", "a.csv.gz", "a.tsv", "a.parquet", "lines.json"]


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"Was ist {i}, 세 번?", "response": f'"{i}"\nja'} for i in range(3)]
    path = tmp_path / "in" / name
    path.parent.mkdir()
    if name.endswith(".parquet"):
        import pandas

        pandas.DataFrame(rows).to_parquet(path)
    else:
        path.write_bytes(_container(name.removesuffix(".gz"), rows, name.endswith(".gz")))
    kept = prepare(tmp_path, {"sft": [source(name)]}).kept("sft")
    assert [row["prompt"][0]["content"] for row in kept] == [row["prompt"] for row in rows]
    assert [row["completion"][0]["content"] for row in kept] == [row["response"] for row in rows]


def _container(name: str, rows: list[dict[str, str]], zipped: bool) -> bytes:
    if name in ("a.csv", "a.tsv"):
        import io

        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), delimiter="," if name == "a.csv" else "\t")
        writer.writeheader()
        writer.writerows(rows)
        data = text.getvalue()
    else:
        data = json.dumps(rows, indent=2) if name == "a.json" else "".join(json.dumps(row) + "\n" for row in rows)
    return gzip.compress(data.encode()) if zipped else data.encode()


def test_folders_globs_and_data_below_a_key_are_read_in_order(tmp_path: Path) -> None:
    for name in ("shards/b.jsonl", "shards/a.jsonl", "more-1.jsonl"):
        write_rows(tmp_path / "in" / name, [{"text": name}])
    (tmp_path / "in/whole.json").write_text(json.dumps({"version": 1, "data": [{"text": "whole"}]}))
    sources = [source("shards", "more-*.jsonl"), source("whole.json")]
    texts = [row["text"] for row in prepare(tmp_path, {"pretrain": sources}).kept("pretrain")]
    assert texts == ["shards/a.jsonl", "shards/b.jsonl", "more-1.jsonl", "whole"]


def test_a_mapping_reaches_nested_fields_and_fills_templates(tmp_path: Path) -> None:
    row = {
        "task": "Add.",
        "cases": [{"in": "1, 2", "out": "3"}],
        "votes": {"x": "1", "y": "2", "z": "1"},
        "one": "good",
        "two": "bad",
    }
    write_rows(tmp_path / "in/a.jsonl", [row])
    mapped = source("a.jsonl", name="a", fields={"prompt": "{task}\n\n{cases.0.in}", "completion": "cases.-1.out"})
    voted = source(
        "a.jsonl", name="b", fields={"prompt": "task", "first": "one", "second": "two", "preferred": "votes.x, votes.y, votes.z"}
    )
    prepared = prepare(tmp_path, {"sft": [mapped], "preferences": [voted]})
    assert prepared.kept("sft")[0]["prompt"][0]["content"] == "Add.\n\n1, 2"
    assert prepared.kept("sft")[0]["completion"][0]["content"] == "3"
    assert prepared.kept("preferences")[0]["chosen"][0]["content"] == "good"


def test_an_encoding_that_is_named_is_used(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.csv").write_bytes("Q,A\n날씨,맑아요\n".encode("cp949"))
    (tmp_path / "in/b.jsonl").write_bytes('{"Q": "기분", "A": "좋아요"}\n'.encode("utf-16"))
    sources = [source("a.csv", encoding="cp949"), source("b.jsonl", encoding="utf-16")]
    assert [row["completion"][0]["content"] for row in prepare(tmp_path, {"sft": sources}).kept("sft")] == ["맑아요", "좋아요"]


def test_a_hub_data_set_is_streamed_at_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: dict[str, Any] = {}

    def load_dataset(path: str, name: str | None, **settings: Any) -> Any:
        asked.update(settings, path=path, name=name)
        return ({"instruction": f"Say {i}.", "input": "", "output": str(i)} for i in range(1_000_000_000))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    hub = source(hub="tatsu-lab/alpaca", revision="abc", limit=3)
    kept = prepare(tmp_path, {"sft": [hub]}).kept("sft")
    assert [row["completion"][0]["content"] for row in kept] == ["0", "1", "2"]
    assert asked == {"path": "tatsu-lab/alpaca", "name": None, "split": "train", "revision": "abc", "streaming": True}


# ---------------------------------------------------------------------------------------------------------- properties

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
# White space at the ends, personal data and other scripts must come through as they are; the last ones must not come through.
sound = st.sampled_from(
    ["a", " a", "b \n", "\tc?\r\n", "가 나", "é", "Write to me@example.org.", "010-1234-5678", "<|user", "</s>"]
)
unsound = st.sampled_from(["", " ", "<|end|>", "a<|end|>b", "\ud800", "\0", "\x1b[0m", "a\u0085"])
words = sound | unsound | st.text(st.characters(blacklist_categories=["Cs"]), max_size=12)
turn = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": words | anything})
junk = st.dictionaries(st.text(max_size=5), anything, max_size=3)
demonstration = st.fixed_dictionaries({"prompt": words, "response": words})
broken = st.fixed_dictionaries({"prompt": words | anything | st.lists(turn, max_size=4), "response": words | anything})
good_demonstration = st.fixed_dictionaries({"prompt": sound, "response": sound})


def among(good: st.SearchStrategy[Any], others: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """Rows of which at least two are good, so that no property holds because nothing is kept."""
    rows = st.tuples(st.lists(good, min_size=2, max_size=4), st.lists(others, max_size=8))
    return rows.flatmap(lambda parts: st.permutations([*parts[0], *parts[1]]))


def check_fed(prompt: list[dict[str, str]], reply: list[dict[str, str]]) -> None:
    """Nothing but what is said and the template's marks is fed, each turn ends once, and no text holds what no text needs."""
    tokenizer = small_tokenizer()
    asked, answered = prompt_ids(tokenizer, prompt), completion_ids(tokenizer, prompt, reply)
    said = "".join(f"<|{turn['role']}|>{turn['content']}<|end|>" for turn in prompt + reply)
    assert tokenizer.decode(asked + answered) == said
    assert asked.count(tokenizer.eos_token_id) == len(prompt)
    assert answered.index(tokenizer.eos_token_id) == len(answered) - 1
    for turn in prompt + reply:
        assert turn["content"].strip()
        assert not any(unicodedata.category(sign) in ("Cc", "Cs") and sign not in "\n\r\t" for sign in turn["content"])


PROPERTY = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}


@settings(max_examples=100, **PROPERTY)
@given(rows=among(good_demonstration, demonstration | broken | junk))
def test_rows_in_are_rows_kept_plus_rows_dropped_and_what_is_kept_is_valid_and_unaltered(rows: list[Any], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir(exist_ok=True)
    (tmp_path / "in/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared = prepare(tmp_path, {"sft": [source("rows.jsonl", format="prompt_response")]}, lenient(personal_data="off"))
    kept = prepared.kept("sft")
    assert len(rows) == len(kept) + sum(prepared.dropped("sft").values())
    assert prepared.pools["sft"].keep.sum() == len(kept) > 0
    for row in kept:
        original = rows[row["row"] - 1]
        if isinstance(original["prompt"], str):
            assert row["prompt"] == [{"role": "user", "content": original["prompt"]}]
        if isinstance(original["response"], str):
            assert row["completion"] == [{"role": "assistant", "content": original["response"]}]
        check_fed(row["prompt"], row["completion"])


chat_turns = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": words}), max_size=4)
pair_of_strings = st.fixed_dictionaries({"prompt": words, "chosen": words, "rejected": words})
pair_of_turns = st.fixed_dictionaries({"chosen": chat_turns, "rejected": chat_turns})
good_strings = st.fixed_dictionaries({"prompt": sound, "chosen": sound, "rejected": sound})
good_turns = st.builds(
    lambda system, prompt, chosen, rejected: {
        side: [
            *([{"role": "system", "content": system}] if system else []),
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": reply},
        ]
        for side, reply in (("chosen", chosen), ("rejected", rejected))
    },
    *(st.none() | sound, sound, sound, sound),
)


@settings(max_examples=100, **PROPERTY)
@given(
    rows=among(good_strings | good_turns, pair_of_strings | pair_of_turns | junk),
    personal=st.sampled_from(["off", "report", "mask", "drop"]),
)
def test_pairs_in_are_pairs_kept_plus_dropped_and_altered_by_the_stated_policy_only(
    rows: list[Any], personal: str, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir(exist_ok=True)
    (tmp_path / "in/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    policy = lenient(personal_data=personal)
    prepared = prepare(tmp_path, {"preferences": [source("rows.jsonl", format="preference")]}, policy)
    kept = prepared.kept("preferences")
    assert len(rows) == len(kept) + sum(prepared.dropped("preferences").values())
    for row in kept:
        assert row["chosen"] != row["rejected"]
        original = rows[row["row"] - 1]
        for side in ("chosen", "rejected"):
            given = original[side]
            if isinstance(given, str):
                given = [{"role": "user", "content": original["prompt"]}, {"role": "assistant", "content": given}]
            if personal == "mask":
                given = [{**turn, "content": scan(turn["content"]).masked} for turn in given]
            assert [*row["prompt"], *row[side]] == given
            assert personal != "drop" or not any(scan(turn["content"]).found for turn in given)
            check_fed(row["prompt"], row[side])


def test_every_limit_and_every_drop_has_a_reason_that_is_explained() -> None:
    assert set(DEFAULT_LIMITS) - {"default"} <= set(REASONS)


# ------------------------------------------------------------------------------------------- splits and decontamination


def test_a_prompt_is_in_the_same_split_whatever_role_and_order(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {i}?", "response": f"Answer {i}."} for i in range(400)]
    write_rows(tmp_path / "in/a.jsonl", rows)
    write_rows(tmp_path / "in/b.jsonl", rows[::-1])
    sources = {"sft": [source("a.jsonl")], "prompts": [source("b.jsonl")]}
    prepared = prepare(tmp_path, sources, lenient(), validation=0.1, test=0.2)
    asked = {split: {row["prompt"][0]["content"] for row in rows} for split, rows in prepared.rows["prompts"].items()}
    trained = {split: {row["prompt"][0]["content"] for row in rows} for split, rows in prepared.rows["sft"].items()}
    assert trained["validation"] == asked["validation"]
    assert trained["train"] == asked["train"]
    assert prepared.dropped("sft") == {"evaluation_overlap": len(asked["test"])}
    assert 50 < len(asked["test"]) < 110
    assert 20 < len(asked["validation"]) < 60


LONG = "A train leaves the old station at nine and arrives in the far city at noon exactly. How long does it take?"


@pytest.mark.parametrize(
    ("role", "row", "dropped"),
    [
        ("sft", {"prompt": LONG, "response": "Three hours."}, True),
        ("sft", {"prompt": "Solve. " + LONG.upper().replace(".", " !"), "response": "Three."}, True),
        ("sft", {"prompt": "Hello?", "response": f"You once asked: {LONG}"}, True),
        ("sft", {"prompt": "A train leaves the old station at nine and is late.", "response": "No."}, False),
        ("sft", {"prompt": "What is  3 plus 4", "response": "7"}, True),
        ("sft", {"prompt": "What is 3 plus 5?", "response": "8"}, False),
        ("pretrain", {"text": f"Once upon a time. {LONG} The end."}, True),
        ("preferences", {"prompt": "Which?", "chosen": LONG, "rejected": "None."}, True),
        ("unpaired", {"prompt": LONG, "completion": "Three hours.", "label": True}, True),
    ],
)
def test_a_training_row_that_holds_an_evaluation_prompt_is_removed(role: str, row: Any, dropped: bool, tmp_path: Path) -> None:
    write_rows(tmp_path / "in/rows.jsonl", [row])
    write_rows(tmp_path / "in/test.jsonl", [{"prompt": LONG}, {"prompt": "What is 3 plus 4?"}])
    prepared = prepare(tmp_path, {role: [source("rows.jsonl")], "prompts": [source("test.jsonl", into="test")]})
    assert prepared.dropped(role) == ({"evaluation_overlap": 1} if dropped else {})
    assert len(prepared.kept("prompts")) == 2


def test_rollout_prompts_that_hold_an_evaluation_prompt_are_removed(tmp_path: Path) -> None:
    write_rows(tmp_path / "in/train.jsonl", [{"prompt": f"Please answer. {LONG}"}, {"prompt": "Another thing?"}])
    write_rows(tmp_path / "in/test.jsonl", [{"prompt": LONG}])
    prepared = prepare(tmp_path, {"prompts": [source("train.jsonl", into="train"), source("test.jsonl", into="test")]})
    assert [row["prompt"][0]["content"] for row in prepared.rows["prompts"]["train"]] == ["Another thing?"]
    assert prepared.places("prompts") == {("train.jsonl", 1, "evaluation_overlap")}


@pytest.mark.parametrize("asked", ["? ! …", "🙂"])
def test_prompts_without_words_overlap_nothing(asked: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "in/rows.jsonl", [{"prompt": "!!!", "response": "What?"}])
    write_rows(tmp_path / "in/test.jsonl", [{"prompt": asked}, {"prompt": LONG}, {"prompt": "Why?"}])
    prepared = prepare(tmp_path, {"sft": [source("rows.jsonl")], "prompts": [source("test.jsonl", into="test")]})
    assert len(prepared.kept("sft")) == 1


def test_korean_written_in_jamo_is_the_same_korean(tmp_path: Path) -> None:
    asked = "오늘 서울의 날씨가 어떤지 그리고 내일은 비가 오는지 자세히 알려 주세요"
    jamo = unicodedata.normalize("NFD", asked)
    write_rows(tmp_path / "in/rows.jsonl", [{"prompt": jamo, "response": "맑아요."}, {"prompt": "다른 질문", "response": "네."}])
    write_rows(tmp_path / "in/test.jsonl", [{"prompt": asked}])
    prepared = prepare(tmp_path, {"sft": [source("rows.jsonl")], "prompts": [source("test.jsonl", into="test")]})
    assert prepared.places("sft") == {("rows.jsonl", 1, "evaluation_overlap")}
    assert (signatures([asked]) == signatures([jamo])).all()


def test_a_short_prompt_is_found_however_it_is_spaced(tmp_path: Path) -> None:
    write_rows(tmp_path / "in/rows.jsonl", [{"prompt": "What  is \n\n  3    plus -  -  -  4 ?", "response": "7"}])
    write_rows(tmp_path / "in/test.jsonl", [{"prompt": "What is 3 plus 4?"}])
    prepared = prepare(tmp_path, {"sft": [source("rows.jsonl")], "prompts": [source("test.jsonl", into="test")]})
    assert prepared.dropped("sft") == {"evaluation_overlap": 1}


def test_a_system_prompt_that_rows_share_is_no_overlap(tmp_path: Path) -> None:
    system = {"role": "system", "content": " ".join(f"rule{i}" for i in range(60))}

    def asked(question: str, *answer: dict[str, str]) -> dict[str, Any]:
        return {"messages": [system, {"role": "user", "content": question}, *answer]}

    answer = {"role": "assistant", "content": "Yes."}
    write_rows(tmp_path / "in/rows.jsonl", [asked("What about rabbits?", answer), asked(LONG, answer), asked("Why?", answer)])
    write_rows(tmp_path / "in/test.jsonl", [asked(LONG), asked("Why?")])
    prepared = prepare(tmp_path, {"sft": [source("rows.jsonl")], "prompts": [source("test.jsonl", into="test")]})
    assert prepared.places("sft") == {("rows.jsonl", 2, "evaluation_overlap"), ("rows.jsonl", 3, "evaluation_overlap")}


def test_overlap_counts_the_share_of_one_prompts_ngrams() -> None:
    prompt = " ".join(f"w{i}" for i in range(15))  # eight 8-grams
    index = index_prompts([prompt], words=8, fraction=0.5)
    texts = ["x " + " ".join(f"w{i}" for i in range(length)) for length in (10, 11)]  # three and four of them
    assert overlapping(index, texts, ["", ""]).tolist() == [False, True]


# ---------------------------------------------------------------------------------------------- duplicates and mixtures


def _near(tmp_path: Path, policy: Policy) -> Prepared:
    story = "The quick brown fox jumps over the lazy dog while the old farmer watches from his porch and laughs. " * 2
    rows = [{"text": story}, {"text": story}, {"text": story.replace("laughs", "smiles")}, {"text": "Something else entirely."}]
    write_rows(tmp_path / "in/a.jsonl", rows)
    return prepare(tmp_path, {"pretrain": [source("a.jsonl")]}, policy)


def test_duplicates_are_dropped_and_near_ones_reported_with_what_they_repeat(tmp_path: Path) -> None:
    prepared = _near(tmp_path, Policy())
    assert prepared.dropped("pretrain") == {"duplicate": 1}
    tally = prepared.pools["pretrain"].tally
    assert tally.noted[("a.jsonl", "near_duplicate")] == 1
    assert [(drop.row, drop.found) for drops in tally.examples.values() for drop in drops] == [
        (2, "of a.jsonl:1"),
        (3, "of a.jsonl:1"),
    ]


def test_near_duplicates_are_dropped_by_policy(tmp_path: Path) -> None:
    prepared = _near(tmp_path, Policy(near_duplicates="drop"))
    assert prepared.dropped("pretrain") == {"duplicate": 1, "near_duplicate": 1}
    assert [row["row"] for row in prepared.kept("pretrain")] == [1, 4]


def test_duplicates_stay_where_they_are_not_looked_for(tmp_path: Path) -> None:
    prepared = _near(tmp_path, Policy(duplicates="off", near_duplicates="off"))
    assert len(prepared.kept("pretrain")) == 4


def _shingles(text: str) -> set[str]:
    plain = " ".join(text.lower().split()) + " "
    return {plain[i : i + 5] for i in range(len(plain))}


def test_minhash_estimates_the_jaccard_similarity_of_shingles() -> None:
    rng = np.random.default_rng(3)
    vocabulary = ["".join(rng.choice(list("abcdefgh가나다라마"), 5)) for _ in range(500)]
    base = [list(rng.choice(vocabulary, 60)) for _ in range(40)]
    texts = [" ".join(said) for said in base]
    changed = [" ".join(["zzzzz"] * number + said[number:]) for number, said in enumerate(base)]
    estimates = (signatures(texts) == signatures(changed)).mean(axis=1)
    truth = [len(_shingles(a) & _shingles(b)) / len(_shingles(a) | _shingles(b)) for a, b in zip(texts, changed, strict=True)]
    assert np.abs(estimates - truth).max() < 0.15
    assert np.abs(estimates - truth).mean() < 0.04


def test_signatures_do_not_depend_on_the_batch() -> None:
    texts = ["abc", "a", "가나다라마바사", "the same text again and again"]
    one_by_one = np.concatenate([signatures([text]) for text in texts])
    assert (signatures(texts) == one_by_one).all()


def test_the_earliest_similar_row_is_found_among_many() -> None:
    rng = np.random.default_rng(5)
    texts = [" ".join(map(str, rng.integers(0, 10**6, 40))) for _ in range(3000)]
    texts += [text + " 7" for text in texts[:100]]
    found = first_of_near(signatures(texts), 0.8)
    assert (found[:3000] == np.arange(3000)).all()
    assert (found[3000:] == np.arange(100)).mean() >= 0.99


def test_rows_that_differ_in_label_or_speaker_only_are_no_duplicates(tmp_path: Path) -> None:
    rows = [{"prompt": "a?", "completion": "b.", "label": label} for label in (True, False, True)]
    write_rows(tmp_path / "in/a.jsonl", rows)
    write_rows(tmp_path / "in/b.jsonl", [{"messages": [SYSTEM, USER, SAID]}, {"prompt": "s\na?", "response": "b."}])
    prepared = prepare(tmp_path, {"unpaired": [source("a.jsonl")], "pretrain": [source("b.jsonl", format="messages")]}, lenient())
    assert [row["label"] for row in prepared.kept("unpaired")] == [True, False]
    assert prepared.places("unpaired") >= {("a.jsonl", 3, "duplicate")}


def test_a_mixture_is_as_large_as_its_proportions_allow(tmp_path: Path) -> None:
    for name, count in (("a", 40), ("b", 100), ("c", 90)):
        write_rows(tmp_path / f"in/{name}.jsonl", [{"text": f"{name} number {i}"} for i in range(count)])
    sources = [source("a.jsonl", weight=1.0), source("b.jsonl", weight=2.0), source("c.jsonl", weight=0.5)]
    prepared = prepare(tmp_path, {"pretrain": sources}, Policy(near_duplicates="off"))
    assert Counter(row["source"] for row in prepared.kept("pretrain")) == {"a.jsonl": 40, "b.jsonl": 80, "c.jsonl": 20}
    assert prepared.dropped("pretrain") == {"mixture": 90}


# --------------------------------------------------------------------------------------------- personal data and scripts


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Write to kim.cs+1@mail.example.co.kr today.", "Write to [EMAIL] today."),
        ("전화 010-1234-5678 주세요", "전화 [PHONE] 주세요"),
        ("02-123-4567 or 031 123 4567", "[PHONE] or [PHONE]"),
        ("call +82 10 1234 5678, (415) 555-1234, 415-555-1234", "call [PHONE], [PHONE], [PHONE]"),
        ("주민번호는 900101-1234567.", "주민번호는 [RESIDENT NUMBER]."),
        ("9001011234567", "[RESIDENT NUMBER]"),
        ("901301-1234567", "901301-1234567"),  # there is no thirteenth month
        ("In 2024-05-17 at 10:30 it cost 1,234,567 or 3.14159265", "In 2024-05-17 at 10:30 it cost 1,234,567 or 3.14159265"),
        ("12345678901234567890", "12345678901234567890"),
        ("@home a@b", "@home a@b"),
    ],
)
def test_personal_data_is_found_and_nothing_else(text: str, masked: str) -> None:
    assert scan(text).masked == masked


@pytest.mark.parametrize("policy", ["off", "report", "mask", "drop"])
def test_personal_data_is_treated_by_policy(policy: str, tmp_path: Path) -> None:
    write_rows(
        tmp_path / "in/a.jsonl", [{"prompt": "Who?", "response": "me@example.org"}, {"prompt": "What?", "response": "Me."}]
    )
    prepared = prepare(tmp_path, {"sft": [source("a.jsonl")]}, lenient(personal_data=policy))
    said = [row["completion"][0]["content"] for row in prepared.kept("sft")]
    assert said == {"mask": ["[EMAIL]", "Me."], "drop": ["Me."]}.get(policy, ["me@example.org", "Me."])
    assert prepared.pools["sft"].tally.noted[("sft", "email")] == (1 if policy in ("report", "mask") else 0)
    assert prepared.dropped("sft") == ({"personal_data": 1} if policy == "drop" else {})


def test_scripts_are_told_apart_and_tell_the_language() -> None:
    counts = dict(zip(SCRIPTS, scripts_by_text(["안녕 hello 漢字 かな Привет 12! 3 × 4 ÷ 5"])[0].tolist(), strict=True))
    assert {name: count for name, count in counts.items() if count} == {
        "Hangul": 2,
        "Latin": 5,
        "Han": 2,
        "Kana": 2,
        "Cyrillic": 6,
    }
    both = scripts_by_text(["가", "", "나다 a"])
    assert both.sum(axis=1).tolist() == [1, 0, 3]
    assert both[:, SCRIPTS.index("Hangul")].tolist() == [1, 0, 2]
    assert [language(text) for text in ("안녕하세요 Kim", "hello", "これは漢字", "汉字", "")] == ["ko", None, "ja", "zh", None]


# ------------------------------------------------------------------------------------------------------------- lengths


def _long(tmp_path: Path, policy: Policy, context: int) -> Prepared:
    turns = [{"role": "user", "content": "old " * 30}, {"role": "assistant", "content": "yes " * 10}]
    rows = [
        {"messages": [SYSTEM, *turns, {"role": "user", "content": "new?"}, {"role": "assistant", "content": "Answer."}]},
        {
            "messages": [
                {"role": "user", "content": "start " + "word " * 60 + "end?"},
                {"role": "assistant", "content": "Answer."},
            ]
        },
        {"messages": [{"role": "user", "content": "short?"}, {"role": "assistant", "content": "long " * 60}]},
        {"messages": [{"role": "user", "content": "short?"}, {"role": "assistant", "content": "short."}]},
    ]
    write_rows(tmp_path / "in/a.jsonl", rows)
    return prepare(tmp_path, {"sft": [source("a.jsonl")]}, policy, context_tokens=context)


def test_rows_over_the_context_are_dropped_and_counted(tmp_path: Path) -> None:
    prepared = _long(tmp_path, lenient(), 100)
    assert prepared.dropped("sft") == {"too_long": 3}
    assert [row["row"] for row in prepared.kept("sft")] == [4]


def test_rows_over_the_context_fail_by_policy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"3 of 4 rows .* dropped as too_long: .* raise context_tokens, or set policy.too_long"):
        _long(tmp_path, lenient(too_long="fail"), 100)


def test_truncation_cuts_the_oldest_turns_then_the_prompts_start_and_never_the_answer(tmp_path: Path) -> None:
    prepared = _long(tmp_path, lenient(too_long="truncate"), 100)
    kept = {row["row"]: row for row in prepared.kept("sft")}
    assert prepared.dropped("sft") == {"too_long": 1}  # the third: its answer alone is too long
    assert [turn["content"] for turn in kept[1]["prompt"]] == ["s", "new?"]
    assert kept[2]["prompt"][0]["content"].endswith("word end?")
    assert ("start " + "word " * 60 + "end?").endswith(kept[2]["prompt"][0]["content"])
    assert all(row["completion"][0]["content"] in ("Answer.", "short.") for row in kept.values())
    tokenizer = small_tokenizer()
    sizes = [
        len(prompt_ids(tokenizer, row["prompt"]) + completion_ids(tokenizer, row["prompt"], row["completion"]))
        for row in kept.values()
    ]
    assert max(sizes) <= 100
    assert prepared.pools["sft"].tally.noted[("a.jsonl", "cut")] == 2


def test_a_prompt_leaves_room_for_its_answer(tmp_path: Path) -> None:
    write_rows(tmp_path / "in/a.jsonl", [{"prompt": "word " * 20}, {"prompt": "word?"}])
    prepared = prepare(tmp_path, {"prompts": [source("a.jsonl")]}, lenient(answer_tokens=64), context_tokens=100)
    assert prepared.places("prompts") == {("a.jsonl", 1, "too_long")}


# -------------------------------------------------------------------------------------------------------- on all cores


def _shout(suffix: str, chunk: list[str]) -> list[str]:
    return [text.upper() + suffix for text in chunk]


@pytest.mark.parametrize("processes", [1, 2])
def test_chunks_come_back_in_order_from_any_number_of_processes(processes: int) -> None:
    chunks = [[f"a{i}", f"b{i}"] for i in range(60)]
    results = list(map_chunks(_shout, "!", chunks, processes))
    assert results == [[f"A{i}!", f"B{i}!"] for i in range(60)]


def test_contents_names_every_text_of_a_row() -> None:
    assert list(contents(PAIR)) == [("prompt[0]", "a?"), ("chosen[0]", "b."), ("rejected[0]", "c.")]
