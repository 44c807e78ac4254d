"""Runs an untrusted program against tests: without network or files, with limits on everything, and killed as a whole.

Each run is two processes (plumbline/checking/inside.py), each in its own sandbox: the program, and the tester that calls it. `bubblewrap` gives
each of them new mount, process, network, IPC and host-name namespaces. A process sees the system's libraries and the Python installation
read-only, an empty environment, and a scratch folder in memory of limited size. It sees no /proc, only four devices of /dev, and nothing of
/etc, /home or the project. Limits on memory, processor time, processes, open files and file size are set before the program's first line runs.
If Plumbline runs as root, both processes switch to a made-up user without privileges. When there is a verdict or the time is up, the process
namespaces end, and with them every process inside.

What this does not protect against:

- faults of the kernel, which the sandbox shares without a system-call filter. For programs of an adversary, use a virtual machine;
- reading the Python installation and /usr;
- side channels and load: a program may use its share of processor time, memory (per process) and memory bandwidth until its time is up;
- verdicts that depend on the clock: a run may exceed `seconds` on a busy machine and not on an idle one;
- guessing: a program may return the expected values without computing them, for example if the prompt shows the tests;
- a test that calls and trusts a helper which the program itself defines; and faults in Python's own JSON reader.

`isolation: rlimits` is used only if it is named. It sets the limits but has no separate namespaces. Beyond the above, it does not protect
against: use of the network; reading every file that the user may read, and writing those that the user may write; killing or tracing
processes of the same user, such as the tester, which could forge a verdict; processes that leave the process group and outlive the run; filling
the disk with many files, each within its limit.
"""

import functools
import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from plumbline.checking import inside
from plumbline.pipeline.ranges import COUNT, POSITIVE, outside

ISOLATIONS = ("bubblewrap", "rlimits")
OUTCOMES = ("passed", "wrong", "error", "crashed", "timeout")
INSIDE = Path(inside.__file__)  # the import makes inside.py part of the code that a reward's digest covers; it does nothing else
LONGEST_VERDICT = 1 << 16


class SandboxUnavailable(ValueError):
    """Programs cannot be run safely here. This stops the run and never becomes a score."""


@dataclass
class Limits:
    """What one run may use."""

    seconds: float = 5.0  # wall time of the run, and processor time of each process
    memory_mib: int = 512  # address space of each process
    # processes and threads of the program; with rlimits (or Linux before 5.14) and not as root, all of the user's count
    processes: int = 8
    scratch_mib: int = 16  # size of each file, and of the scratch folder

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        return outside(self, seconds=POSITIVE, memory_mib=COUNT, processes=COUNT, scratch_mib=COUNT)


class Verdict(NamedTuple):
    """The outcome of a run: passed, wrong (a test failed), error (an exception was raised), crashed (no answer) or timeout."""

    outcome: str
    detail: str
    seconds: float


def require_isolation(isolation: str) -> None:
    """Requires that programs can be run here with this isolation, by running a right and a wrong one.

    Raises:
        SandboxUnavailable: they cannot. The message says what to install, or which weaker isolation to name.
    """
    if isolation not in ISOLATIONS:
        raise SandboxUnavailable(f"isolation: expected one of {', '.join(ISOLATIONS)}, found {isolation!r}")
    if isolation == "bubblewrap" and shutil.which("bwrap") is None:
        raise SandboxUnavailable(
            "isolation: bubblewrap: expected the command `bwrap`, found none. Install it (`apt-get install bubblewrap`), or name the weaker "
            "`isolation: rlimits`, which leaves the network and your files within reach of the programs."
        )
    limits = Limits(seconds=20.0)
    head = "import statistics\ndef f(x):\n    "
    good = run_tests(f"{head}return statistics.mean([x, 3])", "assert f(1) == 2", limits, isolation)
    bad = run_tests(f"{head}return x", "assert f(1) == 2", limits, isolation)
    if (good.outcome, bad.outcome) != ("passed", "wrong"):
        raise SandboxUnavailable(
            f"isolation: {isolation}: expected a right program to be judged passed and a wrong one wrong, found {good.outcome} and {bad.outcome} "
            f"({good.detail or bad.detail}). "
            + (
                "Under root, programs run as a made-up user, who may be unable to read this Python: run as another user than root."
                if isolation == "rlimits"
                else "Unless it runs as root, bubblewrap needs user namespaces: see `sysctl kernel.unprivileged_userns_clone` and "
                "kernel.apparmor_restrict_unprivileged_userns."
            )
        )


