"""Has a judge compare or rate a sample's completions and turns its verdicts into preferences (RLAIF, arXiv:2309.00267).

Without a judge, `way: agreement` goes by how far a prompt's completions agree (FactTune-MC, arXiv:2311.08401): stages/judging/agreement.py.

Reads `artifacts/sample/<sample>/completions.jsonl`, conf/judge and, where people judged, data/annotations; writes
`artifacts/label/<entry>/{train,validation}.jsonl`, `verdicts.jsonl` beside them (every reply as it came), and `metrics/label/<entry>.json`.

A judge outside its limits (`judge.gate`) fails the stage before any label is written. A verdict that cannot be read is asked for
again, then counted, never guessed. 16,000 ratings by the simulated judge take 5 s; `known_agreement` says how good they are.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import MISSING, DictConfig

from stages.pipeline.composing import entry_name, register, typed
from stages.pipeline.execution import Work, executing, explained, input_digest
from stages.pipeline.records import read_jsonl, write_json, write_jsonl
from stages.pipeline.splits import held_out

if TYPE_CHECKING:
    from stages.judging.gate import Quality
    from stages.judging.judge import Judge
    from stages.judging.labelling import Group, Judged, Opinion

ANNOTATIONS = Path("data/annotations")
CHUNK = 256  # prompts judged at a time, so that memory holds no more replies than that
WAYS = ("rating", "pairwise", "ranking", "principle", "agreement")
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
    constitution: str = MISSING
    principles: dict[str, Any] = field(default_factory=dict)
    """Set by the constitution."""
    known: str = MISSING
    validation_fraction: float = MISSING


@dataclass
class LabelStage:
    """What decides labels."""

    seed: int = MISSING
    threads: int = MISSING
    label: LabelEntry = field(default_factory=LabelEntry)
    judge: Any = MISSING


def check_entry(entry: LabelEntry, judge: Any, name: str) -> None:
    """Requires that the values of the entry `name` fit together, and the judge with them.

    Raises:
        ValueError: with what does not fit and what would.
    """
    backend, where = judge.backend, f"params.yaml: label.{name}"
    for key, known in (("way", WAYS), ("pairs", PAIRS)):
        if getattr(entry, key) not in known:
            raise ValueError(f"{where}.{key}: expected one of {', '.join(known)}, found {getattr(entry, key)!r}")
    needs = []
    if entry.pairs == "strong_vs_weak" and not (entry.strong and entry.weak):
        needs.append("pairs: strong_vs_weak needs the policies `strong` and `weak`")
    if entry.pairs != "strong_vs_weak" and entry.way != "agreement" and backend == "none":
        needs.append(f"pairs: {entry.pairs} needs a judge, found judge: none")
    if entry.pairs == "compared" and entry.way != "pairwise":
        needs.append(f"pairs: compared needs way: pairwise, found way: {entry.way}")
    if entry.way == "principle" and not entry.principles:
        needs.append("way: principle needs a constitution (conf/constitution/<name>.yaml)")
    if entry.way == "agreement":
        needs += without_judge(entry, backend)
    people = {"known": "" if entry.known in ("none", "gold") else entry.known}
    people["judge.annotations"] = judge.annotations if backend == "human" else ""
    for key, path in people.items():
        if path and not Path(path).resolve().is_relative_to(ANNOTATIONS.resolve()):
            needs.append(
                f"{key}: expected a path in {ANNOTATIONS}, which labels depend on, found {path}: DVC would not see it change"
            )
    if not 0 <= entry.validation_fraction < 1:
        needs.append(f"validation_fraction: expected a fraction below 1, found {entry.validation_fraction}")
    if needs:
        raise ValueError(f"{where}: " + "; ".join(needs))


def without_judge(entry: LabelEntry, backend: str) -> list[str]:
    """What does not fit an entry that scores by agreement."""
    needs = []
    if backend != "none":
        needs.append(
            f"way: agreement asks no judge: expected judge: none, found one of backend {backend}, which would be ignored"
        )
    if entry.pairs == "strong_vs_weak":
        needs.append("pairs: strong_vs_weak goes by the policies alone: way: agreement would be ignored")
    if entry.min_margin >= 1:
        needs.append(f"way: agreement scores from 0 to 1: expected min_margin below 1, found {entry.min_margin}")
    return needs


def grouped(rows: list[dict[str, Any]]) -> "list[Group]":
    """The rows of each prompt, in order of first appearance."""
    groups: dict[str, Group] = defaultdict(list)
    for row in rows:
        groups[row["id"]].append(row)
    return [*groups.values()]


def opinions_on(judge: "Judge | None", groups: "list[Group]", entry: LabelEntry, seed: int) -> "list[Opinion]":
    """What the judge says of each group, by the entry's way of judging; without a judge, how far each group agrees."""
    from stages.judging import labelling

    if judge is None:
        return labelling.agree(groups)
    principles = {name: principle["judge"] for name, principle in entry.principles.items()}
    if entry.way == "pairwise":
        return labelling.compare(judge, groups, principles, entry.opponents, seed)
    if entry.way == "ranking":
        return labelling.rank(judge, groups)
    if entry.way == "principle":
        return labelling.check(judge, groups, principles)
    return labelling.rate(judge, groups)


