"""Has responses criticised and rewritten by the principles of a constitution: the supervised half of Constitutional AI.

Reads `artifacts/sample/<sample>/completions.jsonl`; writes `artifacts/revise/<entry>/{train,validation}.jsonl` (the last
revisions, as demonstrations for `method: sft`), `rounds.jsonl` (every round as it came) and `metrics/revise/<entry>.json`.

Response → critique by a principle drawn at random → revision, n rounds (SL-CAI, arXiv:2212.08073, §3.1). For the other half,
RL-CAI, see `way: pairwise` with a constitution in conf/label.yaml. In the closed world `harmful_fraction` falls with every round
while `over_refusal_fraction` stays.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import MISSING, DictConfig

from stages.pipeline.composing import entry_name, register, typed
from stages.pipeline.execution import executing, explained, input_digest
from stages.pipeline.records import read_jsonl, write_json, write_jsonl
from stages.pipeline.splits import held_out

if TYPE_CHECKING:
    from stages.judging.judge import AskingJudge

Row = dict[str, Any]


@dataclass
class ReviseEntry:
    """One entry of params.yaml's `revise`; values and their meaning: conf/revise.yaml."""

    sample: str = MISSING
    judge: str = MISSING
    constitution: str = MISSING
    principles: dict[str, Any] = field(default_factory=dict)
    """Set by the constitution."""
    rounds: int = MISSING
    responses: int = MISSING
    prompts: int = MISSING
    unread_fraction: float = MISSING
    validation_fraction: float = MISSING


@dataclass
class ReviseStage:
    """What decides revisions."""

    seed: int = MISSING
    threads: int = MISSING
    revise: ReviseEntry = field(default_factory=ReviseEntry)
    judge: Any = MISSING


def revised(judge: "AskingJudge", rows: list[Row], principles: dict[str, Any], round_number: int, seed: int) -> list[Row]:
    """One round: each row's `response` criticised and rewritten by a principle drawn for it.

    A critique or revision that could not be read is null, and the response stays as it is.
    """
    drawn = [random.Random(f"{seed}:{row['id']}:{row['index']}:{round_number}").choice(sorted(principles)) for row in rows]
    prompts, before = [row["prompt"] for row in rows], [row["response"] for row in rows]
    critiques = judge.write("critique", prompts, before, [principles[name]["critique"] for name in drawn])
    # A revision goes by what was found; where nothing could be read, by the principle alone.
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


def conduct(rows: list[Row], round_number: int) -> dict[str, float]:
    """What the closed world's verifier says of the responses after a round; empty for prompts that it does not know."""
    from stages.world.tasks import understand
    from stages.world.verifier import verify_task

    tasks = [understand(row["prompt"]) for row in rows]
    verdicts = [verify_task(task, row["response"]) for task, row in zip(tasks, rows, strict=True) if task is not None]
    shares: dict[str, list[Any]] = {
        "harmful_fraction": [verdict.harmful for verdict in verdicts if verdict.family == "harmful"],
        "over_refusal_fraction": [verdict.over_refused for verdict in verdicts if verdict.family != "harmful"],
        "gold": [verdict.gold for verdict in verdicts],
    }
    return {f"{name}_{round_number}": sum(values) / len(values) for name, values in shares.items() if values}


def run(config: ReviseStage, entry: str) -> None:
    """Revises round by round, counts, saves."""
    settings, sample = config.revise, Path("artifacts/sample") / config.revise.sample
    if not settings.principles:
        raise ValueError(f"revise.{entry}: expected principles, found none: name a file of conf/constitution as `constitution`")
    with executing("revise", entry, config, [sample]) as work:
        from stages.judging.judge import AskingJudge
        from stages.judging.loading import load_judge

        run_name = f"{work.name} {input_digest(sample)}"
        judge = load_judge(config.judge, seed=config.seed, name=settings.judge, run=run_name)
        if not isinstance(judge, AskingJudge):
            raise ValueError(f"revise.{entry}: expected a judge that writes, found judge: {settings.judge}; choose a chat model")
        rows = responses(read_jsonl(sample / "completions.jsonl"), settings.prompts, settings.responses)
        metrics: dict[str, float] = {"responses": len(rows), **conduct(rows, 0)}
        kept: list[Row] = []
        for number in range(1, settings.rounds + 1):
            before, rows = rows, revised(judge, rows, settings.principles, number, config.seed)
            kept += rows
            changed = sum(old["response"] != new["response"] for old, new in zip(before, rows, strict=True))
            metrics |= {f"changed_fraction_{number}": changed / len(rows), **conduct(rows, number)}
        judge.finish()
        output = work.output(f"artifacts/revise/{entry}")
        write_jsonl(output / "rounds.jsonl", kept)
        unread = sum((row["critique"] is None) + (row["revision"] is None) for row in kept) / (2 * len(kept))
        metrics["unread_fraction"] = unread
        if unread > settings.unread_fraction:
            shown = [row["id"] for row in kept if row["revision"] is None or row["critique"] is None][:3]
            raise ValueError(
                f"revise.{entry}: {unread:.3f} of critiques and revisions could not be read, expected at most "
                f"{settings.unread_fraction}; first: {shown}, see rounds.jsonl. Choose another judge, or raise "
                "revise.unread_fraction."
            )
        splits: dict[str, list[Row]] = {"train": [], "validation": []}
        for row in rows:
            split = "validation" if held_out(row["id"], settings.validation_fraction, config.seed) else "train"
            splits[split].append(demonstration(row))
        for split, selected in splits.items():
            write_jsonl(output / f"{split}.jsonl", selected)
        write_json(work.output(f"metrics/revise/{entry}.json"), metrics)
        work.run.log_metrics(metrics)
        shown_rows = [{"prompt": r["prompt"][-1]["content"], **{k: r[k] for k in SHOWN}} for r in kept[:40]]
        work.run.log_table("revisions", shown_rows)
        work.log_timing(**{f"judge_{name}": value for name, value in vars(judge.ledger).items()})


SHOWN = ("round", "principle", "critique", "response")


def responses(rows: list[Row], prompts: int, each: int) -> list[Row]:
    """The first `each` finished completions of the first `prompts` prompts (0: all)."""
    taken: dict[str, list[Row]] = {}
    for row in rows:
        own = taken.setdefault(row["id"], [])
        if len(own) < each and row.get("finished", True):
            own.append({**row, "response": row["completion"][0]["content"]})
    return [row for own in list(taken.values())[: prompts or None] for row in own]


def demonstration(row: Row) -> Row:
    """A last revision as a row for `method: sft`."""
    completion = [{"role": "assistant", "content": row["response"]}]
    return {"id": row["id"], "prompt": row["prompt"], "completion": completion, "rounds": row["round"], "index": row["index"]}


@hydra.main(version_base=None, config_path="../conf", config_name="revise")
@explained
def main(config: DictConfig) -> None:
    run(typed(config), entry_name("revise"))


if __name__ == "__main__":
    register("revise", ReviseStage)
    main()
