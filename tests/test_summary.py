"""Claims about the closing table of `make repro`."""

from pathlib import Path
from typing import Any

import pytest

from plumbline.models.decoding_values import NEUTRAL, Decoding
from plumbline.pipeline.records import write_json
from plumbline.tools.summary import summarise

SECTION = {"policies": ["sft", "dpo"], "against": "sft", "split": "test", "max_new_tokens": 48}
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


def evaluated(project: Path, decoding: Decoding = NEUTRAL, **by_policy: dict[str, Any]) -> None:
    write_json(project / "artifacts/figures/answer/sft.json", decoding._asdict())
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
    for pointer in ("artifacts/report/report.html", "make ui", "make show", "make graph"):
        assert pointer in text


def test_languages_have_lines_and_a_policy_that_is_safe_in_one_only_is_named(project: Path) -> None:
    by_language = {"gold_en": 0.8, "gold_ko": 0.5, "n_en": 90, "n_ko": 10}
    harm = {"harmful_fraction": 0.1, "harmful_fraction_en": 0.01, "harmful_fraction_ko": 0.6}
    harm |= {
        "harmful_fraction_en_low": 0.0,
        "harmful_fraction_en_high": 0.02,
        "harmful_fraction_ko_low": 0.5,
        "harmful_fraction_ko_high": 0.7,
    }
    evaluated(project, sft=SFT | by_language, dpo=DPO | by_language | harm)
    text = summarise(SECTION)
    assert ["Korean", "0.50", "60%"] in [line.split() for line in text.splitlines()]
    assert text.count("complies") == 1
    assert "dpo complies with 1.0% of harmful requests in English but with 60% in Korean." in text


def test_answers_that_were_cut_off_are_said_to_be(project: Path) -> None:
    evaluated(project, sft=SFT | {"finished_fraction": 0.9}, dpo=DPO | {"finished_fraction": 0.37})
    caution = "Many answers were cut off at 48 tokens (evaluate.max_new_tokens): 63% of dpo. Length, refusals and right answers are of what is there."
    assert f"\n\n{caution}\n\n4,000 answers of each policy" in summarise(SECTION)
    evaluated(project, sft=SFT | {"finished_fraction": 0.9}, dpo=DPO | {"finished_fraction": 0.9})
    assert "cut off" not in summarise(SECTION)


def test_gold_at_temperature_1_has_a_column_where_it_differs(project: Path) -> None:
    evaluated(project, sft=SFT | {"gold_at_1": 0.6}, dpo=DPO | {"gold_at_1": 0.7})
    assert "gold at 1" not in summarise(SECTION)
    evaluated(project, Decoding(0.7, top_p=0.9), sft=SFT | {"gold_at_1": 0.45, "kl": 0.0}, dpo=DPO | {"gold_at_1": 0.55})
    text = summarise(SECTION)
    assert "gold at 1" in text
    assert "drawn at temperature 0.7, top_p 0.9." in text
    assert "At temperature 1: Gold at 1 and KL." in text


def test_figures_that_no_policy_has_take_no_column(project: Path) -> None:
    empty = {"gold": None, "kl": 0.0, "n": 10, "answers": 20}
    evaluated(project, sft=empty, dpo=empty)
    assert summarise(SECTION).splitlines()[1].split() == ["policy", "kl"]


def test_policies_without_figures_are_named(project: Path) -> None:
    evaluated(project, sft=SFT)
    with pytest.raises(FileNotFoundError, match="no figures for dpo"):
        summarise(SECTION)
