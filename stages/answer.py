"""Samples one policy's answers to the held-out prompts.

Reads `artifacts/policy/<policy>` and `artifacts/data/prompts/<split>.jsonl`; writes `artifacts/answer/<policy>/completions`, a table in shards
(plumbline/pipeline/shard_files.py) with one row per answer, and the decoding and counts to `artifacts/figures/answer/<policy>.json`. The answers to a
prompt are adjacent.

`evaluate.temperature`, `top_k`, `top_p`, `min_p` and `repetition_penalty` are the decoding that people would deploy; null is the model's own
value. If that is not the whole distribution at temperature 1, `completions_at_1` holds `evaluate.samples_at_1` more answers to each prompt
that are drawn from it: samples of the policy itself, from which KL is estimated. Only such answers have `logp`, their log-probability.

All policies draw from the same uniform numbers (the same seed), which makes paired differences more precise. Answering is a stage of its own, so
that another judge or reward scores the same answers. Memory holds one shard, and a run that was killed continues at the shard it was at.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import hydra
from omegaconf import MISSING, DictConfig

from plumbline.checking.following import require_checkers
from plumbline.evaluation.section import COMPLETIONS, COMPLETIONS_AT_1, EvaluateSection
from plumbline.models.completions import Completer, Draws, drawn_counts, drawn_figures, fitting_of
from plumbline.models.decoding_values import NEUTRAL, Decoding
from plumbline.models.room import Fitting
from plumbline.pipeline.composing import register, typed
from plumbline.pipeline.engine import Engine
from plumbline.pipeline.execution import executing, launched
from plumbline.pipeline.ranges import COUNT, outside
from plumbline.pipeline.records import chunked, stream_jsonl, write_json
from plumbline.pipeline.shard_files import read_shard, write_shard
from plumbline.pipeline.shard_work import as_table, by_shard, counts, write_counts
from plumbline.pipeline.shard_workers import Compute
from plumbline.rows import Row, conversation_text, text_of

BATCH_SIZE = 512
SHOWN = 40
"""The number of answers in MLflow's table."""
HEADLINE = ("answers", "finished_fraction", "length_tokens")
"""The figures that MLflow shows first."""


@dataclass
class AnswerStage:
    """The config of the stage: the policy that answers, and the section `evaluate` of params.yaml."""

    seed: int = MISSING
    threads: int = MISSING
    engine: Engine = field(default_factory=Engine)
    policy: str = MISSING
    shard_prompts: int = MISSING
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)

    def problems(self) -> list[str]:
        """What is wrong with the stage's own values; empty if nothing is."""
        return outside(self, shard_prompts=COUNT)


def draws_of(section: EvaluateSection, decoding: Decoding) -> dict[str, Draws]:
    """How many answers are drawn and by which decoding, by the table that they go to."""
    draws = {COMPLETIONS: Draws(section.samples, decoding, with_logp=decoding == NEUTRAL)}
    if decoding != NEUTRAL and section.samples_at_1:
        draws[COMPLETIONS_AT_1] = Draws(section.samples_at_1, with_logp=True)
    return draws


@contextmanager
def answering(config: AnswerStage, policy: Path, fitting: Fitting, title: str) -> Iterator[Compute]:
    """Loads the policy, and computes shards of its answers."""
    from plumbline.models.determinism import make_deterministic

    make_deterministic(config.seed, config.threads)
    draws = draws_of(config.evaluate, config.evaluate.decoding(policy))
    completer = Completer(
        policy,
        fitting,
        [*draws.values()],
        max_new_tokens=config.evaluate.max_new_tokens,
        batch_size=BATCH_SIZE,
        seed=config.seed,
        title=title,
        engine=config.engine,
    )

    def answer(number: int, asked: list[Row], shard: Path) -> None:
        drawn = completer.complete(asked, number * config.shard_prompts)
        for name, rows in zip(draws, drawn, strict=True):
            write_shard(shard / name, [answer_row(row, config.policy) for row in rows])
        write_counts(shard, {"calls_repeated": completer.calls_repeated(), **drawn_counts(drawn[0])})

    with closing(completer):
        yield answer


def run(config: AnswerStage) -> None:
    """Samples the policy's answers, shard by shard, and writes them."""
    section = config.evaluate
    policy, prompts = Path("artifacts/policy") / config.policy, Path(f"artifacts/data/prompts/{section.split}.jsonl")
    with executing("answer", config.policy, config, [policy, prompts]) as work, work.checkpoints() as checkpoints:
        # which `evaluate` needs
        require_checkers(one for row in stream_jsonl(prompts) for one in row.get("instructions") or ())
        fitting = fitting_of(policy, stream_jsonl(prompts), section.max_new_tokens, work.name, checkpoints)
        parts = chunked(stream_jsonl(prompts), config.shard_prompts)
        shards = by_shard(checkpoints, parts, partial(answering, config, policy, fitting, work.name), config.engine, draws=True)
        decoding = section.decoding(policy)
        output = work.output(f"artifacts/answer/{config.policy}")
        for name in draws_of(section, decoding):
            as_table(shards, name, output / name)
        total = counts(shards)
        if total["calls_repeated"]:
            work.log_timing(calls_repeated=total["calls_repeated"])
        figures = {"answers": total["drawn"], **drawn_figures(total, decoding)}
        write_json(work.output(f"artifacts/figures/answer/{config.policy}.json"), figures)
        work.run.log_figures(figures, HEADLINE)
        shown = [row for row in read_shard(shards[0] / COMPLETIONS) if row["index"] == 0][:SHOWN]
        work.run.log_table("answers", [_shown(row) for row in shown])


def answer_row(row: Row, policy: str) -> Row:
    """The columns that later stages read; family and language are null if the data has none, logp where it was not asked for.

    What the prompt calls for (`expects`), its right `answer` and its `instructions` go with it if its row states them.
    """
    columns = ("id", "index", "prompt", "completion", "finished", "tokens", "ids")
    others = {column: row.get(column) for column in ("logp", "family", "language")}
    stated = {column: row[column] for column in ("expects", "answer", "instructions") if row.get(column) is not None}
    return {column: row[column] for column in columns} | others | stated | {"policy": policy}


def _shown(row: Row) -> Row:
    """A row of the table in MLflow, with conversations as text."""
    columns = {column: row[column] for column in ("id", "family", "language", "finished", "tokens")}
    return {"prompt": conversation_text(row["prompt"]), "completion": text_of(row["completion"]), **columns}


@hydra.main(version_base=None, config_path="../conf", config_name="answer")
@launched
def main(config: DictConfig) -> None:
    run(typed(config))


if __name__ == "__main__":
    register("answer", AnswerStage)
    main()
