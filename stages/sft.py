"""Supervised fine-tuning: the base policy learns to answer from demonstrations.

Reads `artifacts/policy/base` and `artifacts/data/sft`; writes `artifacts/policy/sft`, `metrics/sft/sft.json` and a curve.

Loss on the completions only (InstructGPT, arXiv:2203.02155, §3.5; details in stages/methods/sft). The default costs under half a
minute on two cores.
"""

from dataclasses import dataclass, field
from pathlib import Path

import hydra
from omegaconf import MISSING, DictConfig

from stages.methods.sft import SftConfig, align
from stages.models.completions import log_samples
from stages.pipeline.composing import register, typed
from stages.pipeline.execution import executing, explained
from stages.pipeline.records import read_jsonl, write_json

BASE, DATA = Path("artifacts/policy/base"), Path("artifacts/data")


@dataclass
class SftStage:
    """What decides the fine-tuned policy."""

    seed: int = MISSING
    threads: int = MISSING
    sft: SftConfig = field(default_factory=SftConfig)


def run(config: SftStage) -> None:
    """Trains the policy that everything later starts from and is compared with."""
    demonstrations, prompts = DATA / "sft", DATA / "prompts/validation.jsonl"
    with executing("sft", None, config, [BASE, demonstrations, prompts]) as work:
        from stages.models.training import make_deterministic

        make_deterministic(config.seed, config.threads)
        policy = work.output("artifacts/policy/sft")
        with work.checkpoints() as checkpoints:
            metrics = align(
                config.sft,
                init=BASE,
                signal=demonstrations,
                data=DATA,
                output=policy,
                checkpoints=checkpoints,
                curve=work.output("artifacts/curves/sft/sft.csv"),
                run=work.run,
                seed=config.seed,
            )
        write_json(work.output("metrics/sft/sft.json"), metrics)
        log_samples(work.run, policy, read_jsonl(prompts), seed=config.seed, max_new_tokens=64)


@hydra.main(version_base=None, config_path="../conf", config_name="sft")
@explained
def main(config: DictConfig) -> None:
    run(typed(config))


if __name__ == "__main__":
    register("sft", SftStage)
    main()
