"""A command that ends with the process that runs it, such as `srun` with the launcher that it starts on each machine."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from plumbline.pipeline.processes import signal_when_parent_ends
from plumbline.pipeline.warm_process import PASSED_ON

POLL_SECONDS = 1.0
"""How often a process looks whether its parent is still there."""


def run_tied(command: Sequence[str]) -> int:
    """Runs a command until it ends; returns its exit status, or the negative number of a signal.

    A signal that asks this process to end (`PASSED_ON`) goes to the command and to what that has started in its process group, as SIGTERM: on
    SIGINT, srun only asks whether it is meant. The number of that signal is returned when the command has ended. If this process is killed, the
    command gets SIGTERM (on Linux).
    """
    received: list[int] = []
    started: list[subprocess.Popen[bytes]] = []

    def end(number: int, _: Any) -> None:
        received.append(number)
        for process in started:
            _terminate(process)

    before = {number: signal.getsignal(number) for number in PASSED_ON}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as that of SIGHUP is under nohup
            signal.signal(number, end)
    try:
        # in a session of its own, killpg reaches all that it starts, and Ctrl-C reaches it only through this process; it has no input
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=partial(_end_with, os.getpid())
        )
        started.append(process)
        if received:  # meanwhile
            _terminate(process)
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return -received[0] if received else status


def _terminate(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)


def _end_with(parent: int) -> None:
    """Ties a process to its parent before it becomes the command."""
    signal_when_parent_ends(signal.SIGTERM)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)


def end_with_parent() -> None:
    """Has this process end by SIGTERM when its parent has ended, such as a shell script between `run_tied` and this process.

    The parent is looked at now and then. The kernel's own signal (`signal_when_parent_ends`) also comes when a thread of the parent ends, and nobody
    knows which thread of a batch system's daemon has started this process.
    """
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
