"""Reads the verdict in a judge's reply, from its final line and nowhere else.

A judge quotes the answers that it judges, so a verdict anywhere but at the end may be an answer's own words. Only the last
line of a reply counts, it has to consist of the verdict, and a reply that was cut off has no verdict. A verdict that cannot be read is
None: it is asked for again or counted, never guessed.
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
"""The rank of each answer as shown; 1 is the best, and equals share the mean of their ranks."""

LABELS = r"(?:final\s+)?(?:verdict|preferred|rating|ranking|판정|평점|순위)"
OPENING, CLOSING = r"[\s*_#>`\"'\[(]*", r"[\s*_`\"'\]).。!]*"
FINAL = re.compile(rf"{OPENING}{LABELS}{OPENING}[::]{OPENING}(?P<value>.*?){CLOSING}", re.IGNORECASE | re.DOTALL)
BRACKETED = re.compile(r"\[\[(?P<value>[^\[\]]+)\]\]\.?")
LONGEST_LINE = 1000  # characters that a last line may have: the time to find the verdict grows with their square
LONGEST_NAME = 4  # digits of an answer's number in a ranking; int() refuses very long ones
FENCE = re.compile(r"\A```(?:json)?\s*|\s*```\Z")
NUMBER = re.compile(r"(?P<number>\d{1,3}(?:\.\d+)?)(?:\s*/\s*(?P<best>\d{1,3}))?")


def final_value(reply: str) -> str | None:
    """The text after the label on a reply's last line, the verdict of a JSON reply, or a reply that is a single word."""
    text = reply.strip()
    structured = _structured(text)
    if structured is not None:
        return structured
    lines = [line.strip() for line in text.splitlines() if line.strip(" \t`*_")]
    if not lines or len(lines[-1]) > LONGEST_LINE:
        return None
    if match := FINAL.fullmatch(lines[-1]) or BRACKETED.fullmatch(lines[-1]):
        return match["value"].strip()
    return lines[0] if len(lines) == 1 and len(lines[0].split()) == 1 else None


def _structured(text: str) -> str | None:
    """The verdict in a reply that is one JSON object, alone or in a code fence."""
    text = re.sub(FENCE, "", text)
    if not text.startswith("{"):
        return None
    value = _json(text)
    if not isinstance(value, dict):
        return None
    verdicts = [value[key] for key in ("verdict", "rating", "ranking") if key in value]
    if len(verdicts) != 1 or isinstance(verdicts[0], dict | bool):
        return None
    return " > ".join(map(str, verdicts[0])) if isinstance(verdicts[0], list) else str(verdicts[0])


def _json(text: str) -> Any:
    """The JSON value in a text, or None if it is not valid JSON: nothing that a judge writes may end the run."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # not JSON, a number of too many digits, nested too deeply
        return None


def parse_text(reply: str, label: str) -> str | None:
    """The text after the label that a reply begins with, or under that key in a JSON reply; None if there is no text."""
    if match := re.fullmatch(rf"{OPENING}{label}[\s*_]*:[*_]*\s*(?P<text>.+)", reply.strip(), re.IGNORECASE | re.DOTALL):
        return match["text"].strip() or None
    value = _json(re.sub(FENCE, "", reply.strip()))
    text = value.get(label.lower()) if isinstance(value, dict) else None
    return (text.strip() or None) if isinstance(text, str) else None


def parse_choice(reply: str, choices: Mapping[str, str] = COMPARISON) -> str | None:
    """The meaning of the choice that a reply ends with; `choices` maps what a judge writes to what it means.

    Case matters only if two choices differ by nothing else.
    """
    value = final_value(reply)
    if value is None:
        return None
    if value in choices:
        return choices[value]
    meanings = {meaning for name, meaning in choices.items() if name.casefold() == value.casefold()}
    return meanings.pop() if len(meanings) == 1 else None


def parse_rating(reply: str, least: float = 1.0, most: float = 10.0) -> float | None:
    """The number that a reply ends with, `7` or `7/10`; None outside [least, most], for a scale is not guessed."""
    value = final_value(reply)
    match = NUMBER.fullmatch(value) if value else None
    if not match or (match["best"] and float(match["best"]) != most):
        return None
    number = float(match["number"])
    return number if least <= number <= most else None


def parse_ranking(reply: str, count: int) -> Ranks | None:
    """The ranks of `count` answers in a reply that ends like `2 > 1 = 3`; None unless every answer is named once."""
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
    ranks, best = [0.0] * count, 1
    for tier in tiers:
        for name in tier:
            ranks[int(name) - 1] = best + (len(tier) - 1) / 2
        best += len(tier)
    return tuple(ranks)


def win_probability(logprobs: Mapping[str, float], first: str = "A", second: str = "B", tie: str = "tie") -> float | None:
    """A comparison's worth to the first answer: P(first) + P(tie) / 2 among the three tokens.

    logprobs: the top tokens at the position of the verdict → their log-probabilities. A token that is not there has no mass; the result is
    None if none of the three is there. Surrounding spaces are ignored, and case matters (AlpacaEval's answers are `m` and `M`).
    """
    mass = {first: 0.0, second: 0.0, tie: 0.0}
    for token, logprob in logprobs.items():
        if token.strip() in mass:
            mass[token.strip()] += math.exp(logprob)
    total = sum(mass.values())
    return (mass[first] + mass[tie] / 2) / total if total else None


def other_way_round(outcome: str) -> str:
    """A comparison's verdict or outcome if the two answers change places."""
    return {A: B, B: A}.get(outcome, outcome)


def ranks_of(values: Sequence[float]) -> Ranks:
    """The rank of each value; the smallest has rank 1, and equals share the mean of their ranks."""
    return tuple(sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2 for value in values)


def scores_from_ranks(ranks: Sequence[float]) -> list[float]:
    """The share of the other answers that each one beats; equals count one half."""
    others = len(ranks) - 1
    return [(len(ranks) - rank) / others if others else 0.5 for rank in ranks]
