"""Shards that are computed in several processes or on a Ray cluster: the same bytes, nothing twice, and a death costs one shard at most."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from shard_jobs import doubling, elsewhere, notes

from plumbline.pipeline import ray_workers, shard_workers
from plumbline.pipeline.engine import Engine
from plumbline.pipeline.processes import ProcessEnded
from plumbline.pipeline.shard_work import by_shard, counts
from plumbline.pipeline.shard_workers import lost_attempts
from tests.ray_cluster import MEMORY, SEARCHED, cluster  # noqa: F401  a fixture

pytestmark = pytest.mark.slow

ITEMS = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture(params=["processes", "ray"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine of two workers of each kind."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if request.param == "ray":
        request.getfixturevalue("cluster")
    return Engine(shards=request.param, workers=2)


def files(shards: list[Path]) -> list[dict[str, bytes]]:
    return [{file.name: file.read_bytes() for file in sorted(shard.iterdir())} for shard in shards]


def times(file: Path, what: str) -> Counter[int]:
    """How often each shard was begun, or ended."""
    return Counter(int(words[0]) for words in notes(file, what))


def test_workers_compute_every_shard_once_and_write_the_bytes_of_one_process(tmp_path: Path, engine: Engine) -> None:
    here = by_shard(tmp_path / "here", ITEMS, partial(doubling, tmp_path / "one"))
    there = by_shard(tmp_path / "there", iter(ITEMS), partial(doubling, tmp_path / "notes", 0.5), engine)
    assert files(there) == files(here)
    assert [shard.name for shard in there] == [f"{number:06d}" for number in range(len(ITEMS))]
    assert counts(there) == {"items": 8, "sum": 62}
    assert times(tmp_path / "notes", "begin") == times(tmp_path / "notes", "end") == Counter(range(len(ITEMS)))
    assert notes(tmp_path / "notes", "cores") == [["1"]] * 2  # as many as threads, whatever the machine has
    setups = [process for [process] in notes(tmp_path / "notes", "setup")]
    assert len(setups) == len({*setups}) == 2  # once in each worker, and not here
    assert str(os.getpid()) not in setups
    assert sorted((tmp_path / "there").iterdir()) == there


def test_shards_that_are_there_are_not_computed_again(tmp_path: Path, engine: Engine) -> None:
    by_shard(tmp_path / "work", ITEMS[:3], partial(doubling, tmp_path / "first"))
    left = tmp_path / "work/000003.aa.partial"
    left.mkdir()  # of a run that was killed; a worker of it may still be at the shard
    before = files(shards := by_shard(tmp_path / "work", ITEMS[:3], partial(doubling, tmp_path / "none"), engine))
    assert times(tmp_path / "none", "begin") == Counter()
    by_shard(tmp_path / "work", ITEMS[:5], partial(doubling, tmp_path / "notes"), engine)
    assert times(tmp_path / "notes", "begin") == Counter([3, 4])
    assert files(shards) == before
    assert [*(tmp_path / "work").glob("*.partial")] == [left]


def test_no_more_items_are_held_than_there_are_workers(tmp_path: Path, engine: Engine) -> None:
    ahead = []

    def items() -> Iterator[int]:
        for number, item in enumerate(ITEMS):
            ahead.append(number - len(notes(tmp_path / "notes", "end")))
            yield item

    by_shard(tmp_path / "work", items(), partial(doubling, tmp_path / "notes", 0.2), engine)
    assert max(ahead) == 1  # the second of two workers gets its shard before the first has ended its own


def test_a_worker_that_dies_costs_its_shard_alone(tmp_path: Path, engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    here = by_shard(tmp_path / "here", ITEMS, partial(doubling, tmp_path / "one"))
    there = by_shard(tmp_path / "there", ITEMS, partial(doubling, tmp_path / "notes", 0.2, deadly=2, deaths=2), engine)
    assert files(there) == files(here)
    assert times(tmp_path / "notes", "begin") == Counter([*range(len(ITEMS)), 2, 2])
    assert times(tmp_path / "notes", "end") == Counter(range(len(ITEMS)))
    assert capsys.readouterr().err.count("shard 2: its worker died ") == lost_attempts(tmp_path) == 2


def test_workers_on_another_disk_end_the_stage_with_their_first_shard(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_workers, "SEEN_SECONDS", 0.5)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    work = partial(elsewhere, tmp_path / "other", tmp_path / "notes")
    message = r"expected shard [01] in work/00000[01], found none although a worker has computed it: .* on one file system that they share"
    with pytest.raises(FileNotFoundError, match=message):
        by_shard(Path("work"), ITEMS, work, engine)
    assert {*times(tmp_path / "notes", "begin")} <= {0, 1}
    assert [*(tmp_path / "other/work").iterdir()]


def test_a_shard_that_ends_every_worker_ends_the_stage_in_a_sentence(tmp_path: Path, engine: Engine) -> None:
    with pytest.raises(
        ProcessEnded, match=r"expected shard 2 to be computed, found that 3 workers died of it, the last .*lower `workers`"
    ):
        by_shard(tmp_path / "work", ITEMS, partial(doubling, tmp_path / "notes", deadly=2, deaths=9), engine)
    assert times(tmp_path / "notes", "begin")[2] == 3


def test_an_error_in_a_worker_is_the_stages_own(tmp_path: Path, engine: Engine) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        by_shard(tmp_path / "work", ITEMS, partial(doubling, tmp_path / "notes", wrong=2), engine)
    assert str(caught.value) == "expected an item that can be doubled, found 4"
    assert "shard_jobs.py" in caught.value.__notes__[0]  # where it arose, for a traceback
    assert not (tmp_path / "work/000002").exists()


STAGE = """
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from plumbline.pipeline.engine import Engine
from plumbline.pipeline.shard_work import by_shard
from shard_jobs import doubling

