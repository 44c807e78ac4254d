"""Has a judge rate or compare a sample's completions, and turns its verdicts into preferences (RLAIF, arXiv:2309.00267).

With `judge: none` and `way: agreement`, a completion scores by its agreement with its prompt's other completions instead (FactTune-MC,
arXiv:2311.08401; plumbline/labelling/agreement.py).

Reads `artifacts/sample/<sample>/completions.jsonl`, conf/judge and, if people judged, data/annotations. Writes
`artifacts/label/<entry>/{train,validation}.jsonl`, every reply as it came in `artifacts/verdicts/<entry>.jsonl`, and
`artifacts/figures/label/<entry>.json`.

A judge outside its limits (`judge.gate`) fails the stage before any label is written. A verdict that cannot be read is asked for again,
then counted, never guessed. 16,000 ratings by the simulated judge take 5 s. `known_agreement` says how good the labels are.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import MISSING, DictConfig

from plumbline.pipeline.composing import entry_name, register, typed
from plumbline.pipeline.digests import input_digest
from plumbline.pipeline.execution import Work, executing, launched
from plumbline.pipeline.ranges import BELOW_ONE, NOT_NEGATIVE, outside
from plumbline.pipeline.records import read_jsonl, write_json, write_jsonl
from plumbline.rows import Row, held_out, last_turn, text_of

if TYPE_CHECKING:
    from plumbline.judging.gate import Quality
    from plumbline.judging.judge import Judge
    from plumbline.labelling.known import Advantages
    from plumbline.labelling.opinions import Group, Judged, Opinion

ANNOTATIONS = Path("data/annotations")
CHUNK = 256  # prompts judged at a time, so that memory holds the replies of no more than these
WAYS = ("rating", "pairwise", "ranking", "principle", "agreement")
HEADLINE = ("train", "margin_mean", "unparsed_fraction", "inconsistent_fraction", "known_agreement")
"""The figures that MLflow shows first."""
PAIRS = ("best_vs_worst", "best_vs_random", "all_pairs", "compared", "strong_vs_weak", "unpaired")


@dataclass
class LabelEntry:
    """One entry of params.yaml's `label`; values and their meaning: conf/label.yaml."""

    sample: str = MISSING
    judge: str = MISSING
    way: str = MISSING
    pairs: str = MISSING
    min_margin: float = MISSING
    keep_ties: bool = MISSING
    pairs_per_prompt: int = MISSING
    opponents: int = MISSING
    prompts: int = MISSING
    strong: str | None = MISSING
    weak: str | None = MISSING
    known: str = MISSING
    validation_fraction: float = MISSING

    def problems(self) -> list[str]:
        """What does not fit among the entry's own values; empty if all does."""
        complaints = [
            f"{key}: expected one of {', '.join(choices)}, found {getattr(self, key)!r}"
            for key, choices in (("way", WAYS), ("pairs", PAIRS))
            if getattr(self, key) not in choices
        ]
        if self.pairs == "strong_vs_weak" and not (self.strong and self.weak):
            complaints.append(
                f"strong, weak: expected two policies with pairs: strong_vs_weak, found {self.strong} and {self.weak}"
            )
        if self.pairs == "compared" and self.way != "pairwise":
            complaints.append(f"way: expected pairwise with pairs: compared, found {self.way}")
        if self.way == "agreement" and self.pairs == "strong_vs_weak":
            complaints.append(
                "way: expected a way other than agreement with pairs: strong_vs_weak, which looks at the policies alone"
            )
        if self.way == "agreement" and self.min_margin >= 1:
            complaints.append(
                f"min_margin: expected less than 1 with way: agreement, which scores from 0 to 1, found {self.min_margin}"
            )
        complaints += outside(
            self,
            min_margin=NOT_NEGATIVE,
            pairs_per_prompt=NOT_NEGATIVE,
            opponents=NOT_NEGATIVE,
            prompts=NOT_NEGATIVE,
            validation_fraction=BELOW_ONE,
        )
        if self.known not in ("none", "gold"):
            complaints += outside_annotations("known", self.known)
        return complaints


@dataclass
class LabelStage:
    """The values that decide the labels."""

    seed: int = MISSING
    threads: int = MISSING
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


def outside_annotations(key: str, path: str) -> list[str]:
    """A complaint about a path that is missing, or that DVC would not see change; empty if it is in the folder that labels depend on."""
    if not Path(path).resolve().is_relative_to(ANNOTATIONS.resolve()):
        return [f"{key}: expected a path in {ANNOTATIONS}, which labels depend on, found {path}: DVC would not see it change"]
    return [] if Path(path).exists() else [f"{key}: expected a file or folder, found none at {path}"]


def grouped(rows: list[Row]) -> "list[Group]":
    """The rows of each prompt, in order of first appearance."""
    groups: dict[str, Group] = defaultdict(list)
    for row in rows:
        groups[row["id"]].append(row)
    return [*groups.values()]


def opinions_on(judge: "Judge | None", groups: "list[Group]", config: LabelStage) -> "list[Opinion]":
    """The judge's opinion of each group, by the entry's way of judging; without a judge, how far each group agrees."""
    from plumbline.labelling import opinions

    if judge is None:
        return opinions.agree(groups, config.judge.thinking_marks)
    entry = config.label
    principles = {name: principle["judge"] for name, principle in config.judge.principles.items()}
    if entry.way == "pairwise":
        return opinions.compare(judge, groups, principles, entry.opponents, config.seed)
    if entry.way == "ranking":
        return opinions.rank(judge, groups)
    if entry.way == "principle":
        return opinions.check(judge, groups, principles)
    return opinions.rate(judge, groups)


