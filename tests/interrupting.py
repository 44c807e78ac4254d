"""Interrupts or kills a stage between two shards, and runs it again."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from plumbline.pipeline.records import read_jsonl
from tests.conftest import ROOT


class Interrupted(BaseException):
    """The stage ends here, as if it were killed."""


def contents(outputs: Sequence[str]) -> dict[str, bytes]:
    """The bytes of all files in these folders or files."""
    files = [file for path in map(Path, outputs) for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    return {file.as_posix(): file.read_bytes() for file in sorted(files)}


def judge_calls() -> dict[str, int]:
    """How many questions the last run of each node says that it put to each of its judges; nodes without a judge are left out."""
    rows = [(file.stem, row) for file in Path(".timings").glob("*.jsonl") for row in read_jsonl(file)]
    return {f"{name} {key}": calls for name, row in rows for key, calls in row.items() if key.endswith("judge_calls")}


def require_resuming(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[], object], outputs: Sequence[str], done: int, *, afresh: bool = False
) -> None:
    """Requires that `run`, interrupted once `done` shards are there, computes the others alone when it runs again, and gives the same bytes.
    What it says of a judge has to be of all shards, too.

    afresh: it computes all shards instead.
    """
    computed = 0
    limit: int | None = None
    replace = os.replace

    def counting(source: str | Path, target: str | Path) -> None:
        nonlocal computed
        if str(source).endswith(".partial"):
            if computed == limit:
                raise Interrupted
            computed += 1
        replace(source, target)

    monkeypatch.setattr(os, "replace", counting)
    run()
    undisturbed, total, calls = contents(outputs), computed, judge_calls()
    assert total > done > 0, "the test needs more shards"
    computed, limit = 0, done
    with pytest.raises(Interrupted):
        run()
    computed, limit = 0, None
    run()
    assert computed == (total if afresh else total - done)
    assert contents(outputs) == undisturbed
    assert judge_calls() == calls


KILLED = """
import os, signal, sys
sys.path[:0] = [{root!r}, {tests!r}]
replace, computed = os.replace, 0

def killing(source, target):
    global computed
    if str(source).endswith(".partial"):
        if computed == {done}:
            os.kill(os.getpid(), signal.SIGKILL)
        computed += 1
    replace(source, target)

os.replace = killing
{code}
"""
"""Runs a stage that kills itself when it has computed so many shards and the next is about to appear."""


def require_surviving_a_kill(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[], object], code: str, outputs: Sequence[str], done: int
) -> None:
    """Requires that `run`, killed once `done` shards are there, loses the shard that it was at alone, and gives the same bytes when it runs again.

    code: does what `run` does, in another process, which finds the modules of the tests.
    """
    computed: list[str] = []
    replace = os.replace

    def counting(source: str | Path, target: str | Path) -> None:
        if str(source).endswith(".partial"):
            computed.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", counting)
    run()
    undisturbed, whole = contents(outputs), [*computed]
    computed.clear()
    for output in outputs:
        shutil.rmtree(output) if Path(output).is_dir() else Path(output).unlink()
    script = KILLED.format(root=str(ROOT), tests=str(ROOT / "tests"), done=done, code=code)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert contents(outputs) == {}
    run()
    assert computed == whole[done:]
    assert contents(outputs) == undisturbed
    assert not [file for file in Path(".checkpoints").iterdir() if file.suffix != ".lock"]
    rows = [row for file in Path(".timings").glob("*.jsonl") for row in read_jsonl(file)]
    assert [row["shards_repeated"] for row in rows if "shards_repeated" in row] == [1]
