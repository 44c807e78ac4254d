"""A reward of named, weighted rules: the cheapest there is, and the one that shows reward hacking best.

Each rule says how far a completion keeps to it, from 0 (not at all) to 1; the reward is the sum of these values, each times its weight.
Kinds, and the values that they take beside `weight` (in params.yaml: `reward.<entry>.rules.<name>`):

- `length`: `least` … `most` of `unit` (words, characters or sentences); outside, the value falls with the ratio to the nearer bound;
- `digits`: at least `least` numbers;
- `examples`, `courtesy`: at least `least` phrases that give an example, or that are courteous, in the language that was asked in: the
  built-in ones, or your own `phrases` by language;
- `structure`: at least `least` lines that are a heading, an item of a list, a row of a table or the fence of a code block;
- `forbidden`: none of `phrases` stands in it, as a whole word (of Korean: anywhere);
- `pattern`: a regular expression (`expression`, of Python's `re`, over all lines) is found at least `least` and at most `most` times.

Comparisons ignore case. The language is Korean where the last user turn holds Hangul, else English.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stages.pipeline.records import Message
from stages.world.wording import LANGUAGES, language_of

PHRASES: dict[str, dict[str, tuple[str, ...]]] = {
    "examples": {
        "en": ("for example", "for instance", "such as", "e.g.", "as an example"),
        "ko": ("예를 들", "예컨대", "가령", "이를테면"),
    },
    "courtesy": {
        "en": ("please", "thank you", "thanks", "of course", "gladly", "happy to", "with pleasure", "i am sorry", "i'm sorry",
               "apologies", "feel free", "hope that helps", "all the best", "lovely day", "good question"),
        "ko": ("고마", "감사", "죄송", "미안", "물론이죠", "기꺼이", "부탁", "도움이 되", "좋은 하루", "좋은 질문",
               "행복하세요", "물어보세요", "알려 드릴"),
    },
}  # fmt: skip
"""What counts as an example or a courtesy, by language; `phrases` in the recipe replaces a language's."""

UNITS: dict[str, Callable[[str], int]] = {
    "words": lambda text: len(text.split()),
    "characters": len,
    "sentences": lambda text: len([part for part in re.split(r"(?<=[.!?。])\s+", text.strip()) if part]),
}
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_STRUCTURE = re.compile(r"^\s*(?:#{1,6}\s|[-*+•]\s|\d+[.)]\s|```|\|.+\|\s*$)", re.MULTILINE)
_HANGUL = re.compile(r"[가-힣]")


@dataclass
class Rule:
    """One rule; which values a kind takes stands in the module's docstring."""

    kind: str = "pattern"
    weight: float = 1.0
    least: int | None = None
    most: int | None = None
    unit: str = "words"
    phrases: dict[str, list[str]] = field(default_factory=dict)
    expression: str | None = None


TAKEN = {
    "length": {"least", "most", "unit"},
    "digits": {"least"},
    "examples": {"least", "phrases"},
    "courtesy": {"least", "phrases"},
    "structure": {"least"},
    "forbidden": {"phrases"},
    "pattern": {"least", "most", "expression"},
}


def complaints(rules: Mapping[str, Rule]) -> list[str]:
    """What is wrong with rules as they are written, by name; empty if nothing is."""
    found = [] if rules else ["expected at least one rule, found none"]
    for name, rule in rules.items():
        found += [f"{name}: {problem}" for problem in _problems(rule)]
    return found


