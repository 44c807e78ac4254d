"""The sandbox: right programs pass, and of the hostile ones none passes, gets out, stays, or takes longer than it may."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile import PROGRAMS

from stages.rewards import sandbox
from stages.rewards.sandbox import Limits, SandboxUnavailable, Verdict, require_isolation, run_tests

QUICK = Limits(seconds=1.0)
GRACE_SECONDS = 3.0  # to start and to end, on a busy machine


def unavailable(isolation: str) -> str:
    try:
        require_isolation(isolation)
    except SandboxUnavailable as error:
        return str(error)
    return ""


needs_bubblewrap = pytest.mark.skipif(bool(unavailable("bubblewrap")), reason="no working bubblewrap here")


def strangers() -> set[str]:
    """Living processes in another process namespace than this one, or of a user that a sandbox makes up."""
    own = os.readlink("/proc/self/ns/pid")
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            foreign = os.readlink(folder / "ns/pid") != own or 1 << 29 <= folder.stat().st_uid < 1 << 30
            if foreign and state not in "ZX":  # dead, and not yet counted out by the system's first process
                found.add(folder.name)
        except OSError:
            continue
    return found


@needs_bubblewrap
def test_a_process_that_stays_in_a_sandbox_is_seen() -> None:
    """What the tests below look for they would find."""
    before = strangers()
    sleeper = subprocess.Popen(["bwrap", "--ro-bind", "/", "/", "--unshare-pid", "--proc", "/proc", "sleep", "30"])
    try:
        deadline = time.monotonic() + GRACE_SECONDS
        while not strangers() - before:
            assert time.monotonic() < deadline, "a sandboxed process is not seen"
            time.sleep(0.02)
    finally:
        sleeper.kill()
        sleeper.wait()


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """A file, a server, a process and an abstract socket that no program may reach; all unharmed afterwards."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    tmp_path.chmod(0o755)
    monkeypatch.setenv("PLUMBLINE_SECRET", "secret")
    name = f"plumbline-{os.getpid()}"
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(b"\0" + name.encode())
        abstract.listen()
        try:
            yield [str(secret), server.getsockname()[1], bystander.pid, name]
            assert bystander.poll() is None
        finally:
            bystander.kill()
            bystander.wait()
    assert secret.read_text() == "secret"


@needs_bubblewrap
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_hostile_program_neither_passes_nor_escapes_nor_stays(name: str, outside: list[Any]) -> None:
    program = PROGRAMS[name]
    before = strangers()
    began = time.monotonic()
    verdict = run_tests(program.source, f"place = {outside!r}\nassert {program.success}", QUICK, "bubblewrap")
    assert time.monotonic() - began < QUICK.seconds + GRACE_SECONDS
    assert verdict.outcome in ("wrong", "error", "crashed", "timeout")
    deadline = time.monotonic() + GRACE_SECONDS
    while left := strangers() - before:  # the kernel may still be at it
        assert time.monotonic() < deadline, f"processes left: {left}"
        time.sleep(0.02)


def test_there_are_at_least_forty_hostile_programs_and_the_attacks_are_real(outside: list[Any]) -> None:
    """Without a sandbox those that read, write and connect succeed: what stops them is the sandbox, not a mistake in them."""
    assert len(PROGRAMS) >= 40
    for name in ("reads a file outside", "walks up and down", "reads the environment", "connects to a server",
                 "reads the password file", "binds an abstract socket of outside", "memory beyond the limit"):  # fmt: skip
        namespace: dict[str, Any] = {"place": outside}
        exec(PROGRAMS[name].source, namespace)
        assert eval(PROGRAMS[name].success, namespace), name


SQUARE = "def square(x):\n    return x * x\n"


