"""Stages run in forks of one process that has imported the libraries, and each is as it would be in a process of its own."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from plumbline.pipeline import warm_process
from tests.conftest import ROOT

STAGE = """
import os, sys, time
from plumbline.pipeline.warm_process import end_as, run_in_fork
status = run_in_fork("stage")
if status is not None:
    end_as(status)
code = sys.argv[1]
print("warm" if "transformers" in sys.modules else "cold", flush=True)
exec(code)
"""
NAME = "plumbline.pipeline.warm_process"
TRAIN = "import torch; torch.manual_seed(1); x = torch.randn(200, 300); print((x @ x.T).double().sum().item(), torch.get_num_threads())"


def variables(**others: str) -> dict[str, str]:
    """The environment that DVC gives a stage; pytest's own would be another for each test."""
    same = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return {**same, "PYTHONPATH": str(ROOT), "DVC_STAGE": "sft", warm_process.SWITCH: "on", **others}


def start(code: str, **environment: str) -> subprocess.Popen[str]:
    """Starts a stage in the current folder, as DVC does."""
    return subprocess.Popen(
        [sys.executable, "-m", "stage", code], env=variables(**environment), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(stage: subprocess.Popen[str], text: str = "") -> tuple[int, str, str]:
    """A stage's exit status, output and errors."""
    out, err = stage.communicate(text, timeout=60)
    return stage.returncode, out, err


def listening() -> tuple[Any, str]:
    """A socket to which the current folder's stages connect, and its address."""
    address = warm_process._address({name: value for name, value in variables().items() if not name.startswith("DVC_")})
    listener = warm_process.socket.socket(warm_process.socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    return listener, address


def processes() -> set[int]:
    """The ids of the current folder's warm process and of its forks."""
    running = psutil.process_iter(["cmdline", "cwd", "status"])
    here = {one for one in running if NAME in (one.info["cmdline"] or ()) and one.info["cwd"] == os.getcwd()}
    return {one.pid for one in here if one.info["status"] != psutil.STATUS_ZOMBIE}


def end_of(process: int) -> None:
    """Waits until a process has gone."""
    deadline = time.monotonic() + 10
    while psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def warm_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a warm process; its ten seconds of importing are spent once for all tests."""
    folder = tmp_path_factory.mktemp("warm")
    (folder / "stage.py").write_text(STAGE)
    before = Path.cwd()
    os.chdir(folder)
    assert finish(start("pass")) == (0, "cold\n", "")  # the first stage starts the process and runs itself
    os.chdir(before)
    yield folder
    os.chdir(folder)
    for process in processes():
        psutil.Process(process).kill()
    os.chdir(before)


@pytest.fixture
def warm(warm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(warm_folder)
    return warm_folder


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without a warm process."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stage.py").write_text(STAGE)
    return tmp_path


def test_a_stage_in_a_fork_has_its_own_surroundings_and_ends_as_the_fork_does(warm: Path) -> None:
    said = finish(
        start("print(sys.stdin.read(), os.environ['DVC_STAGE'], os.getcwd(), len(sys.argv)); sys.exit(3)", DVC_STAGE="x"), "in"
    )
    assert said == (3, f"warm\nin x {warm} 2\n", "")
    assert finish(start("sys.exit('what to do')")) == (1, "warm\n", "what to do\n")
    status, _, errors = finish(start("1 / 0"))
    assert (status, errors.splitlines()[-1]) == (1, "ZeroDivisionError: division by zero")
    assert finish(start("os.kill(os.getpid(), 9)"))[0] == -signal.SIGKILL


def test_forks_know_nothing_of_each_other(warm: Path) -> None:
    assert finish(start("os.environ['LEFT'] = 'x'; sys.left = 1; import torch; torch.manual_seed(5)"))[0] == 0
    assert finish(start("print('LEFT' in os.environ, hasattr(sys, 'left'))")) == (0, "warm\nFalse False\n", "")
    long, short = start("time.sleep(2); print('long')"), start("print('short')")
    assert finish(short) == (0, "warm\nshort\n", "")
    assert long.poll() is None
    assert finish(long) == (0, "warm\nlong\n", "")


def test_a_fork_computes_what_a_process_of_its_own_computes(warm: Path) -> None:
    forked, alone = finish(start(TRAIN)), finish(start(TRAIN, **{warm_process.SWITCH: "off"}))
    assert forked[1].startswith("warm")
    assert alone[1] == forked[1].replace("warm", "cold")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_fork_gets_the_signals_of_its_stage(warm: Path, number: int) -> None:
    said = "\n".join(
        ["import signal", f"signal.signal({number}, lambda *_: sys.exit('stopped'))", "print('on', flush=True); time.sleep(30)"]
    )
    stage = start(said)
    assert stage.stdout is not None
    assert [stage.stdout.readline(), stage.stdout.readline()] == ["warm\n", "on\n"]
    stage.send_signal(number)
    assert finish(stage) == (1, "", "stopped\n")


@pytest.mark.parametrize("number", warm_process.PASSED_ON)
def test_a_signal_that_comes_before_the_stage_knows_its_fork_reaches_the_fork(fresh: Path, number: int) -> None:
    listener, _ = listening()
    stage = start("pass")
    accepted, _ = listener.accept()
    _, streams, _, _ = warm_process.socket.recv_fds(accepted, 1, 3)
    for stream in streams:
        os.close(stream)
    connection = warm_process.Connection(accepted.detach())
    assert connection.recv()[0] == "stage"
    stage.send_signal(number)
    connection.send(os.getpid())  # as the fork's
    assert connection.recv() == number
    connection.send(1)
    assert finish(stage)[0] == 1
    listener.close()


def test_ctrl_c_reaches_a_fork_as_a_keyboard_interrupt(warm: Path) -> None:
    stage = start("try:\n  print('on', flush=True); time.sleep(30)\nexcept KeyboardInterrupt:\n  print('tidied')")
    assert stage.stdout is not None
    assert [stage.stdout.readline(), stage.stdout.readline()] == ["warm\n", "on\n"]
    stage.send_signal(signal.SIGINT)
    assert finish(stage) == (0, "tidied\n", "")


def test_a_fork_ends_when_its_stage_is_killed_and_the_warm_process_goes_on(warm: Path) -> None:
    [server] = processes()
    stage = start("print(os.getpid(), flush=True); time.sleep(60)")
    assert stage.stdout is not None
    stage.stdout.readline()
    fork = int(stage.stdout.readline())
    stage.kill()
    end_of(fork)
    finish(stage)
    for words in (b"", b" "):  # killed before it could say what it wants
        with warm_process.socket.socket(warm_process.socket.AF_UNIX) as client:
            client.connect(next(str(file) for file in Path().glob(".warm-*.sock")))
            client.send(words)
    assert finish(start("print('next')")) == (0, "warm\nnext\n", "")
    assert processes() == {server}


def test_what_a_stage_leaves_running_delays_nobody(warm: Path) -> None:
    began = time.monotonic()
    leaving = "if not os.fork():\n  os.close(1); os.close(2); time.sleep(20); os._exit(0)\n"
    assert finish(start(f"{leaving}print('done')")) == (0, "warm\ndone\n", "")
    stage = start(f"{leaving}print('on', flush=True); time.sleep(60)")
    assert stage.stdout is not None
    assert [stage.stdout.readline(), stage.stdout.readline()] == ["warm\n", "on\n"]
    stage.kill()
    finish(stage)
    for _ in range(2):
        assert finish(start("print('next')")) == (0, "warm\nnext\n", "")
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("request_", [None, ("module",), ("module", [], {}, ".", "of a later version")])
def test_a_connection_that_asks_for_nothing_sensible_harms_no_other(warm: Path, request_: Any) -> None:
    running = start("time.sleep(2); print('ran')")
    with warm_process.socket.socket(warm_process.socket.AF_UNIX) as client:
        client.connect(next(str(file) for file in Path().glob(".warm-*.sock")))
        if request_:
            warm_process.socket.send_fds(client, [b" "], [0, 1, 2])
            warm_process.Connection(os.dup(client.fileno())).send(request_)
        assert finish(start("print('next')")) == (0, "warm\nnext\n", "")
    assert finish(running) == (0, "warm\nran\n", "")


def test_a_stage_whose_fork_fails_runs_itself(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_process, "IDLE_SECONDS", 0.5)
    monkeypatch.setattr(warm_process.gc, "freeze", lambda: None)

    def fail(*_: Any) -> Any:
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(warm_process.multiprocessing, "get_context", fail)
    listener, address = listening()
    stage = start("print('alone')")
    warm_process.serve(listener, None, address)
    assert finish(stage) == (0, "cold\nalone\n", "")


def test_another_environment_or_other_libraries_have_another_process(warm: Path) -> None:
    assert finish(start("pass", DVC_STAGE="another"))[1] == "warm\n"  # what DVC says to each stage makes no difference
    one = warm_process._address({"OMP_NUM_THREADS": "2"})
    assert one == warm_process._address({"OMP_NUM_THREADS": "2"})
    assert one != warm_process._address({"OMP_NUM_THREADS": "1"})
    installed = Path(warm_process.sysconfig.get_path("purelib"))
    before = installed.stat()
    os.utime(installed, (before.st_atime, before.st_mtime + 5))
    try:
        assert one != warm_process._address({"OMP_NUM_THREADS": "2"})
    finally:
        os.utime(installed, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_stage_ends_with_the_warm_process_and_the_next_one_runs_itself(warm: Path, fresh: Path) -> None:
    finish(start("pass"))
    stage = start("print(os.getpid(), flush=True); time.sleep(60)")
    assert stage.stdout is not None
    assert stage.stdout.readline() == "warm\n"
    fork = int(stage.stdout.readline())
    for process in processes() - {fork}:
        psutil.Process(process).kill()
    status, _, errors = finish(stage)
    assert (status, errors.splitlines()[-1]) == (
        1, "ConnectionError: the process that runs the stages of this repro has ended"
    )  # fmt: skip
    end_of(fork)
    assert finish(start("print('went on')"))[:2] == (0, "cold\nwent on\n")
    for process in processes():
        psutil.Process(process).kill()


@pytest.mark.parametrize("why", ["by hand", "switched off", "no folder to write to", "a torch for GPUs", "another system"])
def test_a_stage_runs_itself_where_there_can_be_no_warm_process(fresh: Path, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "sft")
    monkeypatch.setenv(warm_process.SWITCH, "on")
    if why == "by hand":
        monkeypatch.delenv("DVC_STAGE")
    elif why == "switched off":
        monkeypatch.setenv(warm_process.SWITCH, "off")
    elif why == "no folder to write to":
        Path(warm_process.LOCK).mkdir()
    elif why == "a torch for GPUs":
        monkeypatch.setattr(warm_process.importlib.metadata, "version", lambda _: "2.13.0+cu130")
    else:
        monkeypatch.setattr(sys, "platform", "darwin")
    assert warm_process.run_in_fork("stage") is None
    assert not list(Path().glob(".warm-*"))
    assert not processes()


def test_the_process_goes_when_no_stage_is_left_and_not_while_the_one_that_started_it_runs(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_process, "IDLE_SECONDS", 0.1)
    monkeypatch.setattr(warm_process.gc, "freeze", lambda: None)  # this process collects its garbage
    monkeypatch.syspath_prepend(fresh)
    listener, address = listening()
    reader, writer = os.pipe()
    first_ends = threading.Timer(1.5, os.close, [writer])
    first_ends.start()
    stage = start("time.sleep(0.1); os.write(1, b'done')")  # below what pytest puts in the place of sys.stdout
    began = time.monotonic()
    warm_process.serve(listener, warm_process.Connection(reader, writable=False), address)
    assert time.monotonic() - began > 1.4
    assert finish(stage)[1].endswith("done")
    assert not Path(address).exists()
