"""Instructions that a program can check, such as "answer in less than 50 words": which there are, and what each needs (IFEval, arXiv:2311.07911).

A prompt's column `instructions` is a list of objects, each with an `id` of IFEval's and its arguments. Nothing here needs the library that checks
answers (plumbline/checking/following.py), so data can be prepared without it.
"""

import re
from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import Any

from plumbline.pipeline.misfits import suggestion

COLUMN = "instructions"

Instruction = dict[str, Any]
"""{"id": "length_constraints:number_words", "relation": "less than", "num_words": 50}: an id of ARGUMENTS, and its arguments."""

RELATIONS = ("less than", "at least")
LANGUAGES = (
    *("en", "es", "pt", "ar", "hi", "fr", "ru", "de", "ja", "it", "bn", "uk", "th", "ur", "ta"),
    *("te", "bg", "ko", "pl", "he", "fa", "vi", "ne", "sw", "kn", "mr", "gu", "pa", "ml", "fi"),
)  # those that IFEval asks for
_COUNT, _RELATION = "a whole number from 0", f"{' or '.join(RELATIONS)}"
_TEXT, _LETTER, _LANGUAGE = "a text", "one character", f"one of {' '.join(LANGUAGES)}"
_PATTERN, _PATTERNS = "a regular expression, such as a word", "a list of regular expressions, such as words"

ARGUMENTS: Mapping[str, Mapping[str, str]] = {
    "keywords:existence": {"keywords": _PATTERNS},
    "keywords:frequency": {"keyword": _PATTERN, "frequency": _COUNT, "relation": _RELATION},
    "keywords:forbidden_words": {"forbidden_words": _PATTERNS},
    "keywords:letter_frequency": {"letter": _LETTER, "let_frequency": _COUNT, "let_relation": _RELATION},
    "language:response_language": {"language": _LANGUAGE},
    "length_constraints:number_sentences": {"num_sentences": _COUNT, "relation": _RELATION},
    "length_constraints:number_paragraphs": {"num_paragraphs": _COUNT},
    "length_constraints:number_words": {"num_words": _COUNT, "relation": _RELATION},
    "length_constraints:nth_paragraph_first_word": {"num_paragraphs": _COUNT, "nth_paragraph": _COUNT, "first_word": _TEXT},
    "detectable_content:number_placeholders": {"num_placeholders": _COUNT},
    "detectable_content:postscript": {"postscript_marker": _PATTERN},
    "detectable_format:number_bullet_lists": {"num_bullets": _COUNT},
    "detectable_format:constrained_response": {},
    "detectable_format:number_highlighted_sections": {"num_highlights": _COUNT},
    "detectable_format:multiple_sections": {"section_spliter": _PATTERN, "num_sections": _COUNT},
    "detectable_format:json_format": {},
    "detectable_format:title": {},
    "combination:two_responses": {},
    "combination:repeat_prompt": {"prompt_to_repeat": _TEXT},
    "startend:end_checker": {"end_phrase": _TEXT},
    "startend:quotation": {},
    "change_case:capital_word_frequency": {"capital_frequency": _COUNT, "capital_relation": _RELATION},
    "change_case:english_capital": {},
    "change_case:english_lowercase": {},
    "punctuation:no_comma": {},
}
"""The id of each instruction → its arguments, as IFEval spells them, and what each must be. IFEval draws a missing one, so all are needed."""


def read_instructions(value: Any) -> list[Instruction]:
    """The instructions in a column or in a data conf; arguments that are null are left out, as Parquet files have them.

    Raises:
        ValueError: it is not a list of instructions, or one of them cannot be checked; the message says what was expected.
    """
    if not isinstance(value, list):
        raise ValueError(f"{COLUMN}: expected a list of objects, each with an `id` and its arguments, found {str(value)[:60]!r}")
    return [_read(item) for item in value]


def _read(item: Any) -> Instruction:
    if not isinstance(item, Mapping) or not isinstance(item.get("id"), str):
        raise ValueError(f"{COLUMN}: expected an object with an `id` and its arguments, found {str(item)[:60]!r}")
    name = item["id"]
    if name not in ARGUMENTS:
        raise ValueError(f"{COLUMN}: expected an id of IFEval, found {name[:60]!r}. Did you mean {_nearest(name)!r}?")
    wanted = ARGUMENTS[name]
    given = {key: _whole(argument) for key, argument in item.items() if key != "id" and argument is not None}
    if unknown := [str(key) for key in given if key not in wanted]:
        known = f"the arguments {', '.join(wanted)}" if wanted else "no arguments"
        raise ValueError(
            f"{COLUMN}: {name}: expected {known}, found {unknown[0]!r}.{suggestion(unknown[0], [*wanted])}".rstrip(".")
        )
    for key, expected in wanted.items():
        if key not in given:
            raise ValueError(f"{COLUMN}: {name}: expected {key}, {expected}, found none")
        if not _fits(given[key], expected):
            raise ValueError(f"{COLUMN}: {name}: expected {key} to be {expected}, found {str(given[key])[:60]!r}")
    if not 1 <= given.get("nth_paragraph", 1) <= given.get("num_paragraphs", 1) and "nth_paragraph" in given:
        raise ValueError(
            f"{COLUMN}: {name}: expected nth_paragraph from 1 to num_paragraphs, {given['num_paragraphs']}, found {given['nth_paragraph']}"
        )
    return {"id": name} | {key: given[key] for key in wanted}


def _nearest(name: str) -> str:
    """The id that was probably meant, also by one who left out what stands before the colon."""

    def likeness(known: str) -> float:
        whole, ending = ((known, name), (known.partition(":")[2], name.rpartition(":")[2]))
        return max(SequenceMatcher(None, *pair).ratio() for pair in (whole, ending))

    return max(ARGUMENTS, key=likeness)


def _whole(value: Any) -> Any:
    """A whole number that a Parquet file has as a float, because other rows have none, as an integer; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _fits(value: Any, expected: str) -> bool:
    if expected == _COUNT:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if expected == _PATTERNS:
        return isinstance(value, list) and bool(value) and all(_is_pattern(word) for word in value)
    if not isinstance(value, str) or not value.strip():
        return False
    if expected == _LETTER:
        return len(value) == 1
    if expected == _PATTERN:
        return _is_pattern(value)
    return expected == _TEXT or value in (RELATIONS if expected == _RELATION else LANGUAGES)


def _is_pattern(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(value.strip()) and bool(re.compile(value))
    except re.error:
        return False
