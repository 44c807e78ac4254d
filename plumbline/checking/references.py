"""References to check completions against: what each prompt states of its answer, looked up by the prompt's text."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plumbline.pipeline.records import read_jsonl
from plumbline.rows import Message, Row, last_turn, prompt_key

REFERENCES = "references.jsonl"

REFERENCE_COLUMNS = {"math": "answer", "code": "tests", "refusals": "expects", "instructions": "instructions"}
"""A kind of verifier that checks against a reference → the column of the prompts that holds it."""


def read_prompts(folder: Path) -> list[Row]:
    """The prompts of every split in a folder."""
    files = [folder / f"{split}.jsonl" for split in ("train", "validation", "test")]
    return [row for file in files if file.is_file() for row in read_jsonl(file)]


def collect(rows: Sequence[Row], column: str) -> list[Row]:
    """The distinct prompts that have a reference in `column`, with that reference.

    Raises:
        ValueError: no prompt has a reference, or a prompt has two different ones.
    """
    references: dict[str, Row] = {}
    for row in rows:
        if row.get(column) in (None, "", []):
            continue
        reference = references.setdefault(prompt_key(row["prompt"]), {"prompt": row["prompt"], column: row[column]})
        if reference[column] != row[column]:
            raise ValueError(
                f"expected one `{column}` for each prompt, found {reference[column]!r} and {row[column]!r} for "
                f"{last_turn(row['prompt'])[:80]!r}: remove one of them from the data"
            )
    if not references:
        raise ValueError(
            f"expected prompts with `{column}`, found none among {len(rows)}. GSM8K's prompts have an `answer`; MBPP's and HumanEval's have "
            "`tests`; IFEval's have `instructions`. Name the column of another format in `fields`, or say `expects` or `instructions` of a source "
            "(conf/data/<name>.yaml)."
        )
    return [*references.values()]


class References:
    """The reference of each prompt, looked up by the prompt's text."""

    def __init__(self, rows: Iterable[Mapping[str, Any]], column: str) -> None:
        self.by_prompt = {prompt_key(row["prompt"]): row[column] for row in rows}

    def __contains__(self, prompt: Sequence[Message]) -> bool:
        return prompt_key(prompt) in self.by_prompt

    def of(self, prompt: Sequence[Message]) -> Any:
        """The reference of a prompt.

        Raises:
            ValueError: the prompt has no reference, without which a score would be a guess.
        """
        try:
            return self.by_prompt[prompt_key(prompt)]
        except KeyError:
            raise ValueError(
                f"expected a reference for every prompt that is scored, found none for {last_turn(prompt)[:80]!r}: sample only prompts that "
                "have one"
            ) from None


def load_references(folder: Path, column: str) -> References:
    """The references in a reward's folder."""
    return References(read_jsonl(folder / REFERENCES), column)
