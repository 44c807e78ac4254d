"""Draws n completions of every rollout prompt from a policy.

Reads `artifacts/policy/<policy>`, `artifacts/data/prompts/train.jsonl` or `artifacts/data/sft/train.jsonl`, and the pool
`artifacts/sample/<extends>`; writes `artifacts/sample/<entry>/completions.jsonl`: the pool's rows, then the new ones, the completions
of a prompt adjacent.

`extends: none` starts a pool; extending one puts several policies' completions of the same prompts side by side (Zephyr's four
models, arXiv:2310.16944, §3). `of: demonstrations` answers the prompts of SFT, and puts each demonstration into the pool as the completion of a
policy of that name: `pairs: strong_vs_weak` then makes SPIN's pairs of them (arXiv:2401.01335, §4), without a judge.

From the whole distribution at `temperature`. 16,000 completions take about half a minute on two cores.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from omegaconf import MISSING, DictConfig

from stages.models.completions import complete
from stages.pipeline.composing import entry_name, register, typed
from stages.pipeline.execution import executing, explained
from stages.pipeline.records import read_jsonl, write_jsonl

PROMPTS = Path("artifacts/data/prompts/train.jsonl")
DEMONSTRATIONS = Path("artifacts/data/sft/train.jsonl")


@dataclass
class SampleEntry:
    """One entry of params.yaml's `sample`; values and their meaning: conf/sample.yaml."""

    policy: str = MISSING
    extends: str = MISSING
    of: str = MISSING
    n: int = MISSING
    prompts: int = MISSING
    temperature: float = MISSING
    max_new_tokens: int = MISSING
    batch_size: int = MISSING


@dataclass
class SampleStage:
    """What decides a sample."""

    seed: int = MISSING
    threads: int = MISSING
    sample: SampleEntry = field(default_factory=SampleEntry)


def pooled(earlier: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Puts the completions of a prompt side by side, in order of first appearance, and numbers them anew."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in [*earlier, *new]:
        by_prompt.setdefault(row["id"], []).append(row)
    return [{**row, "index": index} for rows in by_prompt.values() for index, row in enumerate(rows)]


def as_completions(demonstrations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Demonstrations as finished completions of a policy `demonstrations`; without `ids`, as nothing was sampled."""
    return [
        {"id": f"demonstration-{number:05d}", **row, "finished": True, "policy": "demonstrations"}
        for number, row in enumerate(demonstrations)
    ]


def run(config: SampleStage, entry: str) -> None:
    """Samples, joins the pool, saves."""
    settings = config.sample
    if settings.of not in ("rollout", "demonstrations"):
        raise ValueError(f"params.yaml: sample.{entry}.of: expected rollout or demonstrations, found {settings.of!r}")
    policy, pool = Path("artifacts/policy") / settings.policy, Path("artifacts/sample") / settings.extends
    with executing("sample", entry, config, [policy, pool, PROMPTS, DEMONSTRATIONS]) as work:
        from stages.models.training import make_deterministic

        make_deterministic(config.seed, config.threads)
        earlier = read_jsonl(pool / "completions.jsonl") if settings.extends != "none" else []
        given: list[dict[str, Any]] = []
        prompts = read_jsonl(DEMONSTRATIONS if settings.of == "demonstrations" else PROMPTS)[: settings.prompts or None]
        if settings.of == "demonstrations":
            known = {row["id"] for row in earlier if row["policy"] == "demonstrations"}
            prompts = as_completions(prompts)
            given = [row for row in prompts if row["id"] not in known]
        new = complete(
            policy,
            prompts,
            n=settings.n,
            temperature=settings.temperature,
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
            seed=config.seed,
            title=work.name,
        )
        for row in new:
            row["policy"] = settings.policy
        rows = pooled(earlier, [*given, *new])
        write_jsonl(work.output(f"artifacts/sample/{entry}") / "completions.jsonl", rows)
        work.run.log_metrics(
            {
                "completions": len(rows),
                "finished_fraction": sum(row["finished"] for row in new) / len(new),
                "length_tokens": sum(row["tokens"] for row in new) / len(new),
            }
        )
        shown = rows[: 40 * settings.n : max(1, settings.n // 2)]
        work.run.log_table(
            "completions",
            [{"prompt": row["prompt"][-1]["content"], "completion": row["completion"][0]["content"]} for row in shown],
        )


@hydra.main(version_base=None, config_path="../conf", config_name="sample")
@explained
def main(config: DictConfig) -> None:
    run(typed(config), entry_name("sample"))


if __name__ == "__main__":
    register("sample", SampleStage)
    main()
