"""Peak memory of stages that work on shards, by the number of prompts.

    python tests/benchmarks/shard_memory.py sample --prompts 1000 10000 100000     # of a policy and of prompts, below; --n completions of each
    python tests/benchmarks/shard_memory.py label --prompts 10000 125000           # of 8 completions of each prompt, by the simulated judge
    python tests/benchmarks/shard_memory.py reject --prompts 10000 125000          # by the closed world's verifier

Each stage runs in a process of its own, in a temporary folder, on questions of the closed world. `sample` draws from the policy in `--policy`, or
from an untrained one of a few thousand parameters. The greatest of `--prompts` is what it samples, and the others are points at which the peak so
far is noted. `label` and `reject` read completions that are written for them. A line says how many completions there were, the peak of the process
before the work and after it, and the seconds.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

SHARD_PROMPTS, EACH = 1024, 8


def peak_mib() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def questions(count: int) -> Iterator[dict[str, Any]]:
    """Prompts of the closed world, which may come more than once under different ids."""
    from plumbline.world.families.catalog import FAMILIES

    rng = random.Random(5)
    kinds = [(family, family.intents()) for _, family in sorted(FAMILIES.items())]
    for number in range(count):
        family, intents = kinds[number % len(kinds)]
        yield {"id": f"p{number}", "family": family.name, "language": "en", "prompt": family.ask(rng.choice(intents), "en", rng)}


def completions(count: int) -> Iterator[dict[str, Any]]:
    """Eight answers to each of so many prompts, right and wrong, kind and rude."""
    from plumbline.rows import assistant
    from plumbline.world.answers import Style, write_answer
    from plumbline.world.families.catalog import understand

    rng = random.Random(6)
    styles = [
        Style(right, manner, short) for right in ("right", "wrong") for manner in ("kind", "rude") for short in (True, False)
    ]
    for row in questions(count):
        task = understand(row["prompt"])
        assert task is not None
        for index, style in enumerate(styles[:EACH]):
            answer = {
                "completion": assistant(write_answer(task, style, rng)),
                "finished": True,
                "tokens": 20,
                "ids": [*range(20)],
            }
            yield row | answer | {"index": index, "policy": "sft"}


def sample(marks: list[int], policy: str, n: int) -> dict[str, Any]:
    """The stage `sample` on the greatest number of prompts; the peak when each number has been reached."""
    from plumbline.models.completions import Completer
    from plumbline.pipeline.records import write_jsonl
    from stages.sample import SampleEntry, SampleStage, run

    target = Path("artifacts/policy/sft")
    target.parent.mkdir(parents=True)
    if policy:
        target.symlink_to(policy)
    else:
        from test_answer import make_policy

        make_policy(target, seed=1, context_tokens=512)
    write_jsonl("artifacts/data/prompts/train.jsonl", questions(marks[-1]))
    write_jsonl("artifacts/data/sft/train.jsonl", [])
    os.environ["DVC_STAGE"] = "sample@bench"
    peaks: dict[int, float] = {}
    complete = Completer.complete

    def watched(self: Completer, prompts: Any, first: int = 0) -> Any:
        peaks.update({mark: peak_mib() for mark in marks if mark <= first and mark not in peaks})
        return complete(self, prompts, first)

    Completer.complete = watched  # type: ignore[method-assign]
    entry = SampleEntry(
        policy="sft", of="rollout", n=n, prompts=0, max_new_tokens=48 if policy else 4, batch_size=512, shard_prompts=SHARD_PROMPTS,
        temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0,
    )  # fmt: skip
    run(SampleStage(seed=17, threads=2, sample=entry), "bench")
    return {"completions": marks[-1] * n, "peaks_mib": {str(mark): round(peak) for mark, peak in peaks.items()}}


def label(count: int) -> dict[str, Any]:
    """The stage `label` on a sample of so many prompts."""
    from plumbline.judging.judges import SimulatedJudge
    from plumbline.world.annotate import AnnotatorConfig
    from stages.label import LabelEntry, LabelStage, run

    Path("data/annotations").mkdir(parents=True)
    judge = SimulatedJudge(
        annotator=AnnotatorConfig(error_rate=0.1, position_bias=0.1, length_bias=0.1, revision_skill=0.7, seed=1)
    )
    entry = LabelEntry(
        sample="bench", judge="simulated", way="rating", pairs="best_vs_worst", min_margin=1.0, keep_ties=False, pairs_per_prompt=0,
        opponents=0, prompts=0, strong=None, weak=None, known="none", validation_fraction=0.1,
    )  # fmt: skip
    os.environ["DVC_STAGE"] = "label@bench"
    run(LabelStage(seed=17, threads=2, label=entry, judge=judge), "bench")
    return {"completions": count * EACH}


def reject(count: int) -> dict[str, Any]:
    """The stage `reject` on a sample of so many prompts, with the threshold of a fraction."""
    from plumbline.pipeline.records import write_json
    from stages.reject import RejectEntry, RejectStage, run

    write_json("artifacts/reward/gold/reward.json", {"kind": "closed_world", "measure": "gold", "thinking_marks": "all"})
    entry = RejectEntry(
        sample="bench", reward="gold", strategy="fraction", keep=0, threshold=None, fraction=0.125, beta=None, pairs="none", min_margin=0.0,
        validation_fraction=0.1,
    )  # fmt: skip
    os.environ["DVC_STAGE"] = "reject@bench"
    run(RejectStage(seed=17, threads=2, reject=entry), "bench")
    return {"completions": count * EACH}


def measured(stage: str, options: argparse.Namespace) -> dict[str, Any]:
    """One measurement in this process, whose folder is the project."""
    os.environ |= {"MLFLOW_TRACKING_URI": "off", "DVC_ROOT": os.getcwd()}
    if stage != "sample":
        import torch  # noqa: F401  which the stages import: not part of what grows

        from plumbline.pipeline.shard_files import write_table

        write_table(Path("artifacts/sample/bench"), completions(options.prompts[-1]), SHARD_PROMPTS)
    before, started = peak_mib(), time.perf_counter()
    if stage == "sample":
        figures = sample(sorted(options.prompts), options.policy, options.n)
    else:
        figures = {"label": label, "reject": reject}[stage](options.prompts[-1])
    return {
        "stage": stage,
        **figures,
        "before_mib": round(before),
        "peak_mib": round(peak_mib()),
        "seconds": round(time.perf_counter() - started),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["sample", "label", "reject"])
    parser.add_argument("--prompts", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--policy", default="", help="a policy's folder, for sample")
    parser.add_argument("--n", type=int, default=1, help="completions of each prompt, for sample")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measured(options.stage, options)))
        return
    numbers = [sorted(options.prompts)] if options.stage == "sample" else [[count] for count in options.prompts]
    for counts in numbers:
        with TemporaryDirectory() as folder:
            arguments = [
                options.stage,
                "--here",
                "--policy",
                options.policy and str(Path(options.policy).resolve()),
                "--n",
                str(options.n),
            ]
            command = [sys.executable, str(Path(__file__).resolve()), *arguments, "--prompts", *map(str, counts)]
            done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
        print(done.stdout.splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
