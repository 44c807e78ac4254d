"""Runs a study: `make study NAME=label_noise` queues its runs as DVC experiments, waits for them, and writes its figure and its sentence.

Without a name it lists the studies. The result is `studies/<name>.svg` and `studies/<name>.json`. A study that was interrupted goes on where it
was: what DVC has is not run again. The workers are DVC's; Ctrl-C leaves them at work, and `dvc queue stop --kill` ends them.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

from omegaconf import OmegaConf

from plumbline.pipeline.composing import CONF
from plumbline.pipeline.records import read_json, replacing, write_json
from plumbline.studies.declaration import PointName, Study, load_study, names, params_of
from plumbline.studies.outcome import alternative_text, figure_of, outcome_of, record
from plumbline.studies.picture import draw
from plumbline.studies.queue import Run, code_digest, enqueue, finished, read_file, runs_of, work_off, workers, workspace_params

RESULTS = Path("studies")
CHECKED = Path("scratch/study")


def say(message: str) -> None:
    """Prints a message at once."""
    print(f"study: {message}", flush=True)


def listing() -> str:
    """Every study with its question, and its sentence if it has been run here."""
    lines = []
    for name in names():
        lines.append(f"{name}\n    {load_study(name).question}")
        if (RESULTS / f"{name}.json").is_file():
            lines.append(f"    {read_json(RESULTS / f'{name}.json')['sentence']}")
    return "\n".join(lines)


def check(study: Study, name: str) -> None:
    """Has `stages.check` look at the recipe of every condition, before anything is queued.

    Raises:
        ValueError: one of them has errors; the message holds them.
    """
    files = []
    for number, condition in enumerate(study.conditions):
        file = CHECKED / name / f"{number}.yaml"
        with replacing(file) as opened:
            opened.write(OmegaConf.to_yaml(OmegaConf.create(params_of(study, condition, study.seeds[0]))))
        files.append(file)
    command = [sys.executable, "-m", "stages.check", *map(str, files)]
    process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=CONF.parent, check=False)
    if process.returncode:
        raise ValueError(f"conf/study/{name}.yaml makes a recipe with errors:\n{process.stdout.strip()}")


def conclude(study: Study, name: str, runs: Sequence[Run], revisions: dict[str, str], code: str) -> str:
    """Reads the figures of all runs, writes the result, and returns its sentence.

    Raises:
        ValueError: a run lacks the figure.
    """

    @cache
    def reading(run_name: str, path: Path) -> str:
        return read_file(revisions[run_name], path)

    ys: dict[PointName, dict[int, float]] = {}
    xs: dict[PointName, dict[int, float]] = {}
    for run, point in ((run, point) for run in runs for point in study.points() if point.condition == run.condition):
        one = study.read[point.series]
        read = partial(reading, run.name)
        try:
            ys.setdefault(point, {})[run.seed] = figure_of(one, one.metric, point.at, read)
            if one.x_metric:
                xs.setdefault(point, {})[run.seed] = figure_of(one, one.x_metric, point.at, read)
        except ValueError as error:
            where = f"conf/study/{name}.yaml: read.{point.series}"
            raise ValueError(f"{where}: {error} ({run.condition}, seed {run.seed})") from error
    outcome = outcome_of(study, ys, xs)
    RESULTS.mkdir(exist_ok=True)
    with replacing(RESULTS / f"{name}.svg") as file:
        file.write(draw(study, outcome))
    write_json(RESULTS / f"{name}.json", record(study, outcome, code))
    say(f"{RESULTS / name}.svg: {alternative_text(study, outcome)}")
    return outcome.sentence


def run(name: str, recipe: str | None, jobs: int | None, dry: bool) -> str:
    """Runs a study and returns its sentence; with `dry`, what it would run."""
    study = load_study(name, recipe)
    check(study, name)
    code = code_digest()
    runs = runs_of(study, name, code, workspace_params())
    done = finished()
    threads = int(params_of(study, next(iter(study.conditions)), study.seeds[0])["threads"])
    jobs = jobs or workers(study, threads)
    say(f"{len(runs)} runs of the recipe {study.recipe}, {sum(run.name in done for run in runs)} of them done; {jobs} at a time")
    if dry:
        return "\n".join(f"{run.name}: {'done' if run.name in done else ' '.join(run.targets)}" for run in runs)
    enqueue(runs, say)
    return conclude(study, name, runs, work_off(runs, jobs, say), code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="a file of conf/study without .yaml; leave it out to list them")
    parser.add_argument(
        "--recipe", help="a file of conf/recipe to use instead of the one that the study names, for example with your own model"
    )
    parser.add_argument("--jobs", type=int, help="runs side by side; left out: as many as fit in cores and memory")
    parser.add_argument("--dry", action="store_true", help="check the study and list its runs, without running any")
    arguments = parser.parse_args()
    try:
        print(run(arguments.name, arguments.recipe, arguments.jobs, arguments.dry) if arguments.name else listing())
    except (ValueError, RuntimeError) as error:
        sys.exit(f"study: {error}")
    except KeyboardInterrupt:
        sys.exit(
            "study: stopped waiting. The workers go on (`dvc queue stop --kill` ends them); start the study again to go on where it is"
        )


if __name__ == "__main__":
    main()
