"""Claims about pretraining: which tokens carry loss, and what there must be to train on."""

from pathlib import Path
from typing import Any

import pytest

from plumbline.models.tokenizers import train_tokenizer
from plumbline.pipeline.records import write_jsonl
from stages.pretrain import IGNORED, documents

QUESTION, ANSWER, AGAIN, LAST = (
    {"role": role, "content": text}
    for role, text in (("user", "what is it"), ("assistant", "a boat"), ("user", "and now"), ("assistant", "a ship"))
)


@pytest.fixture
def tokenizer() -> Any:
    return train_tokenizer(["what is it a boat and now a ship the sea is wide"] * 5, 300)


def trained_on(
    tokenizer: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]], block: int = 64
) -> list[str]:
    """The text of the tokens with loss of each document."""
    monkeypatch.setattr("stages.pretrain.DATA", folder)
    write_jsonl(folder / "train.jsonl", rows)
    encoded = [*documents(tokenizer, "train", block)]
    for row in encoded:
        assert all(label in (IGNORED, token) for token, label in zip(row["input_ids"], row["labels"], strict=True))
    return [tokenizer.decode([label for label in row["labels"] if label != IGNORED]) for row in encoded]


def test_of_a_dialogue_only_the_last_answer_carries_loss(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"messages": [QUESTION, ANSWER]}, {"messages": [QUESTION, ANSWER, AGAIN, LAST]}]
    assert trained_on(tokenizer, tmp_path, monkeypatch, rows) == ["a boat<|end|>", "a ship<|end|>"]


@pytest.mark.parametrize("messages", [[QUESTION], [QUESTION, ANSWER, AGAIN], [ANSWER]])
def test_text_and_conversations_without_a_last_answer_are_read_whole(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[dict[str, str]]
) -> None:
    rows = [{"text": "the sea is wide"}, {"messages": messages}]
    text, conversation = trained_on(tokenizer, tmp_path, monkeypatch, rows)
    assert text == "the sea is wide<|end|>"
    assert all(message["content"] in conversation for message in messages)


def test_text_comes_first_and_dialogues_follow_in_order_however_few_are_in_memory(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": [QUESTION, ANSWER]},
        {"text": "the sea"},
        {"messages": [QUESTION, LAST]},
        {"text": "is wide"},
    ]
    rows += [{"text": "a boat and a ship"}, {"messages": [QUESTION, ANSWER]}]
    for chunk in (1, 2, 1000):
        monkeypatch.setattr("stages.pretrain.CHUNK", chunk)
        assert trained_on(tokenizer, tmp_path, monkeypatch, rows) == [
            f"{text}<|end|>" for text in ("the sea", "is wide", "a boat and a ship", "a boat", "a ship", "a boat")
        ]


def test_a_piece_of_a_long_document_that_holds_no_answer_is_left_out(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = QUESTION | {"content": "what is it and now " * 20}
    pieces = trained_on(tokenizer, tmp_path, monkeypatch, [{"messages": [long, ANSWER]}], block=8)
    assert "".join(pieces) == "a boat<|end|>"
    assert all(pieces)


def test_without_rows_training_says_where_they_went(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"expected text to train on, found none.*prepare\.json counts the rows"):
        trained_on(tokenizer, tmp_path, monkeypatch, [])
