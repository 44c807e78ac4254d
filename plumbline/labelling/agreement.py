"""How far a prompt's sampled completions agree: a score without a judge or a reference.

Self-consistency (arXiv:2203.11171) as preferences, after FactTune-MC (arXiv:2311.08401, §3.2): a model is sure of what it says again and again,
and what it is sure of is more often true. FactTune-MC cuts an answer into claims and asks about each anew; here the whole completion is
compared with the prompt's other completions. How far two texts agree:

- If both contain a number, as plumbline/checking/solutions.py reads the final one: 1 if it is the same number, else 0.
- Otherwise the F1 of their words (SQuAD's, arXiv:1606.05250), lower-cased and without punctuation, split on whitespace in any language.

Limits: agreement is confidence, not truth, and a common error agrees as well as the truth. A vague or short answer, or a refusal, agrees with
more others than a precise one. Words are not meaning: "not guilty" and "guilty" agree by two thirds, a paraphrase hardly at all. Inflected
words (Korean particles) differ, and a sentence without spaces (Chinese, Japanese) is one word. A number mentioned in passing counts as the
answer if no other number follows it.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from plumbline.checking.solutions import final_answer


class Reading(NamedTuple):
    """The parts of a text that are compared."""

    number: Fraction | None
    words: Counter[str]


def read(text: str) -> Reading:
    """A text's final number, if it contains one, and how often it uses each word."""
    plain = "".join(letter for letter in unicodedata.normalize("NFC", text) if not unicodedata.category(letter).startswith("P"))
    return Reading(final_answer(text), Counter(plain.lower().split()))


def agreement(first: Reading, second: Reading) -> float:
    """How far two texts agree, from 0 to 1: by their numbers if both contain one, else by the F1 of their words."""
    if first.number is not None and second.number is not None:
        return float(first.number == second.number)
    words = first.words.total() + second.words.total()
    if not words:
        return 1.0  # both are empty
    return 2 * (first.words & second.words).total() / words  # 2PR / (P + R)


def agreement_scores(texts: Sequence[str], finished: Sequence[bool]) -> list[float | None]:
    """Each completion's mean agreement with its prompt's other completions, from 0 to 1; None if there are no others.

    finished: False for a completion that was cut off. It is scored, so that it may be rejected, but others are not compared with it.
    """
    readings = [read(text) for text in texts]
    scores: list[float | None] = []
    for position, reading in enumerate(readings):
        agreements = [agreement(reading, other) for index, other in enumerate(readings) if index != position and finished[index]]
        scores.append(math.fsum(agreements) / len(agreements) if agreements else None)  # fsum: the order does not matter
    return scores
