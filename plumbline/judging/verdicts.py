"""Reads the verdict in a judge's reply, from its final line and nowhere else.

A judge quotes the answers that it judges, so a verdict anywhere but at the end may be an answer's own words. Only the last line of a reply
counts, it has to consist of the verdict, and it must not be a quotation; what stands between marks of reasoning does not belong to the reply, and
a reply that was cut off has no verdict. Instead of the last line, a JSON object may end the reply, in a code fence or not, as long as no other
object in the reply contradicts it. A verdict that cannot be read for certain is None: it is asked for again or counted, never guessed.
"""

import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from plumbline.reasoning import ALL, without_reasoning

A, B, TIE = "a", "b", "tie"
PASS, FAIL = "pass", "fail"

COMPARISON: Mapping[str, str] = {"A": A, "B": B, "tie": TIE, "draw": TIE, "무승부": TIE, "동점": TIE, "동률": TIE, "비김": TIE}
PASS_FAIL: Mapping[str, str] = {"pass": PASS, "fail": FAIL, "통과": PASS, "위반": FAIL}

Ranks = tuple[float, ...]
"""The rank of each answer as shown; 1 is the best, and equals share the mean of their ranks."""

LABELS = (
    r"(?:(?:my|the)\s+)?(?:(?:final|overall)\s+|최종\s*)?"
    r"(?:verdict|preferred(?:\s+(?:answer|response))?|rating|ranking|판정|평점|순위)"
)
LABEL = re.compile(LABELS, re.IGNORECASE)
SEPARATOR = r"(?:[:=]|\s[-–—]\s|\s+is(?:\s*:|\s)|[은는]\s)"
OPENING = r"[\s*_#>`\"'\[(]*"
FINAL = re.compile(rf"{LABELS}[\s*_`\"'\])]*{SEPARATOR}(?P<value>.+)", re.IGNORECASE)
HEADING = re.compile(rf"[\s*_#`\[(]*{LABELS}[\s*_`\])]*[:=]?[\s*_`]*", re.IGNORECASE)
MARKED = re.compile(r"\[\[([^\[\]]+)\]\]|\\boxed\{(.+)\}|<(?P<tag>answer|verdict|rating|ranking)>(.+)</(?P=tag)>", re.IGNORECASE)
"""A verdict in marks that leave no doubt, so that it needs no label."""
WRAPPED = re.compile(
    rf"{MARKED.pattern}|\[([^\[\]]*)\]|\(([^()]*)\)|<([^<>]*)>"
    r"|\\\((.*)\\\)|\\\[(.*)\\\]|\\(?:text|textbf|mathrm|mathbf)\{(.*)\}",
    re.IGNORECASE,
)
EMPHASIS = re.compile(r"\A[\s*_`\"'“‘$#]+|(?:입니다|이다)?[\s*_`\"'”’$.。!]*\Z")
QUOTATION = tuple(">\"'“‘「『«")
LONGEST_LINE = 1000  # characters that a last line may have: the time to find the verdict grows with their square
MOST_OBJECTS = 50  # JSON objects that are looked for in a reply
FENCED_OBJECT = re.compile(r"(?:^|```\w*|~~~\w*)[ \t]*(?=\{)", re.MULTILINE)
ANSWER = re.compile(
    r"(?:(?:the\s+)?(?:answer|response|assistant|option|candidate)(?![a-z])|답변|응답)\s*:?\s*(?=\S)", re.IGNORECASE
)
BOTH = (
    r"(?:(?:(?:answers?|responses?|assistants?)\s+)?(?:a and b|b and a)"
    r"|both(?:\s+(?:answers|responses))?|the two(?:\s+(?:answers|responses))?)"
)
TIED = re.compile(
    rf"(?:(?:it is|it's|this is)\s+)?(?:an?\s+)?(?:tie|draw|tied|equal)(?:\s+between {BOTH})?"
    rf"|{BOTH}\s+(?:are\s+)?(?:tied?|draw|equal|equally\s+\w+)"
    r"|a와 b[는가의]?\s*(?:무승부|동점|동률|비김)",
    re.IGNORECASE,
)
POINTS = r"\s*(?:점|points?)?"
NUMBER = re.compile(
    rf"(?:(?P<scale>\d{{1,3}})점\s*만점에\s*)?(?P<number>\d{{1,3}}(?:\.\d+)?){POINTS}"
    rf"(?:\s*(?:/|out\s+of)\s*(?P<best>\d{{1,3}}){POINTS})?",
    re.IGNORECASE,
)
RANKED = re.compile(r"[\[(#]?\s*(?:(?:answer|response|답변|응답)[\s_]*)?(?P<number>\d{1,4})번?\s*[\])]?", re.IGNORECASE)
"""An answer's number in a ranking; int() refuses very long ones."""

