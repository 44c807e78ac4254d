"""Samples n completions of every rollout prompt from a policy.

Reads `artifacts/policy/<policy>`, and `artifacts/data/prompts/train.jsonl` or `artifacts/data/sft/train.jsonl`; writes
`artifacts/sample/<entry>`, a table in shards (plumbline/pipeline/shard_files.py) in which the completions of a prompt are adjacent, and the decoding
and counts to `artifacts/figures/sample/<entry>.json`.

`of: demonstrations` samples the prompts of SFT and adds each demonstration as the first completion of its prompt, under the policy name
`demonstrations`. `pairs: strong_vs_weak` then makes SPIN's pairs of them (arXiv:2401.01335, §4), without a judge. The stage `pool` joins
the samples of several policies.

Sampling is from the whole distribution, unless `top_k`, `top_p`, `min_p` or `repetition_penalty` narrows it. 16,000 completions take about half
a minute on two cores. Memory holds one shard, whatever the number of prompts, and a run that was killed continues at the shard it was at.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import hydra
from omegaconf import MISSING, DictConfig

from plumbline.models.completions import Completer, Draws, drawn_counts, drawn_figures, fitting_of
from plumbline.models.decoding_values import DecodingFields
from plumbline.models.room import Fitting
from plumbline.pipeline.composing import entry_name, register, typed
from plumbline.pipeline.engine import Engine
from plumbline.pipeline.execution import executing, launched
from plumbline.pipeline.ranges import COUNT, NOT_NEGATIVE, outside
from plumbline.pipeline.records import chunked, stream_jsonl, write_json
from plumbline.pipeline.shard_files import read_shard, write_shard
from plumbline.pipeline.shard_work import as_table, by_shard, counts, write_counts
from plumbline.pipeline.shard_workers import Compute
from plumbline.rows import DEMONSTRATIONS as DEMONSTRATED
from plumbline.rows import Row, by_prompt, last_turn, text_of

POLICIES = Path("artifacts/policy")
PROMPTS = Path("artifacts/data/prompts/train.jsonl")
DEMONSTRATIONS = Path("artifacts/data/sft/train.jsonl")
TABLE = "completions.parquet"
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
    min_p: float | None = MISSING  # by the size of the model
    max_new_tokens: int = MISSING
    batch_size: int = MISSING
    shard_prompts: int = MISSING

    def problems(self) -> list[str]:
        """What is wrong with the values; empty if nothing is."""
        complaints = [] if self.of in SOURCES else [f"of: expected one of {', '.join(SOURCES)}, found {self.of!r}"]
        complaints += outside(self, n=COUNT, prompts=NOT_NEGATIVE, max_new_tokens=COUNT, batch_size=COUNT, shard_prompts=COUNT)
        return complaints + self.decoding_problems(n=self.n)


@dataclass
class SampleStage:
    """The config of the stage: everything that decides a sample."""

    seed: int = MISSING
    threads: int = MISSING
    engine: Engine = field(default_factory=Engine)
    sample: SampleEntry = field(default_factory=SampleEntry)


def as_completions(demonstrations: Iterable[Row]) -> Iterator[Row]:
    """Demonstrations as finished completions of the policy `demonstrations`; without `ids`, because they were not sampled."""
    for number, row in enumerate(demonstrations):
        yield {"id": f"demonstration-{number:05d}", **row, "finished": True, "policy": DEMONSTRATED}


def prompts_of(settings: SampleEntry) -> Iterator[Row]:
    """The rows whose prompts are sampled; demonstrations as completions."""
    if settings.of == "demonstrations":
        return as_completions(islice(stream_jsonl(DEMONSTRATIONS), settings.prompts or None))
    return islice(stream_jsonl(PROMPTS), settings.prompts or None)


def completed(completer: Completer, prompts: list[Row], first: int, settings: SampleEntry) -> tuple[list[Row], dict[str, int]]:
    """The rows of a shard, the first of whose prompts has the number `first`, and what is counted of them."""
    [sampled] = completer.complete(prompts, first)
    for row in sampled:
        row["policy"] = settings.policy
    rows = by_prompt(prompts if settings.of == "demonstrations" else [], sampled)
    return rows, {"completions": len(rows), "calls_repeated": completer.calls_repeated(), **drawn_counts(sampled)}


@contextmanager
def completing(config: SampleStage, fitting: Fitting, title: str) -> Iterator[Compute]:
    """Loads the policy, and computes shards of its completions."""
    from plumbline.models.determinism import make_deterministic

    make_deterministic(config.seed, config.threads)
    settings, policy = config.sample, POLICIES / config.sample.policy
    completer = Completer(
        policy,
        fitting,
        [Draws(settings.n, settings.decoding(policy))],
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        seed=config.seed,
        title=title,
        engine=config.engine,
    )

    def complete(number: int, prompts: list[Row], shard: Path) -> None:
        rows, counted = completed(completer, prompts, number * settings.shard_prompts, settings)
        write_shard(shard / TABLE, rows)
        write_counts(shard, counted)

    with closing(completer):
        yield complete


def run(config: SampleStage, entry: str) -> None:
    """Samples the completions, shard by shard, and writes them."""
    settings, policy = config.sample, POLICIES / config.sample.policy
    with executing("sample", entry, config, [policy, PROMPTS, DEMONSTRATIONS]) as work, work.checkpoints() as checkpoints:
        fitting = fitting_of(policy, prompts_of(settings), settings.max_new_tokens, work.name, checkpoints)
        parts = chunked(prompts_of(settings), settings.shard_prompts)
        shards = by_shard(checkpoints, parts, partial(completing, config, fitting, work.name), config.engine, draws=True)
        as_table(shards, TABLE, work.output(f"artifacts/sample/{entry}"))
        total = counts(shards)
        if total["calls_repeated"]:
            work.log_timing(calls_repeated=total["calls_repeated"])
        figures = {"completions": total["completions"], **drawn_figures(total, settings.decoding(policy))}
        write_json(work.output(f"artifacts/figures/sample/{entry}.json"), figures)
        work.run.log_figures(figures, HEADLINE)
        shown = read_shard(shards[0] / TABLE)[: 40 * settings.n : max(1, settings.n // 2)]
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
