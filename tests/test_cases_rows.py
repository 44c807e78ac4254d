"""Small files of rows that other pipelines read wrongly, each with the right value that the README beside them states."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from plumbline.data.faults import DataError
from plumbline.rows import last_turn, text_of
from tests.preparing import Prepared, lenient, prepare, source
from tests.shared import CASES as ALL_CASES

CASES = ALL_CASES / "rows"

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason=f"no cases at {CASES} (set PLUMBLINE_SHARED)")


def case(folder: Path, name: str, role: str) -> tuple[Prepared, list[dict[str, Any]]]:
    """A file of cases as rows of a role, with every drop counted and none refused; and the rows of the file."""
    (folder / "in").symlink_to(CASES)
    text = (CASES / name).read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines())) if name.endswith(".csv") else list(map(json.loads, text.splitlines()))
    return prepare(folder, {role: [source(name)]}, lenient(near_duplicates="off")), rows


def test_the_input_is_part_of_the_prompt(tmp_path: Path) -> None:
    prepared, rows = case(tmp_path, "input_beside_the_prompt.jsonl", "preferences")
    prompts = {last_turn(row["prompt"]) for row in prepared.kept("preferences")}
    assert prompts == {f"{row['instruction']}\n\n{row['input']}" for row in rows}
    assert len(prompts) == 8


def test_conversations_in_a_csv_file_are_read_as_conversations(tmp_path: Path) -> None:
    prepared, rows = case(tmp_path, "conversations_as_text.csv", "preferences")
    kept = prepared.kept("preferences")
    assert [last_turn(row["prompt"]) for row in kept] == [row["prompt"] for row in rows]
    assert {text_of(row["rejected"]) for row in kept} == {"No idea."}
    assert all("role" not in text_of(row["chosen"]) for row in kept)


def test_a_transcript_in_the_prompt_is_three_turns(tmp_path: Path) -> None:
    prepared, rows = case(tmp_path, "transcript_in_the_prompt.jsonl", "preferences")
    kept = prepared.kept("preferences")
    assert len(kept) == len(rows)
    assert {tuple(turn["role"] for turn in row["prompt"]) for row in kept} == {("user", "assistant", "user")}
    assert not any("Human:" in turn["content"] or "Assistant:" in turn["content"] for row in kept for turn in row["prompt"])


def test_a_row_whose_tag_is_false_is_not_a_demonstration(tmp_path: Path) -> None:
    prepared, rows = case(tmp_path, "verdict_beside_a_demonstration.jsonl", "sft")
    assert [row["row"] for row in prepared.kept("sft")] == [number for number, row in enumerate(rows, 1) if row["kto_tag"]]
    assert prepared.dropped("sft") == {"undesirable": sum(not row["kto_tag"] for row in rows)}


def test_no_turn_of_weight_zero_is_trained_on(tmp_path: Path) -> None:
    prepared, rows = case(tmp_path, "weight_zero_turns.jsonl", "sft")
    assert prepared.kept("sft") == []
    assert prepared.dropped("sft") == {"untrained": len(rows)}


def test_pairs_whose_scores_contradict_their_order_are_dropped_or_stop_the_stage(tmp_path: Path) -> None:
    prepared, rows = case(tmp_path, "scores_against_the_order.jsonl", "preferences")
    assert prepared.dropped("preferences") == {"against_scores": len(rows)}
    (tmp_path / "strict").mkdir()
    (tmp_path / "strict/in").symlink_to(CASES)
    with pytest.raises(DataError, match=r"8 of 8 rows .* dropped as against_scores: chosen has a lower score"):
        prepare(tmp_path / "strict", {"preferences": [source("scores_against_the_order.jsonl")]})
