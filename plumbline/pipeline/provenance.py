"""Where a run comes from: its code and commit, DVC's node and lock, the runs that made its inputs. For MLflow alone: it decides no result."""

import contextlib
import getpass
import hashlib
import os
import socket
import subprocess
from pathlib import Path
from typing import NamedTuple

from plumbline.pipeline.digests import locked_stages
from plumbline.pipeline.records import read_json

LOCKS = ("dvc.lock", "requirements.lock")


class Input(NamedTuple):
    """A file or folder that a stage read."""

    path: str
    digest: str
    maker: str | None = None
    """The id of the run that made it, if one did."""


def source_file(stage: str) -> str:
    """The file of a stage, relative to the project."""
    return f"stages/{stage}.py"


def node_tags(stage: str, entry: str | None) -> dict[str, str]:
    """Which node of the graph a run is of, and the state of the project that it saw."""
    tags = {
        "stage": stage,
        "entry": entry or "",
        "dvc.stage": f"{stage}@{entry}" if entry else stage,
        "by_hand": str("DVC_STAGE" not in os.environ).lower(),
        "mlflow.source.name": source_file(stage),
        "mlflow.source.type": "LOCAL",
    }
    for tag, variable in {"dvc.experiment": "DVC_EXP_NAME", "dvc.baseline": "DVC_EXP_BASELINE_REV"}.items():
        if os.environ.get(variable):
            tags[tag] = os.environ[variable]
    for lock in LOCKS:
        if (file := Path(lock)).is_file():
            tags[f"md5.{lock}"] = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
    return tags


def process_tags() -> dict[str, str]:
    """Who runs it, where, and from which commit; edits since then are said."""
    tags = {"host": socket.gethostname(), "pid": str(os.getpid()), **_git_tags()}
    with contextlib.suppress(OSError, KeyError):  # a user id without a name, as in some containers
        tags["mlflow.user"] = getpass.getuser()
    return tags


def _git_tags() -> dict[str, str]:
    command = ["git", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return {}
    headers = dict(line.removeprefix("# ").split(" ", 1) for line in lines if line.startswith("# "))
    edited = any(not line.startswith("# ") for line in lines)
    named = {"mlflow.source.git.commit": "branch.oid", "mlflow.source.git.branch": "branch.head"}
    return {tag: headers[header] for tag, header in named.items() if header in headers} | {"git.dirty": str(edited).lower()}


def maker_run(path: str | Path) -> str | None:
    """The id of the run that made a path, or the output that it lies in; None if no stage made it, or it made it untracked."""
    files = _run_files()
    parts = Path(path).parts
    made = next((whole for end in range(len(parts), 0, -1) if (whole := "/".join(parts[:end])) in files), None)
    if made is None:
        return None
    try:
        return read_json(files[made])["run_id"] or None
    except (OSError, ValueError, KeyError, TypeError):  # such as one that DVC has yet to check out
        return None


def _run_files() -> dict[str, str]:
    """Each stage's outputs → its file with the id of its run, as dvc.lock has them."""
    files = {}
    for stage in locked_stages().values():
        paths = [out["path"] for out in stage.get("outs", [])]
        if run_file := next((path for path in paths if path.startswith("artifacts/runs/")), None):
            files.update(dict.fromkeys(paths, run_file))
    return files
