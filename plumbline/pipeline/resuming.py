"""Checkpoints that a run resumes from: the last whole one, however the run before it ended.

A checkpoint is a folder `checkpoint-<step>`. When every process has written its files there, the first lists them with their sizes (`seal`). A
folder without that list was not completed, or is half deleted. If files have other sizes than it says, they were cut short later: after a power
failure, a file system may lack what it had not written yet. Sizes are compared and contents are not, because reading 100 GB takes minutes.
"""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from plumbline.pipeline import processes
from plumbline.pipeline.records import flush_all, read_json, write_json

SEAL = "files.json"
"""The list of a checkpoint's files: name → bytes."""


def seal(checkpoint: Path) -> None:
    """Declares a checkpoint complete, when its files are on the disk. The first process calls it when all have written theirs."""
    flush_all(checkpoint)
    write_json(checkpoint / SEAL, _sizes(checkpoint))


def damage(checkpoint: Path) -> str:
    """Why a checkpoint cannot be used, as "expected …, found …"; empty if it is whole."""
    try:
        listed = read_json(checkpoint / SEAL)
    except FileNotFoundError:
        return f"expected {SEAL}, which is written last, found none"
    except ValueError:
        return f"expected a list of files in {SEAL}, found one that was cut short"
    sizes = _sizes(checkpoint)
    for name, size in listed.items():
        if name not in sizes:
            return f"expected a file {name}, found none"
        if sizes[name] != size:
            return f"expected {name} of {size:,} bytes, found {sizes[name]:,}"
    return ""


def numbered(folder: Path) -> list[Path]:
    """The checkpoints in a folder, whole or not, by rising step."""
    return sorted(folder.glob("checkpoint-*"), key=lambda checkpoint: int(checkpoint.name.rpartition("-")[2]))


def last_checkpoint(folder: Path, complaint: Callable[[Path], str] = damage) -> Path | None:
    """The last checkpoint that can be used; None if there is none. The first process chooses it for all.

    Later ones are deleted, and a line says what is wrong with each: a trainer would count them among those that it keeps, or mix their files with
    new ones.

    complaint: says why a checkpoint cannot be used; empty if it can.
    """
    return processes.as_first_finds(partial(_last, folder, complaint))


def _last(folder: Path, complaint: Callable[[Path], str]) -> Path | None:
    for checkpoint in reversed(numbered(folder)):
        wrong = complaint(checkpoint)
        if not wrong:
            print(f"Training resumes from {checkpoint}")
            return checkpoint
        print(f"{checkpoint} cannot be used and is deleted: {wrong}")
        shutil.rmtree(checkpoint, ignore_errors=True)
    return None


def _sizes(checkpoint: Path) -> dict[str, int]:
    files = (file for file in sorted(checkpoint.rglob("*")) if file.is_file() and file.name != SEAL)
    return {file.relative_to(checkpoint).as_posix(): file.stat().st_size for file in files}
