"""Supervised fine-tuning: the base policy learns to answer from demonstrations.

Reads `artifacts/policy/base` and `artifacts/data/sft`; writes `artifacts/policy/sft`, `artifacts/figures/sft/sft.json` and a training curve.

Only completions carry loss (InstructGPT, arXiv:2203.02155, §3.5; details in plumbline/methods/offline/sft.py). The default takes less than
half a minute on two cores.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import hydra
from omegaconf import MISSING, DictConfig

from plumbline.methods.job import OfflineJob
from plumbline.methods.offline.sft import SftConfig, align
from plumbline.pipeline.composing import register, typed
from plumbline.pipeline.execution import executing, launched
from plumbline.pipeline.launcher import Launcher
from plumbline.pipeline.records import write_json

BASE, DEMONSTRATIONS = Path("artifacts/policy/base"), Path("artifacts/data/sft")


@dataclass
class SftStage:
    """The config of the stage: everything that decides the fine-tuned policy."""

    seed: int = MISSING
    threads: int = MISSING
    launcher: Launcher = field(default_factory=Launcher)
    sft: SftConfig = field(default_factory=SftConfig)


def run(config: SftStage) -> None:
    """Trains the policy that later stages start from."""
    with executing("sft", None, config, [BASE, DEMONSTRATIONS]) as work:
        from plumbline.models.determinism import make_deterministic
        from plumbline.models.model_card import origin_of, write_card
        from plumbline.models.training_memory import require_memory

        make_deterministic(config.seed, config.threads)
        require_memory(config.sft, "sft", BASE)
        policy = work.output("artifacts/policy/sft")
        with work.checkpoints() as checkpoints:
            job = OfflineJob(
                init=BASE,
                output=policy,
                curve=work.output("artifacts/curves/sft/sft.csv"),
                checkpoints=checkpoints,
                run=work.run,
                seed=config.seed,
                signal=DEMONSTRATIONS,
            )
            figures = align(config.sft, job)
        did = "kept it as it is" if config.sft.untrained else f"trained `{BASE.name}` on demonstrations"
        write_card(work, policy, did=did, values=asdict(config.sft), figures=figures, origin=origin_of(BASE), seed=config.seed)
        write_json(work.output("artifacts/figures/sft/sft.json"), figures)
        work.run.log_figures(figures)


@hydra.main(version_base=None, config_path="../conf", config_name="sft")
@launched
def main(config: DictConfig) -> None:
    run(typed(config))


if __name__ == "__main__":
    register("sft", SftStage)
    main()
