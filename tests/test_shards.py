"""Tables in shards, work that is done shard by shard, and the numbers that a row draws by."""

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbline.models.rows_on_disk import rows_on_disk
from plumbline.models.uniforms import uniforms_of
from plumbline.pipeline.engine import Engine
from plumbline.pipeline.records import write_json, write_jsonl
from plumbline.pipeline.shard_files import (
    COLUMNS,
    MORE,
    count_rows,
    read_groups,
    read_shard,
    read_shards,
    read_table,
    shard_name,
    shard_paths,
    write_shard,
    write_table,
)
from plumbline.pipeline.shard_work import as_lines, as_table, by_shard, counts, only_here, write_counts
from plumbline.pipeline.shard_workers import Compute, Task, compute_shard
from plumbline.rows import Row, assistant
from tests.conftest import ROOT


def row(prompt: str, index: int = 0, **more: Any) -> Row:
    return {
        "id": prompt,
        "index": index,
        "prompt": [{"role": "user", "content": prompt}],
        "completion": assistant("Yes."),
        **more,
    }


# ---- tables ---------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from([*COLUMNS, MORE, "expects", "instructions"]) | TEXT


@settings(max_examples=200, deadline=None)
@given(st.lists(st.dictionaries(NAMES, JSON, max_size=6), max_size=4))
def test_any_row_of_json_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> None:
    file = tmp_path_factory.mktemp("shards") / "000000.parquet"
    write_shard(file, rows)
    assert json.dumps(read_shard(file), sort_keys=True) == json.dumps(rows, sort_keys=True)  # which tells 1 from 1.0 and True


def test_what_fits_no_column_stays_apart_from_an_absent_value(tmp_path: Path) -> None:
    rows = [
        row("p", family=None, finished=True, ids=[1, 2]),
        row("q") | {"prompt": [{"role": "user", "content": "?", "name": "Ann"}]},
    ]
    write_shard(tmp_path / "000000.parquet", rows)
    first, second = read_shard(tmp_path / "000000.parquet")
    assert (first["family"], "family" in second) == (None, False)
    assert second["prompt"][0]["name"] == "Ann"


def test_the_same_rows_give_the_same_bytes_and_every_shard_has_the_same_columns(tmp_path: Path) -> None:
    import pyarrow.parquet

    rows = [row("p", family="fact", logp=-1.5), row("q", note={"any": ["thing"]}), row("r")]
    for name in ("one", "other"):
        write_table(tmp_path / name, rows, 1)
    one, other = (shard_paths(tmp_path / name) for name in ("one", "other"))
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in other]
    assert len({pyarrow.parquet.read_schema(file).to_string() for file in one}) == 1


