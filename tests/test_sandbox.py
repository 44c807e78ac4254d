"""The sandbox: right programs pass, and no hostile program passes, gets out, stays behind or exceeds its time."""

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

from plumbline.checking import sandbox
from plumbline.checking.sandbox import INSIDE, Limits, SandboxUnavailable, Verdict, require_isolation, run_tests

QUICK = Limits(seconds=1.0)
AMPLE = Limits(seconds=60.0)  # for programs that must not run out of time on a busy machine
GRACE_SECONDS = 30.0  # to start and to end, on a busy machine


def unavailable(isolation: str) -> str:
    try:
        require_isolation(isolation)
    except SandboxUnavailable as error:
        return str(error)
    return ""


needs_bubblewrap = pytest.mark.skipif(bool(unavailable("bubblewrap")), reason="no working bubblewrap here")


def strangers() -> set[str]:
    """Living processes in another process namespace than this one, or of a user that a sandbox makes up."""
    namespace = os.readlink("/proc/self/ns/pid")
    processes = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            foreign = os.readlink(folder / "ns/pid") != namespace or 1 << 29 <= folder.stat().st_uid < 1 << 30
            if foreign and state not in "ZX":  # dead, and not yet reaped
                processes.add(folder.name)
        except OSError:
            continue
    return processes


@needs_bubblewrap
def test_a_process_that_stays_in_a_sandbox_is_seen() -> None:
    """The tests below would find what they look for."""
    before = strangers()
    sleeper = subprocess.Popen(["bwrap", "--ro-bind", "/", "/", "--unshare-pid", "--proc", "/proc", "sleep", "60"])
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
    """A file, a server, a process and an abstract socket that no program may reach; all are unharmed afterwards."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    tmp_path.chmod(0o755)
    monkeypatch.setenv("PLUMBLINE_SECRET", "secret")
    name = f"plumbline-{os.getpid()}"
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
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
    started = time.monotonic()
    verdict = run_tests(program.source, f"targets = {outside!r}\nassert {program.success}", QUICK, "bubblewrap")
    assert time.monotonic() - started < QUICK.seconds + GRACE_SECONDS
    assert verdict.outcome in ("wrong", "error", "crashed", "timeout")
    deadline = time.monotonic() + GRACE_SECONDS
    while left := strangers() - before:  # the kernel may not have ended them yet
        assert time.monotonic() < deadline, f"processes left: {left}"
        time.sleep(0.02)


def test_there_are_at_least_seventy_hostile_programs_and_the_attacks_are_real(outside: list[Any]) -> None:
    """Outside the sandbox the attacks that read and connect succeed: the sandbox stops them, and not a mistake in them."""
    assert len(PROGRAMS) >= 70
    for name in ("reads a file outside", "walks up and down", "reads the environment", "connects to a server",
                 "reads the password file", "connects to an abstract socket outside", "memory beyond the limit"):  # fmt: skip
        namespace: dict[str, Any] = {"targets": outside}
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
        ("def sum(a, b):\n    return a + b", "assert sum(2, 3) == 5", "passed"),  # the task asks for a builtin's name
        ("def sum(a, b):\n    return a - b", "assert sum(2, 3) == 5", "wrong"),
        ("def f(x):\n    return 0\ndef abs(x):\n    return 5", "assert abs(f(3)) == 5", "wrong"),  # the tests' builtins are their own
        ("def sum(a, b):\n    return 0\ndef abs(x):\n    return 5", "assert abs(sum(2, 3)) == 5", "error"),
    ],
)  # fmt: skip
def test_programs_are_judged_by_their_tests(source: str, tests: str, outcome: str) -> None:
    verdict = run_tests(source, tests, AMPLE, "bubblewrap")
    assert verdict.outcome == outcome, verdict


@needs_bubblewrap
def test_a_program_may_use_its_scratch_folder_and_a_few_threads() -> None:
    source = (
        "import threading\ndef f():\n    done = []\n    threads = [threading.Thread(target=done.append, args=(i,)) for i in range(3)]\n"
        "    [t.start() for t in threads]\n    [t.join() for t in threads]\n    open('f', 'w').write('x' * 1000)\n"
        "    return sorted(done), open('f').read()\n"
    )
    assert run_tests(source, "assert f() == ([0, 1, 2], 'x' * 1000)", AMPLE, "bubblewrap").outcome == "passed"


@needs_bubblewrap
def test_a_hang_is_a_timeout_and_ends_soon_after_its_limit() -> None:
    verdict = run_tests("import time\ntime.sleep(10_000)", "assert f() == 1", Limits(seconds=0.5), "bubblewrap")
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
     "SystemExit with 0", "returns what equals everything", "prints the verdict", "kills its group", "raises its limits", "is not Python"],
)  # fmt: skip
def test_the_weaker_isolation_still_limits_and_judges(name: str, outside: list[Any]) -> None:
    program = PROGRAMS[name]
    verdict = run_tests(program.source, f"targets = {outside!r}\nassert {program.success}", QUICK, "rlimits")
    assert verdict.outcome in ("wrong", "error", "crashed", "timeout")
    assert run_tests(SQUARE, "assert square(3) == 9", AMPLE, "rlimits").outcome == "passed"


@needs_bubblewrap
def test_both_processes_run_inside_py_as_it_is_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    start = subprocess.Popen

    def recorded(command: list[str], **options: Any) -> Any:
        commands.append(command)
        return start(command, **options)

    monkeypatch.setattr(sandbox.subprocess, "Popen", recorded)
    assert run_tests(SQUARE, "assert square(3) == 9", AMPLE, "bubblewrap").outcome == "passed"
    assert INSIDE.name == "inside.py"
    for command, role in zip(commands, ("program", "tester"), strict=True):
        script = command.index("-c") + 1
        assert command[script : script + 2] == [INSIDE.read_text(encoding="utf-8"), role]
        assert command[script - 4 : script - 1] == ["-I", "-S", "-B"]


def test_importing_inside_py_changes_nothing_in_the_process_that_imports_it() -> None:
    """It is imported for its path, and as a part of the code that a reward's digest covers."""
    state = """
import os, resource, signal, sys
def state():
    limits = [resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")]
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    return limits, handlers, sys.get_int_max_str_digits(), os.getuid(), os.getcwd(), dict(os.environ), [*sys.path], sys.argv
before = state()
import plumbline.checking.inside
assert state() == before
foreign = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names) - {"plumbline", "__main__"}
print(sorted(name for name in foreign if hasattr(sys.modules[name], "__file__") and "plumbline" in str(sys.modules[name].__file__)))
"""
    imported = subprocess.run([sys.executable, "-c", state], capture_output=True, text=True, check=True, cwd=INSIDE.parents[2])
    assert (imported.stdout, imported.stderr) == ("[]\n", "")
