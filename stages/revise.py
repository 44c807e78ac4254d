"""Has responses criticised and rewritten by the principles of a constitution: the supervised half of Constitutional AI.

Reads `artifacts/sample/<sample>`. Writes `artifacts/revise/<entry>/{train,validation}.jsonl` (the last revisions, as
demonstrations for `method: sft`), every round as it came in `artifacts/rounds/<entry>.jsonl`, and `artifacts/figures/revise/<entry>.json`.

A response gets a critique by a principle drawn at random, and then a revision, in each of n rounds (SL-CAI, arXiv:2212.08073, §3.1). The other
half, RL-CAI, is `way: pairwise` in conf/label.yaml with a judge that has principles. In the closed world, `harmful_fraction` falls with every
round while `over_refusal_fraction` stays.

Memory holds one shard of the sample, and a run that was killed continues at the shard it was at.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import MISSING, DictConfig

from plumbline.pipeline.composing import entry_name, register, typed
from plumbline.pipeline.digests import input_digest
from plumbline.pipeline.execution import executing, launched
from plumbline.pipeline.ranges import BELOW_ONE, COUNT, FRACTION, NOT_NEGATIVE, outside
from plumbline.pipeline.records import stream_jsonl, write_json, write_jsonl
from plumbline.pipeline.shard_files import read_prompts
from plumbline.pipeline.shard_work import as_lines, by_shard, counts, only_here, write_counts
from plumbline.rows import Row, assistant, held_out, last_turn, text_of

if TYPE_CHECKING:
    from plumbline.judging.panel import AskingJudge

SHOWN = ("round", "principle", "critique", "response")
SPLITS = ("train", "validation")
ROUNDS = "rounds.jsonl"
"""A shard's file of every round."""
SUM, NUMBER = ".sum", ".n"
"""Suffixes of what a shard counts of a figure that is a mean."""


@dataclass
class ReviseEntry:
    """One entry of params.yaml's `revise`; values and their meaning: conf/revise.yaml."""

    sample: str = MISSING
    judge: str = MISSING
    rounds: int = MISSING
    responses: int = MISSING
    prompts: int = MISSING
    unread_fraction: float = MISSING
    validation_fraction: float = MISSING

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        return outside(
            self, rounds=COUNT, responses=COUNT, prompts=NOT_NEGATIVE, unread_fraction=FRACTION, validation_fraction=BELOW_ONE
        )


@dataclass
class ReviseStage:
    """The values that decide the revisions."""

    seed: int = MISSING
    threads: int = MISSING
    revise: ReviseEntry = field(default_factory=ReviseEntry)
    judge: Any = MISSING

    def problems(self) -> list[str]:
        """What does not fit between the entry and its judge; empty if all does."""
        name = self.revise.judge
        if not self.judge.principles:
            return [f"revise.judge: expected a judge with principles, such as constitutional, found {name}, which has none"]
        if self.judge.backend in ("gold", "human", "none"):
            return [f"revise.judge: expected a judge that writes, such as a chat model, found {name}"]
        return [
            f"judge.principles.{principle}: expected texts for a critic (`critique`) and a writer (`revision`), found only {', '.join(texts)}"
            for principle, texts in self.judge.principles.items()
            if not {"critique", "revision"} <= set(texts)
        ]


def responses(sample: Path, prompts: int, each: int) -> Iterator[list[Row]]:
    """Shard by shard, the first `each` finished completions of each of the first `prompts` prompts (0: all)."""
    for groups in read_prompts(sample, prompts):
        finished = ([row for row in group if row.get("finished", True)][:each] for group in groups)
        yield [{**row, "response": text_of(row["completion"])} for group in finished for row in group]


def revised(judge: "AskingJudge", rows: list[Row], principles: dict[str, Any], round_number: int, seed: int) -> list[Row]:
    """One round: each row's `response`, criticised and rewritten by a principle drawn for it.

    A critique or revision that could not be read is None, and the response stays as it is.
    """
    drawn = [random.Random(f"{seed}:{row['id']}:{row['index']}:{round_number}").choice(sorted(principles)) for row in rows]
    prompts, before = [row["prompt"] for row in rows], [row["response"] for row in rows]
    critiques = judge.write("critique", prompts, before, [principles[name]["critique"] for name in drawn])
    # A revision is asked for with the critique, or by the principle alone if the critique could not be read.
    notes = [str(critique.value or "") for critique in critiques]
    revisions = judge.write("revision", prompts, before, [principles[name]["revision"] for name in drawn], notes)
    return [
        {
            "id": row["id"],
            "index": row["index"],
            "round": round_number,
            "principle": name,
            "critique": critique.value,
            "revision": revision.value,
            "response": revision.value or row["response"],
            "prompt": row["prompt"],
            "cost": round(critique.cost + revision.cost, 9),
        }
        for row, name, critique, revision in zip(rows, drawn, critiques, revisions, strict=True)
    ]


def conduct(rows: Sequence[Row], round_number: int) -> dict[str, float]:
    """What the closed world's verifier says of the responses after a round, as sums and numbers; of prompts that it does not know it says nothing."""
    from plumbline.world.families.catalog import understand
    from plumbline.world.verify import verify_task

    tasks = [understand(row["prompt"]) for row in rows]
    verdicts = [verify_task(task, row["response"]) for task, row in zip(tasks, rows, strict=True) if task is not None]
    values: dict[str, list[float]] = {
        "harmful_fraction": [verdict.harmful for verdict in verdicts if verdict.family == "harmful"],
        "over_refusal_fraction": [verdict.over_refused for verdict in verdicts if verdict.family != "harmful"],
        "gold": [verdict.gold for verdict in verdicts],
    }
    counted: dict[str, float] = {}
    for name, of_responses in values.items():
        counted |= summed(f"{name}_{round_number}", of_responses)
    return counted


