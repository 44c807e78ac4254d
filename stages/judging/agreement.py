"""How far a prompt's sampled completions agree: a score without a judge or a reference.

Self-consistency (arXiv:2203.11171) as preferences, after FactTune-MC (arXiv:2311.08401, §3.2): what a model says again and again it is sure of,
and what it is sure of is more often true. There an answer is cut into claims, each asked about anew; here the whole completion is held
against the prompt's others. Two texts agree

- where both end in a number, as stages/rewards/maths.py reads it: 1 if it is the same number, else 0;
- otherwise by the F1 of their words (SQuAD's, arXiv:1606.05250), lower-cased and without punctuation, split on whitespace in any language.

Its limits: agreement is confidence, not truth, and a common error agrees as well as a truth does; a vague or short answer, or a refusal, finds
more company than a precise one. Words are no meaning: "not guilty" and "guilty" agree by two thirds, a paraphrase hardly; inflected words
(Korean particles) differ, and a sentence without spaces (Chinese, Japanese) is one word. A number in passing counts as the answer where no
other stands behind it.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from stages.rewards.maths import final_answer


class Reading(NamedTuple):
    """What of a text is compared."""

    number: Fraction | None
    words: Counter[str]


def read(text: str) -> Reading:
    """A text's last number, if it holds one, and how often it says each word."""
    plain = "".join(letter for letter in unicodedata.normalize("NFC", text) if not unicodedata.category(letter).startswith("P"))
    return Reading(final_answer(text), Counter(plain.lower().split()))


def agreement(first: Reading, second: Reading) -> float:
    """How far two texts agree, from 0 to 1: by their numbers where both hold one, else by the F1 of their words."""
    if first.number is not None and second.number is not None:
        return float(first.number == second.number)
    said = first.words.total() + second.words.total()
    if not said:
        return 1.0  # both are empty
    return 2 * (first.words & second.words).total() / said  # 2PR / (P + R)


def agreement_scores(texts: Sequence[str], finished: Sequence[bool]) -> list[float | None]:
    """Each completion's mean agreement with the other completions of its prompt, from 0 to 1; None where there is no other.

    finished: a completion that was cut off is scored, so that it may be rejected, but is none of those that others are held against.
    """
    readings = [read(text) for text in texts]
    scores: list[float | None] = []
    for place, own in enumerate(readings):
        found = [agreement(own, other) for at, other in enumerate(readings) if at != place and finished[at]]
        scores.append(math.fsum(found) / len(found) if found else None)  # fsum: in whatever order they come, the same
    return scores
