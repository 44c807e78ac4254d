"""Crash-safe checkpoints: a folder outside DVC's outs that belongs to one computation and no other.

DVC deletes a stage's outs before it runs, so what a killed stage had reached must lie elsewhere. The folder's name is a hash of
everything that determines the result (computation.py). If a value, an input or a file that the stage runs on has changed, it starts afresh.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from plumbline.pipeline import processes
from plumbline.pipeline.mlflow_calls import project_root


class AlreadyRunning(RuntimeError):
    """Another process is computing the same thing now."""


@contextmanager
def checkpoint_folder(name: str, key: str) -> Iterator[Path]:
    """The folder for this computation's checkpoints, locked while in use and deleted when the block succeeds.

    The first of several processes does both; the others get the folder once it is locked.

    Raises:
        AlreadyRunning: another process is computing the same thing now, such as one whose `dvc` was killed.
    """
    root = project_root() / ".checkpoints"
    root.mkdir(exist_ok=True)
    folder = root / f"{name}-{key}"
    if not processes.is_first():
        processes.wait_for_all()
        yield folder
        return
    # when two workers of `dvc queue` come to the same stage, the second waits
    lock = FileLock(f"{folder}.lock", timeout=-1 if "DVC_EXP_NAME" in os.environ else 0)
    try:
        lock.acquire()
    except Timeout as error:
        raise AlreadyRunning(
            f"{name} is already running in another process (lock {folder}.lock). If its `dvc` was killed, the stage lives on: "
            f"wait for it, or stop it (`pgrep -f stages.{name.partition('@')[0]}`), then run again; it resumes from its checkpoint."
        ) from error
    try:
        folder.mkdir(exist_ok=True)
        processes.wait_for_all()
        yield folder
        # the work has succeeded; on NFS, a file that is still mapped into memory cannot be removed yet
        shutil.rmtree(folder, ignore_errors=True)
        Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        lock.release()
