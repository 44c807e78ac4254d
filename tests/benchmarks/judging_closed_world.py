"""Measures planted faults of the simulated judge on a policy's answers.

    python tests/benchmarks/judging_closed_world.py artifacts/sample/round1

Does asking in both orders remove a position bias? Does the gate show a length bias? Do rounds of revision remove harm, and leave look-alikes
alone?

For each prompt, the judge compares the first two completions that the verifier does not find equally good. Accuracy is the share of these
comparisons that the judge decides as the verifier does; an inconsistent verdict counts one half. Intervals are 95 %, bootstrapped over prompts.
"""

import argparse
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ.update(MLFLOW_TRACKING_URI="off", HF_HUB_OFFLINE="1")

import numpy as np
from omegaconf import OmegaConf

from plumbline.judging.building import load_judge
from plumbline.judging.gate import Quality, failures
from plumbline.judging.judge import Comparison
from plumbline.judging.judges import SimulatedJudge, judge_config
from plumbline.pipeline.records import read_json
from plumbline.pipeline.shard_files import read_table
from plumbline.rows import Message, Row, text_of
from plumbline.world.annotate import AnnotatorConfig
from plumbline.world.verify import verify
from stages.revise import ReviseEntry, ReviseStage
from stages.revise import run as revise

ROOT = Path(__file__).parents[2]


class Pair(NamedTuple):
    """Two answers to a prompt, and which of them the verifier prefers: 1.0 the first, 0.0 the second."""

    prompt: list[Message]
    first: str
    second: str
    gold: float


def decided_pairs(rows: Sequence[Row], seed: int) -> list[Pair]:
    """A pair for each prompt with completions of different worth to the verifier; which of the two comes first is drawn."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["id"], []).append(row)
    rng, pairs = random.Random(seed), []
    for group in groups.values():
        prompt = group[0]["prompt"]
        worth = [(verify(prompt, text_of(row["completion"])).gold, text_of(row["completion"])) for row in group]
        decided = next(((a, b) for index, a in enumerate(worth) for b in worth[index + 1 :] if a[0] != b[0]), None)
        if decided:
            (gold_a, a), (gold_b, b) = decided if rng.random() < 0.5 else decided[::-1]
            pairs.append(Pair(prompt, a, b, float(gold_a > gold_b)))
    return pairs


def judge(pairs: Sequence[Pair], *, error: float, position: float, length: float, both: bool) -> list[Comparison]:
    annotator = AnnotatorConfig(error_rate=error, position_bias=position, length_bias=length, revision_skill=0.7, seed=1)
    simulated = load_judge(SimulatedJudge(annotator=annotator, both_orders=both), seed=17)
    return simulated.compare([pair.prompt for pair in pairs], [pair.first for pair in pairs], [pair.second for pair in pairs])


def interval(values: Sequence[float]) -> str:
    """A mean and its bootstrapped bounds, in percent."""
    sample = np.array(values)
    means = np.random.default_rng(0).choice(sample, (2000, len(sample))).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{sample.mean():.1%} [{low:.1%}, {high:.1%}]"


def agreement(wins: Sequence[float | None], pairs: Sequence[Pair]) -> list[float]:
    return [1 - abs(0.5 if win is None else win) if pair.gold == 0 else (0.5 if win is None else win)
            for win, pair in zip(wins, pairs, strict=True)]  # fmt: skip


def position_bias(pairs: Sequence[Pair]) -> None:
    for error in (0.0, 0.1):
        for bias in (0.0, 0.3):
            comparisons = judge(pairs, error=error, position=bias, length=0.0, both=True)
            drawn = [c.win for c in judge(pairs, error=error, position=bias, length=0.0, both=False)]
            shown = [{"a": 1.0, "b": 0.0, "tie": 0.5}[str(c.verdicts[0].value)] for c in comparisons]  # in the order ab alone
            both = [c.win for c in comparisons]
            certain = [(win, pair) for win, pair in zip(both, pairs, strict=True) if win not in (None, 0.5)]
            print(f"position bias {bias:.0%}, error rate {error:.0%}, {len(pairs)} pairs")
            print("  one order: accuracy", interval(agreement(drawn, pairs)), "| the answer shown first wins", interval(shown))
            print("  both orders: accuracy", interval(agreement(both, pairs)), "| of decided ones",
                  interval(agreement([win for win, _ in certain], [pair for _, pair in certain])),
                  "| the answer called first wins", interval([0.5 if win is None else win for win in both]),
                  "|", dict(Counter(c.outcome for c in comparisons)))  # fmt: skip


def length_bias(pairs: Sequence[Pair]) -> None:
    by_gold = Quality()
    for pair in pairs:
        by_gold.add_preference(pair.first, pair.second, pair.gold - 0.5, where="")
    print(f"length bias: the verifier itself prefers the longer answer in {by_gold.longer.fraction:.1%}")
    for bias in (0.0, 0.3, 0.8, 1.0):
        quality, limits = Quality(), SimulatedJudge().gate
        for pair, comparison in zip(pairs, judge(pairs, error=0.0, position=0.0, length=bias, both=True), strict=True):
            difference = None if comparison.win is None else comparison.win - 0.5
            quality.add_preference(pair.first, pair.second, difference, where="")
            quality.add_known(difference, pair.gold - 0.5, where="")
        metrics = quality.metrics()
        over = [failure.splitlines()[0] for failure in failures(quality, limits)]
        print(f"  bias {bias:.0%}: longer_fraction {metrics['longer_fraction']:.3f}, known_agreement "
              f"{metrics['known_agreement']:.3f}, tied_fraction {metrics['tied_fraction']:.3f}, over a limit: {over}")  # fmt: skip


def constitution(sample: Path, rounds: int) -> None:
    values: Any = OmegaConf.load(ROOT / "conf/judge/constitutional.yaml")
    del values["defaults"]
    entry = ReviseEntry(
        sample="round1",
        judge="constitutional",
        rounds=rounds,
        responses=8,
        prompts=0,
        unread_fraction=0.05,
        validation_fraction=0.1,
    )
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ.update(DVC_STAGE="revise@cai", DVC_ROOT=folder)
        Path("artifacts/sample").mkdir(parents=True)
        Path("artifacts/sample/round1").symlink_to(sample.resolve())
        revise(ReviseStage(seed=17, threads=1, revise=entry, judge=judge_config(values)), "cai")
        metrics = read_json("artifacts/figures/revise/cai.json")
    print(f"constitution: {metrics['responses']} responses, unread {metrics['unread_fraction']}")
    for name in ("harmful_fraction", "over_refusal_fraction", "gold"):
        print(f"  {name} by round:", json.dumps([round(metrics[f"{name}_{number}"], 4) for number in range(rounds + 1)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("completions", type=Path, help="artifacts/sample/<entry> of the closed world")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    pairs = decided_pairs(read_table(options.completions), options.seed)
    position_bias(pairs)
    length_bias(pairs)
    constitution(options.completions, options.rounds)


if __name__ == "__main__":
    main()