def run_tests(source: str, tests: str, limits: Limits, isolation: str) -> Verdict:
    """Runs `tests`, statements with asserts that call what `source` defines, against the program `source`."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="plumbline-", ignore_cleanup_errors=True) as folder:
        run = _Run(limits, isolation, Path(folder))
        try:
            task = {"source": source, "tests": tests, "limits": run.confinement()}
            reply = run.verdict(json.dumps(task).encode(), started + limits.seconds)
            errors = run.errors()
        finally:
            run.kill()
    seconds = time.monotonic() - started
    if reply is None:
        return Verdict("timeout", f"no verdict in {limits.seconds:g} seconds", seconds)
    try:
        outcome, detail = (str(json.loads(reply)[key]) for key in ("outcome", "detail"))
    except (ValueError, KeyError, TypeError):
        return Verdict("crashed", f"the tester ended without a verdict: {errors}", seconds)
    return Verdict(outcome if outcome in OUTCOMES else "crashed", detail, seconds)


class _Run:
    """The two processes of one run and the pipes between them."""

    def __init__(self, limits: Limits, isolation: str, folder: Path) -> None:
        self.limits, self.isolation, self.folder = limits, isolation, folder
        self.uid = random.SystemRandom().randrange(1 << 29, 1 << 30) if os.geteuid() == 0 else None
        self.log = (folder / "errors").open("w+b")
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        if self.uid is not None:
            folder.chmod(0o711)
            os.chown(self.scratch, self.uid, self.uid)
        (self.calls_read, calls_write), (answers_read, answers_write) = os.pipe(), os.pipe()
        (tasks_read, self.tasks), (self.verdicts, verdicts_write) = os.pipe(), os.pipe()
        self.children: list[subprocess.Popen[bytes]] = []
        try:
            # each child gets only its own ends of the pipes: the program can reach neither the tests nor the verdict
            for role, ends in (
                ("program", (self.calls_read, answers_write)),
                ("tester", (answers_read, calls_write, tasks_read, verdicts_write)),
            ):
                self.children.append(self.start(role, ends))
        except OSError:
            self.kill()
            raise
        finally:
            for end in (self.calls_read, calls_write, answers_read, answers_write, tasks_read, verdicts_write):
                os.close(end)

    def confinement(self) -> dict[str, object]:
        """The user and the limits that both processes set for themselves before anything else."""
        memory, seconds = self.limits.memory_mib << 20, max(1, round(self.limits.seconds))
        rlimits = {
            "RLIMIT_AS": memory,
            "RLIMIT_CPU": seconds,
            "RLIMIT_CORE": 0,
            "RLIMIT_FSIZE": self.limits.scratch_mib << 20,
            "RLIMIT_NOFILE": 64,
            "RLIMIT_NPROC": self.limits.processes + 1,  # the tester counts as one
        }
        hard = {name: resource.getrlimit(getattr(resource, name))[1] for name in rlimits}
        return {
            "uid": self.uid,
            "rlimits": {
                name: value if hard[name] == resource.RLIM_INFINITY else min(value, hard[name]) for name, value in rlimits.items()
            },
        }

    def start(self, role: str, ends: tuple[int, ...]) -> "subprocess.Popen[bytes]":
        bare = self.isolation == "rlimits"
        python = [str(_python())] if bare else _bubblewrap(self.limits.scratch_mib, self.uid is not None)
        command = [*python, "-I", "-S", "-B", "-c", _inside_source(), role, *map(str, ends)]
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=self.log if role == "tester" else subprocess.DEVNULL,
            cwd=self.scratch, env={"PATH": "/nonexistent", "PYTHONHASHSEED": "0"}, pass_fds=ends, start_new_session=True,
        )  # fmt: skip

    def verdict(self, task: bytes, deadline: float) -> bytes | None:
        """What the tester writes as its verdict; b"" if it ends without one, None if the time is up first."""
        os.set_blocking(self.tasks, False)
        reply = b""
        while True:
            writing = [self.tasks] if task else []
            readable, writable, _ = select.select([self.verdicts], writing, [], max(0.0, deadline - time.monotonic()))
            if writable:
                try:
                    task = task[os.write(self.tasks, task[:LONGEST_VERDICT]) :]
                except BrokenPipeError:
                    task = b""
                if not task:
                    os.close(self.tasks)
                    self.tasks = -1
            if readable:
                part = os.read(self.verdicts, LONGEST_VERDICT)
                reply += part
                if not part or len(reply) > LONGEST_VERDICT:
                    return reply
            if time.monotonic() >= deadline:
                return None

    def errors(self) -> str:
        """The last 500 bytes that the tester or bubblewrap wrote to standard error."""
        self.log.seek(0)
        return self.log.read()[-500:].decode("utf-8", "replace").strip()

    def kill(self) -> None:
        """Ends both process groups and closes the pipes. A namespace ends with its first process, and so do all others in it."""
        for child in self.children:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        for child in self.children:
            child.wait()
        for end in (self.tasks, self.verdicts):
            if end >= 0:
                os.close(end)
        self.log.close()


@functools.cache
def _inside_source() -> str:
    return INSIDE.read_text(encoding="utf-8")


@functools.cache
def _python() -> Path:
    """The interpreter itself, not the link to it in a virtual environment."""
    return Path(getattr(sys, "_base_executable", None) or sys.executable).resolve()


@functools.cache
def _bubblewrap(scratch_mib: int, root: bool) -> tuple[str, ...]:
    """The command that runs Python in a sandbox, up to and including the interpreter."""
    prefix, python = Path(sys.base_prefix).resolve(), _python()
    binds: list[str] = []
    if not prefix.is_relative_to("/usr"):  # under another path: other users may not enter the folders above it, such as /root
        binds, python = ["--ro-bind", str(prefix), "/python"], Path("/python") / python.relative_to(prefix)
    links = [argument for name in ("bin", "lib", "lib64", "sbin") for argument in _system_folder(name)]
    devices = [
        argument for name in ("null", "zero", "random", "urandom") for argument in ("--dev-bind", f"/dev/{name}", f"/dev/{name}")
    ]
    # under root, a process in a user namespace would still be root's, and RLIMIT_NPROC does not bind root: inside.py switches users instead
    users = (
        ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        if root
        else ["--unshare-user", "--cap-drop", "ALL"]
    )
    return (
        str(shutil.which("bwrap")), "--die-with-parent", "--new-session", *users, "--unshare-pid", "--unshare-net", "--unshare-ipc",
        "--unshare-uts", "--unshare-cgroup-try", "--hostname", "sandbox", "--clearenv", "--setenv", "PYTHONHASHSEED", "0",
        "--setenv", "LD_LIBRARY_PATH", "/python/lib", "--ro-bind", "/usr", "/usr", *links, *binds, *devices,
        "--perms", "1777", "--size", str(scratch_mib << 20), "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp", "--", str(python),
    )  # fmt: skip


def _system_folder(name: str) -> list[str]:
    path = Path("/", name)
    if path.is_symlink():
        return ["--symlink", os.readlink(path), str(path)]
    return ["--ro-bind", str(path), str(path)] if path.is_dir() else []
