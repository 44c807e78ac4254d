"""Runs every method on a GPU for a few steps: speed, memory, use of the GPU's arithmetic, and what must hold there.

`tests/gpu/run.sh` calls this in an environment that has what it needs; README.md beside it says more.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]

from checks import Check, checks  # noqa: E402

Results = dict[str, dict[str, Any]]
Task = Callable[[], Mapping[str, Any]]
RESERVE_SECONDS = 10.0  # for ending and reporting
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


class OutOfTime(BaseException):
    """A run has used up its time. Not an Exception, so that no library catches it."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises OutOfTime in the block when the time is over."""

    def end(*_: Any) -> None:
        raise OutOfTime(f"stopped after {seconds:.0f} s")

    handler = signal.signal(signal.SIGALRM, end)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def run_all(tasks: Mapping[str, Task], seconds: float, done: Callable[[Results], None]) -> Results:
    """The result of each task, with its `status`: ok, failed, or skipped because the time is over. One that fails ends no other.

    seconds: of all tasks together; none gets more than a third of them.
    done: called with the results so far after each task.
    """
    results: Results = {}
    end = time.monotonic() + seconds
    for name, task in tasks.items():
        started = time.monotonic()
        left = end - started
        if left <= 0:
            results[name] = {"status": "skipped", "error": "no time is left"}
            continue
        try:
            with limited(min(left, seconds / 3)), contextlib.redirect_stdout(sys.stderr):
                results[name] = {"status": "ok", **task()}
        except (Exception, OutOfTime) as error:  # noqa: BLE001 - whatever it is, it is reported, and the others go on
            traceback.print_exc()
            last_line = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
            results[name] = {"status": "failed", "error": last_line}
        results[name]["seconds"] = time.monotonic() - started
        done(results)
    return results


def tasks_of(place: Any) -> dict[str, Task]:
    """Every run, in order: methods first, then what only checks need. All start from the same policy; `rl` learns from the reward model."""
    from functools import partial

    import torch
    from runs import draw_samples, train, train_reward_model

    fp32, lora = {"bf16": False}, {"lora_rank": 16}
    return {
        "sampling": partial(draw_samples, place, torch.bfloat16),
        "sampling_fp32": partial(draw_samples, place, torch.float32),
        "sft": partial(train, place, "sft", "sft"),
        "sft_fp32": partial(train, place, "sft_fp32", "sft", **fp32),
        "sft_lora": partial(train, place, "sft_lora", "sft", **lora),
        "dpo": partial(train, place, "dpo", "dpo"),
        "dpo_fp32": partial(train, place, "dpo_fp32", "dpo", **fp32),
        "kto": partial(train, place, "kto", "kto"),
        "orpo": partial(train, place, "orpo", "orpo"),
        "reward_model": partial(train_reward_model, place),
        "grpo": partial(train, place, "grpo", "grpo"),
        "rloo": partial(train, place, "rloo", "rloo"),
        "ppo": partial(train, place, "ppo", "ppo"),
        "sft_again": partial(train, place, "sft_again", "sft"),
        "sft_resumed": partial(train, place, "sft_resumed", "sft", resume_at=place.scale.checkpoint_at),
        "ppo_resumed": partial(train, place, "ppo_resumed", "ppo", resume_at=place.scale.online_steps // 2),
    }


def surroundings(place: Any, model: str) -> dict[str, Any]:
    """What the figures depend on."""
    import torch

    on_gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "peak_bf16_flops": place.peak,
        "model": model,
        "parameters": place.parameters,
        "scale": place.scale._asdict(),
        "threads": place.threads,
        "CUBLAS_WORKSPACE_CONFIG": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        "python": sys.version.split()[0],
        "cuda": torch.version.cuda,
        **{library: importlib.metadata.version(library) for library in LIBRARIES},
    }


def table(results: Results) -> str:
    """The runs as a table for people."""
    import pandas

    def number(row: Mapping[str, Any], key: str, form: str) -> str:
        value = row.get(key)
        return "–" if value is None else format(value, form)

    rows = []
    for name, row in results.items():
        kind, curve = next(iter(row.get("curve", {}).items()), ("", []))
        utilisation = number(row, "utilisation", ".1%")
        rows.append(
            {
                "run": name,
                "status": row["status"],
                "s/step": number(row, "seconds_per_step", ".3g"),
                "trained tok/s": number(row, "trained_tokens_per_second", ",.0f"),
                "sampled tok/s": number(row, "sampled_tokens_per_second", ",.0f"),
                "padding": number(row, "padding_fraction", ".0%"),
                "peak GiB": number(row, "peak_gib", ".2f"),
                "FLOP/s": number(row, "flops_per_second", ".3g"),
                "MFU": "unknown" if "utilisation" in row and row["utilisation"] is None else utilisation,
                "first → last": f"{kind} {curve[0]:.4g} → {curve[-1]:.4g}" if curve else "–",
                "seconds": number(row, "seconds", ".0f"),
            }
        )
    return pandas.DataFrame(rows).to_string(index=False)


def table_of_checks(found: list[Check]) -> str:
    """The checks as a table for people."""
    import pandas

    marks = {True: "holds", False: "FAILS", None: "–"}
    return pandas.DataFrame([{**check._asdict(), "held": marks[check.held]} for check in found]).to_string(index=False)


def write_report(report: Mapping[str, Any]) -> None:
    """Writes $OUT/gpu.json if OUT is set."""
    if folder := os.environ.get("OUT"):
        from plumbline.pipeline.records import write_json

        write_json(Path(folder) / "gpu.json", report)


def exit_code(results: Results, found: list[Check]) -> int:
    """1 if a run did not end well or a check does not hold."""
    return int(any(row["status"] != "ok" for row in results.values()) or any(check.held is False for check in found))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="a folder with a causal LM; if left out, one with random weights")
    parser.add_argument("--size", choices=["nano", "150M", "350M", "500M"], help="of that one; 350M on a GPU, nano without")
    parser.add_argument("--minutes", type=float, default=8.0, help="the most that all runs together may take (default: 8)")
    parser.add_argument("--dry-run", action="store_true", help="the nano model and two steps of each method")
    arguments = parser.parse_args()
    started = time.monotonic()
    model_folder = arguments.model.resolve() if arguments.model else None
    if model_folder and not (model_folder / "config.json").is_file():
        parser.error(f"model: expected a folder with a config.json, found none at {model_folder}")

    import torch
    from recipe import DRY, FULL, prepare

    size = "nano" if arguments.dry_run or not torch.cuda.is_available() else "350M"
    size = arguments.size or size
    with tempfile.TemporaryDirectory(prefix="plumbline-gpu-") as folder:
        os.chdir(folder)  # where stages look for artifacts and put checkpoints
        with contextlib.redirect_stdout(sys.stderr):
            place = prepare(Path(folder), DRY if arguments.dry_run else FULL, model_folder, size)
        around = surroundings(place, str(model_folder or size))
        seconds = 60 * arguments.minutes - (time.monotonic() - started) - RESERVE_SECONDS
        results = run_all(tasks_of(place), seconds, lambda so_far: write_report({**around, "runs": so_far}))
        os.chdir(ROOT)
    found = checks(results)
    write_report({**around, "runs": results, "checks": [check._asdict() for check in found]})
    print(json.dumps({key: value for key, value in around.items() if key != "scale"}, indent=None))
    print(f"\n{table(results)}\n\n{table_of_checks(found)}")
    for name, row in results.items():
        if row["status"] != "ok":
            print(f"{name}: {row['status']}: {row['error']}")
    return exit_code(results, found)


if __name__ == "__main__":
    sys.exit(main())