_INVISIBLE = (0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF)
_PLAIN: Mapping[int, Any] = (
    {0xFF01 + code: 0x21 + code for code in range(94)} | {0x3000: " ", 0x2236: ":", 0xFE55: ":"} | dict.fromkeys(_INVISIBLE)
)
"""Full-width forms and other colons → ASCII; characters without a width → nothing."""


def final_value(reply: str, marks: str = ALL) -> str | None:
    """The text after the label on a reply's last line, the verdict of a JSON reply, or a reply that is a single line.

    marks: which marks set reasoning apart (plumbline/reasoning.py).
    """
    text = without_reasoning(reply, marks).strip()
    ends_in_object, value = _structured(text, LABEL)
    if ends_in_object:
        written = " > ".join(map(str, value)) if isinstance(value, list) else value
        return None if written is None or isinstance(value, bool | _Pairs) else _bare(_plain(str(written)))
    lines = [line.strip() for line in _plain(text).splitlines() if line.strip(" \t`*_~#=-")]
    if not lines or len(lines[-1]) > LONGEST_LINE or len((lines := _joined(lines))[-1]) > LONGEST_LINE:
        return None
    last, is_only_line = lines[-1], len(lines) == 1
    if not is_only_line and last.startswith(QUOTATION):
        return None
    marked = MARKED.fullmatch(last.strip("*_`$ .。!"))
    inner = _bare(marked[marked.lastindex] if marked and marked.lastindex else last)
    if match := FINAL.fullmatch(inner):
        return _bare(match["value"])
    return inner if marked or is_only_line else None


def _plain(text: str) -> str:
    """A text in which the same letter is the same character: composed, and ASCII instead of full-width forms."""
    return unicodedata.normalize("NFC", text).translate(_PLAIN)


def _joined(lines: list[str]) -> list[str]:
    """The lines, with a verdict below its heading, or between the lines of a tag, in one line with it."""
    if len(lines) > 2 and re.fullmatch(r"<(\w+)>\n[^\n]*\n</\1>", "\n".join(lines[-3:]), re.IGNORECASE):
        return [*lines[:-3], "".join(lines[-3:])]
    if len(lines) > 1 and HEADING.fullmatch(lines[-2]) and not FINAL.fullmatch(_bare(lines[-1])):
        return [*lines[:-2], f"{lines[-2].rstrip(':=*_` ')}: {lines[-1]}"]
    return lines


