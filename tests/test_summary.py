"""Claims about the closing table of `make repro`."""

from pathlib import Path
from typing import Any

import pytest

from plumbline.pipeline.records import write_json
from plumbline.tools.summary import summarise

SECTION = {"policies": ["sft", "dpo"], "against": "sft", "split": "test", "temperature": 1.0}
SFT = {"gold": 0.6, "gold_gain": 0.0, "win_rate": 0.5, "length_tokens": 20.0, "n": 2000, "answers": 4000}
DPO = SFT | {
    "gold": 0.7,
    "gold_gain": 0.1,
    "gold_gain_low": 0.08,
    "gold_gain_high": 0.12,
    "win_rate": 0.6,
    "win_rate_low": 0.58,
    "win_rate_high": 0.62,
}


def evaluated(project: Path, **by_policy: dict[str, Any]) -> None:
    for policy, figures in by_policy.items():
        write_json(project / f"artifacts/evaluate/{policy}/figures.json", figures)


def test_every_policy_has_a_line_and_the_reader_learns_where_to_look(project: Path) -> None:
    evaluated(project, sft=SFT, dpo=DPO, gone=DPO)
    text = summarise(SECTION)
    lines = [line.split() for line in text.splitlines()]
    assert ["sft", "0.60", "-", "-", "20.0"] in lines
    assert ["dpo", "0.70", "+0.10", "[0.08,", "0.12]", "60%", "[58,", "62]", "20.0"] in lines
    assert "gone" not in text
    assert "4,000 answers of each policy to 2,000 prompts" in text
    for pointer in ("artifacts/report/report.html", "make ui", "make show"):
        assert pointer in text


def test_figures_that_no_policy_has_take_no_column(project: Path) -> None:
    empty = {"gold": None, "kl": 0.0, "n": 10, "answers": 20}
    evaluated(project, sft=empty, dpo=empty)
    assert summarise(SECTION).splitlines()[1].split() == ["policy", "kl"]


def test_policies_without_figures_are_named(project: Path) -> None:
    evaluated(project, sft=SFT)
    with pytest.raises(FileNotFoundError, match="no figures for dpo"):
        summarise(SECTION)
