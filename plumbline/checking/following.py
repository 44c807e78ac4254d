"""Checks whether answers follow their prompts' instructions: 1 if all are followed, else 0 (IFEval, arXiv:2311.07911, strict; Tülu 3's RLVR,
arXiv:2411.15124, §6).

IFEval's own programs check, as the library `if-verifiable` has them (`pip install ".[ifeval]"`). An empty answer follows nothing. What differs
from IFEval: languages are detected with a fixed seed, so that a result repeats; and `keywords:letter_frequency` counts a character that is not
a letter, such as "#", where IFEval's program counts a letter drawn at random.

Nothing is downloaded. The instructions of NEED_PUNKT need a file of NLTK's, which its user downloads once; without it they are refused.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plumbline.checking.instructions import COLUMN, Instruction
from plumbline.checking.references import References, load_references
from plumbline.reasoning import ALL, without_reasoning
from plumbline.rows import Message

INSTALL = 'pip install ".[ifeval]"'

NEED_PUNKT = ("length_constraints:number_sentences", "change_case:capital_word_frequency")
"""Instructions for which NLTK must know where a sentence ends."""

_LIBRARIES = ("if_verifiable", "langdetect", "nltk", "emoji", "immutabledict", "syllapy")
_SEED = 0


def require_library() -> None:
    """Requires the libraries that check instructions.

    Raises:
        ValueError: one is missing; the message says how to install it.
    """
    if missing := [name for name in _LIBRARIES if find_spec(name) is None]:
        raise ValueError(
            f"{COLUMN}: expected the libraries that check instructions, found no {', '.join(missing)}: run `{INSTALL}`"
        )


def require_checkers(instructions: Iterable[Instruction]) -> None:
    """Requires what checks these instructions; nothing if there are none.

    Raises:
        ValueError: a library or a file of NLTK's is missing; the message says how to install it.
    """
    names = {instruction["id"] for instruction in instructions}
    if names:
        require_library()
    if (needing := sorted(names & {*NEED_PUNKT})) and not _has_punkt():
        raise ValueError(
            f"{COLUMN}: expected NLTK's data punkt_tab, without which {needing[0]} cannot be checked, found none: run "
            "`python -m nltk.downloader punkt_tab`"
        )


def _has_punkt() -> bool:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        return False
    return True


def follows(instructions: Sequence[Instruction], answer: str) -> list[bool]:
    """Whether an answer without its reasoning follows each instruction."""
    return [bool(answer.strip()) and _follows(instruction, answer) for instruction in instructions]


def _follows(instruction: Instruction, answer: str) -> bool:
    arguments = {key: value for key, value in instruction.items() if key != "id"}
    checker = _checkers()[instruction["id"]](instruction["id"])
    if (letter := arguments.get("letter")) and not re.fullmatch("[A-Za-z]", letter):
        return _counts(answer.lower().count(letter.lower()), arguments)
    checker.build_description(**arguments)
    try:
        return bool(checker.check_following(answer))
    except RecursionError:  # `[` a thousand times is not JSON
        return False


def _counts(count: int, arguments: Mapping[str, Any]) -> bool:
    """Whether a count of a character is as `keywords:letter_frequency` asks."""
    is_less = count < arguments["let_frequency"]
    return is_less if arguments["let_relation"] == "less than" else not is_less


@cache
def _checkers() -> Mapping[str, Any]:
    """IFEval's checkers by the id of their instruction."""
    from if_verifiable.ifeval import INSTRUCTION_DICT
    from langdetect import DetectorFactory

    DetectorFactory.seed = _SEED
    return INSTRUCTION_DICT


class InstructionReward:
    """1 if all instructions of the prompt are followed, else 0; `outcomes` counts the completions by outcome.

    reasoning: which marks set a completion's reasoning apart (plumbline/reasoning.py).

    Raises:
        ValueError: what checks the instructions is not installed, or (when called) a prompt has none.
    """

    def __init__(self, references: References, reasoning: str = ALL) -> None:
        require_checkers(one for instructions in references.by_prompt.values() for one in instructions)
        self.references, self.reasoning = references, reasoning
        self.outcomes: Counter[str] = Counter()

    def __call__(self, prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
        return [self._score(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]

    def _score(self, prompt: list[Message], completion: str) -> float:
        followed = all(follows(self.references.of(prompt), without_reasoning(completion, self.reasoning)))
        self.outcomes["followed" if followed else "not_followed"] += 1
        return float(followed)


def load(folder: Path, description: Mapping[str, Any], run: str) -> InstructionReward:
    """Loads the reward that checks the instructions in a reward's folder."""
    return InstructionReward(load_references(folder, COLUMN), description.get("thinking_marks", ALL))
