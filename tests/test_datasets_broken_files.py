"""Broken files and wrong data confs: each is a clear error that says what was expected and what to do."""

import gzip
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plumbline.data.faults import DataError
from plumbline.data.schema import FilesData, Policy, Role, Source
from plumbline.pipeline.composing import problems
from tests.preparing import prepare, source, write_rows

GOOD = {"instruction": "Name a colour.", "input": "", "output": "Blue."}
GOOD_LINE = json.dumps(GOOD) + "\n"


def _write(name: str, content: bytes) -> Callable[[Path], Source]:
    def make(folder: Path) -> Source:
        (folder / name).write_bytes(content)
        return source(name)

    return make


def _outside(folder: Path) -> Source:
    (folder.parent / "secret.jsonl").write_text(GOOD_LINE)
    (folder / "link.jsonl").symlink_to(folder.parent / "secret.jsonl")
    return source("link.jsonl")


def _dead_link(folder: Path) -> Source:
    (folder / "dead.jsonl").symlink_to("nothing.jsonl")
    return source("dead.jsonl")


def _empty_folder(folder: Path) -> Source:
    (folder / "sub").mkdir()
    (folder / "sub/notes.md").write_text("none")
    return source("sub")


def _pipe(folder: Path) -> Source:
    os.mkfifo(folder / "pipe.jsonl")
    return source("pipe.jsonl")


def _twice(folder: Path) -> Source:
    (folder / "a.jsonl").write_text(GOOD_LINE)
    return source("a.jsonl", "*.jsonl")


def _loop(folder: Path) -> Source:
    (folder / "loop.jsonl").symlink_to("loop.jsonl")
    return source("loop.jsonl")


def _folder_with(name: str) -> Callable[[Path], Source]:
    def make(folder: Path) -> Source:
        (folder / "shards").mkdir()
        (folder / "shards/a.jsonl").write_text(GOOD_LINE)
        (folder / "shards" / name).write_bytes(b"x")
        return source("shards")

    return make


def _folder_with_a_dead_link(folder: Path) -> Source:
    _folder_with("b.jsonl")(folder)
    (folder / "shards/c.jsonl").symlink_to("nothing.jsonl")
    return source("shards")


def _parquet(folder: Path, *, cut: bool) -> Source:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table([["a"], ["b"]], names=["prompt", "response" if cut else "prompt"])
    parquet.write_table(table, folder / "a.parquet")
    if cut:
        (folder / "a.parquet").write_bytes((folder / "a.parquet").read_bytes()[:-20])
    return source("a.parquet")


def _good(**settings: Any) -> Callable[[Path], Source]:
    def make(folder: Path) -> Source:
        (folder / "rows.jsonl").write_text(GOOD_LINE)
        return source("rows.jsonl", **settings)

    return make


