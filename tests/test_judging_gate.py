"""Claims about the gate: which judges it stops, and what it says of them."""

import random

import pytest

from plumbline.judging.gate import GateError, Quality, require
from plumbline.judging.judges import GateLimits
from plumbline.judging.verdicts import A, B


def test_the_gate_names_what_is_outside_its_limit_with_numbers_and_three_examples() -> None:
    quality = Quality()
    for number in range(100):
        quality.unparsed.add(number < 20, f"reply {number}")
        quality.add_preference("a much longer answer", "short", 1.0, where=f"p{number}")
        quality.add_known(-1.0 if number < 60 else 1.0, 1.0, where=f"p{number}")
    with pytest.raises(GateError) as caught:
        require(quality, GateLimits(known_agreement=0.7), "tested")
    message = str(caught.value)
    assert "unparsed_fraction is 0.200 (20 of 100), expected at most 0.05" in message
    assert "reply 2" in message
    assert "reply 3" not in message
    assert "longer_fraction is 1.000" in message
    assert "known_agreement is 0.400 (60 of 100), expected at least 0.7" in message
    assert "tied_fraction" not in message


def test_the_gate_passes_a_judge_within_its_limits_or_with_too_few_cases_to_tell() -> None:
    quality = Quality()
    for number in range(10):
        quality.add_preference("longer", "short", 1.0, where=str(number))
        quality.unparsed.add(number == 0, "one")
    require(quality, GateLimits(), "tested")


def test_a_gate_without_a_minimum_passes_figures_that_were_never_counted() -> None:
    quality = Quality()
    quality.unparsed.add(False, "one")
    require(quality, GateLimits(minimum=0, known_agreement=0.9, kappa=0.9), "tested")


def test_a_judge_without_a_readable_verdict_fails_however_few_there_are() -> None:
    quality = Quality()
    quality.unparsed.add(True, "gibberish")
    with pytest.raises(GateError, match="gibberish"):
        require(quality, GateLimits(), "tested")


def test_judges_that_agree_by_chance_fail_the_gate_by_kappa() -> None:
    quality, rng = Quality(), random.Random(0)
    for _ in range(200):
        quality.add_opinions({"one": rng.choice([A, B]), "two": rng.choice([A, B])})
        quality.unparsed.add(False, "")
    with pytest.raises(GateError, match="kappa is"):
        require(quality, GateLimits(kappa=0.4), "tested")
