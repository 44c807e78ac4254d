"""What a verifier knows of each prompt: its right answer or its tests, found again by what was asked."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.pipeline.records import Message, read_jsonl

REFERENCES = "references.jsonl"
Row = dict[str, Any]


def key_of(prompt: Sequence[Message]) -> str:
    """A prompt as a key: its turns, whoever wrote them down."""
    return json.dumps([[turn["role"], turn["content"]] for turn in prompt], ensure_ascii=False)


def collect(prompts: Path, column: str) -> tuple[list[Row], int]:
    """The prompts of every split in a folder with what `column` knows of them, and how many have none.

    Raises:
        ValueError: no prompt has the column, or one prompt is there with two different references.
    """
    rows = [
        row
        for split in ("train", "validation", "test")
        if (file := prompts / f"{split}.jsonl").is_file()
        for row in read_jsonl(file)
    ]
    found: dict[str, Row] = {}
    for row in rows:
        if row.get(column) in (None, "", []):
            continue
        known = found.setdefault(key_of(row["prompt"]), {"prompt": row["prompt"], column: row[column]})
        if known[column] != row[column]:
            raise ValueError(
                f"expected one `{column}` for each prompt, found {known[column]!r} and {row[column]!r} for {row['prompt'][-1]['content'][:80]!r}"
            )
    if not found:
        raise ValueError(
            f"expected prompts with `{column}` in {prompts}, found none among {len(rows)}. GSM8K's prompts have an `answer`, MBPP's and "
            "HumanEval's have `tests`; in a format of your own map them in `fields` (conf/data/<name>.yaml), and set `signal: data/prompts`."
        )
    return [*found.values()], len(rows) - sum(key_of(row["prompt"]) in found for row in rows)


class References:
    """A reference for each prompt, by what was asked."""

    def __init__(self, rows: Iterable[Mapping[str, Any]], column: str) -> None:
        self.by_prompt = {key_of(row["prompt"]): row[column] for row in rows}

    def of(self, prompt: Sequence[Message]) -> Any:
        """The reference of a prompt.

        Raises:
            ValueError: there is none: scoring without it would be a guess.
        """
        try:
            return self.by_prompt[key_of(prompt)]
        except KeyError:
            raise ValueError(
                f"no reference for the prompt {prompt[-1]['content'][:80]!r}: the reward's `signal` must name the prompts that are sampled, "
                "and each must have one"
            ) from None


def load_references(folder: Path, column: str) -> References:
    """The references in a reward's folder."""
    return References(read_jsonl(folder / REFERENCES), column)
