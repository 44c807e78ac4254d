"""Has a judge rate or compare a sample's completions, and turns its verdicts into preferences (RLAIF, arXiv:2309.00267).

With `judge: none` and `way: agreement`, a completion scores by its agreement with its prompt's other completions instead (FactTune-MC,
arXiv:2311.08401; plumbline/labelling/agreement.py).

Reads `artifacts/sample/<sample>`, conf/judge and, if people judged, data/annotations. Writes
`artifacts/label/<entry>/{train,validation}.jsonl`, every reply as it came in `artifacts/verdicts/<entry>.jsonl`, and
`artifacts/figures/label/<entry>.json`.

A judge outside its limits (`judge.gate`) fails the stage before any label is written. A verdict that cannot be read is asked for again,
then counted, never guessed. 16,000 ratings by the simulated judge take 5 s. `known_agreement` says how good the labels are.

Memory holds one shard of the sample, and a run that was killed continues at the shard it was at. Replies that
were already bought are not bought again.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import MISSING, DictConfig

from plumbline.labelling.entry import ANNOTATIONS, LabelEntry, outside_annotations
from plumbline.pipeline.composing import entry_name, register, typed
from plumbline.pipeline.digests import input_digest
from plumbline.pipeline.engine import Engine
from plumbline.pipeline.execution import Work, executing, launched
from plumbline.pipeline.records import chunked, read_json, stream_jsonl, write_json, write_jsonl
from plumbline.pipeline.shard_files import groups_of, read_prompts, read_shard, shard_paths
from plumbline.pipeline.shard_work import as_lines, by_shard, counts, write_counts
from plumbline.pipeline.shard_workers import Compute
from plumbline.rows import Row, last_turn, text_of

if TYPE_CHECKING:
    from plumbline.judging.gate import Quality
    from plumbline.judging.judge import Judge
    from plumbline.labelling.opinions import Group, Judged, Opinion

CHUNK = 256  # prompts judged at a time, so that memory holds the replies of no more than these
VERDICTS, QUALITY = "verdicts.jsonl", "quality.json"
"""A shard's files, besides those of the splits: its verdicts, and what they say of the judge."""
SHOWN = 40
"""The number of preferences in MLflow's table."""
HEADLINE = ("train", "margin_mean", "unparsed_fraction", "inconsistent_fraction", "known_agreement")
"""The figures that MLflow shows first."""


@dataclass
class LabelStage:
    """The values that decide the labels."""

    seed: int = MISSING
    threads: int = MISSING
    engine: Engine = field(default_factory=Engine)
    label: LabelEntry = field(default_factory=LabelEntry)
    judge: Any = MISSING

    def problems(self) -> list[str]:
        """What does not fit between the entry and its judge; empty if all does."""
        entry, backend = self.label, self.judge.backend
        complaints = []
        if entry.way == "agreement" and backend != "none":
            complaints.append(
                f"label.judge: expected none with way: agreement, which asks no judge, found one of backend {backend}"
            )
        if entry.way != "agreement" and entry.pairs != "strong_vs_weak" and backend == "none":
            complaints.append(f"label.judge: expected a judge with pairs: {entry.pairs}, found none")
        if entry.way == "principle" and not self.judge.principles:
            complaints.append(
                "label.judge: expected a judge with principles with way: principle, such as constitutional, found one without"
            )
        if entry.way == "principle" and backend == "human":
            complaints.append(
                "label.way: expected rating, ranking or pairwise with people, found principle, which is not on their sheets"
            )
        if backend == "human":
            complaints += outside_annotations("judge.annotations", self.judge.annotations)
        return complaints


def judge_of(config: LabelStage, work: Work) -> "Judge | None":
    """The judge; None if nobody is asked."""
    if config.label.way == "agreement" or config.label.pairs == "strong_vs_weak":
        return None
    from plumbline.judging.building import load_judge

    # The budget is for these labels of this sample, so that what a crashed run spent counts when it is run again.
    run_name = f"{work.name} {input_digest(Path('artifacts/sample') / config.label.sample)}"
    return load_judge(config.judge, seed=config.seed, name=config.label.judge, run=run_name)


def opinions_of(
    judge: "Judge | None", groups: "list[Group]", config: LabelStage, number: int, of: int
) -> "Iterator[tuple[Group, Opinion]]":
    """The groups of shard `number` of so many, each with the judge's opinion of it, which is asked for chunk by chunk."""
    from plumbline.labelling.opinions import opinions_on

    asked = 0
    for chunk in chunked(groups, CHUNK):
        asked += len(chunk)
        if judge:
            judge.announce((number + asked / len(groups)) / of)
        yield from zip(chunk, opinions_on(judge, chunk, config.label, config.judge, config.seed), strict=True)


def judged_by(config: LabelStage) -> dict[str, str]:
    """Who judged, and how: columns of every row."""
    entry = config.label
    return {
        "judge": entry.judge,
        "model": str(getattr(config.judge, "model", config.judge.backend)),
        "way": entry.way if entry.pairs != "strong_vs_weak" else "none",
    }


