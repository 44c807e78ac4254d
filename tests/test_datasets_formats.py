"""Every public format and container comes in as the same columns: detected, converted, with nothing lost and nothing added."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest

from plumbline.data.formats import FORMATS
from plumbline.data.overview import source_rows
from plumbline.data.schema import ROLES, Policy, Source
from plumbline.rows import last_turn, text_of
from tests.preparing import Prepared, prepare, source, write_rows

USER, REPLY = {"role": "user", "content": "a?"}, {"role": "assistant", "content": "b."}
SYSTEM = {"role": "system", "content": "s"}
DEMONSTRATION = {"prompt": [USER], "completion": [REPLY]}
PAIR = {"prompt": [USER], "chosen": [REPLY], "rejected": [{"role": "assistant", "content": "c."}]}

# role, row, the format that is detected, what comes out
ACCEPTED: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "Alpaca": ("sft", {"instruction": "a?", "input": "", "output": "b."}, "alpaca", DEMONSTRATION),
    "Dolly": (
        "sft",
        {"instruction": "Sum up.", "context": "Long.", "response": "b.", "category": "x"},
        "dolly",
        {"prompt": [{"role": "user", "content": "Sum up.\n\nLong."}], "completion": [REPLY]},
    ),
    "prompt and response": ("sft", {"prompt": "a?", "response": "b."}, "prompt_response", DEMONSTRATION),
    "Q and A": ("sft", {"Q": "a?", "A": "b.", "label": "0"}, "prompt_response", DEMONSTRATION),
    "messages": ("sft", {"messages": [SYSTEM, USER, REPLY]}, "messages", {"prompt": [SYSTEM, USER], "completion": [REPLY]}),
    "content in parts": (
        "sft",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a?"}]}, REPLY]},
        "messages",
        DEMONSTRATION,
    ),
    "ShareGPT": (
        "sft",
        {"system": "s", "conversations": [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b."}]},
        "sharegpt",
        {"prompt": [SYSTEM, USER], "completion": [REPLY]},
    ),
    "several turns": (
        "sft",
        {"messages": [USER, REPLY, USER, REPLY]},
        "messages",
        {"prompt": [USER, REPLY, USER], "completion": [REPLY]},
    ),
    "plain text": ("pretrain", {"text": "Once upon a time."}, "text", {"text": "Once upon a time."}),
    "a demonstration as a text": ("pretrain", {"prompt": "a?", "response": "b."}, "prompt_response", {"messages": [USER, REPLY]}),
    "a pair of strings": ("preferences", {"prompt": "a?", "chosen": "b.", "rejected": "c."}, "preference", PAIR),
    "a pair of whole conversations": (
        "preferences",
        {"prompt": "a?", "chosen": [USER, REPLY], "rejected": [USER, *PAIR["rejected"]]},
        "preference",
        PAIR,
    ),
    "a pair without prompt column": (
        "preferences",
        {"chosen": [USER, REPLY], "rejected": [USER, *PAIR["rejected"]]},
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
    "KTO in messages": ("unpaired", {"messages": [USER, REPLY], "label": False}, "kto", DEMONSTRATION | {"label": False}),
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
    "IFEval": (
        "prompts",
        {"key": 1, "prompt": "a?", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"num_words": None}]},
        "ifeval",
        {"prompt": [USER], "instructions": [{"id": "punctuation:no_comma"}]},
    ),
    "prompts": (
        "prompts",
        {"prompt": "a?", "type": "homonyms"},
        "prompts",
        {"prompt": [USER], "family": "homonyms", "language": None},
    ),
    "MT-Bench": (
        "prompts",
        {"question_id": 81, "category": "writing", "turns": ["c?", "d?"]},
        "prompts",
        {"prompt": [{"role": "user", "content": "c?"}], "family": "writing"},
    ),
    "Korean prompts": (
        "prompts",
        {"question": "날씨가 어때요?"},
        "prompts",
        {"prompt": [{"role": "user", "content": "날씨가 어때요?"}], "language": "ko"},
    ),
    "our own rows": ("preferences", {**PAIR, "id": "7", "margin": 2}, "plumbline", {**PAIR, "id": "7", "margin": 2}),
}


def prepare_each(tmp_path: Path, cases: dict[str, tuple[str, dict[str, Any]]]) -> Prepared:
    """Prepares the (role, row) of each case, in a file and source of the case's name."""
    roles: dict[str, list[Source]] = {role: [] for role in ROLES}
    for case, (role, row) in cases.items():
        write_rows(tmp_path / f"in/{case}.jsonl", [row])
        roles[role].append(source(f"{case}.jsonl", name=case))
    return prepare(tmp_path, roles, Policy(duplicates="off", near_duplicates="off"))


def test_every_public_format_is_detected_and_converted(tmp_path: Path) -> None:
    assert {name for _, _, name, _ in ACCEPTED.values()} == set(FORMATS)
    prepared = prepare_each(tmp_path, {case: (role, row) for case, (role, row, _, _) in ACCEPTED.items()})
    detected = {row["source"]: row["format"] for row in source_rows(prepared.pools)}
    assert detected == {case: name for case, (_, _, name, _) in ACCEPTED.items()}
    kept = {row["source"]: row for role in ROLES for row in prepared.kept(role)}
    assert sorted(kept) == sorted(ACCEPTED)
    for case, (_, _, _, columns) in ACCEPTED.items():
        provenance = {"source": case, "file": f"{case}.jsonl", "row": 1, "licence": "MIT"}
        assert kept[case] == kept[case] | columns | provenance, case


