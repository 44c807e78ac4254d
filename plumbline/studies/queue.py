"""A study's runs as DVC experiments: queued, run by workers, found again by their names.

A run's name ends in a digest of its values, its targets, the files that it reads and the code, so that a study that is started again finds what is
done, and an edit makes new runs. DVC's cache sees to it that a new run repeats only what the edit touches.
"""

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from plumbline.pipeline.composing import CONF
from plumbline.pipeline.digests import input_digest
from plumbline.pipeline.params import Params, load_params
from plumbline.pipeline.records import stream_jsonl
from plumbline.studies.declaration import Study, params_of, targets, values_of

POLL_SECONDS = 10.0
PATIENCE_POLLS = 60
"""How often in a row nothing in DVC's queue may be at work before the workers count as gone."""
RUN_MIB = 2_500.0
"""What a run is expected to hold in memory if no stage of this project has been measured yet: a stage of the closed world takes 0.9 to 1.1 GiB."""
CODE = ("conf", "data", "dvc.yaml", "plumbline", "requirements.lock", "requirements-torch.txt", "stages")
NOT_THE_RESULT = ("conf/study/", "conf/recipe/", "plumbline/studies/", "plumbline/tools/", "plumbline/report/")
"""What no node that a study reads depends on."""

_STATE = re.compile(r"^\S+\s+(\S+)\s.*\s(Queued|Running|Failed|Success)\s*$", re.MULTILINE)


class Run(NamedTuple):
    """One experiment of a study."""

    condition: str
    seed: int
    name: str
    overrides: tuple[str, ...]
    """What `dvc exp run -S` is given."""
    targets: tuple[str, ...]


def runs_of(study: Study, name: str, code: str, workspace: Params) -> list[Run]:
    """Every run, the seeds of a condition one after the other: workers then begin with different seeds, which share nothing.

    code: the digest of the code; workspace: what params.yaml holds now, of which each run gets the differences.

    Raises:
        FileNotFoundError: there is no folder of inputs.
    """
    runs = []
    content = cache(input_digest)  # the runs share their folder of inputs, which may be large
    for condition in study.conditions:
        file_values = {key: value for key, value in values_of(study, condition).items() if ":" in key}
        for seed in study.seeds:
            params = params_of(study, condition, seed)
            described = json.dumps([params, content(params["inputs"]), file_values, targets(study), code], sort_keys=True)
            digest = hashlib.md5(described.encode(), usedforsecurity=False).hexdigest()[:8]
            slug = re.sub(r"[^A-Za-z0-9]+", "-", condition).strip("-") or "condition"
            overrides = [*differences(workspace, params), *(f"{key}={hydra_value(value)}" for key, value in file_values.items())]
            runs.append(Run(condition, seed, f"{name}-{slug}-{seed}-{digest}", tuple(overrides), tuple(targets(study))))
    return runs