def verdicts(
    config: LabelStage,
    groups: "list[Group]",
    judged: "list[Judged]",
    quality: "Quality",
    advantages: "Callable[[Group], Advantages]",
    work: Work,
) -> Iterator[Row]:
    """Judges the groups chunk by chunk: yields the verdicts' rows, and fills `judged` and `quality`."""
    from plumbline.judging.building import load_judge
    from plumbline.labelling.opinions import observe

    sample = Path("artifacts/sample") / config.label.sample
    # The budget is for these labels of this sample, so that what a crashed run spent counts when it is run again.
    run_name = f"{work.name} {input_digest(sample)}"
    judge = None
    if config.label.way != "agreement":
        judge = load_judge(config.judge, seed=config.seed, name=config.label.judge, run=run_name)
    for start in range(0, len(groups), CHUNK):
        chunk = groups[start : start + CHUNK]
        if judge:
            judge.announce((start + len(chunk)) / len(groups))
        for group, opinion in zip(chunk, opinions_on(judge, chunk, config), strict=True):
            observe(quality, group, opinion, advantages(group), config.judge.thinking_marks)
            judged.append(opinion.judged)
            yield from opinion.rows
    if judge:
        judge.finish()
        work.run.log_traces(judge.traces(work.name))
        work.log_timing(**{f"judge_{name}": value for name, value in vars(judge.ledger).items()})


def preferences(
    config: LabelStage, groups: "list[Group]", judged: "Sequence[Judged]"
) -> tuple[dict[str, list[Row]], dict[str, float | int]]:
    """The rows of each split, and the figures of what was kept and left out.

    Raises:
        ValueError: nothing is left to train on.
    """
    from plumbline.labelling.labels import kto_labels, pairs_of, preference_labels

    entry = config.label
    source = {
        "judge": entry.judge,
        "model": str(getattr(config.judge, "model", config.judge.backend)),
        "way": entry.way if entry.pairs != "strong_vs_weak" else "none",
    }
    splits: dict[str, list[Row]] = {"train": [], "validation": []}
    counts: Counter[str] = Counter(prompts=len(groups), completions=sum(map(len, groups)), dropped_ties=0, dropped_margin=0)
    counts.update(dropped_unfinished=0, not_drawn=0, prompts_without_labels=0)
    margins: list[float] = []
    for group, judgement in zip(groups, judged, strict=True):
        if entry.pairs == "unpaired":
            labels = kto_labels(group, judgement, source, min_margin=entry.min_margin)
        else:
            seed = f"{config.seed}:{group[0]['id']}"
            candidates = pairs_of(group, judgement, entry.pairs, seed, entry.strong, entry.weak)
            labels = preference_labels(
                group, judgement, candidates, source,
                min_margin=entry.min_margin, keep_ties=entry.keep_ties, most=entry.pairs_per_prompt, seed=seed,
            )  # fmt: skip
        counts.update(labels.counts)
        counts["prompts_without_labels"] += not labels.rows
        margins += labels.margins
        splits["validation" if held_out(group[0]["id"], entry.validation_fraction, config.seed) else "train"] += labels.rows
    if not splits["train"]:
        raise ValueError(
            f"label: expected preferences, found none in {len(groups)} prompts: {dict(counts)}. Lower label.min_margin, or "
            "sample more completions at a higher temperature."
        )
    sizes = {split: len(rows) for split, rows in splits.items()}
    return splits, {**counts, **sizes, "margin_mean": sum(margins) / len(margins) if margins else 0.0}


def shown(row: Row) -> Row:
    """A label as a row of a table for people."""
    texts: Row = {key: text_of(row[key]) for key in ("chosen", "rejected", "completion") if key in row}
    values: Row = {key: row[key] for key in ("margin", "label", "judge") if key in row}
    return {"prompt": last_turn(row["prompt"]), **texts, **values}


def run(config: LabelStage, entry: str) -> None:
    """Judges, holds the judge to its limits, makes preferences, saves."""
    settings, sample = config.label, Path("artifacts/sample") / config.label.sample
    with executing("label", entry, config, [sample, ANNOTATIONS]) as work:
        from plumbline.judging.gate import Quality, require
        from plumbline.judging.judges import uses_gold
        from plumbline.labelling.known import known_advantages
        from plumbline.labelling.opinions import unjudged

        groups = grouped(read_jsonl(sample / "completions.jsonl"))[: settings.prompts or None]
        advantages = known_advantages(settings.known, config.judge.thinking_marks)
        quality, judged = Quality(), []
        output, replies = work.output(f"artifacts/label/{entry}"), work.output(f"artifacts/verdicts/{entry}.jsonl")
        if settings.pairs == "strong_vs_weak":
            judged = [unjudged(len(group)) for group in groups]
            write_jsonl(replies, [])
        else:
            write_jsonl(replies, verdicts(config, groups, judged, quality, advantages, work))
            require(quality, config.judge.gate, settings.way if settings.way == "agreement" else settings.judge)
        splits, counts = preferences(config, groups, judged)
        for split, rows in splits.items():
            write_jsonl(output / f"{split}.jsonl", rows)
        costs = sum(sum(judgement.costs) for judgement in judged)
        metrics = {**counts, **quality.metrics(), "cost": round(costs, 9), "uses_gold": uses_gold(config.judge)}
        write_json(work.output(f"artifacts/figures/label/{entry}.json"), metrics)
        work.run.log_figures(metrics, HEADLINE)
        work.run.log_table("preferences", [shown(row) for row in splits["train"][:40]])


@hydra.main(version_base=None, config_path="../conf", config_name="label")
@launched
def main(config: DictConfig) -> None:
    run(typed(config), entry_name("label"))


if __name__ == "__main__":
    register("label", LabelStage)
    main()