def test_other_programs_read_a_folder_of_shards_as_one_table(tmp_path: Path) -> None:
    from datasets import load_dataset

    write_table(tmp_path / "table", [row("p", family="fact"), row("q")], 1)
    table = load_dataset(
        "parquet", data_files=str(tmp_path / "table/*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert table["family"] == ["fact", None]
    assert table[0]["completion"] == assistant("Yes.")


def test_a_shard_holds_whole_prompts(tmp_path: Path) -> None:
    rows = [row(prompt, index) for prompt in "abcde" for index in range(3)]
    write_table(tmp_path, iter(rows), 2)
    assert [file.name for file in shard_paths(tmp_path)] == ["000000.parquet", "000001.parquet", "000002.parquet"]
    assert [{one["id"] for one in shard} for shard in read_shards(tmp_path)] == [{"a", "b"}, {"c", "d"}, {"e"}]
    assert [len(group) for group in read_groups(tmp_path)] == [3] * 5
    assert (read_table(tmp_path), count_rows(tmp_path)) == (rows, 15)


def test_shards_come_in_the_order_of_their_numbers_beyond_a_million_too(tmp_path: Path) -> None:
    numbers = [0, 99_999, 100_000, 999_999, 1_000_000, 1_000_001, 10_000_000]
    for number in numbers:
        (tmp_path / shard_name(number)).touch()
    assert [int(file.stem) for file in shard_paths(tmp_path)] == numbers


def test_an_empty_table_is_not_a_missing_one(tmp_path: Path) -> None:
    write_table(tmp_path / "empty", [], 2)
    assert read_table(tmp_path / "empty") == []
    with pytest.raises(ValueError, match=r"expected a table at .*, a folder of \.parquet files, found none there"):
        read_table(tmp_path / "missing")


def test_a_row_that_json_has_no_form_for_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_shard(tmp_path / "000000.parquet", [row("p", logp=float("nan"))])
    assert [*tmp_path.iterdir()] == []


def test_a_table_is_printed_as_lines_on_request(tmp_path: Path) -> None:
    rows = [row(prompt, index, note="ü") for prompt in "abc" for index in range(2)]
    write_table(tmp_path, rows, 1)
    command = [sys.executable, "-m", "plumbline.tools.as_text", str(tmp_path), "--prompts", "2"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [json.loads(line) for line in printed.splitlines()] == rows[:4]


# ---- work -----------------------------------------------------------------------------------------------------------


def test_a_shard_that_is_there_is_not_computed_again_and_one_that_was_begun_is(tmp_path: Path) -> None:
    computed: list[int] = []

    def compute(number: int, item: str, shard: Path) -> None:
        (shard / "half").write_text("half")
        if item == "c" and not (tmp_path / "again").exists():
            raise KeyboardInterrupt
        computed.append(number)
        (shard / "item").write_text(f"{item}\n")
        write_counts(shard, {"items": 1, item: number / 2})

    with pytest.raises(KeyboardInterrupt):
        by_shard(tmp_path / "work", "abcd", only_here(compute))
    (tmp_path / "work/000002.3f.partial").mkdir()  # of a run that was killed
    (tmp_path / "again").touch()
    shards = by_shard(tmp_path / "work", "abcd", only_here(compute))
    assert computed == [0, 1, 2, 3]
    assert [shard.name for shard in shards] == ["000000", "000001", "000002", "000003"]
    assert {file.name for file in shards[2].iterdir()} == {"half", "item", "counts.json"}
    assert counts(shards) == {"items": 4, "a": 0.0, "b": 0.5, "c": 1.0, "d": 1.5}
    as_lines(shards, "item", tmp_path / "out/lines.jsonl")
    assert (tmp_path / "out/lines.jsonl").read_text() == "a\nb\nc\nd\n"
    by_shard(tmp_path / "work", "ab", only_here(compute), afresh=True)
    assert computed[4:] == [0, 1]


def test_of_two_workers_that_complete_a_shard_the_first_counts(tmp_path: Path) -> None:
    """The first seemed dead, and the second had begun meanwhile."""

    def late(number: int, item: str, shard: Path) -> None:
        (shard / "item").write_text(item)
        if item == "second":
            compute_shard(late, Task(number, "first", tmp_path / "000000"))

    compute_shard(late, Task(0, "second", tmp_path / "000000"))
    compute_shard(late, Task(0, "third", tmp_path / "000000"))
    assert [path.name for path in tmp_path.iterdir()] == ["000000"]
    assert (tmp_path / "000000/item").read_text() == "first"


def test_a_run_that_goes_on_leaves_a_worker_of_the_killed_one_its_files(tmp_path: Path) -> None:
    """Such a worker may be between the first file of its shard and the last."""

    def old(number: int, item: str, shard: Path) -> None:
        write_counts(shard, {"items": 1})
        with pytest.raises(ValueError, match="expected a model"):
            by_shard(tmp_path / "work", "a", _failing)
        write_jsonl(shard / "rows.jsonl", [])

    [shard] = by_shard(tmp_path / "work", "a", only_here(old))
    assert sorted(file.name for file in shard.iterdir()) == ["counts.json", "rows.jsonl"]


def test_a_shard_whose_first_files_were_deleted_does_not_appear(tmp_path: Path) -> None:
    """What is written later makes the folder again."""

    def compute(number: int, item: str, shard: Path) -> None:
        write_counts(shard, {"items": 1})
        shutil.rmtree(shard)
        write_jsonl(shard / "rows.jsonl", [])

    with pytest.raises(FileNotFoundError, match=r"expected the files of shard 3 in .* found that they were deleted meanwhile"):
        compute_shard(compute, Task(3, "a", tmp_path / "000003"))
    assert not (tmp_path / "000003").exists()


def test_a_shard_is_on_the_disk_before_it_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[int] = set()
    fsync, replace = os.fsync, os.replace

    def noting(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def checking(source: Any, target: Any) -> None:
        if str(source).endswith(".partial"):
            assert {path.stat().st_ino for path in (Path(source), *Path(source).iterdir())} <= synced
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noting)
    monkeypatch.setattr(os, "replace", checking)
    [shard] = by_shard(tmp_path / "work", "a", only_here(lambda number, item, shard: write_counts(shard, {"items": 1})))
    assert len(synced) == 2
    assert [file.name for file in shard.iterdir()] == ["counts.json"]


@pytest.mark.parametrize(
    "write",
    [
        lambda file: write_json(file, {"a": 1}),
        lambda file: write_jsonl(file, [{"a": 1}]),
        lambda file: rows_on_disk([{"id": 1}], lambda rows: rows, file),
    ],
    ids=["json", "lines", "tokenised rows"],
)
def test_a_file_is_on_the_disk_before_it_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], object]
) -> None:
    synced: dict[int, int] = {}
    monkeypatch.setattr(os, "fsync", lambda one: synced.update({os.fstat(one).st_ino: os.fstat(one).st_size}))
    write(tmp_path / "file")
    assert synced == {(tmp_path / "file").stat().st_ino: (tmp_path / "file").stat().st_size}