def differences(old: Mapping[str, Any], new: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Hydra's overrides that turn one params.yaml into another."""
    for key in dict.fromkeys([*old, *new]):
        path, before, value = f"{above}{key}", old.get(key), new.get(key)
        is_section = isinstance(value, Mapping) and len(value) > 0
        if is_section and isinstance(before, Mapping):
            yield from differences(before, value or {}, f"{path}.")
            continue
        if key in old and key in new and before == value and type(before) is type(value):
            continue
        if key in old and (key not in new or is_section or isinstance(before, Mapping)):
            if before is None:
                yield f"++{path}=0"  # Hydra takes a key that is null for one that is not there
            yield f"~{path}"
        if is_section:
            yield from differences({}, value or {}, f"{path}.")
        elif key in new:
            yield f"++{path}={hydra_value(value)}"


def hydra_value(value: Any) -> str:
    """A value in Hydra's grammar of overrides."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return "'" + re.sub(r"(\\*)'", r"\1\1\\'", re.sub(r"(\\+)$", r"\1\1", value)) + "'"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{hydra_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(map(hydra_value, value)) + "]"
    return json.dumps(value)


def code_digest() -> str:
    """The digest of every file under Git that a run's result may depend on, as it lies in the workspace."""
    listed = subprocess.run(["git", "ls-files", "-z", "--", *CODE], stdout=subprocess.PIPE, cwd=CONF.parent, check=True).stdout
    digest = hashlib.md5(usedforsecurity=False)
    for name in filter(None, listed.decode().split("\0")):
        file = CONF.parent / name
        if not name.startswith(NOT_THE_RESULT) and file.is_file():
            digest.update(f"{name}\0".encode() + hashlib.md5(file.read_bytes(), usedforsecurity=False).digest())
    return digest.hexdigest()


def finished() -> dict[str, str]:
    """The experiments that succeeded: name → Git revision."""
    listed = _git("for-each-ref", "--format=%(refname) %(objectname)", "refs/exps")
    pairs = [line.split() for line in listed.splitlines()]
    return {ref.rpartition("/")[2]: revision for ref, revision in pairs if len(ref.split("/")) == 5}  # refs/exps/ab/cdef…/name


def states() -> dict[str, str]:
    """What DVC's queue says of each experiment: Queued, Running, Failed or Success; an experiment's last state counts."""
    return dict(_STATE.findall(_dvc("queue", "status")))


def enqueue(runs: Sequence[Run], say: Callable[[str], None]) -> None:
    """Puts into the queue what is neither done nor in it. What failed is taken out and tried again."""
    done, queue = finished(), states()
    waiting = [run for run in runs if run.name not in done and queue.get(run.name) not in ("Queued", "Running")]
    if again := [run.name for run in waiting if run.name in queue]:
        _dvc("queue", "remove", *again)
    for number, run in enumerate(waiting, 1):
        say(f"queueing {number} of {len(waiting)}: {run.condition}, seed {run.seed}")
        parameters = [part for override in run.overrides for part in ("-S", override)]
        _dvc("exp", "run", "--queue", "--name", run.name, *parameters, *run.targets)


def work_off(runs: Sequence[Run], jobs: int, say: Callable[[str], None]) -> dict[str, str]:
    """Starts the workers and waits until every run has succeeded: name → Git revision.

    Raises:
        RuntimeError: a run failed, or the workers ended before the work was done.
    """
    reported, idle = "", 0
    if not {run.name for run in runs} <= finished().keys():
        _dvc("queue", "start", "--jobs", str(jobs))
    while True:
        done, queue = finished(), states()
        left = [run for run in runs if run.name not in done]
        if failed := [run for run in left if queue.get(run.name) == "Failed"]:
            if not any(queue.get(run.name) in ("Queued", "Running") for run in left):
                raise RuntimeError(_failure(failed, len(runs)))
        elif not left:
            return {run.name: done[run.name] for run in runs}
        running = sum(queue.get(run.name) == "Running" for run in left)
        idle = 0 if "Running" in queue.values() else idle + 1  # workers also do what others have queued
        if idle > PATIENCE_POLLS:
            raise RuntimeError(
                f"expected workers to run the {len(left)} experiments that are left, found none at work. Start the study again"
            )
        if (message := f"{len(runs) - len(left)} of {len(runs)} done, {running} running, {len(failed)} failed") != reported:
            say(reported := message)
        time.sleep(POLL_SECONDS)


def _failure(failed: Sequence[Run], count: int) -> str:
    """What became of failed runs, with the last line that the first of them said before DVC's own."""
    logged = _dvc("queue", "logs", failed[0].name, may_fail=True).splitlines()
    lines = [line.strip() for line in logged if line.strip() and not line.startswith("ERROR: failed to reproduce")]
    return (
        f"{len(failed)} of {count} experiments failed; the first, {failed[0].name}, ends with: {lines[-1] if lines else 'no output'}. "
        f"`dvc queue logs {failed[0].name}` shows all of it. Fix the cause and start the study again: the others are not repeated"
    )


def workers(study: Study, threads: int) -> int:
    """How many runs fit side by side in this machine's cores and free memory; at most one for each seed, since those of a seed share much work."""
    by_cores = (psutil.cpu_count(logical=False) or 1) // max(1, threads)
    by_memory = int(psutil.virtual_memory().available / 2**20 / _largest_stage_mib())
    return max(1, min(by_cores, by_memory, len(study.seeds)))


def _largest_stage_mib() -> float:
    peaks = [
        float(row["peak_rss_mib"])
        for file in Path(".timings").glob("*.jsonl")
        for row in stream_jsonl(file)
        if "peak_rss_mib" in row
    ]
    return max(peaks, default=RUN_MIB)


def read_file(revision: str, path: Path) -> str:
    """A file that an experiment made, from DVC's cache.

    Raises:
        FileNotFoundError: it made no such file.
    """
    from dvc.api import DVCFileSystem

    text: str = DVCFileSystem(rev=revision).read_text(path.as_posix(), encoding="utf-8")
    return text


def workspace_params() -> Params:
    """What params.yaml holds now."""
    return load_params()


def _dvc(*arguments: str, may_fail: bool = False) -> str:
    return _output([sys.executable, "-m", "dvc", *arguments], may_fail)


def _git(*arguments: str) -> str:
    return _output(["git", *arguments], may_fail=False)


def _output(command: Sequence[str], may_fail: bool) -> str:
    """What a command prints. It goes to a file, because a pipe would be held open by the workers that `dvc queue start` leaves behind.

    Raises:
        RuntimeError: it failed; the message is the last line of what it said.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as printed, tempfile.TemporaryFile("w+", encoding="utf-8") as complained:
        process = subprocess.run(command, stdout=printed, stderr=complained, check=False)
        texts = []
        for file in (printed, complained):
            file.seek(0)
            texts.append(file.read())
    if process.returncode and not may_fail:
        lines = [line for line in "\n".join(texts).splitlines() if line.strip()]
        raise RuntimeError(
            f"`{' '.join(command[:5])} …` failed: {lines[-1].strip() if lines else f'status {process.returncode}'}"
        )
    return texts[0]
