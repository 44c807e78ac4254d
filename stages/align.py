"""Aligns a policy by learning from rows: demonstrations, preferences, labelled completions, or another policy's weights.

Reads `artifacts/policy/<init>` and the signal `artifacts/<signal>`; writes `artifacts/policy/<entry>`, `artifacts/figures/align/<entry>.json`, a
training curve, and in `artifacts/steps/<entry>` the policies after the steps that `keep_steps` names.

Each method is a module of plumbline/methods/offline, which names its paper and its deviations; conf/method/<method>.yaml has its values.
Every method has the same function, `align(config, job)`. docs/add-a-method.md shows how to add one.
"""

import importlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import hydra
from omegaconf import MISSING, DictConfig

from plumbline.methods.job import OfflineJob
from plumbline.methods.keeping import write_kept
from plumbline.pipeline.composing import entry_name, method_module, register, typed
from plumbline.pipeline.execution import executing, launched
from plumbline.pipeline.launcher import Launcher
from plumbline.pipeline.records import write_json


@dataclass
class AlignStage:
    """The config of the stage; `align` is an entry, in the schema of its method."""

    seed: int = MISSING
    threads: int = MISSING
    launcher: Launcher = field(default_factory=Launcher)
    align: Any = MISSING


def run(config: AlignStage, entry: str) -> None:
    """Trains the policy of one entry."""
    settings = config.align
    init, signal = Path("artifacts/policy") / settings.init, Path("artifacts") / settings.signal
    with executing("align", entry, config, [init, signal], loads=[method_module("align", settings.method)]) as work:
        from plumbline.models.determinism import make_deterministic
        from plumbline.models.model_card import judged_by, origin_of, write_card
        from plumbline.models.training_memory import require_memory

        make_deterministic(config.seed, config.threads)
        require_memory(settings, settings.method, init)
        policy = work.output(f"artifacts/policy/{entry}")
        with work.checkpoints() as checkpoints:
            job = OfflineJob(
                init=init,
                output=policy,
                curve=work.output(f"artifacts/curves/align/{entry}.csv"),
                checkpoints=checkpoints,
                run=work.run,
                seed=config.seed,
                signal=signal,
            )
            figures = importlib.import_module(method_module("align", settings.method)).align(settings, job)
            write_kept(checkpoints, work.output(f"artifacts/steps/{entry}"), getattr(settings, "keep_steps", []))
        did = f"trained `{settings.init}` by `{settings.method}` on `{settings.signal}`{judged_by(signal)}"
        write_card(work, policy, did=did, values=asdict(settings), figures=figures, origin=origin_of(init), seed=config.seed)
        write_json(work.output(f"artifacts/figures/align/{entry}.json"), figures)
        work.run.log_figures(figures)


@hydra.main(version_base=None, config_path="../conf", config_name="align")
@launched
def main(config: DictConfig) -> None:
    run(typed(config), entry_name("align"))


if __name__ == "__main__":
    register("align", AlignStage)
    main()
