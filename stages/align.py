"""Aligns a policy by one method.

Reads `artifacts/policy/<init>`, the signal `artifacts/<signal>` (preferences, chosen answers or a reward) and, for methods that
sample, the prompts in `artifacts/data/prompts`. Writes `artifacts/policy/<entry>`, `metrics/align/<entry>.json` and a curve.

Each method is a package below stages/methods, where its paper and its deviations stand, with its values in conf/method/<method>.yaml.
To add one: docs/add-a-method.md; every method is the same function, `align`.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from omegaconf import MISSING, DictConfig

from stages.models.completions import log_samples
from stages.pipeline.composing import entry_name, register, typed
from stages.pipeline.execution import executing, explained
from stages.pipeline.records import read_jsonl, write_json

DATA = Path("artifacts/data")
ROLLOUT, HELD_OUT = DATA / "prompts/train.jsonl", DATA / "prompts/validation.jsonl"


@dataclass
class AlignStage:
    """What decides an aligned policy; `align` is an entry in the schema of its method."""

    seed: int = MISSING
    threads: int = MISSING
    align: Any = MISSING


def run(config: AlignStage, entry: str) -> None:
    """Trains the policy of one entry."""
    method = importlib.import_module(f"stages.methods.{config.align.method}")
    init, signal = Path("artifacts/policy") / config.align.init, Path("artifacts") / config.align.signal
    with executing("align", entry, config, [init, signal, ROLLOUT, HELD_OUT]) as work:
        from stages.models.training import make_deterministic

        make_deterministic(config.seed, config.threads)
        policy = work.output(f"artifacts/policy/{entry}")
        with work.checkpoints() as checkpoints:
            metrics = method.align(
                config.align,
                init=init,
                signal=signal,
                data=DATA,
                output=policy,
                checkpoints=checkpoints,
                curve=work.output(f"artifacts/curves/align/{entry}.csv"),
                run=work.run,
                seed=config.seed,
            )
        write_json(work.output(f"metrics/align/{entry}.json"), metrics)
        # under names of their own: a curve of the same name would get a second first step
        work.run.log_metrics({f"final/{name}": value for name, value in metrics.items()})
        log_samples(work.run, policy, read_jsonl(HELD_OUT), seed=config.seed, max_new_tokens=64)


@hydra.main(version_base=None, config_path="../conf", config_name="align")
@explained
def main(config: DictConfig) -> None:
    run(typed(config), entry_name("align"))


if __name__ == "__main__":
    register("align", AlignStage)
    main()
