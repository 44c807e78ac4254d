"""Recorded judges and people, read by our parsers and aggregated by our code: figures recomputed from the raw rows."""

import csv
import gzip
import json
from collections import Counter
from typing import Any

import pytest

from plumbline.judging.aggregation import UNPARSED, cohen_kappa, majority
from plumbline.judging.gate import Quality
from plumbline.judging.verdicts import TIE, A, B, parse_choice, win_probability
from tests.shared import SHARED

JUDGED = SHARED / "judge"
pytestmark = pytest.mark.skipif(not JUDGED.is_dir(), reason=f"no recorded verdicts at {JUDGED}")


def read(name: str) -> Any:
    path = JUDGED / name
    return json.loads((gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode())


def test_pandalm_gpt35_agrees_with_the_majority_of_three_annotators_on_424_of_600_pairs() -> None:
    words = {"1": A, "2": B, "Tie": TIE}
    recorded = {row["idx"]: words.get(str(row["gpt_result"]), UNPARSED) for row in read("pandalm_gpt35_judgments_600.json")}
    people = {
        row["idx"]: majority([{1: A, 2: B, 0: TIE}[row[f"annotator{n}"]] for n in (1, 2, 3)])
        for row in read("pandalm_testset_600.json")
    }
    assert len(people) == 600
    assert Counter(recorded.values())[UNPARSED] == 14
    assert sum(recorded[index] == verdict for index, verdict in people.items()) == 424


def test_pandalm_annotators_kappa_is_that_of_the_raw_counts() -> None:
    rows = read("pandalm_testset_600.json")
    first, second = ([row[f"annotator{n}"] for row in rows] for n in (1, 2))
    # Cohen's kappa by its definition, (p_o - p_e) / (1 - p_e), from the raw counts.
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / 600
    expected = sum(first.count(value) * second.count(value) for value in (0, 1, 2)) / 600**2
    assert cohen_kappa(first, second) == pytest.approx((observed - expected) / (1 - expected))
    assert cohen_kappa(first, second) > 0.8


def test_alpacaeval_preferences_follow_from_the_raw_completions_token_probabilities() -> None:
    rows = read("alpaca_eval_gpt4turbo_gemma-7b-it_200.json.gz")
    unparsed, off, sampled_likelier = [], [], 0
    for row in rows:
        raw = row["raw_completion"]
        outcome = parse_choice(raw["text"], {"m": A, "M": B})
        if outcome is None:
            unparsed.append(raw["text"])
            continue
        tops = {top["token"]: top["logprob"] for top in raw["logprobs"]["content"][0]["top_logprobs"]}
        probability = win_probability(tops, "m", "M")
        assert probability is not None
        sampled_likelier += (probability > 0.5) == (outcome == A)
        # AlpacaEval shows the outputs in random order and turns its preference back: P(output_2) is P(M) or P(m).
        off.append(min(abs(row["preference"] - 1 - p) for p in (probability, 1 - probability)))
    assert unparsed == []
    assert len(off) == 200
    assert sampled_likelier == 197
    assert max(off) < 1e-6


def test_longer_answers_win_more_in_alpacaeval_and_the_tally_says_so() -> None:
    quality = Quality()
    for row in read("alpaca_eval_gpt4turbo_gemma-7b-it_200.json.gz"):
        quality.add_preference(row["output_1"], row["output_2"], 1.5 - row["preference"], where="")
    by_hand = [
        (row["preference"] < 1.5) == (len(row["output_1"]) > len(row["output_2"]))
        for row in read("alpaca_eval_gpt4turbo_gemma-7b-it_200.json.gz")
        if len(row["output_1"]) != len(row["output_2"])
    ]
    assert quality.metrics()["longer_fraction"] == sum(by_hand) / len(by_hand)


def tldr() -> list[dict[str, str]]:
    with (JUDGED / "tldr_llm_judged_300.csv").open(encoding="utf-8", newline="") as file:
        return [*csv.DictReader(file)]


def test_no_verdict_is_read_out_of_the_prose_of_tldr_explanations() -> None:
    # "Summary A is better as …" is an opinion, not the final line that was asked for: all 300 are unparsed.
    explanations = [row["explanation"] for row in tldr()]
    assert sum("Summary A" in text or "Summary B" in text for text in explanations) > 100
    assert [text for text in explanations if parse_choice(text) is not None] == []


def test_tldr_replies_in_the_judges_own_format_give_back_the_recorded_preference() -> None:
    read_back, unparsed = Counter[bool](), []
    for row in tldr():
        # shuffled_index 1: the reference was shown first.
        letter = {"ours": "AB", "reference": "BA"}.get(row["preferred"], "  ")[int(row["shuffled_index"] or 0)].strip()
        outcome = parse_choice(f"Comparison: {row['explanation']}\nPreferred: {letter}")
        if outcome is None:
            unparsed.append(row["explanation"])
            continue
        preferred = ("ours", "reference")[(outcome == B) != (row["shuffled_index"] == "1")]
        read_back[preferred == row["preferred"]] += 1
    assert read_back == {True: 165}
    assert len(unparsed) == 135
    assert set(unparsed) == {""}


@pytest.mark.parametrize("name", ["llmbar_natural.json", "llmbar_adversarial_gptinst.json", "llmbar_mtbench_human_120.json"])
def test_a_judge_that_prefers_length_fails_where_people_were_asked_to_look_closer(name: str) -> None:
    quality = Quality()
    for row in read(name):
        known = 1.0 if row["label"] == 1 else -1.0
        longer = len(row["output_1"]) - len(row["output_2"])
        quality.add_preference(row["output_1"], row["output_2"], longer, where="")
        quality.add_known(longer, known, where="")
    metrics = quality.metrics()
    assert metrics["longer_fraction"] == 1.0
    agreement = metrics["known_agreement"]
    assert isinstance(agreement, float)
    assert agreement < 0.7
