"""Peak memory of stages that work on shards, as more and more prompts are done.

    python tests/benchmarks/shard_memory.py sample --prompts 10000 100000 1000000     # one completion of each, of an untrained policy
    python tests/benchmarks/shard_memory.py sample --prompts 10000 --policy artifacts/policy/sft --n 8
    python tests/benchmarks/shard_memory.py overoptimisation --prompts 1000 10000 --n 4      # drawn, and scored twice by the closed world's verifier
    python tests/benchmarks/shard_memory.py label --prompts 1250 12500 125000         # 8 completions of each, by the simulated judge
    python tests/benchmarks/shard_memory.py reject --prompts 1250 12500 125000        # by the closed world's verifier, the best eighth of all

A stage runs once, in a temporary folder, on as many questions of the closed world as the greatest of `--prompts` says; `label` and `reject` read
completions that are written for them. The line that is printed holds the number of completions, the peak of the process when so many prompts
were done, before the work and after it, in MiB, and the seconds.
"""

import argparse
import json
import os
import random
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

SHARD_PROMPTS, EACH = 1024, 8
GOLD = {"kind": "closed_world", "measure": "gold", "thinking_marks": "all"}
"""The verifier's gold as a reward."""


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


@contextmanager
def noted(marks: Sequence[int]) -> Iterator[dict[str, int]]:
    """The peak when a shard is done that reaches one of these numbers of prompts; of several passes, that of the last."""
    peaks: dict[str, int] = {}
    replace = os.replace

    def noting(source: Any, target: Any) -> None:
        replace(source, target)
        if str(source).endswith(".partial"):
            done = (int(Path(target).name) + 1) * SHARD_PROMPTS
            peaks.update({str(mark): round(peak_mib()) for mark in marks if done - SHARD_PROMPTS < mark <= done})

    os.replace = noting
    try:
        yield peaks
    finally:
        os.replace = replace


def policy_and_prompts(count: int, policy: str, split: str) -> None:
    """Puts a policy, untrained if none is named, and so many prompts where the stages that draw from it look for them."""
    from plumbline.pipeline.records import write_jsonl

    target = Path("artifacts/policy/sft")
    target.parent.mkdir(parents=True)
    if policy:
        target.symlink_to(policy)
    else:
        from test_answer import make_policy

        make_policy(target, seed=1, context_tokens=512)
    write_jsonl(f"artifacts/data/prompts/{split}.jsonl", questions(count))


def sample(count: int, policy: str, n: int) -> int:
    """The stage `sample` on so many prompts; returns the number of completions."""
    from plumbline.pipeline.records import write_jsonl
    from stages.sample import SampleEntry, SampleStage, run

    policy_and_prompts(count, policy, "train")
    write_jsonl("artifacts/data/sft/train.jsonl", [])
    entry = SampleEntry(
        policy="sft", of="rollout", n=n, prompts=0, max_new_tokens=48 if policy else 4, batch_size=512, shard_prompts=SHARD_PROMPTS,
        temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0,
    )  # fmt: skip
    run(SampleStage(seed=17, threads=2, sample=entry), "bench")
    return count * n


def overoptimisation(count: int, policy: str, n: int) -> int:
    """The stage `overoptimisation` on so many prompts, best of n; returns the number of answers."""
    from plumbline.evaluation.section import EvaluateSection
    from plumbline.pipeline.records import write_json
    from stages.overoptimisation import OveroptimisationEntry, OveroptimisationStage, run

    policy_and_prompts(count, policy, "test")
    write_json("artifacts/reward/gold/reward.json", GOLD)
    entry = OveroptimisationEntry(
        init="sft", steps="none", proxy="gold", gold="gold", prompts=0, answers=n, batch_size=512, shard_prompts=SHARD_PROMPTS
    )
    section = EvaluateSection(policies=["sft"], against="sft", judge="none", reward="none", max_new_tokens=48 if policy else 4)
    run(OveroptimisationStage(seed=17, threads=2, overoptimisation=entry, evaluate=section), "bench")
    return count * n


def label() -> None:
    """The stage `label` on the sample."""
    from plumbline.judging.judges import SimulatedJudge
    from plumbline.labelling.entry import LabelEntry
    from plumbline.world.annotate import AnnotatorConfig
    from stages.label import LabelStage, run

    Path("data/annotations").mkdir(parents=True)
    judge = SimulatedJudge(
        annotator=AnnotatorConfig(error_rate=0.1, position_bias=0.1, length_bias=0.1, revision_skill=0.7, seed=1)
    )
    entry = LabelEntry(
        sample="bench", judge="simulated", way="rating", pairs="best_vs_worst", min_margin=1.0, keep_ties=False, pairs_per_prompt=0,
        opponents=0, prompts=0, strong=None, weak=None, known="none", validation_fraction=0.1,
    )  # fmt: skip
    run(LabelStage(seed=17, threads=2, label=entry, judge=judge), "bench")


def reject() -> None:
    """The stage `reject` on the sample, with the threshold of a fraction."""
    from plumbline.pipeline.records import write_json
    from stages.reject import RejectEntry, RejectStage, run

    write_json("artifacts/reward/gold/reward.json", GOLD)
    entry = RejectEntry(
        sample="bench", reward="gold", strategy="fraction", keep=0, threshold=None, fraction=0.125, beta=None, pairs="none", min_margin=0.0,
        validation_fraction=0.1,
    )  # fmt: skip
    run(RejectStage(seed=17, threads=2, reject=entry), "bench")


def measured(stage: str, marks: Sequence[int], policy: str, n: int) -> dict[str, Any]:
    """One measurement, in the current folder."""
    os.environ |= {"MLFLOW_TRACKING_URI": "off", "DVC_ROOT": os.getcwd(), "DVC_STAGE": f"{stage}@bench"}
    if stage in ("label", "reject"):
        from plumbline.pipeline.shard_files import write_table

        write_table(Path("artifacts/sample/bench"), completions(marks[-1]), SHARD_PROMPTS)
    before, started = peak_mib(), time.perf_counter()
    count = marks[-1] * EACH
    with noted(marks) as peaks:
        if stage in ("label", "reject"):
            {"label": label, "reject": reject}[stage]()
        else:
            count = {"sample": sample, "overoptimisation": overoptimisation}[stage](marks[-1], policy, n)
    seconds = round(time.perf_counter() - started)
    return {
        "stage": stage,
        "completions": count,
        "mib": {"before": round(before), **peaks, "after": round(peak_mib())},
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["sample", "overoptimisation", "label", "reject"])
    parser.add_argument("--prompts", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--policy", default="", help="a policy's folder, for sample and overoptimisation")
    parser.add_argument("--n", type=int, default=1, help="completions of each prompt, for sample and overoptimisation")
    parser.add_argument("--scratch", default=None, help="where the temporary folder is made (default: the system's place)")
    options = parser.parse_args()
    policy = options.policy and str(Path(options.policy).resolve())
    with TemporaryDirectory(dir=options.scratch) as folder:
        os.chdir(folder)
        print(json.dumps(measured(options.stage, sorted(options.prompts), policy, options.n)))
        os.chdir("/")


if __name__ == "__main__":
    main()