# Fields besides the usual ones that belong to the prompt: role, row, the whole prompt.
PROMPT_PARTS: dict[str, tuple[str, dict[str, Any], list[dict[str, str]]]] = {
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
    "the input of an instruction that is answered": (
        "sft",
        {"instruction": "a?", "input": "i", "response": "b."},
        [{"role": "user", "content": "a?\n\ni"}],
    ),
    "the input of an instruction that is only asked": (
        "prompts",
        {"instruction": "a?", "input": "i"},
        [{"role": "user", "content": "a?\n\ni"}],
    ),
    "the input of an instruction with two outputs": (
        "preferences",
        {"instruction": "a?", "input": "i", "output_1": "b.", "output_2": "c.", "preference": 1},
        [{"role": "user", "content": "a?\n\ni"}],
    ),
    "OpenOrca's system_prompt": ("sft", {"system_prompt": "s", "question": "a?", "response": "b."}, [SYSTEM, USER]),
    "a system turn in a field of its own, with conversations to compare": (
        "preferences",
        {"system": "s", "prompt": "a?", "chosen": [USER, REPLY], "rejected": [USER, *PAIR["rejected"]]},
        [SYSTEM, USER],
    ),
}


def test_every_part_of_a_prompt_reaches_it(tmp_path: Path) -> None:
    prepared = prepare_each(tmp_path, {case: (role, row) for case, (role, row, _) in PROMPT_PARTS.items()})
    prompts = {row["source"]: row["prompt"] for role in ROLES for row in prepared.kept(role)}
    assert prompts == {case: prompt for case, (_, _, prompt) in PROMPT_PARTS.items()}


def test_a_mapped_system_turn_occurs_once(tmp_path: Path) -> None:
    write_rows(tmp_path / "in/a.jsonl", [{"s": "Be brief.", "q": "a?", "good": "b.", "bad": "c."}])
    fields = {"system": "s", "prompt": "q", "chosen": "good", "rejected": "bad"}
    kept = prepare(tmp_path, {"preferences": [source("a.jsonl", fields=fields)]}).kept("preferences")
    assert [turn["content"] for turn in kept[0]["prompt"]] == ["Be brief.", "a?"]


def test_fields_that_a_format_ignores_are_reported(tmp_path: Path) -> None:
    write_rows(tmp_path / "in/a.jsonl", [{"question": "a?", "answer": "b.", "context": "Long.", "topic": "x", "id": 1}])
    fields = {"prompt": "{context}\n\n{question}", "completion": "answer"}
    sources = [source("a.jsonl"), source("a.jsonl", name="mapped", fields=fields)]
    rows = source_rows(prepare(tmp_path, {"sft": sources}).pools)
    assert {row["source"]: (row["format"], row["unused"]) for row in rows} == {
        "a.jsonl": ("prompt_response", "topic, id"),
        "mapped": ("fields", "topic, id"),
    }


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
    assert [(last_turn(row["prompt"]), text_of(row["completion"])) for row in kept] == [
        (row["prompt"], row["response"]) for row in rows
    ]


def _container(name: str, rows: list[dict[str, str]], gzipped: bool) -> bytes:
    if name in ("a.csv", "a.tsv"):
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), delimiter="," if name == "a.csv" else "\t")
        writer.writeheader()
        writer.writerows(rows)
        data = text.getvalue()
    else:
        data = json.dumps(rows, indent=2) if name == "a.json" else "".join(json.dumps(row) + "\n" for row in rows)
    return gzip.compress(data.encode()) if gzipped else data.encode()


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
    (demonstration,), (preference,) = prepared.kept("sft"), prepared.kept("preferences")
    assert (last_turn(demonstration["prompt"]), text_of(demonstration["completion"])) == ("Add.\n\n1, 2", "3")
    assert (text_of(preference["chosen"]), text_of(preference["rejected"])) == ("good", "bad")


def test_a_stated_encoding_is_used(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.csv").write_bytes("Q,A\n날씨,맑아요\n".encode("cp949"))
    (tmp_path / "in/b.jsonl").write_bytes('{"Q": "기분", "A": "좋아요"}\n'.encode("utf-16"))
    sources = [source("a.csv", encoding="cp949"), source("b.jsonl", encoding="utf-16")]
    assert [text_of(row["completion"]) for row in prepare(tmp_path, {"sft": sources}).kept("sft")] == ["맑아요", "좋아요"]


def test_a_hub_data_set_is_streamed_at_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    request: dict[str, Any] = {}

    def load_dataset(path: str, name: str | None, **settings: Any) -> Any:
        request.update(settings, path=path, name=name)
        return ({"instruction": f"Say {i}.", "input": "", "output": str(i)} for i in range(1_000_000_000))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    hub = source(hub="tatsu-lab/alpaca", folder="short", revision="abc", limit=3)
    kept = prepare(tmp_path, {"sft": [hub]}).kept("sft")
    assert [text_of(row["completion"]) for row in kept] == ["0", "1", "2"]
    assert kept[0]["file"] == "tatsu-lab/alpaca@abc"
    asked = {
        "path": "tatsu-lab/alpaca",
        "name": None,
        "data_dir": "short",
        "split": "train",
        "revision": "abc",
        "streaming": True,
    }
    assert request == asked
    rest = source(hub="tatsu-lab/alpaca", revision="abc", skip=3, limit=2)
    assert [text_of(row["completion"]) for row in prepare(tmp_path, {"sft": [rest]}).kept("sft")] == ["3", "4"]
