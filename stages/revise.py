"""Has responses criticised and rewritten by the principles of a constitution: the supervised half of Constitutional AI.

Reads `artifacts/sample/<sample>/completions.jsonl`. Writes `artifacts/revise/<entry>/{train,validation}.jsonl` (the last revisions, as
demonstrations for `method: sft`), every round as it came in `artifacts/rounds/<entry>.jsonl`, and `artifacts/figures/revise/<entry>.json`.

A response gets a critique by a principle drawn at random, and then a revision, in each of n rounds (SL-CAI, arXiv:2212.08073, §3.1). The other
half, RL-CAI, is `way: pairwise` in conf/label.yaml with a judge that has principles. In the closed world, `harmful_fraction` falls with every
round while `over_refusal_fraction` stays.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import MISSING, DictConfig

from plumbline.pipeline.composing import entry_name, register, typed
from plumbline.pipeline.digests import input_digest
from plumbline.pipeline.execution import executing, launched
from plumbline.pipeline.ranges import BELOW_ONE, COUNT, FRACTION, NOT_NEGATIVE, outside
from plumbline.pipeline.records import read_jsonl, write_json, write_jsonl
from plumbline.rows import Row, assistant, held_out, last_turn, text_of

if TYPE_CHECKING:
    from plumbline.judging.panel import AskingJudge

SHOWN = ("round", "principle", "critique", "response")


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


def responses(rows: Sequence[Row], prompts: int, each: int) -> list[Row]:
    """The first `each` finished completions of each of the first `prompts` prompts (0: all)."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        group = groups.setdefault(row["id"], [])
        if len(group) < each and row.get("finished", True):
            group.append({**row, "response": text_of(row["completion"])})
    return [row for group in list(groups.values())[: prompts or None] for row in group]


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
    """The closed world's verdict on the responses after a round; empty if it does not know the prompts."""
    from plumbline.world.families.catalog import understand
    from plumbline.world.verify import verify_task

    tasks = [understand(row["prompt"]) for row in rows]
    verdicts = [verify_task(task, row["response"]) for task, row in zip(tasks, rows, strict=True) if task is not None]
    shares: dict[str, list[Any]] = {
        "harmful_fraction": [verdict.harmful for verdict in verdicts if verdict.family == "harmful"],
        "over_refusal_fraction": [verdict.over_refused for verdict in verdicts if verdict.family != "harmful"],
        "gold": [verdict.gold for verdict in verdicts],
    }
    return {f"{name}_{round_number}": sum(values) / len(values) for name, values in shares.items() if values}


def unread(rounds: Sequence[Row], limit: float, entry: str) -> float:
    """The fraction of critiques and revisions that could not be read.

    Raises:
        ValueError: it is above the limit.
    """
    fraction = sum((row["critique"] is None) + (row["revision"] is None) for row in rounds) / (2 * len(rounds))
    if fraction > limit:
        first = [row["id"] for row in rounds if row["revision"] is None or row["critique"] is None][:3]
        raise ValueError(
            f"revise.{entry}: expected at most {limit} of critiques and revisions to be unreadable, found {fraction:.3f}; first: {first}, see "
            f"artifacts/rounds/{entry}.jsonl. Choose another judge, or raise revise.unread_fraction."
        )
    return fraction


def demonstrations(rows: Sequence[Row], validation_fraction: float, seed: int) -> dict[str, list[Row]]:
    """The last revisions as rows for `method: sft`, by split."""
    splits: dict[str, list[Row]] = {"train": [], "validation": []}
    for row in rows:
        columns = {"id": row["id"], "prompt": row["prompt"], "completion": assistant(row["response"])}
        split = "validation" if held_out(row["id"], validation_fraction, seed) else "train"
        splits[split].append({**columns, "rounds": row["round"], "index": row["index"]})
    return splits


def run(config: ReviseStage, entry: str) -> None:
    """Revises round by round, counts, saves."""
    settings, sample = config.revise, Path("artifacts/sample") / config.revise.sample
    with executing("revise", entry, config, [sample]) as work:
        from plumbline.judging.building import load_judge
        from plumbline.judging.judges import uses_gold
        from plumbline.judging.panel import AskingJudge

        run_name = f"{work.name} {input_digest(sample)}"
        judge = load_judge(config.judge, seed=config.seed, name=settings.judge, run=run_name)
        if not isinstance(judge, AskingJudge):
            raise ValueError(f"revise.{entry}.judge: expected a judge that writes, such as a chat model, found {settings.judge}")
        rows = responses(read_jsonl(sample / "completions.jsonl"), settings.prompts, settings.responses)
        metrics: dict[str, float] = {"responses": len(rows), **conduct(rows, 0)}
        rounds: list[Row] = []
        for number in range(1, settings.rounds + 1):
            before, rows = rows, revised(judge, rows, config.judge.principles, number, config.seed)
            rounds += rows
            changed = sum(old["response"] != new["response"] for old, new in zip(before, rows, strict=True))
            metrics |= {f"changed_fraction_{number}": changed / len(rows), **conduct(rows, number)}
        judge.finish()
        output = work.output(f"artifacts/revise/{entry}")
        write_jsonl(work.output(f"artifacts/rounds/{entry}.jsonl"), rounds)
        metrics |= {"unread_fraction": unread(rounds, settings.unread_fraction, entry), "uses_gold": uses_gold(config.judge)}
        for split, selected in demonstrations(rows, settings.validation_fraction, config.seed).items():
            write_jsonl(output / f"{split}.jsonl", selected)
        write_json(work.output(f"artifacts/figures/revise/{entry}.json"), metrics)
        work.run.log_figures(metrics)
        work.run.log_traces(judge.traces(work.name))
        work.run.log_table(
            "revisions", [{"prompt": last_turn(row["prompt"]), **{k: row[k] for k in SHOWN}} for row in rounds[:40]]
        )
        work.log_timing(**{f"judge_{name}": value for name, value in vars(judge.ledger).items()})


@hydra.main(version_base=None, config_path="../conf", config_name="revise")
@launched
def main(config: DictConfig) -> None:
    run(typed(config), entry_name("revise"))


if __name__ == "__main__":
    register("revise", ReviseStage)
    main()