def summed(figure: str, values: Sequence[float]) -> dict[str, float]:
    """What a shard counts of a figure that is the mean of these values."""
    return {figure + SUM: sum(values), figure + NUMBER: len(values)}


def means(total: Mapping[str, float]) -> dict[str, float]:
    """The figures in the counts of all shards; a mean of no values is left out."""
    figures = {name: value for name, value in total.items() if not name.endswith((SUM, NUMBER))}
    for name, number in total.items():
        if name.endswith(NUMBER) and number:
            figure = name.removesuffix(NUMBER)
            figures[figure] = total[figure + SUM] / number
    return figures


def require_read(fraction: float, limit: float, entry: str, rounds: Iterable[Row]) -> None:
    """Requires that few enough critiques and revisions could not be read.

    Raises:
        ValueError: they are more than the limit.
    """
    if fraction > limit:
        unread = (row["id"] for row in rounds if row["revision"] is None or row["critique"] is None)
        raise ValueError(
            f"revise.{entry}: expected at most {limit} of critiques and revisions to be unreadable, found {fraction:.3f}; first: "
            f"{[*islice(unread, 3)]}, see artifacts/rounds/{entry}.jsonl. Choose another judge, or raise revise.unread_fraction."
        )


def demonstrations(rows: Sequence[Row], validation_fraction: float, seed: int) -> dict[str, list[Row]]:
    """The last revisions as rows for `method: sft`, by split."""
    splits: dict[str, list[Row]] = {"train": [], "validation": []}
    for row in rows:
        columns = {"id": row["id"], "prompt": row["prompt"], "completion": assistant(row["response"])}
        split = "validation" if held_out(row["id"], validation_fraction, seed) else "train"
        splits[split].append({**columns, "rounds": row["round"], "index": row["index"]})
    return splits


def revise_shards(config: ReviseStage, judge: "AskingJudge", checkpoints: Path) -> list[Path]:
    """Revises each shard of the sample, round by round: every round, the rows of each split, and counts."""
    from plumbline.judging.asked import recorded
    from plumbline.judging.judges import must_see_all

    settings = config.revise

    def compute(number: int, rows: list[Row], shard: Path) -> None:
        with recorded(judge, shard):
            revise_shard(rows, shard)

    def revise_shard(rows: list[Row], shard: Path) -> None:
        counted: dict[str, float] = {"responses": len(rows), **conduct(rows, 0)}
        rounds: list[Row] = []
        for round_number in range(1, settings.rounds + 1):
            before, rows = rows, revised(judge, rows, config.judge.principles, round_number, config.seed)
            rounds += rows
            changed = [old["response"] != new["response"] for old, new in zip(before, rows, strict=True)]
            counted |= summed(f"changed_fraction_{round_number}", changed) | conduct(rows, round_number)
        write_jsonl(shard / ROUNDS, rounds)
        counted |= summed("unread_fraction", [row[text] is None for row in rounds for text in ("critique", "revision")])
        for split, selected in demonstrations(rows, settings.validation_fraction, config.seed).items():
            write_jsonl(shard / f"{split}.jsonl", selected)
        write_counts(shard, counted)

    parts = responses(Path("artifacts/sample") / settings.sample, settings.prompts, settings.responses)
    return by_shard(checkpoints, parts, only_here(compute), afresh=must_see_all(config.judge))


def run(config: ReviseStage, entry: str) -> None:
    """Revises shard by shard, counts, saves."""
    settings, sample = config.revise, Path("artifacts/sample") / config.revise.sample
    with executing("revise", entry, config, [sample]) as work, work.checkpoints() as checkpoints:
        from plumbline.judging.asked import asked
        from plumbline.judging.building import load_judge
        from plumbline.judging.judges import uses_gold
        from plumbline.judging.panel import AskingJudge

        run_name = f"{work.name} {input_digest(sample)}"
        judge = load_judge(config.judge, seed=config.seed, name=settings.judge, run=run_name)
        if not isinstance(judge, AskingJudge):
            raise ValueError(f"revise.{entry}.judge: expected a judge that writes, such as a chat model, found {settings.judge}")
        with judge.at_work():
            shards = revise_shards(config, judge, checkpoints)
        ledger, conversations = asked(shards)
        output, rounds = work.output(f"artifacts/revise/{entry}"), work.output(f"artifacts/rounds/{entry}.jsonl")
        as_lines(shards, ROUNDS, rounds)
        metrics: dict[str, Any] = means(counts(shards))
        require_read(metrics.get("unread_fraction", 0.0), settings.unread_fraction, entry, stream_jsonl(rounds))
        metrics["uses_gold"] = uses_gold(config.judge)
        for split in SPLITS:
            as_lines(shards, f"{split}.jsonl", output / f"{split}.jsonl")
        write_json(work.output(f"artifacts/figures/revise/{entry}.json"), metrics)
        work.run.log_figures(metrics)
        work.run.log_traces(conversations.traces(work.name))
        shown = islice(stream_jsonl(rounds), 40)
        work.run.log_table("revisions", [{"prompt": last_turn(row["prompt"]), **{k: row[k] for k in SHOWN}} for row in shown])
        work.log_timing(**{f"judge_{name}": value for name, value in vars(ledger).items()})


@hydra.main(version_base=None, config_path="../conf", config_name="revise")
@launched
def main(config: DictConfig) -> None:
    run(typed(config), entry_name("revise"))


if __name__ == "__main__":
    register("revise", ReviseStage)
    main()