@dataclass
class Config:
    endless: int | None = None
    wrong: int | None = None

@contextmanager
def until(config, notes):
    with doubling(notes, endless=config.endless, wrong=config.wrong) as compute:
        yield compute

if __name__ == "__main__":
    folder, shards, what = Path(sys.argv[1]), *sys.argv[2:]
    by_shard(folder / "work", range(100), partial(until, Config(**{what: 3}), folder / "notes"), Engine(shards=shards, workers=2))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_stage_and_the_next_goes_on(tmp_path: Path, engine: Engine, number: int) -> None:
    (tmp_path / "stage.py").write_text(STAGE)
    stage = subprocess.Popen(
        [sys.executable, "-m", "stage", tmp_path, engine.shards, "endless"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": SEARCHED},
        start_new_session=True, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while times(tmp_path / "notes", "begin") != Counter(range(5)):  # both workers are at a shard that has no end
        assert stage.poll() is None, stage.communicate()
        time.sleep(0.05)
    workers = [psutil.Process(int(process)) for [process] in notes(tmp_path / "notes", "setup")]
    if number == signal.SIGINT:
        os.killpg(stage.pid, number)  # as Ctrl-C does
    else:
        stage.send_signal(number)
    _, errors = stage.communicate(timeout=60)
    assert stage.returncode  # Ray has a handler of SIGTERM, which raises SystemExit
    assert errors.count("Traceback") <= 1  # the stage's own alone
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == []
    assert [shard.name for shard in sorted((tmp_path / "work").glob("??????"))] == ["000000", "000001", "000002"]
    (tmp_path / "notes").unlink()
    by_shard(tmp_path / "work", range(8), partial(doubling, tmp_path / "notes"), engine)
    assert times(tmp_path / "notes", "begin") == Counter(range(3, 8))


IN_A_FORK = """
import multiprocessing, runpy, sys
fork = multiprocessing.get_context("fork").Process(target=runpy.run_module, args=("stage", None, "__main__", True))
fork.start()
fork.join()
sys.exit(fork.exitcode)
"""
"""Runs the stage as the warm process does."""


@pytest.mark.parametrize("command", [["-m", "stage"], ["-c", IN_A_FORK]], ids=["alone", "in a fork"])
def test_a_stage_whose_shard_raises_an_error_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    """multiprocessing waits at exit for every worker that was not dismissed."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "stage.py").write_text(STAGE)
    stage = subprocess.Popen(
        [sys.executable, *command, tmp_path, "processes", "wrong"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": SEARCHED},
        start_new_session=True, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        _, errors = stage.communicate(timeout=90)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(stage.pid, signal.SIGKILL)
    assert stage.returncode == 1
    assert "ValueError: expected an item that can be doubled, found 3" in errors
    workers = [int(process) for [process] in notes(tmp_path / "notes", "setup")]
    assert workers
    assert not [one for one in workers if psutil.pid_exists(one)]


def test_a_node_that_is_lost_costs_the_shard_that_it_was_at(
    tmp_path: Path,
    cluster: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    node = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    work = tmp_path / "notes"
    raylet = node.all_processes["raylet"][0].process.pid

    def lose() -> None:
        """Removes the node when one of its workers is at a shard, and four are done."""
        while str(raylet) not in [words[2] for words in notes(work, "begin")] or len(notes(work, "end")) < 4:
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)

    here = by_shard(tmp_path / "here", ITEMS * 2, partial(doubling, tmp_path / "one"))
    losing = threading.Thread(target=lose)
    losing.start()
    there = by_shard(tmp_path / "there", ITEMS * 2, partial(doubling, work, 1.0), Engine(shards="ray", workers=3))
    losing.join()
    assert files(there) == files(here)
    assert times(work, "end") == Counter(range(len(ITEMS) * 2))
    twice = times(work, "begin") - times(work, "end")
    assert sum(twice.values()) <= 1
    of_node = {process for _, process, parent in notes(work, "begin") if parent == str(raylet)}
    assert {*twice} <= {int(number) for number, process, _ in notes(work, "begin") if process in of_node}


@pytest.mark.parametrize(("threads", "gpus"), [(2, 0), (1, 1)])
@pytest.mark.usefixtures("cluster")
def test_a_worker_that_no_node_can_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int, gpus: int
) -> None:
    """Ray waits for such a node without an end."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    message = rf"expected a node of the Ray cluster with {threads} cores \(`threads`\) and {gpus} GPUs for each worker, found nodes with 1 and 0"
    with pytest.raises(ValueError, match=message):
        by_shard(tmp_path / "work", ITEMS, partial(doubling, tmp_path / "notes"), Engine(shards="ray", workers=2, gpus=gpus))


def test_a_cluster_may_start_the_first_node_that_can_hold_a_worker(
    tmp_path: Path,
    cluster: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As an autoscaler does that begins without workers."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    work = partial(doubling, tmp_path / "notes")
    with pytest.raises(ValueError, match=r"found nodes with 1 and 0\. .*set node_wait_seconds"):
        by_shard(tmp_path / "work", ITEMS, work, Engine(shards="ray", node_wait_seconds=0.5))
    assert "waiting up to 0.5 s for one with 2 cores and 0 GPUs" in capsys.readouterr().err
    nodes, ended = [], threading.Event()

    def grow() -> None:
        time.sleep(2.0)
        nodes.append(cluster.add_node(num_cpus=2, object_store_memory=MEMORY))
        ended.wait()  # the kernel ends a node's processes with the thread that started them

    growing = threading.Thread(target=grow)
    growing.start()
    try:
        there = by_shard(tmp_path / "work", ITEMS, work, Engine(shards="ray", node_wait_seconds=300.0))
    finally:
        ended.set()
        growing.join()
        cluster.remove_node(*nodes)
    assert files(there) == files(by_shard(tmp_path / "here", ITEMS, partial(doubling, tmp_path / "one")))
    assert notes(tmp_path / "notes", "cores") == [["2"]]


@pytest.mark.parametrize(
    "error", [ConnectionError("Could not find any running Ray instance."), RuntimeError("Version mismatch: Python: 3.9")]
)
def test_a_cluster_that_does_not_run_or_is_of_another_version_is_missed_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    pytest.importorskip("ray", reason='ray is not installed: pip install ".[ray]"')
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("ray.init", refuse)
    message = rf"engine\.shards: expected a running Ray cluster with .* found none \({error}\)\. Start one by `ray start --head`"
    with pytest.raises(ValueError, match=message):
        by_shard(tmp_path / "work", ITEMS, partial(doubling, tmp_path / "notes"), Engine(shards="ray", workers=2))


@pytest.mark.usefixtures("cluster")
def test_a_node_without_the_project_is_named_and_is_no_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    missing = tmp_path / "not there"
    monkeypatch.setattr(os, "getcwd", lambda: str(missing))
    message = rf"expected every node of the Ray cluster to have the project in {missing}, .* can start: FileNotFoundError: .*'{missing}'\. Mount"
    with pytest.raises(ValueError, match=message):
        by_shard(tmp_path / "work", ITEMS, partial(doubling, tmp_path / "notes"), Engine(shards="ray", workers=1))
    assert notes(tmp_path / "notes", "setup") == []


def test_the_loss_of_the_last_node_that_can_hold_a_worker_is_noted_and_another_goes_on(
    tmp_path: Path,
    cluster: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(ray_workers, "WATCH_SECONDS", 0.5)
    nodes = [cluster.add_node(num_cpus=2, object_store_memory=MEMORY)]
    work, errors, ended = tmp_path / "notes", "", threading.Event()

    def replace_node() -> None:
        nonlocal errors
        while not notes(work, "begin") and not ended.wait(0.05):
            pass
        cluster.remove_node(nodes.pop(), allow_graceful=False)
        while "waits until such a node joins" not in errors and not ended.wait(0.05):
            errors += capsys.readouterr().err
        time.sleep(1.5)
        nodes.append(cluster.add_node(num_cpus=2, object_store_memory=MEMORY))
        ended.wait()  # the kernel ends a node's processes with the thread that started them

    replacing = threading.Thread(target=replace_node)
    replacing.start()
    try:
        shards = by_shard(tmp_path / "work", ITEMS[:2], partial(doubling, work, 1.0), Engine(shards="ray"))
    finally:
        ended.set()
        replacing.join()
        cluster.remove_node(*nodes)
    errors += capsys.readouterr().err
    assert counts(shards) == {"items": 2, "sum": 8}
    lost = "engine.gpus: expected a node of the Ray cluster with 2 cores (`threads`) and 0 GPUs for each worker, found nodes with 1 and 0. The stage"
    assert errors.count(lost) == 1
    assert errors.count("its worker died") == 1  # none is placed on the node that is lost
    assert times(work, "end") == Counter([0, 1])