BROKEN_FILES: dict[str, tuple[Callable[[Path], Source], str]] = {
    "missing": (lambda folder: source("none.jsonl"), r"expected a file at .*none\.jsonl.*`inputs`"),
    "empty": (_write("a.jsonl", b""), "found an empty file"),
    "blank lines only": (_write("a.jsonl", b"\n\n \n"), "found an empty file"),
    "an empty gzip": (_write("a.jsonl.gz", gzip.compress(b"")), "found an empty file"),
    "an empty JSON file": (_write("a.json", b""), "found an empty file"),
    "an empty JSON array": (_write("a.json", b"[]"), "found an empty file"),
    "a CSV header alone": (_write("a.csv", b"prompt,response\n"), "found an empty file"),
    "an empty CSV": (_write("a.csv", b""), "found an empty file"),
    "a folder without data": (_empty_folder, "expected data files .* in the folder"),
    "a dead symbolic link": (_dead_link, "found a symbolic link to 'nothing.jsonl', which does not exist"),
    "a link that leads outside": (_outside, "expected files inside inputs"),
    "a path that leads outside": (lambda folder: source("../secret.jsonl"), "expected a path inside inputs"),
    "an absolute path": (lambda folder: source("/etc/passwd"), "expected a path inside inputs"),
    "a glob without matches": (lambda folder: source("*.jsonl"), "expected files that match"),
    "a pipe": (_pipe, "expected a regular file"),
    "an unknown ending": (_write("a.xlsx", b"x"), "expected a file ending in"),
    "a cut gzip": (
        _write("a.jsonl.gz", gzip.compress(GOOD_LINE.encode() * 500)[:-40]),
        "gzip file, found it broken",
    ),
    "UTF-16": (_write("a.jsonl", GOOD_LINE.encode("utf-16")), "found a UTF-16 byte-order mark. Set `encoding: utf-16`"),
    "a UTF-16 CSV": (_write("a.csv", "prompt,response\na,b\n".encode("utf-16")), "found a UTF-16 byte-order mark"),
    "a cp949 CSV": (
        _write("a.csv", "prompt,response\n한글,네\n".encode("cp949")),
        r"a\.csv:2: .*invalid_utf8, byte 0xc7 in cell 1, which is not utf-8 .*cp949.*set `encoding`",
    ),
    "a CSV whose header is in cp949": (
        _write("a.csv", "질문,답\na,b\n".encode("cp949")),
        r"a\.csv:1: expected utf-8 in the header",
    ),
    "a CSV whose header has an open quote": (_write("a.csv", b'prompt,"response\na,b\n'), "expected a CSV header"),
    "a CSV in an unknown encoding": (
        lambda folder: _write("a.csv", b"prompt,response\na,b\n")(folder) and source("a.csv", encoding="utf-9"),
        "expected the name of an encoding",
    ),
    "a CSV cut by semicolons": (_write("a.csv", b"prompt;response\na;b\n"), "with the fields prompt;response"),
    "a zip by another name": (_write("a.jsonl", b"PK\x03\x04\x14\0\x8f\n"), "found none in the first 1: "),
    "a gzip with other bytes after it": (
        _write("a.jsonl.gz", gzip.compress(GOOD_LINE.encode()) + b"tail"),
        "found it broken after row 1",
    ),
    "a latin-1 JSON array": (
        _write("a.json", '[{"prompt": "café"}]'.encode("latin-1")),
        r"a\.json:1: expected utf-8, found byte 0xe9",
    ),
    "a cut JSON array": (_write("a.json", b'[{"prompt": "a"}, {"prom'), "expected valid JSON, found"),
    "a JSON number": (_write("a.json", b"7"), "expected a JSON array of objects, found int"),
    "an array of strings": (_write("a.json", b'["a", "b"]'), "found none in the first 2: not_an_object"),
    "only rows with a key twice": (
        _write("a.json", b'[{"a": 1, "a": 2}]'),
        r"a\.json:1: expected rows, found none .* duplicate_key, key 'a' twice",
    ),
    "a key twice around the rows": (
        _write("a.json", b'{"data": [{"prompt": "a"}], "data": []}'),
        "expected each key once in an object, found key 'data' twice",
    ),
    "a link to itself": (_loop, "expected a file at|found a symbolic link"),
    "a folder named as a file": (lambda folder: (folder / "a.jsonl").mkdir() or source("a.jsonl"), "expected data files"),
    "a folder with a shard in another container": (
        _folder_with("b.jsonl.zst"),
        r"found '.*b\.jsonl\.zst', which cannot be read",
    ),
    "a folder with a packed shard of unknown content": (_folder_with("b.gz"), r"found '.*b\.gz', which cannot be read"),
    "a folder with an incomplete shard": (
        _folder_with("b.jsonl.part"),
        r"found '.*b\.jsonl\.part', which cannot be read",
    ),
    "a folder with a dead link": (_folder_with_a_dead_link, "a link to nothing"),
    "a file named twice": (_twice, r"expected each file once, found 'a\.jsonl' twice"),
    "a cut Parquet": (lambda folder: _parquet(folder, cut=True), "expected a Parquet file"),
    "a Parquet column twice": (
        lambda folder: _parquet(folder, cut=False),
        r"expected each column once, found \['prompt'\] twice",
    ),
    "not a Parquet file": (_write("a.parquet", b"PAR1 no"), "expected a Parquet file"),
    "a column twice": (_write("a.csv", b"prompt,prompt\na,b\n"), "expected each column once"),
    "only garbage": (_write("a.jsonl", b"x\ny\nz\n"), "found none in the first 3: invalid_json"),
    "fields of no known format": (
        _write("a.jsonl", b'{"left": "a", "right": "b"}\n'),
        "of a known format .* found 1 rows with the fields left, right",
    ),
    "an unknown format": (_good(format="alpacca"), "expected a format of"),
    "a column that is not ours": (_good(fields={"prompt": "instruction", "reply": "output"}), r"found \['reply'\]"),
    "fields without a prompt": (_good(fields={"completion": "output"}), "to map prompt, messages, text or chosen"),
    "an unknown encoding": (_good(encoding="utf-9"), "expected the name of an encoding"),
    "a hub data set out of reach": (
        lambda folder: Source(hub="no-such/data-set", revision="0" * 40, licence="MIT"),
        "hub data set 'no-such/data-set'",
    ),
}


