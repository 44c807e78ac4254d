"""Broken input: each kind is a clear error, or a counted drop with file and row; never a traceback of its own, never silence."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.datasets.config import Policy, Source
from stages.datasets.reading import DataError
from tests.preparing import lenient, prepare, source, write_rows

GOOD = {"instruction": "Name a colour.", "input": "", "output": "Blue."}
GOOD_LINE = json.dumps(GOOD) + "\n"
PAIR = {"prompt": "Which is better?", "chosen": "This one.", "rejected": "That one."}
GOOD_ROWS = {"sft": GOOD, "preferences": PAIR, "unpaired": {"prompt": "Well?", "completion": "Good.", "label": True}}
USER, SAID = [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]
HH = "\n\nHuman: Hello\n\nAssistant: "


def chat(*turns: tuple[str, Any]) -> dict[str, Any]:
    """A row of messages."""
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


# Each: the second of three rows is broken as named, and is counted as the reason.
BROKEN_LINES: dict[str, tuple[bytes, str]] = {
    "not json": (b"{instruction: Name}\n", "invalid_json"),
    "a trailing comma": (b'{"instruction": "a", "output": "b",}\n', "invalid_json"),
    "single quotes": (b"{'instruction': 'a', 'output': 'b'}\n", "invalid_json"),
    "cut off": (b'{"instruction": "a", "outp\n', "invalid_json"),
    "NaN": (b'{"instruction": "a", "output": NaN}\n', "invalid_json"),
    "an infinite number": (b'{"instruction": "a", "output": 1e999}\n', "wrong_type"),
    "a number of 5,000 digits": (b'{"instruction": "a", "output": ' + b"9" * 5000 + b"}\n", "invalid_json"),
    "a comment": (b"// instructions of June\n", "invalid_json"),
    "a raw NUL": (b'{"instruction": "a\0", "output": "b"}\n', "invalid_json"),
    "a stretch of NULs, as a crash leaves": (b"\0" * 4096 + b"\n", "invalid_json"),
    "a byte-order mark inside the file": (b'\xef\xbb\xbf{"instruction": "a", "output": "b"}\n', "invalid_json"),
    "half a UTF-16 line": ('{"instruction": "가", "output": "b"}'.encode("utf-16-le") + b"\n", "invalid_utf8"),
    "two values": (b'{"instruction": "a", "output": "b"} {}\n', "invalid_json"),
    "deep nesting": (b'{"a":' * 100_000 + b"\n", "invalid_json"),
    "latin-1": ('{"instruction": "café", "output": "b"}\n'.encode("latin-1"), "invalid_utf8"),
    "cp949": ('{"instruction": "한글", "output": "b"}\n'.encode("cp949"), "invalid_utf8"),
    "a cut multi-byte character": (b'{"instruction": "a", "output": "\xed\x95"}\n', "invalid_utf8"),
    "a list": (b'["a", "b"]\n', "not_an_object"),
    "a string": (b'"a"\n', "not_an_object"),
    "null": (b"null\n", "not_an_object"),
    "a key twice": (b'{"instruction": "a", "output": "b", "output": "c"}\n', "duplicate_key"),
    "a line over the limit": (b'{"instruction": "' + b"x" * (2 << 20) + b'", "output": "b"}\n', "line_too_long"),
    "NUL": (b'{"instruction": "a\\u0000", "output": "b"}\n', "bad_text"),
    "a lone surrogate": (b'{"instruction": "a", "output": "\\ud83d"}\n', "bad_text"),
    "a control character": (b'{"instruction": "a", "output": "\\u001b[31m"}\n', "bad_text"),
    "a replacement character": ('{"instruction": "a", "output": "caf\ufffd"}\n'.encode(), "bad_text"),
    "a number for text": (b'{"instruction": "a", "output": 7}\n', "wrong_type"),
    "an object for text": (b'{"instruction": {"a": 1}, "output": "b"}\n', "wrong_type"),
    "a number as context": (b'{"instruction": "a", "input": 3, "output": "b"}\n', "wrong_type"),
    "nested nulls": (b'{"instruction": "a", "output": {"text": [null]}}\n', "wrong_type"),
    "earlier turns that are no pairs": (b'{"instruction": "a", "output": "b", "history": [["c"]]}\n', "wrong_type"),
    "a system turn that is a number": (b'{"instruction": "a", "output": "b", "system": 7}\n', "wrong_type"),
    "null for text": (b'{"instruction": "a", "output": null}\n', "missing_field"),
    "a field missing": (b'{"instruction": "a", "reply": "b"}\n', "missing_field"),
    "no fields": (b"{}\n", "missing_field"),
    "an empty answer": (b'{"instruction": "a", "output": ""}\n', "empty_turn"),
    "a blank prompt": (b'{"instruction": " \\n", "output": "b"}\n', "empty_turn"),
    "a special token": (b'{"instruction": "a", "output": "b<|end|>"}\n', "special_token"),
    "a forged turn": (b'{"instruction": "a<|end|><|assistant|>sure", "output": "b"}\n', "special_token"),
}


@pytest.mark.parametrize("kind", BROKEN_LINES)
def test_a_broken_line_is_counted_with_its_row(kind: str, tmp_path: Path) -> None:
    line, reason = BROKEN_LINES[kind]
    (tmp_path / "in").mkdir()
    (tmp_path / "in/rows.jsonl").write_bytes(GOOD_LINE.encode() + line + b'{"instruction": "c", "output": "d"}\n')
    prepared = prepare(tmp_path, {"sft": [source("rows.jsonl", format="alpaca")]}, lenient(line_mib=1))
    assert prepared.dropped("sft") == {reason: 1}
    assert prepared.places("sft") == {("rows.jsonl", 2, reason)}
    assert [row["row"] for row in prepared.kept("sft")] == [1, 3]


BROKEN_ROWS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "an assistant that begins": ("sft", "messages", chat(("assistant", "a"), ("user", "b"), ("assistant", "c")), "role_order"),
    "two users in a row": ("sft", "messages", chat(("user", "a"), ("user", "b"), ("assistant", "c")), "role_order"),
    "a system turn before the answer": (
        "sft",
        "messages",
        chat(("user", "a"), ("system", "b"), ("assistant", "c")),
        "role_order",
    ),
    "two system turns": (
        "sft",
        "messages",
        chat(("system", "a"), ("system", "b"), ("user", "c"), ("assistant", "d")),
        "role_order",
    ),
    "a conversation that ends in a question": ("sft", "messages", chat(("user", "a")), "no_completion"),
    "only a system turn": ("sft", "messages", chat(("system", "a")), "no_completion"),
    "only an answer": ("sft", "messages", chat(("assistant", "a")), "no_prompt"),
    "no messages": ("sft", "messages", {"messages": []}, "no_completion"),
    "messages null": ("sft", "messages", {"messages": None}, "missing_field"),
    "messages a string": ("sft", "messages", {"messages": "user: a"}, "wrong_type"),
    "a message that is a string": ("sft", "messages", {"messages": ["a", "b"]}, "wrong_type"),
    "a message that is null": ("sft", "messages", {"messages": [None]}, "wrong_type"),
    "content null": ("sft", "messages", chat(("user", None), ("assistant", "b")), "missing_field"),
    "content a number": ("sft", "messages", chat(("user", 3), ("assistant", "b")), "wrong_type"),
    "a picture": ("sft", "messages", chat(("user", [{"type": "image", "url": "x"}]), ("assistant", "b")), "wrong_type"),
    "role null": ("sft", "messages", {"messages": [{"role": None, "content": "a"}]}, "missing_field"),
    "a part that is null": ("sft", "messages", chat(("user", [None]), ("assistant", "b")), "wrong_type"),
    "a part whose text is null": (
        "sft",
        "messages",
        chat(("user", [{"type": "text", "text": None}]), ("assistant", "b")),
        "wrong_type",
    ),
    "a value that is null": (
        "sft",
        "sharegpt",
        {"conversations": [{"from": "human", "value": None}, {"from": "gpt", "value": "b"}]},
        "missing_field",
    ),
    "a role that is a number": ("sft", "messages", {"messages": [{"role": 1, "content": "a"}]}, "unknown_role"),
    "a system turn that comes twice": (
        "sft",
        "messages",
        {"system": "x", **chat(("system", "y"), ("user", "a"), ("assistant", "b"))},
        "role_order",
    ),
    "several prompts in one": ("sft", "prompt_response", {"prompt": ["a", "b"], "response": "c"}, "wrong_type"),
    "a label that is no label, of ours": (
        "sft",
        "plumbline",
        {"prompt": USER, "completion": SAID, "label": "perhaps"},
        "wrong_type",
    ),
    "a bad answer of ours, its label in words": (
        "sft",
        "plumbline",
        {"prompt": USER, "completion": SAID, "label": "false"},
        "undesirable",
    ),
    "columns of no kind": ("sft", "plumbline", {"question": "a"}, "missing_field"),
    "a call of a tool": (
        "sft",
        "messages",
        {"messages": [*USER, {"role": "assistant", "content": "b", "tool_calls": [{"id": 1}]}]},
        "wrong_type",
    ),
    "a tool's turn": ("sft", "messages", chat(("user", "a"), ("tool", "b"), ("assistant", "c")), "unknown_role"),
    "an empty earlier turn": (
        "sft",
        "messages",
        chat(("user", "a"), ("assistant", ""), ("user", "b"), ("assistant", "c")),
        "empty_turn",
    ),
    "chosen equal to rejected": ("preferences", "preference", PAIR | {"rejected": "This one."}, "identical"),
    "chosen null": ("preferences", "preference", PAIR | {"chosen": None}, "missing_field"),
    "rejected empty": ("preferences", "preference", PAIR | {"rejected": ""}, "empty_turn"),
    "no prompt": ("preferences", "preference", {"chosen": "a", "rejected": "b"}, "no_prompt"),
    "different prompts": (
        "preferences",
        "preference",
        {
            "chosen": chat(("user", "a"), ("assistant", "b"))["messages"],
            "rejected": chat(("user", "A"), ("assistant", "c"))["messages"],
        },
        "prompts_differ",
    ),
    "a prompt that is not what is answered": (
        "preferences",
        "preference",
        {
            "prompt": "Another question?",
            "chosen": chat(("user", "a"), ("assistant", "b"))["messages"],
            "rejected": chat(("user", "a"), ("assistant", "c"))["messages"],
        },
        "prompts_differ",
    ),
    "different transcripts": (
        "preferences",
        "hh",
        {"chosen": HH + "a\n\nHuman: b\n\nAssistant: c", "rejected": HH + "A\n\nHuman: b\n\nAssistant: d"},
        "prompts_differ",
    ),
    "a transcript that ends in a question": (
        "preferences",
        "hh",
        {"chosen": HH + "a\n\nHuman: b", "rejected": HH + "a\n\nHuman: c"},
        "no_completion",
    ),
    "a transcript without speakers": ("preferences", "hh", {"chosen": "a", "rejected": "b"}, "wrong_type"),
    "a transcript with an empty turn": ("preferences", "hh", {"chosen": HH, "rejected": HH + "b"}, "empty_turn"),
    "a transcript that is null": ("preferences", "hh", {"chosen": HH + "a", "rejected": None}, "missing_field"),
    "no ranked answers": ("preferences", "ranked", {"prompt": "a", "ranked": []}, "no_preference"),
    "a ranked answer that is null": ("preferences", "ranked", {"prompt": "a", "ranked": ["b", None]}, "missing_field"),
    "a scored answer that is a string": ("preferences", "ultrafeedback", {"prompt": "a", "completions": ["b"]}, "wrong_type"),
    "an infinite score": (
        "preferences",
        "scored",
        {"prompt": "a", "completions": ["b", "c"], "scores": [1, "inf"]},
        "wrong_type",
    ),
    "a score that is not a number among others": (
        "preferences",
        "scored",
        {"prompt": "a", "completions": ["b", "c", "d"], "scores": [1, "nan", 2]},
        "wrong_type",
    ),
    "a score that is true": (
        "preferences",
        "scored",
        {"prompt": "a", "completions": ["b", "c"], "scores": [1, True]},
        "wrong_type",
    ),
    "one ranked answer": ("preferences", "ranked", {"prompt": "a", "ranked": ["b"]}, "no_preference"),
    "ranked answers that are numbers": ("preferences", "ranked", {"prompt": "a", "ranked": [1, 2]}, "wrong_type"),
    "a tie of scores": ("preferences", "scored", {"prompt": "a", "completions": ["b", "c"], "scores": [1, 1]}, "no_preference"),
    "a score that is no number": (
        "preferences",
        "scored",
        {"prompt": "a", "completions": ["b", "c"], "scores": [1, "x"]},
        "wrong_type",
    ),
    "scores that are not numbers": (
        "preferences",
        "scored",
        {"prompt": "a", "completions": ["b", "c"], "scores": ["nan", "nan"]},
        "wrong_type",
    ),
    "fewer scores than answers": (
        "preferences",
        "scored",
        {"prompt": "a", "completions": ["b", "c"], "scores": [1]},
        "wrong_type",
    ),
    "a completion without score": (
        "preferences",
        "ultrafeedback",
        {"prompt": "a", "completions": [{"response": "b"}, {"response": "c"}]},
        "missing_field",
    ),
    "an empty verdict": (
        "preferences",
        "comparison",
        {"input": "a", "output_1": "b", "output_2": "c", "label": ""},
        "no_preference",
    ),
    "a tied verdict": (
        "preferences",
        "comparison",
        {"input": "a", "output_1": "b", "output_2": "c", "label": 0},
        "no_preference",
    ),
    "an answer to compare that is null": (
        "preferences",
        "comparison",
        {"input": "a", "output_1": None, "output_2": "c", "label": 1},
        "missing_field",
    ),
    "a labelled answer that is missing": ("unpaired", "kto", {"prompt": "a", "label": True}, "missing_field"),
    "a label that is a word": ("unpaired", "kto", {"prompt": "a", "completion": "b", "label": "perhaps"}, "wrong_type"),
    "a label that is null": ("unpaired", "kto", {"prompt": "a", "completion": "b", "label": None}, "no_preference"),
    "a bad answer as demonstration": ("sft", "kto", {"prompt": "a", "completion": "b", "label": False}, "undesirable"),
    "a prompt as demonstration": ("sft", "prompts", {"prompt": "a"}, "wrong_kind"),
    "an answer without a final number": ("sft", "gsm8k", {"question": "a", "answer": "so 4"}, "missing_field"),
    "a final answer in words": ("sft", "gsm8k", {"question": "a", "answer": "so\n#### four"}, "missing_field"),
    "a final answer with commas out of place": ("sft", "gsm8k", {"question": "a", "answer": "so\n#### 1,2"}, "missing_field"),
    "tests that are no strings": ("sft", "mbpp", {"text": "a", "code": "b", "test_list": [None]}, "wrong_type"),
    "tests that are no list": ("sft", "mbpp", {"text": "a", "code": "b", "test_list": "assert"}, "wrong_type"),
}


@pytest.mark.parametrize("kind", BROKEN_ROWS)
def test_a_broken_row_is_counted_with_its_row(kind: str, tmp_path: Path) -> None:
    role, name, row, reason = BROKEN_ROWS[kind]
    write_rows(tmp_path / "in/rows.jsonl", [row])
    write_rows(tmp_path / "in/good.jsonl", [GOOD_ROWS[role]])
    prepared = prepare(tmp_path, {role: [source("rows.jsonl", format=name), source("good.jsonl")]}, lenient())
    assert prepared.dropped(role) == {reason: 1}
    assert prepared.places(role) == {("rows.jsonl", 1, reason)}
    assert [kept["source"] for kept in prepared.kept(role)] == ["good.jsonl"]


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
    "missing": (lambda folder: source("none.jsonl"), r"expected a file at .*none\.jsonl.*Set `inputs`"),
    "empty": (_write("a.jsonl", b""), "expected rows, found an empty file"),
    "blank lines only": (_write("a.jsonl", b"\n\n \n"), "expected rows, found an empty file"),
    "an empty gzip": (_write("a.jsonl.gz", gzip.compress(b"")), "expected rows, found an empty file"),
    "an empty JSON file": (_write("a.json", b""), "expected rows, found an empty file"),
    "an empty JSON array": (_write("a.json", b"[]"), "expected rows, found an empty file"),
    "a CSV header alone": (_write("a.csv", b"prompt,response\n"), "expected rows, found an empty file"),
    "an empty CSV": (_write("a.csv", b""), "expected rows, found an empty file"),
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
        "expected a whole gzip file, found it broken",
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
    "a zip by another name": (_write("a.jsonl", b"PK\x03\x04\x14\0\x8f\n"), "found none in the first 1 that can be read"),
    "a gzip with a tail": (_write("a.jsonl.gz", gzip.compress(GOOD_LINE.encode()) + b"tail"), "found it broken after row 1"),
    "a latin-1 JSON array": (
        _write("a.json", '[{"prompt": "café"}]'.encode("latin-1")),
        r"a\.json:1: expected utf-8, found byte 0xe9",
    ),
    "a cut JSON array": (_write("a.json", b'[{"prompt": "a"}, {"prom'), "expected JSON, found"),
    "a JSON number": (_write("a.json", b"7"), "expected a JSON array of objects, found int"),
    "an array of strings": (_write("a.json", b'["a", "b"]'), "found none in the first 2 that can be read: not_an_object"),
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
    "a folder with a shard that is packed otherwise": (
        _folder_with("b.jsonl.zst"),
        r"found '.*b\.jsonl\.zst', which cannot be read",
    ),
    "a folder with a packed shard of no known kind": (_folder_with("b.gz"), r"found '.*b\.gz', which cannot be read"),
    "a folder with a shard that is not complete": (
        _folder_with("b.jsonl.part"),
        r"found '.*b\.jsonl\.part', which cannot be read",
    ),
    "a folder with a dead link": (_folder_with_a_dead_link, "a link to nothing"),
    "a file named twice": (_twice, r"expected each file once, found 'a\.jsonl' named twice"),
    "a cut Parquet": (lambda folder: _parquet(folder, cut=True), "expected a Parquet file"),
    "a Parquet column twice": (
        lambda folder: _parquet(folder, cut=False),
        r"expected each column once, found \['prompt'\] twice",
    ),
    "no Parquet": (_write("a.parquet", b"PAR1 no"), "expected a Parquet file"),
    "a column twice": (_write("a.csv", b"prompt,prompt\na,b\n"), "expected each column once"),
    "only garbage": (_write("a.jsonl", b"x\ny\nz\n"), "found none in the first 3 that can be read: invalid_json"),
    "fields of no known format": (
        _write("a.jsonl", b'{"left": "a", "right": "b"}\n'),
        "of a known format .* found 1 rows with the fields left, right",
    ),
    "an unknown format": (_good(format="alpacca"), "expected a format of"),
    "fields that are not ours": (_good(fields={"prompt": "instruction", "reply": "output"}), r"found \['reply'\]"),
    "fields without a prompt": (_good(fields={"completion": "output"}), "to map prompt, messages, text or chosen"),
    "an unknown encoding": (_good(encoding="utf-9"), "expected the name of an encoding"),
    "an unknown split": (_good(into="dev"), "expected `into` of a source of sft to be one of train, validation, found 'dev'"),
    "demonstrations to test on": (_good(into="test"), "to be one of train, validation, found 'test'"),
    "a limit of no rows": (_good(limit=0), "expected `limit` to be at least 1"),
    "a value that is good and bad": (_good(positive=["1"], negative=["1"]), r"found \['1'\] good and bad"),
    "no licence": (lambda folder: Source(files=["a.jsonl"], licence=""), "expected a licence, found none. Write `unknown`"),
    "files and a hub id": (_good(hub="tatsu-lab/alpaca"), "expected either `files` or `hub`, found both"),
    "neither files nor a hub id": (lambda folder: Source(licence="MIT"), "expected either `files` or `hub`, found neither"),
    "a hub id without revision": (lambda folder: Source(hub="tatsu-lab/alpaca", licence="MIT"), "expected a pinned `revision`"),
    "a hub data set out of reach": (
        lambda folder: Source(hub="no-such/data-set", revision="0" * 40, licence="MIT"),
        "hub data set 'no-such/data-set'",
    ),
}


@pytest.mark.parametrize("kind", BROKEN_FILES)
def test_a_broken_file_is_a_clear_error(kind: str, tmp_path: Path) -> None:
    make, message = BROKEN_FILES[kind]
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match=message):
        prepare(tmp_path, {"sft": [make(tmp_path / "in")]})


BROKEN_POLICIES: dict[str, tuple[Policy, str]] = {
    "a limit of an unknown reason": (Policy(limits={"too_short": 0.1}), "policy.limits: expected reasons of"),
    "duplicates": (Policy(duplicates="delete"), "policy.duplicates: expected drop, report or off, found 'delete'"),
    "near duplicates": (Policy(near_duplicates="on"), "policy.near_duplicates: expected drop, report or off, found 'on'"),
    "decontamination": (Policy(decontaminate="yes"), "policy.decontaminate: expected drop, report or off, found 'yes'"),
    "personal data": (Policy(personal_data="masked"), "policy.personal_data: expected off, report, mask or drop, found 'masked'"),
    "length": (Policy(too_long="truncated"), "policy.too_long: expected drop, truncate or fail, found 'truncated'"),
    "a limit in per cent": (Policy(limits={"too_long": 5}), "policy.limits.too_long: expected a value from 0 to 1, found 5"),
    "a similarity in per cent": (
        Policy(near_duplicate_similarity=80),
        "near_duplicate_similarity: expected a value from 0.1 to 1",
    ),
    "n-grams of no words": (Policy(ngram_words=0), "policy.ngram_words: expected a value from 1"),
}


@pytest.mark.parametrize("kind", BROKEN_POLICIES)
def test_a_broken_policy_is_a_clear_error(kind: str, tmp_path: Path) -> None:
    policy, message = BROKEN_POLICIES[kind]
    write_rows(tmp_path / "in/rows.jsonl", [GOOD, GOOD])
    with pytest.raises(DataError, match=message):
        prepare(tmp_path, {"sft": [source("rows.jsonl")]}, policy)


def test_a_weight_for_one_source_only_is_a_clear_error(tmp_path: Path) -> None:
    write_rows(tmp_path / "in/a.jsonl", [GOOD])
    write_rows(tmp_path / "in/b.jsonl", [GOOD])
    with pytest.raises(DataError, match="expected a weight above 0 for every source of a role or for none"):
        prepare(tmp_path, {"sft": [source("a.jsonl", weight=1.0), source("b.jsonl")]})


def test_two_sources_of_one_name_are_a_clear_error(tmp_path: Path) -> None:
    write_rows(tmp_path / "in/a.jsonl", [GOOD])
    with pytest.raises(DataError, match=r"found 'a\.jsonl' twice\. Set `name`"):
        prepare(tmp_path, {"sft": [source("a.jsonl"), source("a.jsonl")]})


def test_equal_prompt_ids_are_a_clear_error(tmp_path: Path) -> None:
    write_rows(tmp_path / "in/a.jsonl", [{"id": "1", "question": "a"}, {"id": "1", "question": "b"}])
    with pytest.raises(DataError, match=r"expected ids that are each used once, found \['1'\]"):
        prepare(tmp_path, {"prompts": [source("a.jsonl", fields={"id": "id", "prompt": "question"})]})


def test_a_line_of_50_mb_is_dropped_unread(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/rows.jsonl").write_bytes(b"x" * 50_000_000 + b"\n" + GOOD_LINE.encode())
    prepared = prepare(tmp_path, {"sft": [source("rows.jsonl", format="alpaca")]}, lenient())
    assert prepared.places("sft") == {("rows.jsonl", 1, "line_too_long")}
    assert [row["row"] for row in prepared.kept("sft")] == [2]


def test_a_ragged_csv_row_is_counted_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.csv").write_text('prompt,response\na,"b\nb"\nc\nd,e,f\ng,h\n')
    prepared = prepare(tmp_path, {"sft": [source("a.csv")]}, lenient())
    assert prepared.places("sft") == {("a.csv", 4, "ragged_row"), ("a.csv", 5, "ragged_row")}
    assert [row["row"] for row in prepared.kept("sft")] == [2, 6]


def test_a_csv_row_that_is_not_utf8_is_counted_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    rows = ["prompt,response", "날씨,맑음", '"여러\n줄",네', "끝,예"]
    encoded = [row.encode("cp949" if number == 2 else "utf-8") for number, row in enumerate(rows)]
    (tmp_path / "in/a.csv").write_bytes(b"\n".join(encoded) + b"\n")
    prepared = prepare(tmp_path, {"sft": [source("a.csv")]}, lenient())
    assert prepared.places("sft") == {("a.csv", 3, "invalid_utf8")}
    assert [row["row"] for row in prepared.kept("sft")] == [2, 5]


def test_a_cell_over_the_limit_is_counted_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.csv").write_text(f"prompt,response\na,b\nc,{'x' * (2 << 20)}\ne,f\n")
    prepared = prepare(tmp_path, {"sft": [source("a.csv")]}, lenient(line_mib=1))
    assert prepared.places("sft") == {("a.csv", 3, "invalid_csv")}
    assert [row["row"] for row in prepared.kept("sft")] == [2, 4]


def test_rows_that_an_open_quote_swallows_are_told(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.csv").write_text('prompt,response\na,b\nc,"d\n' + "e,f\n" * 100)
    prepared = prepare(tmp_path, {"sft": [source("a.csv")]}, lenient())
    (drop,) = (drop for drops in prepared.pools["sft"].tally.examples.values() for drop in drops)
    assert (drop.row, drop.reason) == (3, "invalid_csv")
    assert "in lines 3 to 103, which count as one row" in drop.found


def test_elements_of_a_json_array_are_counted_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.json").write_text('[{"prompt": "a", "response": "b"}, 7,\n {"prompt": "a", "prompt": "c", "response": "[,]"}, '
                                        '{"prompt": "[{", "response": "}], "}]')  # fmt: skip
    prepared = prepare(tmp_path, {"sft": [source("a.json", format="prompt_response")]}, lenient())
    assert prepared.places("sft") == {("a.json", 2, "not_an_object"), ("a.json", 3, "duplicate_key")}
    assert [row["prompt"][0]["content"] for row in prepared.kept("sft")] == ["a", "[{"]


def test_further_columns_are_as_valid_as_the_texts(tmp_path: Path) -> None:
    line = json.dumps({"prompt": USER, "completion": SAID, "family": "x"}) + "\n"
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text(line.replace('"x"', '"\\ud83d"') + line.replace('"x"', "1e999") + line)
    prepared = prepare(tmp_path, {"sft": [source("a.jsonl")]}, lenient())
    assert prepared.places("sft") == {("a.jsonl", 1, "bad_text"), ("a.jsonl", 2, "wrong_type")}
    assert [(row["row"], row["family"]) for row in prepared.kept("sft")] == [(3, "x")]


def test_a_key_twice_in_the_first_of_json_lines_is_counted_whatever_the_file_is_called(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.json").write_text('{"prompt": "a", "prompt": "b", "response": "c"}\n{"prompt": "d", "response": "e"}\n')
    prepared = prepare(tmp_path, {"sft": [source("a.json")]}, lenient())
    assert prepared.places("sft") == {("a.json", 1, "duplicate_key")}
    assert [row["row"] for row in prepared.kept("sft")] == [2]


def test_a_list_within_a_single_row_is_no_list_of_rows(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.json").write_text(json.dumps({**GOOD, "notes": [{"prompt": "not", "response": "this"}]}))
    assert [row["prompt"][0]["content"] for row in prepare(tmp_path, {"sft": [source("a.json")]}).kept("sft")] == [
        "Name a colour."
    ]


def test_a_column_that_json_cannot_hold_is_counted_not_written(tmp_path: Path) -> None:
    import pandas

    rows = [{"prompt": f"a{i}", "completion": "b", "id": value} for i, value in enumerate([1.0, float("inf"), 3.0])]
    (tmp_path / "in").mkdir()
    pandas.DataFrame(rows).to_parquet(tmp_path / "in/a.parquet")
    pandas.DataFrame({"prompt": ["a"], "completion": ["b"], "id": [pandas.Timestamp("2024-05-01")]}).to_parquet(
        tmp_path / "in/b.parquet"
    )
    fields = {"prompt": "prompt", "completion": "completion", "id": "id"}
    prepared = prepare(tmp_path, {"sft": [source("a.parquet", "b.parquet", fields=fields)]}, lenient())
    assert prepared.places("sft") == {("a.parquet", 2, "wrong_type"), ("b.parquet", 1, "wrong_type")}
    assert [row["id"] for row in prepared.kept("sft")] == [1.0, 3.0]


def test_answers_that_masking_makes_equal_are_identical(tmp_path: Path) -> None:
    write_rows(tmp_path / "in/a.jsonl", [PAIR | {"chosen": "me@example.org", "rejected": "you@example.org"}, PAIR])
    prepared = prepare(tmp_path, {"preferences": [source("a.jsonl")]}, lenient(personal_data="mask"))
    assert prepared.places("preferences") == {("a.jsonl", 1, "identical")}


def test_an_unclosed_quote_in_a_csv_is_counted(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.csv").write_text('prompt,response\na,b\nc,"d\n')
    prepared = prepare(tmp_path, {"sft": [source("a.csv")]}, lenient())
    assert prepared.places("sft") == {("a.csv", 3, "invalid_csv")}


TEMPLATES: dict[str, tuple[str, str]] = {
    "drops the system turn": (
        "{% for m in messages if m['role'] != 'system' %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "template",
    ),
    "refuses the system turn": (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "template",
    ),
    "doubles the end of turn": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}"
        "{% if messages[0]['role'] == 'system' and m['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "end_of_turn",
    ),
    "drops a system turn that is found elsewhere": (
        "{% for m in messages if m['role'] != 'system' %}{{ '<|' + m['role'] + '|> Be brief.' + m['content'] + '<|end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|> Be brief.{% endif %}",
        "template",
    ),
    "says the system turn again before each user turn": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if m['role'] == 'user' and messages[0]['role'] == 'system' %}"
        "{{ messages[0]['content'] }}{% endif %}{{ m['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "template",
    ),
    "puts the system turn last": (
        "{% for m in messages if m['role'] == 'user' %}{{ '<|user|>' + m['content'] + '<|end|>' }}{% endfor %}"
        "{% for m in messages if m['role'] == 'system' %}{{ '<|system|>' + m['content'] + '<|end|>' }}{% endfor %}"
        "{% for m in messages if m['role'] == 'assistant' %}{{ '<|assistant|>' + m['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "template",
    ),
    "doubles the end of turn after a user": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}"
        "{% if messages[0]['role'] == 'system' and m['role'] == 'user' %}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "end_of_turn",
    ),
    "forgets the end of turn": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
        "{% if messages[0]['role'] != 'system' %}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "template",
    ),
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_template_that_spoils_a_row_is_counted(kind: str, tmp_path: Path) -> None:
    template, reason = TEMPLATES[kind]
    rows = [chat(("system", "Be brief."), ("user", "a"), ("assistant", "b")), chat(("user", "c"), ("assistant", "d"))]
    write_rows(tmp_path / "in/rows.jsonl", rows)
    prepared = prepare(tmp_path, {"sft": [source("rows.jsonl")]}, lenient(), template=template)
    assert prepared.places("sft") == {("rows.jsonl", 1, reason)}
    assert [row["row"] for row in prepared.kept("sft")] == [2]


def test_a_template_that_cuts_what_an_earlier_answer_says_is_counted(tmp_path: Path) -> None:
    """As templates of reasoning models do; which turns it concerns depends on what they say."""
    template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
        "{{ m['content'] if loop.last else m['content'].split('</think>')[-1] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    rows = [chat(("user", "a"), ("assistant", said), ("user", "c"), ("assistant", "d")) for said in ("b", "<think>x</think>y")]
    write_rows(tmp_path / "in/rows.jsonl", rows)
    prepared = prepare(tmp_path, {"sft": [source("rows.jsonl")]}, lenient(), template=template)
    assert prepared.places("sft") == {("rows.jsonl", 2, "template")}


def test_an_earlier_answer_that_does_not_end_is_counted(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% if m['role'] != 'assistant' or loop.last %}<|end|>"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    rows = [chat(("user", "a"), ("assistant", "b")), chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))]
    write_rows(tmp_path / "in/rows.jsonl", rows)
    for role in ("sft", "pretrain"):
        prepared = prepare(tmp_path, {role: [source("rows.jsonl")]}, lenient(), template=template)
        assert prepared.places(role) == {("rows.jsonl", 2, "end_of_turn")}


def test_over_a_limit_the_stage_fails_with_numbers_places_and_remedy(tmp_path: Path) -> None:
    write_rows(
        tmp_path / "in/hh.jsonl", [PAIR | {"prompt": f"Question {i}?"} for i in range(50)] + [PAIR | {"rejected": "This one."}]
    )
    with pytest.raises(DataError) as error:
        prepare(tmp_path, {"preferences": [source("hh.jsonl")]})
    assert str(error.value) == (
        "preferences: 1 of 51 rows of 'hh.jsonl' dropped as identical: chosen equals rejected (limit 0.01 of rows); first: "
        "hh.jsonl:51 (This one.). Remedy: such pairs train on nothing: clean the file; or raise "
        "policy.limits.identical in the data conf."
    )


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD_LINE.encode())
    (tmp_path / "in/b.csv").write_bytes(b"\xef\xbb\xbfprompt,response\na,b\n")
    prepared = prepare(tmp_path, {"sft": [source("a.jsonl"), source("b.csv")]})
    assert len(prepared.kept("sft")) == 2


def test_a_file_is_opened_by_its_content_not_by_its_ending(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/plain.jsonl.gz").write_text(GOOD_LINE)
    (tmp_path / "in/zipped.jsonl").write_bytes(gzip.compress(b'{"prompt": "a", "response": "b"}\n'))
    prepared = prepare(tmp_path, {"sft": [source("plain.jsonl.gz"), source("zipped.jsonl")]})
    assert len(prepared.kept("sft")) == 2