@contextmanager
def labelling(config: LabelStage, judge: "Judge | None", count: int) -> Iterator[Compute]:
    """Computes shards: the verdicts, what they say of the judge, the rows of each split, and counts.

    count: of shards that there are, for the judge's progress bar.
    """
    from plumbline.judging.asked import recorded
    from plumbline.judging.gate import Quality
    from plumbline.labelling.known import known_advantages
    from plumbline.labelling.labels import labels_by_split
    from plumbline.labelling.opinions import observe, unjudged

    settings, marks = config.label, config.judge.thinking_marks
    advantages = known_advantages(settings.known, marks)

    def compute(number: int, groups: "list[Group]", shard: Path) -> None:
        quality = Quality()
        judged: list[Judged] = []
        rows: list[Row] = []
        if settings.pairs == "strong_vs_weak":
            judged = [unjudged(len(group)) for group in groups]
        else:
            with recorded(judge, shard):
                for group, opinion in opinions_of(judge, groups, config, number, count):
                    observe(quality, group, opinion, advantages(group), marks)
                    judged.append(opinion.judged)
                    rows += opinion.rows
        write_jsonl(shard / VERDICTS, rows)
        write_json(shard / QUALITY, quality.state())
        splits, counted = labels_by_split(groups, judged, settings, judged_by(config), config.seed)
        for split, of_split in splits.items():
            write_jsonl(shard / f"{split}.jsonl", of_split)
        write_counts(shard, counted | {"cost": sum(sum(judgement.costs) for judgement in judged)})

    yield compute


def label_shards(config: LabelStage, work: Work, checkpoints: Path) -> list[Path]:
    """Judges each shard of the sample; in workers if nobody is asked, for a judge's limits count for all its questions together."""
    from plumbline.judging.asked import asked
    from plumbline.judging.judges import must_see_all

    sample = Path("artifacts/sample") / config.label.sample
    files = shard_paths(sample)
    count = len(files)
    if config.label.prompts:
        in_each = sum(1 for _ in groups_of(read_shard(files[0])))
        count = min(count, -(-config.label.prompts // max(1, in_each)))
    judge = judge_of(config, work)
    prepare, engine = partial(labelling, config, judge, count), None if judge else config.engine
    parts = read_prompts(sample, config.label.prompts)
    with judge.at_work() if judge else nullcontext():
        shards = by_shard(checkpoints, parts, prepare, engine, afresh=must_see_all(config.judge))
    if judge:
        ledger, conversations = asked(shards)
        work.run.log_traces(conversations.traces(work.name))
        work.log_timing(**{f"judge_{name}": value for name, value in vars(ledger).items()})
    return shards


def figures_of(shards: Sequence[Path]) -> dict[str, Any]:
    """The counts of all shards.

    Raises:
        ValueError: nothing is left to train on.
    """
    from plumbline.labelling.labels import SPLITS

    total = counts(shards)
    margins, margin_sum, cost = (total.pop(name) for name in ("margins", "margin_sum", "cost"))
    if not total["train"]:
        kept = {name: count for name, count in total.items() if name not in SPLITS}
        raise ValueError(
            f"label: expected preferences, found none in {total['prompts']} prompts: {kept}. Lower label.min_margin, or "
            "sample more completions at a higher temperature."
        )
    return {**total, "margin_mean": margin_sum / margins if margins else 0.0, "cost": round(cost, 9)}


def quality_of(shards: Sequence[Path]) -> "Quality":
    """What all shards say of the judge."""
    from plumbline.judging.gate import Quality

    quality = Quality()
    for shard in shards:
        quality.merge(Quality.of(read_json(shard / QUALITY)))
    return quality


def shown(row: Row) -> Row:
    """A label as a row of a table for people."""
    texts: Row = {key: text_of(row[key]) for key in ("chosen", "rejected", "completion") if key in row}
    values: Row = {key: row[key] for key in ("margin", "label", "judge") if key in row}
    return {"prompt": last_turn(row["prompt"]), **texts, **values}


def run(config: LabelStage, entry: str) -> None:
    """Judges, holds the judge to its limits, makes preferences, saves."""
    settings, sample = config.label, Path("artifacts/sample") / config.label.sample
    with executing("label", entry, config, [sample, ANNOTATIONS]) as work, work.checkpoints() as checkpoints:
        from plumbline.judging.gate import require
        from plumbline.judging.judges import uses_gold
        from plumbline.labelling.labels import SPLITS

        shards = label_shards(config, work, checkpoints)
        quality = quality_of(shards)
        output = work.output(f"artifacts/label/{entry}")
        as_lines(shards, VERDICTS, work.output(f"artifacts/verdicts/{entry}.jsonl"))
        if settings.pairs != "strong_vs_weak":
            require(quality, config.judge.gate, settings.way if settings.way == "agreement" else settings.judge)
        total = figures_of(shards)
        for split in SPLITS:
            as_lines(shards, f"{split}.jsonl", output / f"{split}.jsonl")
        cost = total.pop("cost")
        metrics = {**total, **quality.metrics(), "cost": cost, "uses_gold": uses_gold(config.judge)}
        write_json(work.output(f"artifacts/figures/label/{entry}.json"), metrics)
        work.run.log_figures(metrics, HEADLINE)
        work.run.log_table("preferences", [shown(row) for row in islice(stream_jsonl(output / "train.jsonl"), SHOWN)])


@hydra.main(version_base=None, config_path="../conf", config_name="label")
@launched
def main(config: DictConfig) -> None:
    run(typed(config), entry_name("label"))


if __name__ == "__main__":
    register("label", LabelStage)
    main()
