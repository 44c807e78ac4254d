"""A process that has imported the libraries, which takes 8 s, and forks into the stages of a repro.

The first stage of a repro starts it and runs itself; those that follow run in its forks, and it goes half a minute after the last of them. A fork
has the stage's environment, folder, arguments, input and output. It gets SIGINT, SIGTERM and SIGHUP when the stage gets them, it ends when the
stage is killed, and the stage ends as it does. Only what DVC runs is forked: a stage by hand is an ordinary process, for debuggers and profilers.

There is none on other systems than Linux, nor with a PyTorch for GPUs, which cannot be used in a fork. `WARM_PROCESS=off` does without.
"""

import contextlib
import gc
import hashlib
import importlib
import importlib.metadata
import multiprocessing
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple, NoReturn

from filelock import FileLock

from plumbline.pipeline.processes import signal_when_parent_ends

IMPORTED = (
    "hydra", "mlflow.store.tracking.sqlalchemy_store", "mlflow.tracing.client", "pandas", "datasets", "huggingface_hub.repocard", "tokenizers",
    "torch", "transformers.trainer",
    "transformers.models.auto.modeling_auto", "transformers.models.qwen3.modeling_qwen3", "trl.trainer.sft_trainer",
    "trl.trainer.dpo_trainer", "trl.trainer.reward_trainer",
)  # fmt: skip
LOCK = ".warm.lock"
IDLE_SECONDS = 30.0
PATIENCE_SECONDS = 5.0
"""How long a stage that has connected may take to say what it wants."""
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SWITCH = "WARM_PROCESS"


class Request(NamedTuple):
    """What a fork is to be: a module run as a program."""

    module: str
    arguments: list[str]
    environment: dict[str, str]
    folder: str


def run_in_fork(module: str) -> int | None:
    """Runs a stage's module in a fork of the warm process, with this process's arguments and surroundings.

    Returns:
        Its exit status, or the negative number of the signal that ended it. None if there is no warm process to fork; one may now be starting.

    Raises:
        ConnectionError: the warm process ended, and the stage with it.
    """
    if "DVC_STAGE" not in os.environ or os.environ.get(SWITCH) == "off" or not _possible():
        return None
    try:
        connection = _connect()
    except OSError:  # a folder that cannot be written to, a path that is too long
        return None
    if connection is None:
        return None
    with connection:
        try:
            with _signals_wait():  # one that came between the fork's start and the handlers would end this process alone
                connection.send((module, sys.argv, dict(os.environ), os.getcwd()))  # a Request
                connection.recv()  # the fork's process id
                for number in PASSED_ON:
                    if signal.getsignal(number) is not signal.SIG_IGN:  # as Ctrl-C is in the background of a shell
                        signal.signal(number, lambda received, _: connection.send(received))
        except (EOFError, OSError):
            return None
        try:
            return int(connection.recv())
        except (EOFError, OSError) as error:
            raise ConnectionError("the process that runs the stages of this repro has ended") from error


def end_as(status: int) -> NoReturn:
    """Ends this process as another has ended: with its exit status, or by the signal whose negative number it is."""
    if status < 0:
        with contextlib.suppress(OSError):  # of SIGKILL, which nobody can handle
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Holds back the signals that a fork gets from its stage; those that have come arrive at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _possible() -> bool:
    return sys.platform == "linux" and importlib.metadata.version("torch").endswith("+cpu")


def _connect() -> Connection | None:
    """A connection to the warm process, which has this process's input and output; None if it had to be started.

    Raises:
        OSError: there can be none.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
    address = _address(environment)
    with contextlib.ExitStack() as unless_connected:
        unless_connected.enter_context(FileLock(LOCK))
        client = unless_connected.enter_context(socket.socket(socket.AF_UNIX))
        try:
            client.connect(address)
        except OSError:
            _start(address, environment)
            return None
        socket.send_fds(client, [b" "], [0, 1, 2])
        return Connection(client.detach())


def _address(environment: Mapping[str, str]) -> str:
    """A socket in the current folder, because the path of one may have 107 characters only.

    Another environment, interpreter or set of libraries has another process, for libraries read the environment when they are imported. So have
    other limits, priority, processors or permissions of new files, which a fork inherits.
    """
    umask = os.umask(0)
    os.umask(umask)
    limits = [resource.getrlimit(value) for name, value in sorted(vars(resource).items()) if name.startswith("RLIMIT_")]
    inherited = umask, os.nice(0), sorted(os.sched_getaffinity(0)), limits
    libraries = sys.executable, os.stat(sysconfig.get_path("purelib")).st_mtime_ns
    surroundings = inherited, libraries, sorted(environment.items())
    return f".warm-{hashlib.sha256(repr(surroundings).encode()).hexdigest()[:12]}.sock"


def _start(address: str, environment: Mapping[str, str]) -> None:
    Path(address).unlink(missing_ok=True)
    ending, _ended_with_this_stage = os.pipe()  # the other end stays open
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        # of a session of its own, so that Ctrl-C ends the stage only, and without the stage's output, which somebody may read to its end
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(listener.fileno()), str(ending), address], env=environment, pass_fds=[listener.fileno(), ending],
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    os.close(ending)


class Fork(NamedTuple):
    """A stage at work."""

    process: Any
    ended: int
    """A descriptor that is ready when the process has ended, whatever it has started itself."""
    stage: Connection
    """To the stage's own process, which waits."""