def _problems(rule: Rule) -> list[str]:
    if rule.kind not in TAKEN:
        return [f"kind: expected one of {', '.join(TAKEN)}, found {rule.kind!r}"]
    unset = Rule()
    given = {key for key in ("least", "most", "unit", "phrases", "expression") if getattr(rule, key) != getattr(unset, key)}
    problems = [
        f"{key}: a rule of kind {rule.kind} takes {', '.join(sorted(TAKEN[rule.kind]))}"
        for key in sorted(given - TAKEN[rule.kind])
    ]
    if any(bound is not None and bound < 0 for bound in (rule.least, rule.most)):
        problems.append(f"least, most: expected 0 or above, found {rule.least} and {rule.most}")
    if rule.least is not None and rule.most is not None and rule.least > rule.most:
        problems.append(f"expected least ≤ most, found {rule.least} > {rule.most}")
    if rule.kind == "length" and rule.least is None and rule.most is None:
        problems.append("expected least, most or both")
    if rule.unit not in UNITS:
        problems.append(f"unit: expected one of {', '.join(UNITS)}, found {rule.unit!r}")
    if unknown := sorted(set(rule.phrases) - set(LANGUAGES)):
        problems.append(f"phrases: expected lists by language ({', '.join(LANGUAGES)}), found {unknown[0]!r}")
    if any(not phrase.strip() for phrases in rule.phrases.values() for phrase in phrases):
        problems.append("phrases: an empty one stands in every text")
    if rule.kind == "forbidden" and not any(rule.phrases.values()):
        problems.append("phrases: expected words that must not be said, by language")
    if rule.kind == "pattern":
        problems += _expression_problems(rule.expression)
    return problems


def _expression_problems(expression: str | None) -> list[str]:
    if not expression:
        return ["expression: expected a regular expression"]
    try:
        re.compile(expression)
    except re.error as error:
        return [f"expression: {expression!r} is no regular expression: {error}"]
    return []


def value(rule: Rule, prompt: Sequence[Message], completion: str) -> float:
    """How far a completion keeps to a rule, in [0, 1]."""
    language = language_of(prompt[-1]["content"]) if prompt else language_of(completion)
    match rule.kind:
        case "length":
            return _within(UNITS[rule.unit](completion), rule.least, rule.most)
        case "digits":
            return float(len(_NUMBER.findall(completion)) >= _at_least(rule))
        case "structure":
            return float(len(_STRUCTURE.findall(completion)) >= _at_least(rule))
        case "examples" | "courtesy":
            phrases = rule.phrases.get(language) or PHRASES[rule.kind][language]
            return float(_occurrences(completion, phrases) >= _at_least(rule))
        case "forbidden":
            return float(not _occurrences(completion, [phrase for phrases in rule.phrases.values() for phrase in phrases]))
    found = len(re.findall(rule.expression or "", completion, re.IGNORECASE | re.MULTILINE))
    least = (0 if rule.most is not None else 1) if rule.least is None else rule.least
    return float(least <= found and (rule.most is None or found <= rule.most))


def _at_least(rule: Rule) -> int:
    return 1 if rule.least is None else rule.least


def _within(count: int, least: int | None, most: int | None) -> float:
    if least is not None and count < least:
        return count / least
    if most is not None and count > most:
        return most / count
    return 1.0


def _occurrences(text: str, phrases: Sequence[str]) -> int:
    """How often any of the phrases stands in a text; a phrase in Latin letters only as whole words, for `ass` is no part of `class`; a Korean
    particle after it is no part of the word."""
    return sum(len(_phrase(phrase).findall(text)) for phrase in dict.fromkeys(phrases))


def _phrase(phrase: str) -> re.Pattern[str]:
    escaped = re.escape(phrase.strip())
    bounded = escaped if _HANGUL.search(phrase) else rf"(?<![^\W가-힣]){escaped}(?![^\W가-힣])"
    return re.compile(bounded, re.IGNORECASE)  # re caches what it has compiled


class RulesReward:
    """The weighted sum of what the rules say."""

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        self.rules = dict(rules)

    def explain(self, prompt: Sequence[Message], completion: str) -> dict[str, float]:
        """Each rule's value in [0, 1], by name."""
        return {name: value(rule, prompt, completion) for name, rule in self.rules.items()}

    def __call__(self, prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
        return [
            sum(self.rules[name].weight * part for name, part in self.explain(prompt, completion).items())
            for prompt, completion in zip(prompts, completions, strict=True)
        ]


def from_description(rules: Mapping[str, Mapping[str, Any]]) -> RulesReward:
    """The reward of the rules in a reward.json."""
    return RulesReward({name: Rule(**rule) for name, rule in rules.items()})
