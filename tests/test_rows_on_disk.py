"""Tokenised rows on disk: the same rows as in memory, in memory that does not grow with them, kept for a resumed run."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plumbline.models import rows_on_disk
from plumbline.pipeline.records import stream_rows, write_jsonl
from plumbline.pipeline.row_index import RowIndex
from tests.aligning import write_inputs
from tests.conftest import ROOT


def doubled(rows: Any) -> list[dict[str, Any]]:
    return [{"ids": [row["id"]] * (row["id"] % 3 + 1)} for row in rows]


@pytest.mark.parametrize("count", [1, 1024, 1025, 5000])
def test_rows_come_back_in_order_however_many_chunks_they_take(tmp_path: Path, count: int) -> None:
    rows = [{"id": number} for number in range(count)]
    table = rows_on_disk.rows_on_disk(iter(rows), doubled, tmp_path / "train.arrow")
    assert table.to_list() == doubled(rows)
    assert [Path(file["filename"]).name for file in table.cache_files] == ["train.arrow"]


@pytest.mark.parametrize("multiple", [3, 8, 4000])
def test_rows_that_belong_together_are_tokenised_together(tmp_path: Path, multiple: int) -> None:
    sizes: list[int] = []

    def encode(rows: Any) -> list[dict[str, Any]]:
        sizes.append(len(rows))
        return doubled(rows)

    rows_on_disk.rows_on_disk([{"id": number} for number in range(9000)], encode, tmp_path / "train.arrow", multiple_of=multiple)
    assert sum(sizes) == 9000
    assert all(size % multiple == 0 for size in sizes[:-1])


def test_a_table_that_is_whole_is_kept_and_one_that_is_not_is_written_again(tmp_path: Path) -> None:
    def crash(rows: Any) -> list[dict[str, Any]]:
        if rows[0]["id"]:
            raise RuntimeError("killed")
        return doubled(rows)

    rows = [{"id": number} for number in range(3000)]
    with pytest.raises(RuntimeError, match="killed"):
        rows_on_disk.rows_on_disk(rows, crash, tmp_path / "train.arrow")
    first = rows_on_disk.rows_on_disk(rows, doubled, tmp_path / "train.arrow")
    again = rows_on_disk.rows_on_disk([], crash, tmp_path / "train.arrow")
    assert again.to_list() == first.to_list() == doubled(rows)
    assert again._fingerprint == first._fingerprint  # by which TRL finds the reference's log-probabilities


@pytest.mark.parametrize(("most", "kept"), [(None, 24), (7, 7), (24, 24), (100, 24)])
def test_a_signal_is_read_as_far_as_training_reaches(tmp_path: Path, most: int | None, kept: int) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"id": number} for number in range(24)])
    write_jsonl(tmp_path / "validation.jsonl", [{"id": number} for number in range(9)])
    chosen = []
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        job: Any = SimpleNamespace(signal=tmp_path, seed=seed, checkpoints=folder)
        train, validation = rows_on_disk.signal_on_disk(job, ("id",), "dpo", doubled, most)
        assert len(validation) == 9
        chosen.append([row["ids"][0] for row in train])
    assert [len(set(rows)) for rows in chosen] == [kept] * 2
    assert (chosen[0] == chosen[1]) == (kept == 24)  # chosen by the seed


def test_rows_are_read_one_after_another(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"id": 1}\n{"other": 2}\n')
    rows = stream_rows(tmp_path / "rows.jsonl", ("id",), "dpo")
    assert next(rows) == {"id": 1}
    with pytest.raises(ValueError, match=r"dpo: expected rows of id in .*, found one of other without id"):
        next(rows)


def test_rows_come_from_the_file_by_their_position_in_any_order(tmp_path: Path) -> None:
    rows = [{"id": number, "text": text} for number, text in enumerate(["a", "안녕\n", "\u2028", "x" * 20_000, ""])]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    index = RowIndex(tmp_path / "rows.jsonl")
    assert len(index) == 5
    assert [*index.rows([4, 0, 3, 3, 1, 2])] == [rows[position] for position in (4, 0, 3, 3, 1, 2)]


MEASURE = """
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from transformers import AutoTokenizer
from plumbline.methods.offline import kto
from plumbline.models import chat
from plumbline.models.batching import mixed_batches
from plumbline.models.rows_on_disk import rows_on_disk, signal_on_disk
from plumbline.pipeline.records import stream_rows
from plumbline.pipeline.row_index import RowIndex
from plumbline.rewards.margins import order_by_prompt
from plumbline.rows import PREFERENCES, prompt_key
from stages import pretrain, reward_model

folder, tokenizer, learner = Path(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[2]), sys.argv[3]
train = folder / "train.jsonl"

def dpo():
    job = SimpleNamespace(signal=folder, seed=1, checkpoints=folder)
    return signal_on_disk(job, PREFERENCES, "dpo", partial(chat.encode_pairs, tokenizer))[0]

def labels():
    values = SimpleNamespace(loss="kto", micro_batch_size=8)
    rows = kto.read_labels(train, seed=1).rows()
    return rows_on_disk(rows, partial(kto.encode_labels, tokenizer, config=values), folder / "train.arrow", multiple_of=8)

def reward():
    order = order_by_prompt((prompt_key(row["prompt"]) for row in stream_rows(train, PREFERENCES, "reward")), 8, 1)
    rows = reward_model.training_rows(SimpleNamespace(kind="preference", margin_scale=0), RowIndex(train).rows(order.rows))
    return rows_on_disk(rows, partial(chat.encode_preferences, tokenizer), folder / "train.arrow")

def text():
    pretrain.DATA = folder
    return rows_on_disk(pretrain.documents(tokenizer, "text", 512), list, folder / "text.arrow")

table = {"dpo": dpo, "kto": labels, "reward_model": reward, "pretrain": text}[learner]()
class Rows:
    train_dataset, args = table, SimpleNamespace(train_batch_size=8, gradient_accumulation_steps=4, data_seed=1, world_size=1)
order = iter(mixed_batches(Rows)()._get_train_sampler())
for _ in range(1000):
    table[next(order)]
private = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
print(len(table), int(private[0].split()[1]) / 1024)
"""


@pytest.mark.parametrize("learner", ["dpo", "kto", "reward_model", "pretrain"])
def test_memory_does_not_grow_with_the_rows(learner: str, tmp_path: Path) -> None:
    """Anonymous memory: what is mapped from a file is given back when others need it."""
    artifacts = write_inputs(tmp_path)
    used = []
    for count in (2_000, 20_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        row = {"prompt": [{"role": "user", "content": "Why? " * 20}]}
        row |= {side: [{"role": "assistant", "content": f"{side} " * 40}] for side in ("chosen", "rejected")}
        (folder / "train.jsonl").write_text((json.dumps(row) + "\n") * count)
        (folder / "validation.jsonl").write_text(json.dumps(row) + "\n")
        (folder / "text.jsonl").write_text((json.dumps({"text": "chosen " * 80}) + "\n") * count)
        command = [sys.executable, "-c", MEASURE, str(folder), str(artifacts / "policy/sft"), learner]
        rows, mib = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
        assert int(rows) >= count
        used.append(float(mib))
    # lists of Python's integers would take 18,000 rows of some 700 tokens at 8 bytes or more: above 100 MiB
    assert used[1] - used[0] < 25
