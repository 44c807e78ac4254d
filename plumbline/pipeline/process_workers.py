"""Workers in processes of this machine. They end when the stage ends, however it ends."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait

from plumbline.pipeline.shard_workers import Prepare, ShardRunner, WorkerDied, for_workers, pickled, reraise

PATIENCE_SECONDS = 10.0
"""How long a worker may take to end by itself."""


class LocalPool:
    """Starts workers as processes with the stage's environment. Each has `gpus` of the stage's GPUs for itself; with 0 it sees them all."""

    def __init__(self, prepare: Prepare, gpus: int) -> None:
        self.prepare = pickled(prepare)
        self.devices = _devices_in_groups(gpus)
        self.workers: list[ProcessWorker] = []

    def __enter__(self) -> "LocalPool":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self) -> "ProcessWorker":
        self.workers = [worker for worker in self.workers if worker.process.is_alive()]
        taken = {worker.devices for worker in self.workers}
        worker = ProcessWorker(self.prepare, next((group for group in self.devices if group not in taken), ""))
        self.workers.append(worker)
        return worker

    def ready(self, busy: Collection["ProcessWorker"]) -> "list[ProcessWorker]":
        connections = {worker.connection: worker for worker in busy}
        return [connections[connection] for connection in wait([*connections])]  # type: ignore[index]


class ProcessWorker:
    """A process that computes shards; `devices` are the GPUs that it sees, all of the stage's if empty."""

    def __init__(self, prepare: bytes, devices: str) -> None:
        self.devices = devices
        spawn = multiprocessing.get_context("spawn")  # a fork would inherit the threads and locks of this process's libraries
        self.connection, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_work, args=(theirs, prepare))
        with _environment(**for_workers(), **({"CUDA_VISIBLE_DEVICES": devices} if devices else {})):
            self.process.start()
        theirs.close()

    def submit(self, task: bytes) -> None:
        with suppress(OSError):  # it has died: `result` says so
            self.connection.send_bytes(task)

    def result(self) -> None:
        try:
            error = self.connection.recv_bytes()
        except (EOFError, OSError):
            self.process.join(PATIENCE_SECONDS)
            code = self.process.exitcode or 0
            raise WorkerDied(f"by {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}") from None
        reraise(error)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _work(connection: Connection, prepare: bytes) -> None:
    """Computes shards until the stage needs no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the stage, which ends its workers
    threading.Thread(target=_end_with_the_stage, daemon=True).start()
    runner = ShardRunner(prepare)
    with suppress(EOFError, OSError):
        while True:
            connection.send_bytes(runner.run(connection.recv_bytes()))


def _end_with_the_stage() -> None:
    """Ends this process when the stage's has ended, even by SIGKILL."""
    stage = multiprocessing.parent_process()
    if stage is not None:
        stage.join()
        os._exit(1)


def _devices_in_groups(size: int) -> list[str]:
    """The GPUs that this process sees, in groups of so many, as CUDA_VISIBLE_DEVICES names them; none for 0."""
    if not size:
        return []
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    return [",".join(names[start : start + size]) for start in range(0, len(names) - size + 1, size)]


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Environment variables for processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