def _bare(text: str) -> str:
    """A text without what emphasises, quotes or encloses the whole of it, and without the end of a sentence."""
    for _ in range(LONGEST_LINE):
        inner = EMPHASIS.sub("", text)
        if match := WRAPPED.fullmatch(inner):
            inner = match[match.lastindex or 0]
        elif any(inner.count(opening) != inner.count(closing) for opening, closing in ("()", "[]")):
            inner = inner.strip("()[]")  # one of the pair is missing
        if inner == text:
            break
        text = inner
    return text.replace("*", "").replace("`", "")


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with all of its pairs, for a dict would keep the last of two that have the same key."""


def _structured(text: str, label: re.Pattern[str]) -> tuple[bool, Any]:
    """Whether a reply ends in a JSON object, and the value that it has under the label.

    The value is None if the object has none or several, or if another object of the reply has another. The values of an object count before
    those of the objects in it.
    """
    decoder, labelled, end = json.JSONDecoder(object_pairs_hook=_Pairs), list[list[Any]](), 0
    for start in [match.end() for match in FENCED_OBJECT.finditer(text)][-MOST_OBJECTS:]:
        if start < end:
            continue
        try:
            found, end = decoder.raw_decode(text, start)
            labelled.append(_labelled(found, label))
        except (ValueError, RecursionError):  # not JSON, a number of too many digits, nested too deeply: nothing may end the run
            continue
    if not labelled or text[end:].strip("`~ \t\r\n"):
        return False, None
    certain = len(labelled[-1]) == 1 and all(values == labelled[-1] for values in labelled if values)
    return True, labelled[-1][0] if certain else None


def _labelled(value: Any, label: re.Pattern[str]) -> list[Any]:
    """The values under a label in a JSON object, or else in the objects in it."""
    if not isinstance(value, _Pairs):
        return []
    own = [child for key, child in value if label.fullmatch(_plain(key).replace("_", " ").strip())]
    return own or [child for _, inner in value for child in _labelled(inner, label)]


def parse_text(reply: str, label: str, marks: str = ALL) -> str | None:
    """The text after the label that a reply begins with, or under that key in a JSON object that ends the reply; None if there is no text."""
    text = without_reasoning(reply, marks).strip()
    if match := re.fullmatch(rf"{OPENING}{label}[\s*_]*[:：][*_]*\s*(?P<text>.+)", text, re.IGNORECASE | re.DOTALL):
        return match["text"].strip() or None
    _, value = _structured(text, re.compile(re.escape(label), re.IGNORECASE))
    return (value.strip() or None) if isinstance(value, str) else None


def parse_choice(reply: str, choices: Mapping[str, str] = COMPARISON, marks: str = ALL) -> str | None:
    """The meaning of the choice that a reply ends with; `choices` maps what a judge writes to what it means.

    Case matters only if two choices differ by nothing else.
    """
    value = final_value(reply, marks)
    if value is None:
        return None
    value = ANSWER.sub("", value) if ANSWER.match(value) else value
    if value in choices:
        return choices[value]
    if TIE in choices.values() and TIED.fullmatch(value):
        return TIE
    meanings = {meaning for name, meaning in choices.items() if name.casefold() == value.casefold()}
    return meanings.pop() if len(meanings) == 1 else None


def parse_rating(reply: str, least: float = 1.0, most: float = 10.0, marks: str = ALL) -> float | None:
    """The number that a reply ends with, such as `7`, `7/10` or `7점`; None outside [least, most], for a scale is not guessed."""
    value = final_value(reply, marks)
    match = NUMBER.fullmatch(value) if value else None
    if not match or any(float(scale) != most for scale in (match["scale"], match["best"]) if scale):
        return None
    number = float(match["number"])
    return number if least <= number <= most else None


def parse_ranking(reply: str, count: int, marks: str = ALL) -> Ranks | None:
    """The ranks of `count` answers in a reply that ends like `2 > 1 = 3`; None unless every answer is named once."""
    value = final_value(reply, marks)
    names = [[RANKED.fullmatch(name.strip()) for name in tier.split("=")] for tier in (value or "").split(">")]
    tiers = [[int(name["number"]) for name in tier if name] for tier in names]
    if not all(map(all, names)) or sorted(number for tier in tiers for number in tier) != list(range(1, count + 1)):
        return None
    ranks, best = [0.0] * count, 1
    for tier in tiers:
        for number in tier:
            ranks[number - 1] = best + (len(tier) - 1) / 2
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
