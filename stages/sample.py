"""Samples n completions of every rollout prompt from a policy.

Reads `artifacts/policy/<policy>`, and `artifacts/data/prompts/train.jsonl` or `artifacts/data/sft/train.jsonl`; writes
`artifacts/sample/<entry>/completions.jsonl`, in which the completions of a prompt are adjacent, and the decoding and counts to
`artifacts/figures/sample/<entry>.json`.

`of: demonstrations` samples the prompts of SFT and adds each demonstration as the first completion of its prompt, under the policy name
`demonstrations`. `pairs: strong_vs_weak` then makes SPIN's pairs of them (arXiv:2401.01335, §4), without a judge. The stage `pool` joins
the samples of several policies.

Sampling is from the whole distribution, unless `top_k`, `top_p`, `min_p` or `repetition_penalty` narrows it. 16,000 completions take about half
a minute on two cores.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from omegaconf import MISSING, DictConfig

from plumbline.models.completions import Draws, complete, drawn_figures
from plumbline.models.decoding_values import DecodingFields
from plumbline.pipeline.composing import entry_name, register, typed
from plumbline.pipeline.execution import executing, launched
from plumbline.pipeline.ranges import COUNT, NOT_NEGATIVE, outside
from plumbline.pipeline.records import read_jsonl, write_json, write_jsonl
from plumbline.rows import DEMONSTRATIONS as DEMONSTRATED
from plumbline.rows import by_prompt, last_turn, text_of

PROMPTS = Path("artifacts/data/prompts/train.jsonl")
DEMONSTRATIONS = Path("artifacts/data/sft/train.jsonl")
SOURCES = ("rollout", "demonstrations")
HEADLINE = ("completions", "finished_fraction", "length_tokens")
"""The figures that MLflow shows first."""


@dataclass
class SampleEntry(DecodingFields):
    """One entry of `sample` in params.yaml. Values and their meaning: conf/sample.yaml."""

    policy: str = MISSING
    of: str = MISSING
    n: int = MISSING
    prompts: int = MISSING
    max_new_tokens: int = MISSING
    batch_size: int = MISSING

    def problems(self) -> list[str]:
        """What is wrong with the values; empty if nothing is."""
        complaints = [] if self.of in SOURCES else [f"of: expected one of {', '.join(SOURCES)}, found {self.of!r}"]
        complaints += outside(self, n=COUNT, prompts=NOT_NEGATIVE, max_new_tokens=COUNT, batch_size=COUNT)
        return complaints + self.decoding_problems(n=self.n)


@dataclass
class SampleStage:
    """The config of the stage: everything that decides a sample."""

    seed: int = MISSING
    threads: int = MISSING
    sample: SampleEntry = field(default_factory=SampleEntry)


def as_completions(demonstrations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Demonstrations as finished completions of the policy `demonstrations`; without `ids`, because they were not sampled."""
    return [
        {"id": f"demonstration-{number:05d}", **row, "finished": True, "policy": DEMONSTRATED}
        for number, row in enumerate(demonstrations)
    ]


def run(config: SampleStage, entry: str) -> None:
    """Samples the completions and writes them."""
    settings = config.sample
    policy = Path("artifacts/policy") / settings.policy
    with executing("sample", entry, config, [policy, PROMPTS, DEMONSTRATIONS]) as work:
        from plumbline.models.determinism import make_deterministic

        make_deterministic(config.seed, config.threads)
        of_demonstrations = settings.of == "demonstrations"
        prompts = read_jsonl(DEMONSTRATIONS if of_demonstrations else PROMPTS)[: settings.prompts or None]
        demonstrations = as_completions(prompts) if of_demonstrations else []
        decoding = settings.decoding(policy)
        [sampled] = complete(
            policy,
            demonstrations or prompts,
            [Draws(settings.n, decoding)],
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
            seed=config.seed,
            title=work.name,
        )
        for row in sampled:
            row["policy"] = settings.policy
        rows = by_prompt(demonstrations, sampled)
        write_jsonl(work.output(f"artifacts/sample/{entry}") / "completions.jsonl", rows)
        figures = {"completions": len(rows), **drawn_figures(sampled, decoding)}
        write_json(work.output(f"artifacts/figures/sample/{entry}.json"), figures)
        work.run.log_figures(figures, HEADLINE)
        shown = rows[: 40 * settings.n : max(1, settings.n // 2)]
        work.run.log_table(
            "completions", [{"prompt": last_turn(row["prompt"]), "completion": text_of(row["completion"])} for row in shown]
        )


@hydra.main(version_base=None, config_path="../conf", config_name="sample")
@launched
def main(config: DictConfig) -> None:
    run(typed(config), entry_name("sample"))


if __name__ == "__main__":
    register("sample", SampleStage)
    main()
