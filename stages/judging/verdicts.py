"""Verdicts read from a judge's reply: its final line and nothing else, or nothing at all.

A judge quotes the answers that it judges, so a verdict anywhere but at the end may be an answer's own words. Only the last
line of a reply counts, it has to consist of the verdict, and a reply that was cut off has none. What cannot be read is None:
it is asked again or counted, never guessed.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

A, B, TIE = "a", "b", "tie"
PASS, FAIL = "pass", "fail"

COMPARISON: Mapping[str, str] = {"A": A, "B": B, "tie": TIE, "draw": TIE, "무승부": TIE, "동점": TIE}
PASS_FAIL: Mapping[str, str] = {"pass": PASS, "fail": FAIL, "통과": PASS, "위반": FAIL}

Ranks = tuple[float, ...]
"""The rank of each answer as shown, 1 the best; equals share the mean of their ranks."""

LABELS = r"(?:final\s+)?(?:verdict|preferred|rating|ranking|판정|평점|순위)"
OPENING, CLOSING = r"[\s*_#>`\"'\[(]*", r"[\s*_`\"'\]).。!]*"
FINAL = re.compile(rf"{OPENING}{LABELS}{OPENING}[::]{OPENING}(?P<value>.*?){CLOSING}", re.IGNORECASE | re.DOTALL)
BRACKETED = re.compile(r"\[\[(?P<value>[^\[\]]+)\]\]\.?")
LONGEST_LINE = 1000  # characters that a last line may have: looking for the verdict takes the square of it
LONGEST_NAME = 4  # digits of an answer's number in a ranking; int() refuses very long ones
FENCE = re.compile(r"\A```(?:json)?\s*|\s*```\Z")
NUMBER = re.compile(r"(?P<number>\d{1,3}(?:\.\d+)?)(?:\s*/\s*(?P<best>\d{1,3}))?")


def final_value(reply: str) -> str | None:
    """What stands after the label on a reply's last line, in a JSON reply's verdict, or in a reply of a single word."""
    text = reply.strip()
    structured = _structured(text)
    if structured is not None:
        return structured
    lines = [line.strip() for line in text.splitlines() if line.strip(" \t`*_")]
    if not lines or len(lines[-1]) > LONGEST_LINE:
        return None
    found = FINAL.fullmatch(lines[-1]) or BRACKETED.fullmatch(lines[-1])
    if found:
        return found["value"].strip()
    return lines[0] if len(lines) == 1 and len(lines[0].split()) == 1 else None


def _structured(text: str) -> str | None:
    """The verdict of a reply that is one JSON object, alone or in a code fence."""
    text = re.sub(FENCE, "", text)
    if not text.startswith("{"):
        return None
    value = _json(text)
    if not isinstance(value, dict):
        return None
    found = [value[key] for key in ("verdict", "rating", "ranking") if key in value]
    if len(found) != 1 or isinstance(found[0], dict | bool):
        return None
    return " > ".join(map(str, found[0])) if isinstance(found[0], list) else str(found[0])


def _json(text: str) -> Any:
    """The JSON value that a text is, None if it is none; whatever a judge writes must not end the run."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # not JSON, a number of too many digits, nested too deeply
        return None


def parse_text(reply: str, label: str) -> str | None:
    """What a reply that begins with a label says after it, or a JSON reply under its name; None for nothing."""
    found = re.fullmatch(rf"{OPENING}{label}[\s*_]*:[*_]*\s*(?P<text>.+)", reply.strip(), re.IGNORECASE | re.DOTALL)
    if found:
        return found["text"].strip() or None
    value = _json(re.sub(FENCE, "", reply.strip()))
    text = value.get(label.lower()) if isinstance(value, dict) else None
    return (text.strip() or None) if isinstance(text, str) else None


def parse_choice(reply: str, choices: Mapping[str, str] = COMPARISON) -> str | None:
    """Which of `choices` (as a judge writes it → its meaning) a reply ends with; case matters only where it must."""
    value = final_value(reply)
    if value is None:
        return None
    if value in choices:
        return choices[value]
    meanings = {meaning for name, meaning in choices.items() if name.casefold() == value.casefold()}
    return meanings.pop() if len(meanings) == 1 else None


def parse_rating(reply: str, least: float = 1.0, most: float = 10.0) -> float | None:
    """The number that a reply ends with, `7` or `7/10`; None outside [least, most]: a scale is not guessed."""
    value = final_value(reply)
    found = NUMBER.fullmatch(value) if value else None
    if not found or (found["best"] and float(found["best"]) != most):
        return None
    number = float(found["number"])
    return number if least <= number <= most else None


def parse_ranking(reply: str, count: int) -> Ranks | None:
    """The ranks of `count` answers from `2 > 1 = 3`; None unless every answer is named once."""
    value = final_value(reply)
    if value is None:
        return None
    tiers = [re.findall(r"\d+", tier) for tier in value.split(">")]
    if any(len(name) > LONGEST_NAME for tier in tiers for name in tier):
        return None
    if re.sub(r"[\d\s>=,]", "", value) or sorted(int(n) for tier in tiers for n in tier) != list(range(1, count + 1)):
        return None
    if any("," in tier or len(tier.split("=")) != len(names) for tier, names in zip(value.split(">"), tiers, strict=True)):
        return None
    ranks, place = [0.0] * count, 1
    for tier in tiers:
        for name in tier:
            ranks[int(name) - 1] = place + (len(tier) - 1) / 2
        place += len(tier)
    return tuple(ranks)


def choice_probability(logprobs: Mapping[str, float], first: str, second: str) -> float | None:
    """P(first) among the two tokens `first` and `second`, from one position's top log-probabilities.

    A token that is not among the top ones has no mass; None if neither is. Tokens are compared without surrounding
    spaces, and case matters (AlpacaEval's answers are `m` and `M`).
    """
    mass = {first: 0.0, second: 0.0}
    for token, logprob in logprobs.items():
        if token.strip() in mass:
            mass[token.strip()] += math.exp(logprob)
    total = mass[first] + mass[second]
    return mass[first] / total if total else None


def win_probability(logprobs: Mapping[str, float]) -> float | None:
    """What a comparison is worth to the answer shown as A: P(A) + P(tie) / 2 over the tokens A, B and tie; None without any."""
    mass = {"A": 0.0, "B": 0.0, "tie": 0.0}
    for token, logprob in logprobs.items():
        if token.strip() in mass:
            mass[token.strip()] += math.exp(logprob)
    total = sum(mass.values())
    return (mass["A"] + mass["tie"] / 2) / total if total else None


def swapped(verdict: str) -> str:
    """A comparison's verdict as it reads when the two answers change places."""
    return {A: B, B: A}.get(verdict, verdict)


def scores_from_ranks(ranks: Sequence[float]) -> list[float]:
    """Each answer's share of the others that it beats, equals counting half: 1 the best of all, 0 the worst."""
    others = len(ranks) - 1
    return [(len(ranks) - rank) / others if others else 0.5 for rank in ranks]
