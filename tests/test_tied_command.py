"""A command that a stage starts by a prefix, such as srun, ends with the stage, whatever ends that."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from plumbline.pipeline.tied_command import run_tied
from tests.conftest import ROOT

STAGE = """
import sys
from plumbline.pipeline.tied_command import run_tied
from plumbline.pipeline.warm_process import end_as
end_as(run_tied(sys.argv[1:]))
"""
LAUNCHER = (
    "import os, time; from plumbline.pipeline.tied_command import end_with_parent; "
    "end_with_parent(); print(os.getpid(), flush=True); time.sleep(600)"
)

ONE = ("sh", "-c", "echo $$; exec sleep 600")
SHELL = ("sh", "-c", "sleep 600 & echo $!; wait")
"""A shell that does not become what it runs, as a script with loops: SIGTERM to the shell alone would leave the rest."""
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
WATCHING = ("sh", "-c", f"{sys.executable} -c '{LAUNCHER}'; true")


def ends(process: psutil.Process) -> bool:
    """Whether a process ends within a minute."""
    try:
        process.wait(60)
    except psutil.TimeoutExpired:
        process.kill()
        return False
    return True


def heed_signals() -> None:
    """Undoes what a process inherits from `nohup`, or from a script that runs the tests in the background: SIGHUP or SIGINT ignored."""
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)


def stage_killed_by(number: int, command: tuple[str, ...]) -> tuple[int, psutil.Process]:
    """How a stage ends that gets a signal while its command runs, and the process whose id the command prints."""
    call = [sys.executable, "-c", STAGE, *command]
    with subprocess.Popen(call, cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=heed_signals) as stage:
        assert stage.stdout is not None
        at_work = psutil.Process(int(stage.stdout.readline()))
        stage.send_signal(number)
        return stage.wait(60), at_work


@pytest.mark.parametrize("command", [ONE, SHELL])
@pytest.mark.parametrize("number", ENDING)
def test_a_signal_ends_the_command_and_then_the_stage(number: int, command: tuple[str, ...]) -> None:
    status, at_work = stage_killed_by(number, command)
    assert status == -number
    assert ends(at_work)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
@pytest.mark.parametrize("command", [ONE, WATCHING])
def test_a_killed_stage_takes_the_command_along(command: tuple[str, ...]) -> None:
    """Behind a shell, the launcher notices by itself that it is alone."""
    status, at_work = stage_killed_by(signal.SIGKILL, command)
    assert status == -signal.SIGKILL
    assert ends(at_work)


def test_what_the_stage_ignores_is_not_passed_on() -> None:
    """As under nohup."""
    with subprocess.Popen(
        ["nohup", sys.executable, "-c", STAGE, "sh", "-c", "echo begun; sleep 1; exit 3"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as stage:
        assert stage.stdout is not None
        assert stage.stdout.readline() == "begun\n"
        stage.send_signal(signal.SIGHUP)
        assert stage.wait(60) == 3


@pytest.mark.parametrize(("script", "status"), [("exit 3", 3), ("kill -9 $$", -9), ("true", 0)])
def test_the_status_is_that_of_the_command(script: str, status: int) -> None:
    before = {number: signal.getsignal(number) for number in ENDING}
    assert run_tied(["sh", "-c", script]) == status
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_command_that_cannot_be_started_is_an_error_and_the_handlers_are_restored(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(FileNotFoundError):
        run_tied([str(tmp_path / "srun")])
    assert signal.getsignal(signal.SIGTERM) is before
