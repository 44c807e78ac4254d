"""Samples one policy's answers to the held-out prompts.

Reads `artifacts/policy/<policy>` and `artifacts/data/prompts/<split>.jsonl`;
writes `artifacts/answer/<policy>/completions.jsonl`, one row per answer, the answers to a prompt adjacent.

Answers are sampled at `evaluate.temperature` from the whole distribution: greedy decoding hides most of what distinguishes two
policies. All policies draw from the same table of uniform numbers (same seed), which makes paired differences tighter. A stage
of its own, so that another judge or reward scores the same answers again.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from omegaconf import MISSING, DictConfig

from stages.evaluation.section import EvaluateSection, check_section
from stages.models.completions import complete
from stages.pipeline.composing import register, typed
from stages.pipeline.execution import executing, explained
from stages.pipeline.records import read_jsonl, write_jsonl

BATCH_SIZE = 512
SHOWN = 40


@dataclass
class AnswerStage:
    """Who answers, and params.yaml's `evaluate` section."""

    seed: int = MISSING
    threads: int = MISSING
    policy: str = MISSING
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)


def run(config: AnswerStage) -> None:
    """Samples the policy's answers and writes them."""
    section = config.evaluate
    check_section(section)
    folder, prompts = Path("artifacts/policy") / config.policy, Path(f"artifacts/data/prompts/{section.split}.jsonl")
    with executing("answer", config.policy, config, [folder, prompts]) as work:
        from stages.models.training import make_deterministic

        make_deterministic(config.seed, config.threads)
        completions = complete(
            folder,
            read_jsonl(prompts),
            n=section.samples,
            temperature=section.temperature,
            max_new_tokens=section.max_new_tokens,
            batch_size=BATCH_SIZE,
            seed=config.seed,
            title=work.name,
        )
        rows = [answer_row(row, config.policy) for row in completions]
        write_jsonl(work.output(f"artifacts/answer/{config.policy}") / "completions.jsonl", rows)
        work.run.log_metrics(
            {
                "answers": len(rows),
                "finished_fraction": sum(row["finished"] for row in rows) / len(rows),
                "length_tokens": sum(row["tokens"] for row in rows) / len(rows),
            }
        )
        work.run.log_table("answers", [_shown(row) for row in rows if row["index"] == 0][:SHOWN])


def answer_row(row: dict[str, Any], policy: str) -> dict[str, Any]:
    """What later stages read of a completion; family and language are null where the data has none."""
    kept = ("id", "index", "prompt", "completion", "finished", "tokens", "ids")
    return {key: row[key] for key in kept} | {"family": row.get("family"), "language": row.get("language"), "policy": policy}


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the table in MLflow: conversations as text."""
    prompt = "\n".join(f"{message['role']}: {message['content']}" for message in row["prompt"])
    kept = ("id", "family", "language", "finished", "tokens")
    return {"prompt": prompt, "completion": row["completion"][0]["content"], **{key: row[key] for key in kept}}


@hydra.main(version_base=None, config_path="../conf", config_name="answer")
@explained
def main(config: DictConfig) -> None:
    run(typed(config))


if __name__ == "__main__":
    register("answer", AnswerStage)
    main()