@pytest.mark.parametrize("linking", [True, False])
def test_a_table_of_shards_leaves_the_shards_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linking: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("another file system")

    if not linking:
        monkeypatch.setattr("os.link", refuse)
    rows = [row(prompt) for prompt in "abc"]

    def compute(number: int, one: Row, shard: Path) -> None:
        write_shard(shard / "table.parquet", [one])

    shards = by_shard(tmp_path / "work", rows, only_here(compute))
    as_table(shards, "table.parquet", tmp_path / "table")
    assert read_table(tmp_path / "table") == rows
    assert [read_shard(shard / "table.parquet") for shard in shards] == [[one] for one in rows]


def peak_bytes(folder: Path, prompts: int) -> int:
    """The most that Python holds at once while so many prompts are written, read shard by shard and written again."""
    rows = (row(str(number), index, ids=[*range(1000, 1040)]) for number in range(prompts) for index in range(8))
    tracemalloc.start()
    write_table(folder / "table", rows, 20)
    files = shard_paths(folder / "table")
    shards = by_shard(folder / "work", files, only_here(as_both))
    as_table(shards, "table.parquet", folder / "out")
    as_lines(shards, "lines.jsonl", folder / "lines.jsonl")
    assert sum(1 for _ in read_groups(folder / "out")) == prompts
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def as_both(number: int, file: Path, shard: Path) -> None:
    rows = read_shard(file)
    write_shard(shard / "table.parquet", rows)
    write_jsonl(shard / "lines.jsonl", rows)


def test_memory_holds_one_shard_whatever_the_number_of_prompts(tmp_path: Path) -> None:
    peak_bytes(tmp_path / "first", 20)  # what is imported stays
    assert peak_bytes(tmp_path / "many", 640) < 1.3 * peak_bytes(tmp_path / "few", 160)


# ---- numbers --------------------------------------------------------------------------------------------------------


def philox(key: tuple[int, int], counter: int) -> list[int]:
    """Philox 4×64-10 as its paper defines it: four numbers of 64 bits for a key and a counter."""
    mask, (first_key, second_key) = 2**64 - 1, key
    a, b, c, d = (counter >> shift & mask for shift in (0, 64, 128, 192))
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
        a, b, c, d = (second >> 64) ^ b ^ first_key, second & mask, (first >> 64) ^ d ^ second_key, first & mask
        first_key, second_key = first_key + 0x9E3779B97F4A7C15 & mask, second_key + 0xBB67AE8584CAA73B & mask
    return [a, b, c, d]


def test_the_reference_implementation_gives_the_published_test_vector() -> None:
    """Of the authors' Random123, kat_vectors: philox4x64 10, counter and key 0."""
    assert philox((0, 0), 0) == [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]


@pytest.mark.parametrize(("seed", "row_number"), [(17, 0), (17, 8_000_001), (0, 5), (2**63, 1), (-1, 3)])
def test_a_rows_numbers_are_philoxs_under_the_key_of_seed_and_row(seed: int, row_number: int) -> None:
    expected = [word / 2**64 for counter in (1, 2) for word in philox((seed % 2**64, row_number), counter)]
    numbers = uniforms_of(seed, [row_number], 7)
    assert (numbers.dtype, tuple(numbers.shape)) == (torch.float64, (1, 7))
    assert numbers[0].tolist() == pytest.approx(expected[:7], abs=2**-52)


def test_a_rows_numbers_depend_on_no_other_row_nor_on_how_many_are_drawn() -> None:
    together = uniforms_of(3, range(1000), 48)
    assert torch.equal(uniforms_of(3, range(400, 500), 48), together[400:500])
    assert torch.equal(uniforms_of(3, [999], 8), together[999:, :8])
    assert len(torch.unique(together)) == together.numel()
    assert not torch.equal(uniforms_of(4, range(1000), 48), together)
    # uniform, and neither neighbouring rows nor neighbouring columns correlate: all within four standard errors
    n = together.numel()
    centred = (together - 0.5) * 12**0.5
    assert abs(float(centred.mean())) < 4 / n**0.5
    for first, second in ((centred[1:], centred[:-1]), (centred[:, 1:], centred[:, :-1])):
        assert abs(float((first * second).mean())) < 4 / n**0.5
    assert float(together.min()) >= 0
    assert float(together.max()) < 1


@contextmanager
def _failing() -> Iterator[Compute]:
    """Sets up nothing, as without a model or a server."""
    raise ValueError("expected a model, found none")
    yield


@pytest.mark.parametrize("shards", ["here", "processes"])
def test_without_a_shard_to_compute_nothing_is_set_up(tmp_path: Path, shards: str) -> None:
    engine = Engine(shards=shards)
    made = by_shard(tmp_path / "work", "ab", only_here(lambda number, item, shard: write_counts(shard, {"items": 1})))
    assert by_shard(tmp_path / "work", "ab", _failing, engine) == made
    assert by_shard(tmp_path / "none", "", _failing, engine) == []
    with pytest.raises(ValueError, match="expected a model, found none"):
        by_shard(tmp_path / "work", "abc", _failing, engine)
