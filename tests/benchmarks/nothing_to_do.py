"""How much processor time does a `make repro` with nothing to do take?

    python tests/benchmarks/nothing_to_do.py . ../of-an-older-version --rounds 5

Each folder is a finished project. Prints the median of each in seconds of processor time (user and system), of its three parts: `check`, DVC as the
folder's Makefile calls it, and what starting a stage takes before its work. Folders are measured in turns, so that other load on the machine meets
all of them alike.
"""

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
from pathlib import Path

ENVIRONMENT = {**os.environ, "MLFLOW_TRACKING_URI": "off", "WARM_PROCESS": "off"}


def processor_seconds(command: list[str], folder: Path) -> float:
    """User and system time of a command and the processes that it waited for.

    Raises:
        RuntimeError: it failed, or ran a stage.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode or "Running stage" in done.stdout:
        raise RuntimeError(
            f"expected a finished project in {folder}, found that `{' '.join(command)}` failed or ran a stage: run `make repro` "
            f"there first\n{done.stdout}{done.stderr}"
        )
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def commands(folder: Path) -> dict[str, list[str]]:
    called = re.search(r"^\t(dvc repro.*)$", (folder / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    if not called:
        raise ValueError(
            f"expected a line that calls `dvc repro` in {folder / 'Makefile'}, found none: give the folder of a project"
        )
    return {
        "check": [sys.executable, "-m", "stages.check"],
        "dvc": called[1].split(),
        "start": [sys.executable, "-m", "stages.report", "--cfg", "job"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=("check", "dvc", "start"), default=["check", "dvc", "start"])
    arguments = parser.parse_args()
    seconds: dict[tuple[str, Path], list[float]] = {}
    for _ in range(arguments.rounds):
        for part in arguments.parts:
            for folder in arguments.folders:
                seconds.setdefault((part, folder), []).append(processor_seconds(commands(folder)[part], folder))
    for (part, folder), values in seconds.items():
        print(f"{part:6} {statistics.median(values):5.2f} s  [{min(values):.2f} … {max(values):.2f}]  {folder}")


if __name__ == "__main__":
    main()
