"""A process that has imported MLflow, which takes 2 s, for the stages of a repro to share.

The first stage starts it, and it goes half a minute after the last. It forks for each stage, so that a stage's calls see that stage's
environment and folder, and nothing of an earlier stage's connections. Where there can be no such process, the stage imports MLflow itself.
"""

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Client, Connection, wait
from pathlib import Path
from typing import Any

from filelock import FileLock

from plumbline.pipeline.mlflow_calls import MlflowFault

ADDRESS = ".mlflow.sock"  # in the current folder, because the path of a socket may have 107 characters only
LOCK = f"{ADDRESS}.lock"
IDLE_SECONDS = 30.0


class Calls:
    """Calls functions in the shared process, or here if there is none."""

    def __init__(self) -> None:
        # a process that has imported MLflow already, such as a test, gains nothing from another
        self._connection = None if "mlflow" in sys.modules else _connect()

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """The function's result or its MlflowFault.

        Raises:
            MlflowFault: also if the process has ended, or an earlier call was interrupted.
        """
        if self._connection is None:
            return function(*args)
        try:
            self._connection.send((function, args))
            result, fault = self._connection.recv()
        except (EOFError, OSError) as error:
            raise MlflowFault(f"the process that calls it has ended ({error or 'no answer'})") from error
        except Exception as error:  # what cannot be pickled, in the words of its type
            raise MlflowFault(str(error), final=True) from error
        except BaseException:  # Ctrl-C: the answer that is still to come must not be taken for another's
            self._connection.close()
            raise
        if fault:
            raise fault
        return result

    def close(self) -> None:
        if self._connection:
            self._connection.close()


def _connect() -> Connection | None:
    """A connection to a fork of the shared process, which is started if there is none; None if that fails."""
    try:
        with FileLock(LOCK):
            try:
                connection = Client(ADDRESS)
            except OSError:
                _start()
                connection = Client(ADDRESS)
        connection.send((dict(os.environ), os.getcwd()))
        connection.recv()
    except (EOFError, OSError):
        return None
    return connection


def _start() -> None:
    Path(ADDRESS).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(ADDRESS)
        listener.listen()
        # of a session of its own, so that Ctrl-C ends the stage only, and without the stage's output, which somebody may read to its end
        subprocess.Popen(
            [sys.executable, "-m", "plumbline.pipeline.mlflow_process", str(listener.fileno())], pass_fds=[listener.fileno()],
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip


def serve(listener: socket.socket) -> None:
    """Forks for each stage that connects; returns when there has been none for IDLE_SECONDS."""
    fork = multiprocessing.get_context("fork")
    stages: list[Any] = []
    while True:
        ready = wait([listener, *(stage.sentinel for stage in stages)], None if stages else IDLE_SECONDS)
        stages = [stage for stage in stages if stage.is_alive()]
        if listener in ready:
            with closing(Connection(listener.accept()[0].detach())) as connection:
                stages.append(fork.Process(target=_answer, args=(listener, connection)))
                stages[-1].start()
        elif not ready:
            with FileLock(LOCK):
                if not wait([listener], 0):
                    Path(ADDRESS).unlink(missing_ok=True)
                    listener.close()
                    return


def _answer(listener: socket.socket, connection: Connection) -> None:
    """Makes a stage's calls, in its environment and folder, until it goes."""
    listener.close()  # so that a stage that connects after the shared process was killed is refused and does not wait
    environment, folder = connection.recv()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    connection.send("ready")
    while True:
        try:
            function, args = connection.recv()
            answer: tuple[Any, MlflowFault | None]
            try:
                answer = function(*args), None
            except MlflowFault as fault:
                answer = None, fault
            connection.send(answer)
        except (EOFError, OSError):
            return


if __name__ == "__main__":
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    serve(socket.socket(fileno=int(sys.argv[1])))
