"""What a row says: all its texts, its prompt, and what makes two rows the same."""

from collections.abc import Iterator
from typing import Any

from plumbline.letters import composed
from plumbline.rows import Row

MESSAGE_COLUMNS = ("messages", "prompt", "completion", "chosen", "rejected")


def contents(row: Row) -> Iterator[tuple[str, Any]]:
    """Every text of a row with its position, such as ("prompt[0]", …). Of an unchecked row, a content may be of any type."""
    if "text" in row:
        yield "text", row["text"]
    for column in MESSAGE_COLUMNS:
        for index, turn in enumerate(row.get(column, ())):
            yield f"{column}[{index}]", turn["content"]


def identity(row: Row) -> str:
    """What makes two rows the same: every text in its position, its speaker, and the label. How letters are encoded does not matter."""
    turns = [turn for column in MESSAGE_COLUMNS for turn in (*row.get(column, ()), {})]
    conversation = "\x1e".join(f"{turn['role']}\x1f{turn['content']}" if turn else "" for turn in turns)
    return composed(f"{row.get('text', '')}\x1e{conversation}\x1e{row.get('label', '')}")


def whole_text(row: Row) -> str:
    """All texts of a row together, by which near duplicates and overlaps are found."""
    return "\n".join(content for _, content in contents(row))


def prompt_text(row: Row) -> str:
    """All turns before the answer, with composed letters; "" for plain text."""
    turns = row.get("prompt") or [*row.get("messages", ())]
    if "messages" in row and turns and turns[-1]["role"] == "assistant":
        turns = turns[:-1]
    return composed("\n".join(turn["content"] for turn in turns))


def question_text(row: Row) -> str:
    """The prompt without its system turns, which many rows share and which therefore identify none."""
    return prompt_text(
        {key: [turn for turn in row.get(key, ()) if turn["role"] != "system"] for key in ("prompt", "messages") if key in row}
    )
