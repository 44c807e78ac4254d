"""Makes a verifiable reward: whether an answer is right, by a reference or by the closed world's verifier (RLVR, arXiv:2411.15124, §6).

Reads `artifacts/data/prompts`: the prompts, with an `answer` (`kind: math`), `tests` (`kind: code`), `expects` (`kind: refusals`) or `instructions`
(`kind: instructions`). Writes `artifacts/reward/<entry>`, with these references, and `artifacts/figures/reward_verifier/<entry>.json`, which counts
the prompts that can be checked.

plumbline/checking compares answers and runs programs. A stage that asks for the reward of a prompt without a reference stops, unless `otherwise`
is that reward. It takes a second.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import hydra
from omegaconf import MISSING, DictConfig

from plumbline.checking.algebra import Algebra
from plumbline.checking.following import require_checkers
from plumbline.checking.maths import require_readable
from plumbline.checking.references import REFERENCE_COLUMNS, REFERENCES, References, collect, read_prompts
from plumbline.checking.sandbox import ISOLATIONS, Limits, require_isolation
from plumbline.pipeline.composing import entry_name, register, typed
from plumbline.pipeline.execution import executing, launched
from plumbline.pipeline.records import write_json, write_jsonl
from plumbline.reasoning import mark_problems
from plumbline.rewards.reward import describe
from plumbline.rewards.verified import VERIFIED, count_understood
from plumbline.rows import last_turn

PROMPTS = Path("artifacts/data/prompts")
KINDS = ("closed_world", *REFERENCE_COLUMNS)


@dataclass
class RewardVerifierEntry:
    """One entry of params.yaml's `reward_verifier`; values and their meaning: conf/reward_verifier.yaml."""

    kind: str = MISSING
    measure: str = MISSING
    thinking_marks: str = MISSING
    otherwise: float | None = MISSING
    isolation: str = MISSING
    limits: Limits = field(default_factory=Limits)

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        complaints = [] if self.kind in KINDS else [f"kind: expected one of {', '.join(KINDS)}, found {self.kind!r}"]
        if self.measure not in VERIFIED:
            complaints.append(f"measure: expected one of {', '.join(VERIFIED)}, found {self.measure!r}")
        if self.isolation not in ISOLATIONS:
            complaints.append(f"isolation: expected one of {', '.join(ISOLATIONS)}, found {self.isolation!r}")
        if self.kind == "closed_world" and self.otherwise is not None:
            complaints.append(
                f"otherwise: expected null with kind: closed_world, which needs no references, found {self.otherwise}"
            )
        return complaints + mark_problems(self.thinking_marks)


@dataclass
class RewardVerifierStage:
    """The values that decide the reward."""

    seed: int = MISSING
    threads: int = MISSING
    reward_verifier: RewardVerifierEntry = field(default_factory=RewardVerifierEntry)


def run(config: RewardVerifierStage, entry: str) -> None:
    """Collects the references and writes them with the values for checking against them."""
    settings = config.reward_verifier
    with executing("reward_verifier", entry, config, [PROMPTS]) as work:
        folder = work.output(f"artifacts/reward/{entry}")
        rows = read_prompts(PROMPTS)
        values: dict[str, Any] = {"thinking_marks": settings.thinking_marks}
        if settings.kind == "closed_world":
            checkable = count_understood(rows)
            values["measure"] = settings.measure
        else:
            column = REFERENCE_COLUMNS[settings.kind]
            references = collect(rows, column)
            values["otherwise"] = settings.otherwise
            if settings.kind == "math":
                require_readable({str(row["answer"]): last_turn(row["prompt"]) for row in references}, Algebra())
            elif settings.kind == "instructions":
                require_checkers(one for row in references for one in row[column])
            elif settings.kind == "code":
                require_isolation(settings.isolation)
                values |= {"isolation": settings.isolation, "limits": asdict(settings.limits)}
            write_jsonl(folder / REFERENCES, references)
            by_prompt = References(references, column)
            checkable = sum(row["prompt"] in by_prompt for row in rows)
        describe(folder, settings.kind, **values)
        figures = {"prompts": len(rows), "prompts_checkable": checkable, "uses_gold": settings.kind == "closed_world"}
        write_json(work.output(f"artifacts/figures/reward_verifier/{entry}.json"), figures)
        work.run.log_figures(figures)


@hydra.main(version_base=None, config_path="../conf", config_name="reward_verifier")
@launched
def main(config: DictConfig) -> None:
    run(typed(config), entry_name("reward_verifier"))


if __name__ == "__main__":
    register("reward_verifier", RewardVerifierStage)
    main()
