"""A reward of named, weighted rules: the cheapest kind of reward, and the one that shows reward hacking best.

Each rule gives a completion a value from 0 (not kept at all) to 1 (fully kept). The reward is the weighted sum of these values. The kinds of
rules, and the keys that each takes besides `weight` (`reward_rules.<entry>.rules.<name>` in params.yaml):

- `length`: between `least` and `most` of `unit` (words, characters or sentences). Outside, the value is the ratio to the nearer bound;
- `digits`: at least `least` numbers;
- `examples`, `courtesy`: at least `least` phrases that give an example or are courteous, in the language of the prompt. The phrases are
  built in, unless `phrases` gives others for that language;
- `structure`: at least `least` lines that are a heading, a list item, a table row or the fence of a code block;
- `forbidden`: contains none of `phrases` as a whole word (a Korean phrase: anywhere in the text);
- `pattern`: `expression`, a regular expression of Python's `re`, matches at least `least` and at most `most` times, over all lines.

A completion's reasoning is left out before. Comparisons ignore case. The language is Korean if the prompt's last turn contains Hangul, else English.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plumbline.letters import composed, folded
from plumbline.reasoning import ALL, without_reasoning
from plumbline.rows import HANGUL, LANGUAGES, Message, language_of, last_turn

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
"""The phrases that count as an example or as courteous, by language; `phrases` in the recipe replaces those of a language."""

UNITS: dict[str, Callable[[str], int]] = {
    "words": lambda text: len(text.split()),
    "characters": len,
    "sentences": lambda text: len([part for part in re.split(r"(?<=[.!?。])\s+", text.strip()) if part]),
}
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_STRUCTURE = re.compile(r"^\s*(?:#{1,6}\s|[-*+•]\s|\d+[.)]\s|```|\|.+\|\s*$)", re.MULTILINE)


@dataclass
class Rule:
    """One rule; the module's docstring lists the keys that each kind takes."""

    kind: str = "pattern"
    weight: float = 1.0
    least: int | None = None
    most: int | None = None
    unit: str = "words"
    phrases: dict[str, list[str]] = field(default_factory=dict)
    expression: str | None = None

    def problems(self) -> list[str]:
        """The keys that do not fit the kind of rule, and why; empty if all fit."""
        if self.kind not in ALLOWED:
            return [f"kind: expected one of {', '.join(ALLOWED)}, found {self.kind!r}"]
        default = Rule()
        changed = {
            key for key in ("least", "most", "unit", "phrases", "expression") if getattr(self, key) != getattr(default, key)
        }
        complaints = [
            f"{key}: expected only {', '.join(sorted(ALLOWED[self.kind]))} with kind: {self.kind}, found {key}"
            for key in sorted(changed - ALLOWED[self.kind])
        ]
        if any(bound is not None and bound < 0 for bound in (self.least, self.most)):
            complaints.append(f"least, most: expected 0 or above, found {self.least} and {self.most}")
        if self.least is not None and self.most is not None and self.least > self.most:
            complaints.append(f"least: expected at most `most`, found {self.least} above {self.most}")
        if self.kind == "length" and self.least is None and self.most is None:
            complaints.append("least, most: expected at least one of them with kind: length, found neither")
        if self.unit not in UNITS:
            complaints.append(f"unit: expected one of {', '.join(UNITS)}, found {self.unit!r}")
        if unknown := sorted(set(self.phrases) - set(LANGUAGES)):
            complaints.append(f"phrases: expected lists by language ({', '.join(LANGUAGES)}), found {unknown[0]!r}")
        if any(not phrase.strip() for phrases in self.phrases.values() for phrase in phrases):
            complaints.append("phrases: expected phrases with a visible character, found an empty one, which every text contains")
        if self.kind == "forbidden" and not any(self.phrases.values()):
            complaints.append("phrases: expected forbidden phrases by language with kind: forbidden, found none")
        if self.kind == "pattern":
            complaints += _expression_problems(self.expression)
        return complaints


ALLOWED = {
    "length": {"least", "most", "unit"},
    "digits": {"least"},
    "examples": {"least", "phrases"},
    "courtesy": {"least", "phrases"},
    "structure": {"least"},
    "forbidden": {"phrases"},
    "pattern": {"least", "most", "expression"},
}
"""A kind of rule → the keys that it takes besides `weight`."""


def _expression_problems(expression: str | None) -> list[str]:
    if not expression:
        return ["expression: expected a regular expression with kind: pattern, found none"]
    try:
        re.compile(expression)
    except re.error as error:
        return [f"expression: expected a regular expression, found {expression!r} ({error})"]
    return []


def value(rule: Rule, prompt: Sequence[Message], completion: str) -> float:
    """How far a completion keeps to a rule, in [0, 1]."""
    language = language_of(last_turn(prompt) if prompt else completion)
    completion = composed(completion)
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
    count = len(re.findall(composed(rule.expression or ""), completion, re.IGNORECASE | re.MULTILINE))
    least = (0 if rule.most is not None else 1) if rule.least is None else rule.least
    return float(least <= count and (rule.most is None or count <= rule.most))


def _at_least(rule: Rule) -> int:
    return 1 if rule.least is None else rule.least


def _within(count: int, least: int | None, most: int | None) -> float:
    if least is not None and count < least:
        return count / least
    if most is not None and count > most:
        return most / count
    return 1.0


def _occurrences(text: str, phrases: Sequence[str]) -> int:
    """The number of times that any of the phrases occurs in a text.

    A phrase without Hangul matches whole words only: `ass` does not match `class`. A Korean particle may follow it. How letters are encoded
    does not matter: composed or not, of full width or not.
    """
    text = folded(text)
    return sum(len(_phrase(phrase).findall(text)) for phrase in dict.fromkeys(map(folded, phrases)))


def _phrase(phrase: str) -> re.Pattern[str]:
    escaped = re.escape(phrase.strip())
    bounded = escaped if language_of(phrase) == "ko" else rf"(?<![^\W{HANGUL}]){escaped}(?![^\W{HANGUL}])"
    return re.compile(bounded, re.IGNORECASE)  # re caches compiled patterns


class RulesReward:
    """The weighted sum of the rules' values; reasoning: which marks set a completion's reasoning apart (plumbline/reasoning.py)."""

    def __init__(self, rules: Mapping[str, Rule], reasoning: str = ALL) -> None:
        self.rules, self.reasoning = dict(rules), reasoning

    def explain(self, prompt: Sequence[Message], completion: str) -> dict[str, float]:
        """The value of each rule, in [0, 1], by name."""
        answer = without_reasoning(completion, self.reasoning)
        return {name: value(rule, prompt, answer) for name, rule in self.rules.items()}

    def __call__(self, prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
        return [
            sum(self.rules[name].weight * part for name, part in self.explain(prompt, completion).items())
            for prompt, completion in zip(prompts, completions, strict=True)
        ]


def load(folder: Path, description: Mapping[str, Any], run: str) -> RulesReward:
    """Loads the reward of the rules that a reward's folder names."""
    return RulesReward(
        {name: Rule(**rule) for name, rule in description["rules"].items()}, description.get("thinking_marks", ALL)
    )