def run(config: LabelStage, entry: str) -> None:
    """Judges, holds the judge against its limits, builds preferences, saves."""
    settings, sample = config.label, Path("artifacts/sample") / config.label.sample
    check_entry(settings, config.judge, entry)
    with executing("label", entry, config, [sample, ANNOTATIONS]) as work:
        from stages.judging.gate import Quality, require
        from stages.judging.known import known_advantages

        groups = grouped(read_jsonl(sample / "completions.jsonl"))[: settings.prompts or None]
        advantages = known_advantages(settings.known)
        quality, judged = Quality(), []
        output = work.output(f"artifacts/label/{entry}")
        if settings.pairs == "strong_vs_weak":
            judged = [unjudged(len(group)) for group in groups]
            write_jsonl(output / "verdicts.jsonl", [])
        else:
            write_jsonl(output / "verdicts.jsonl", verdicts(config, groups, judged, quality, advantages, work))
            require(quality, config.judge.gate, settings.way if settings.way == "agreement" else settings.judge)
        splits, counts = preferences(config, groups, judged)
        for split, rows in splits.items():
            write_jsonl(output / f"{split}.jsonl", rows)
        metrics = {**counts, **quality.metrics(), "cost": round(sum(sum(found.costs) for found in judged), 9)}
        write_json(work.output(f"metrics/label/{entry}.json"), metrics)
        work.run.log_metrics({name: value for name, value in metrics.items() if value is not None})
        work.run.log_table("preferences", [_shown(row) for row in splits["train"][:40]])


def unjudged(count: int) -> "Judged":
    """What is known of completions that nobody judged."""
    from stages.judging.labelling import Judged

    return Judged([None] * count, [[] for _ in range(count)], [0.0] * count, [])


def verdicts(
    config: LabelStage, groups: "list[Group]", judged: "list[Judged]", quality: "Quality", advantages: Any, work: Work
) -> Iterator[dict[str, Any]]:
    """Judges the groups chunk by chunk: yields the verdicts' rows, fills `judged` and `quality`."""
    from stages.judging.labelling import observe
    from stages.judging.loading import load_judge

    sample = Path("artifacts/sample") / config.label.sample
    # A budget is for these labels of this sample: a crashed run's spending counts when it is run again.
    run_name = f"{work.name} {input_digest(sample)}"
    judge = None
    if config.label.way != "agreement":
        judge = load_judge(config.judge, seed=config.seed, name=config.label.judge, run=run_name)
    for start in range(0, len(groups), CHUNK):
        chunk = groups[start : start + CHUNK]
        if judge:
            judge.announce((start + len(chunk)) / len(groups))
        for group, opinion in zip(chunk, opinions_on(judge, chunk, config.label, config.seed), strict=True):
            observe(quality, group, opinion, advantages(group))
            judged.append(opinion.judged)
            yield from opinion.rows
    if judge:
        judge.finish()
        work.log_timing(**{f"judge_{name}": value for name, value in vars(judge.ledger).items()})


def preferences(
    config: LabelStage, groups: "list[Group]", judged: "list[Judged]"
) -> tuple[dict[str, list[dict[str, Any]]], Mapping[str, float | int]]:
    """The rows of each split, and what was kept and dropped."""
    from stages.judging.labelling import labelled, pairs_of, preference
    from stages.judging.pairs import drawn, kept, unpaired
    from stages.judging.templates import template_digest

    entry = config.label
    source = {
        "judge": entry.judge,
        "model": str(getattr(config.judge, "model", config.judge.backend)),
        "way": entry.way if entry.pairs != "strong_vs_weak" else "none",
        "template": "none" if entry.way == "agreement" else template_digest(entry.way),  # each way has a template of its name
    }
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    counts: Counter[str] = Counter(prompts=len(groups), completions=sum(map(len, groups)), dropped_ties=0, dropped_margin=0)
    counts["dropped_unfinished"] = counts["not_drawn"] = counts["prompts_without_labels"] = 0
    margins = []
    for group, found in zip(groups, judged, strict=True):
        if entry.pairs == "unpaired":
            apart = unpaired(found.scores, entry.min_margin)
            taken = [(place, good) for place, good in apart if not good or group[place].get("finished", True)]
            counts["dropped_unfinished"] += len(apart) - len(taken)
            rows = [labelled(group, found, place, good, source) for place, good in taken]
        else:
            seed = f"{config.seed}:{group[0]['id']}"
            candidates = pairs_of(group, found, entry.pairs, seed, entry.strong, entry.weak)
            finished = [pair for pair in candidates if group[pair.chosen].get("finished", True)]
            eligible = kept(finished, entry.min_margin, entry.keep_ties)
            selected = drawn(eligible, entry.pairs_per_prompt, seed)
            counts["dropped_unfinished"] += len(candidates) - len(finished)  # as chosen it would teach not to stop
            counts["dropped_ties"] += sum(pair.tie for pair in finished) - sum(pair.tie for pair in eligible)
            counts["dropped_margin"] += sum(not p.tie for p in finished) - sum(not p.tie for p in eligible)
            counts["not_drawn"] += len(eligible) - len(selected)
            margins += [pair.margin for pair in selected]
            rows = [preference(group, found, pair, source) for pair in selected]
        counts["prompts_without_labels"] += not rows
        splits["validation" if held_out(group[0]["id"], entry.validation_fraction, config.seed) else "train"] += rows
    if not splits["train"]:
        raise ValueError(
            f"label: expected preferences, found none in {len(groups)} prompts: {dict(counts)}. Lower label.min_margin, or "
            "sample more completions at a higher temperature."
        )
    figures = {split: len(rows) for split, rows in splits.items()}
    return splits, {**counts, **figures, "margin_mean": sum(margins) / len(margins) if margins else 0.0}


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    texts = {key: row[key][-1]["content"] for key in ("prompt", "chosen", "rejected", "completion") if key in row}
    return texts | {key: row[key] for key in ("margin", "label", "judge") if key in row}


@hydra.main(version_base=None, config_path="../conf", config_name="label")
@explained
def main(config: DictConfig) -> None:
    run(typed(config), entry_name("label"))


if __name__ == "__main__":
    register("label", LabelStage)
    main()