@pytest.mark.parametrize("kind", BROKEN_FILES)
def test_a_broken_file_is_a_clear_error(kind: str, tmp_path: Path) -> None:
    make, message = BROKEN_FILES[kind]
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match=message):  # a DataError, unless the conf alone shows the fault
        prepare(tmp_path, {"sft": [make(tmp_path / "in")]})


def test_equal_prompt_ids_are_a_clear_error(tmp_path: Path) -> None:
    write_rows(tmp_path / "in/a.jsonl", [{"id": "1", "question": "a"}, {"id": "1", "question": "b"}])
    with pytest.raises(DataError, match=r"found \['1'\] more than once"):
        prepare(tmp_path, {"prompts": [source("a.jsonl", fields={"id": "id", "prompt": "question"})]})


def _demonstrations(*sources: Source) -> FilesData:
    return FilesData(sft=Role(list(sources)))


# Data conf -> the key, what was expected, what was found.
WRONG_CONFS: list[tuple[FilesData, str, str, str]] = [
    (FilesData(policy=Policy(limits={"too_short": 0.1})), "policy.limits", "too_long", "['too_short']"),
    (FilesData(policy=Policy(limits={"too_long": 5})), "policy.limits.too_long", "from 0 to 1", "5"),
    (FilesData(policy=Policy(duplicates="delete")), "policy.duplicates", "drop, report or off", "'delete'"),
    (FilesData(policy=Policy(near_duplicates="on")), "policy.near_duplicates", "drop, report or off", "'on'"),
    (FilesData(policy=Policy(decontaminate="yes")), "policy.decontaminate", "drop, report or off", "'yes'"),
    (FilesData(policy=Policy(personal_data="masked")), "policy.personal_data", "off, report, mask or drop", "'masked'"),
    (FilesData(policy=Policy(too_long="truncated")), "policy.too_long", "drop, truncate or fail", "'truncated'"),
    (FilesData(policy=Policy(near_duplicate_similarity=80)), "policy.near_duplicate_similarity", "from 0.1 to 1", "80"),
    (FilesData(policy=Policy(ngram_words=0)), "policy.ngram_words", "from 1 to", "0"),
    (FilesData(validation_fraction=0.6, test_fraction=0.6), "validation_fraction + test_fraction", "to 0.99", "1.2"),
    (_demonstrations(source("a", into="dev")), "sft: source 'a': into", "train, validation", "'dev'"),
    (_demonstrations(source("a", into="test")), "sft: source 'a': into", "train, validation", "'test'"),
    (_demonstrations(source("a", limit=0)), "sft: source 'a': limit", "at least 1", "0"),
    (_demonstrations(source("a", skip=-1)), "sft: source 'a': skip", "at least 0", "-1"),
    (_demonstrations(source("a", positive=["1"], negative=["1"])), "positive, negative", "different values", "['1']"),
    (_demonstrations(Source(files=["a"], licence="")), "sft: source 'a': licence", "a licence", "none"),
    (_demonstrations(source("a", hub="owner/name", revision="0")), "sft: source 'owner/name'", "`files` or `hub`", "both"),
    (_demonstrations(Source(licence="MIT")), "sft: source ''", "`files` or `hub`", "neither"),
    (_demonstrations(Source(hub="owner/name", licence="MIT")), "sft: source 'owner/name': revision", "the commit", "none"),
    (_demonstrations(source("a", folder="b")), "sft: source 'a': folder", "`hub` beside it", "`files`"),
    (_demonstrations(source("a"), source("a")), "sft", "different names", "'a' twice"),
    (_demonstrations(source("a", weight=1.0), source("b")), "sft", "a weight above 0", "{'a': 1.0, 'b': None}"),
    (_demonstrations(source("a", weight=1.0), source("b", weight=-1.0)), "sft", "a weight above 0", "'b': -1.0"),
]


def test_every_wrong_value_of_a_data_conf_is_reported_under_its_key() -> None:
    for data, key, expected, found in WRONG_CONFS:
        (message,) = problems(data)
        assert re.search(f"{re.escape(key)}: expected .*{re.escape(expected)}.*, found .*{re.escape(found)}", message), message


def test_all_wrong_values_of_a_data_conf_are_reported_at_once() -> None:
    data = FilesData(sft=Role([source("a", limit=0)]), prompts=Role([source("b", into="dev")]), policy=Policy(ngram_words=0))
    assert len(problems(data)) == 3