@needs_bubblewrap
@pytest.mark.parametrize(
    ("source", "tests", "outcome"),
    [
        (SQUARE, "assert square(3) == 9\nassert square(-1) == 1", "passed"),
        (SQUARE, "assert square(3) == 8", "wrong"),
        ("def square(x):\n    return y", "assert square(3) == 9", "error"),
        ("def square(x):", "assert square(3) == 9", "error"),
        ("import os\nos.abort()", "assert square(3) == 9", "crashed"),
        (SQUARE, "", "error"),  # tests that call nothing prove nothing
        (SQUARE, "assert True", "error"),
        ("def f(x):\n    raise KeyError(x)", "try:\n    f('a')\n    assert False\nexcept KeyError:\n    pass", "passed"),
        ("def f(x):\n    import os\n    os._exit(0)", "try:\n    f('a')\nexcept BaseException:\n    pass", "crashed"),
        ("class Node:\n    def __init__(self, v):\n        self.v = v\ndef value(n):\n    return n.v + n.w",
         "n = Node(2)\nn.w = 3\nassert n.v == 2 and value(n) == 5", "passed"),
        ("def f():\n    return {(1, 'a'): [2.5, None, True], 'b': ({3}, b'x', 2j, float('inf'), range(3))}",
         "assert f() == {(1, 'a'): [2.5, None, True], 'b': ({3}, b'x', 2j, float('inf'), range(3))}\n"
         "assert type(f()[(1, 'a')][2]) is bool", "passed"),
        ("def f(n):\n    yield from range(n)", "assert list(f(3)) == [0, 1, 2]", "passed"),
        ("from collections import Counter, OrderedDict\ndef f(x):\n    return OrderedDict(Counter(x))",
         "assert f('aab') == {'a': 2, 'b': 1}", "passed"),
        ("import math\ndef f(x):\n    return math.sqrt(x)", "assert math.isclose(f(2), 2 ** 0.5)", "passed"),
        ("def add(x):\n    return lambda y: x + y", "assert add(1)(2) == 3", "passed"),
        ("def f(x):\n    return x / 0", "assert f(1) == 1", "error"),
        ("def of(items, kind):\n    return [item for item in items if type(item) is kind]",
         "assert of([1, 'a', 2.5, True], int) == [1] and of([{}, 'a'], dict) == [{}]", "passed"),
        ("def kind(x):\n    return type(x)", "assert kind(1) is int and kind('1') is str and kind(True) is not int", "passed"),
        ("class int:\n    pass\ndef kind(x):\n    return int", "assert kind(1) is int", "wrong"),
        ("def sum(a, b):\n    return a + b", "assert sum(2, 3) == 5", "passed"),  # asked for by a builtin's name
        ("def sum(a, b):\n    return a - b", "assert sum(2, 3) == 5", "wrong"),
        ("def f(x):\n    return 0\ndef abs(x):\n    return 5", "assert abs(f(3)) == 5", "wrong"),  # what tests judge by is theirs
        ("def sum(a, b):\n    return 0\ndef abs(x):\n    return 5", "assert abs(sum(2, 3)) == 5", "error"),
    ],
)  # fmt: skip
def test_programs_are_judged_by_their_tests(source: str, tests: str, outcome: str) -> None:
    verdict = run_tests(source, tests, Limits(), "bubblewrap")
    assert verdict.outcome == outcome, verdict


@needs_bubblewrap
def test_a_program_may_use_its_scratch_folder_and_a_few_threads() -> None:
    source = (
        "import threading\ndef f():\n    found = []\n    threads = [threading.Thread(target=found.append, args=(i,)) for i in range(3)]\n"
        "    [t.start() for t in threads]\n    [t.join() for t in threads]\n    open('f', 'w').write('x' * 1000)\n"
        "    return sorted(found), open('f').read()\n"
    )
    assert run_tests(source, "assert f() == ([0, 1, 2], 'x' * 1000)", Limits(), "bubblewrap").outcome == "passed"


@needs_bubblewrap
def test_a_hang_is_a_timeout_and_takes_no_longer_than_it_may() -> None:
    verdict = run_tests("while True:\n    pass", "assert f() == 1", Limits(seconds=0.5), "bubblewrap")
    assert verdict.outcome == "timeout"
    assert 0.5 <= verdict.seconds < 0.5 + GRACE_SECONDS


def test_without_bubblewrap_nothing_is_run_unless_the_weaker_isolation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SandboxUnavailable, match=r"apt-get install bubblewrap.*isolation: rlimits"):
        require_isolation("bubblewrap")
    with pytest.raises(SandboxUnavailable, match="expected one of bubblewrap, rlimits, found 'none'"):
        require_isolation("none")


@pytest.mark.parametrize("outcome", ["crashed", "passed"])
def test_a_sandbox_that_judges_everything_alike_is_refused(outcome: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/bwrap")
    monkeypatch.setattr(sandbox, "run_tests", lambda *_: Verdict(outcome, "as it is", 0.1))
    with pytest.raises(SandboxUnavailable, match="user namespaces"):
        require_isolation("bubblewrap")


@pytest.mark.skipif(bool(unavailable("rlimits")), reason="this Python cannot be read by the user that programs become")
@pytest.mark.parametrize(
    "name",
    ["endless loop", "endless sleep", "memory bomb", "one large file", "many open files", "thread bomb", "output flood", "os._exit(0)",
     "SystemExit with 0", "returns what equals everything", "prints the verdict", "kills its group", "raises its limits", "is no Python"],
)  # fmt: skip
def test_the_weaker_isolation_still_limits_and_judges(name: str, outside: list[Any]) -> None:
    program = PROGRAMS[name]
    verdict = run_tests(program.source, f"place = {outside!r}\nassert {program.success}", QUICK, "rlimits")
    assert verdict.outcome in ("wrong", "error", "crashed", "timeout")
    assert run_tests(SQUARE, "assert square(3) == 9", Limits(), "rlimits").outcome == "passed"