def serve(listener: socket.socket, first: Connection | None, address: str) -> None:
    """Forks for each stage that connects; returns when there has been none for IDLE_SECONDS.

    first: closed at the other end when the stage that started this process, which runs itself, ends.
    """
    gc.freeze()  # a fork would copy what its garbage collector looks at
    forks: list[Fork] = []
    while True:
        stages = [fork.stage for fork in forks if not fork.stage.closed]
        waiting: list[Any] = [listener, *stages, *(fork.ended for fork in forks), *filter(None, [first])]
        ready = wait(waiting, None if forks or first else IDLE_SECONDS)
        if first in ready:
            first = None
        for fork in [*forks]:
            if fork.ended in ready:
                forks.remove(fork)
                _report(fork)
            elif fork.stage in ready:
                _pass_signal(fork)
        if listener in ready:
            if admitted := _admit(listener, [*stages, *filter(None, [first])]):
                forks.append(admitted)
        elif not ready:
            with FileLock(LOCK):
                if not wait([listener], 0):
                    Path(address).unlink(missing_ok=True)
                    listener.close()
                    return


def _admit(listener: socket.socket, others: Sequence[Connection]) -> Fork | None:
    """Forks for a stage that connects; None if it is killed meanwhile, or if there can be no fork: then it runs itself.

    others: connections that the fork must not hold open.
    """
    accepted, _ = listener.accept()
    stage = Connection(os.dup(accepted.fileno()))
    streams: list[int] = []
    try:
        accepted.settimeout(PATIENCE_SECONDS)
        _, streams, _, _ = socket.recv_fds(accepted, 1, 3)
        accepted.settimeout(None)
        if len(streams) < 3 or not stage.poll(PATIENCE_SECONDS):
            raise EOFError("no request")
        request = Request(*stage.recv())
        arguments = (request, streams, [listener, accepted, stage, *others])
        process = multiprocessing.get_context("fork").Process(target=_be, args=arguments)
        process.start()
    except (EOFError, OSError, TypeError, UnpicklingError):  # TypeError: a request of another version
        stage.close()
        return None
    finally:
        accepted.close()
        for stream in streams:
            os.close(stream)
    with contextlib.suppress(OSError):  # the stage was killed: its fork will be, too
        stage.send(process.pid)
    return Fork(process, os.pidfd_open(process.pid), stage)  # type: ignore[arg-type]


def _report(fork: Fork) -> None:
    """Tells a stage how its fork has ended."""
    fork.process.join()
    os.close(fork.ended)
    with contextlib.suppress(OSError):  # the stage was killed
        fork.stage.send(fork.process.exitcode)
    fork.stage.close()


def _pass_signal(fork: Fork) -> None:
    """Sends a fork the signal that its stage passes on: SIGKILL if the stage was killed itself."""
    try:
        number = int(fork.stage.recv())
    except (EOFError, OSError):
        number = signal.SIGKILL
        fork.stage.close()
    with contextlib.suppress(ProcessLookupError):
        os.kill(fork.process.pid, number)


def _be(request: Request, streams: Sequence[int], others: Sequence[Connection | socket.socket]) -> None:
    """Is the stage, in a fork: with its input and output, environment, folder and arguments.

    others: connections of the warm process, which a fork must not hold open.
    """
    signal_when_parent_ends(signal.SIGKILL)  # without the warm process, nobody would end it with its stage
    for connection in others:
        connection.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored here if the first stage ran in the background of a shell
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = os.fdopen(0, closefd=False)  # multiprocessing has closed it
    sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(request.environment, **{SWITCH: "off"})
    os.chdir(request.folder)
    sys.argv[:] = request.arguments
    runpy.run_module(request.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    from plumbline.pipeline.tracking import quiet_mlflow

    quiet_mlflow()  # MLflow reads on import whether it may report its use
    for name in IMPORTED:
        importlib.import_module(name)
    serve(socket.socket(fileno=int(sys.argv[1])), Connection(int(sys.argv[2]), writable=False), sys.argv[3])
