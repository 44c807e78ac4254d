"""What surrounds the work of every stage: its processes, where outputs go, the thread count, the tracked run, checkpoints, timings."""

import dataclasses
import functools
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from plumbline.pipeline import processes
from plumbline.pipeline.checkpoints import AlreadyRunning, checkpoint_folder
from plumbline.pipeline.composing import require_sound, typed
from plumbline.pipeline.computation import computation_key, modules_of_stage
from plumbline.pipeline.digests import input_digest
from plumbline.pipeline.engine import decisive
from plumbline.pipeline.launcher import launch, trains
from plumbline.pipeline.mlflow_calls import project_root
from plumbline.pipeline.processes import ProcessEnded
from plumbline.pipeline.provenance import Input, maker_run, node_tags
from plumbline.pipeline.records import write_json
from plumbline.pipeline.shard_workers import lost_attempts
from plumbline.pipeline.tracking import QUIET_AND_PATIENT, Run, TrackingUnavailable, tracked
from plumbline.pipeline.warm_process import end_as, run_in_fork


@dataclasses.dataclass(frozen=True)
class Work:
    """A stage at work: where its outputs go, the tracked run, what identifies its computation."""

    stage: str
    entry: str | None
    root: Path
    run: Run
    key: str
    inputs: Sequence[Input]
    until_done: ExitStack
    """Closed when the work has succeeded; left as it is if the work fails."""

    @property
    def name(self) -> str:
        """The node's name in the DAG, such as `align@dpo`."""
        return _node(self.stage, self.entry)

    def output(self, path: str) -> Path:
        """Where to write an output: the path itself under DVC, below scratch/ in a run by hand.

        What an earlier run left there is removed, and the parent folder is made; by the first process, which alone writes.
        """
        target = self.root / path
        if not processes.is_first():
            return target
        if target.is_dir():
            shutil.rmtree(target)
        target.unlink(missing_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    @contextmanager
    def checkpoints(self) -> Iterator[Path]:
        """A folder that survives a crash and is found again only by the same computation; deleted when the whole stage has succeeded."""
        folder = self.until_done.enter_context(checkpoint_folder(self.name, self.key))
        yield folder
        if processes.is_first() and (repeated := lost_attempts(folder)):
            self.log_timing(shards_repeated=repeated)

    def log_timing(self, **figures: float) -> None:
        """Logs seconds and rates to MLflow and to an untracked file: an output must be the same in every run, and these are not.

        The file also says when that was, in UTC, for whom (`dvc`, `hand`, or the name of an experiment), and whether it was here, in the project's
        own folder, or in the copy in which a queued experiment runs.
        """
        self.run.log_costs(figures)
        by = os.environ.get("DVC_EXP_NAME") or ("dvc" if "DVC_STAGE" in os.environ else "hand")
        at = datetime.now(UTC).isoformat(timespec="seconds")
        folder = project_root() / ".timings"
        folder.mkdir(exist_ok=True)
        with (folder / f"{self.name}.jsonl").open("a") as file:
            file.write(json.dumps({"at": at, "by": by, "here": Path.cwd().resolve() == project_root(), **figures}) + "\n")


EXPECTED = (ValueError, OSError, FloatingPointError, AlreadyRunning, TrackingUnavailable, ProcessEnded)
"""Errors whose message says what to do. Any other error is a bug, and its traceback is shown."""


GRACE_SECONDS = 5.0
"""How long a launched process that is not the first keeps an error to itself: if the first has the same one, it is stopped meanwhile."""


def launched(main: Callable[..., None]) -> Callable[..., None]:
    """Runs a stage where it belongs. Goes below `@hydra.main`.

    That is in the processes of its launcher if it trains in several, in a fork of the warm process if there is one, and else here. An expected error
    ends the stage with its message alone; HYDRA_FULL_ERROR=1 shows where it arose.
    """

    @functools.wraps(main)
    def launching(config: Any) -> None:
        status = None
        try:
            if not OmegaConf.is_missing(config, "threads"):
                set_environment(config.threads)
                if _launch(config):
                    return
                status = run_in_fork(f"stages.{HydraConfig.get().job.name}")
            if status is None:
                main(config)
                return
        except EXPECTED as error:
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            if not processes.is_first():
                time.sleep(GRACE_SECONDS)
            sys.exit(f"{os.environ.get('DVC_STAGE', HydraConfig.get().job.name)}: {error}")
        end_as(status)

    return launching


def _launch(config: Any) -> bool:
    """Runs a stage in the processes of its launcher; False if it runs in one, or if this is one of the launched.

    Raises:
        ValueError: the values do not fit the launcher or this machine.
        ProcessEnded: a process was killed.
    """
    if processes.is_launched():
        processes.begin()
        return False
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ValueError(
            "expected `launcher` in params.yaml to say how many processes train, found one that `accelerate launch` or `torchrun` started. Run "
            "`python -m` or `dvc repro` itself: the stage starts its processes"
        )
    if "launcher" not in config or not config.launcher.accelerate:
        return False
    stage = typed(config)
    if not trains(stage):
        return False
    require_sound(stage)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        raise ValueError("expected one run at a time with a launcher, found a multirun (-m). Start them one after the other")
    launch(stage.launcher, f"stages.{HydraConfig.get().job.name}", sys.argv[1:])
    return True


def set_environment(threads: int) -> None:
    """What libraries read from the environment when they are imported."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # the count determines rounding
    for variable, value in {"TOKENIZERS_PARALLELISM": "false", **QUIET_AND_PATIENT}.items():
        os.environ.setdefault(variable, value)


@contextmanager
def executing(
    stage: str, entry: str | None, config: Any, inputs: Sequence[str | Path], loads: Iterable[str] = ()
) -> Iterator[Work]:
    """Runs a stage's work: `config` is its dataclass, `inputs` the files and folders that it reads.

    loads: the project's modules that it loads by their name, such as a method's; they are asked for when all inputs are there.

    Raises:
        ValueError: the config's values do not fit together.
        FileNotFoundError: an input is missing; the message says which stage makes it.
        TrackingUnavailable: MLflow does not answer.
    """
    require_sound(config)
    started = time.perf_counter()
    set_environment(getattr(config, "threads", 1))
    read = [Input(str(path), input_digest(path), maker_run(path)) for path in inputs]
    params = dataclasses.asdict(config)
    processes.join()
    # the checkpoints go last: what is still logged after training may fail, too
    with ExitStack() as until_done, _tracking(stage, entry, params, read) as run:
        values = json.dumps(decisive(stage, params), sort_keys=True, default=str)
        # of one process, since the files may be edited while the others start
        key = processes.as_first_finds(lambda: computation_key(values, read, modules_of_stage(stage, config, loads)))
        work = Work(stage, entry, _output_root(stage, entry), run, key, read, until_done)
        with _in_all_processes():
            yield work
        if not processes.is_first():
            return
        # children are those that have ended: workers on this machine, programs; only the largest is known
        stage_peak, child_peak = (
            resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        work.log_timing(
            stage_seconds=time.perf_counter() - started, peak_rss_mib=stage_peak, largest_child_peak_rss_mib=child_peak
        )
    write_json(work.output(f"artifacts/runs/{stage}/{entry or stage}.json"), {"run_id": run.id})


def _node(stage: str, entry: str | None) -> str:
    return f"{stage}@{entry}" if entry else stage


def _tracking(stage: str, entry: str | None, params: Mapping[str, Any], inputs: Sequence[Input]) -> AbstractContextManager[Run]:
    """The node's run in MLflow, which the first process alone keeps."""
    if not processes.is_first():
        return nullcontext(Run())
    return tracked(_node(stage, entry), params=params, tags=node_tags(stage, entry), inputs=inputs)


@contextmanager
def _in_all_processes() -> Iterator[None]:
    """Work that a stage's processes do together. The first alone goes on afterwards, and if one fails, it says why before it is stopped."""
    try:
        yield
        processes.only_the_first_goes_on()
    except processes.OnlyTheFirst:
        return
    except BaseException:
        processes.fail()
        raise


def _output_root(stage: str, entry: str | None) -> Path:
    """The project under DVC; otherwise a folder of scratch/, one for each job of a multirun, so that a trial touches nothing."""
    if "DVC_STAGE" in os.environ:
        return Path()
    root = Path("scratch") / stage / (entry or "")
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return root / str(HydraConfig.get().job.num)
    return root
