"""One self-contained HTML page of what was run and what came out, for a reader who did not run it.

Reads the recipe, `metrics/`, `artifacts/evaluate/`, `artifacts/curves/`, `artifacts/calibration/` and, if there,
`artifacts/data_report/section.html`; writes `artifacts/report/report.html` (pictures inside, no script, no network; the same
bytes for the same inputs).

Shows the policies of params.yaml's `evaluate` section, whatever older files lie beside theirs. Policies that learnt from the
verifier are marked. Its MLflow run is the summary of a result: the recipe, and every policy's figures as `<policy>.<figure>`.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import MISSING, DictConfig

from stages.evaluation.section import EvaluateSection, check_section
from stages.pipeline.composing import register, typed
from stages.pipeline.execution import executing, explained
from stages.pipeline.records import read_json, read_jsonl, replacing

if TYPE_CHECKING:
    from stages.evaluation.charts import Share

METRICS, SCORED, CURVES = Path("metrics"), Path("artifacts/evaluate"), Path("artifacts/curves")
CALIBRATION, DATA_REPORT = Path("artifacts/calibration"), Path("artifacts/data_report")
SUMMARISED = ("gold", "gold_gain", "win_rate", "reward", "kl_to_sft", "accuracy", "harmful_fraction", "over_refusal_fraction")

Section = dict[str, Any]


@dataclass
class ReportSection:
    """What the page shows."""

    prompts: int = MISSING  # answered by every policy, side by side


@dataclass
class ReportStage:
    """The whole recipe, which the page tells; `evaluate` says which policies are shown."""

    seed: int = MISSING
    threads: int = MISSING
    model: str = MISSING
    data: str = MISSING
    pretrain: Section = field(default_factory=dict)
    sft: Section = field(default_factory=dict)
    sample: Section = field(default_factory=dict)
    revise: Section = field(default_factory=dict)
    label: Section = field(default_factory=dict)
    reward: Section = field(default_factory=dict)
    reject: Section = field(default_factory=dict)
    align: Section = field(default_factory=dict)
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)
    report: ReportSection = field(default_factory=ReportSection)


def run(config: ReportStage) -> None:
    """Reads what the stages wrote, writes the page, logs the summary."""
    section = config.evaluate
    check_section(section)
    with executing("report", None, config, [METRICS, SCORED, CURVES, CALIBRATION, DATA_REPORT]) as work:
        from stages.evaluation.page import Material, render

        recipe = asdict(config)
        data_section = DATA_REPORT / "section.html"
        material = Material(
            recipe=recipe,
            policies=section.policies,
            against=section.against,
            metrics={policy: read_json(METRICS / f"{policy}.json") for policy in section.policies},
            answers={policy: read_jsonl(SCORED / policy / "answers.jsonl") for policy in section.policies},
            curves=read_curves(CURVES, declared(recipe)),
            stage_metrics=read_stage_metrics(METRICS, declared(recipe)),
            calibration=read_calibration(CALIBRATION, config.reward),
            data_section=data_section.read_text(encoding="utf-8") if data_section.is_file() else "",
            prompts=config.report.prompts,
        )
        with replacing(work.output("artifacts/report") / "report.html") as file:
            file.write(render(material))
        work.run.log_metrics(summary(material.metrics))


def declared(recipe: dict[str, Any]) -> list[str]:
    """The nodes that a recipe declares, as `stage/entry`, in the DAG's order; an unrepeated stage's entry is its own name."""
    from stages.evaluation.recipe import recipe_nodes

    names = [node.name if "/" in node.name else f"{node.name}/{node.name}" for node in recipe_nodes(recipe)]
    return ["prepare/prepare", *names]


def read_curves(folder: Path, nodes: Sequence[str]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """The training curves of these nodes: metric → (step, value), where there is a value."""
    import pandas

    curves = {}
    for name in nodes:
        path = folder / f"{name}.csv"
        if path.is_file():
            table = pandas.read_csv(path)
            metrics = [column for column in table.columns if column != "step"]
            known = {metric: table[["step", metric]].dropna() for metric in metrics}
            curves[_short(name)] = {
                metric: [(float(step), float(value)) for step, value in rows.itertuples(index=False)]
                for metric, rows in known.items()
            }
    return curves


def read_calibration(folder: Path, entries: Iterable[str]) -> "dict[str, list[Share]]":
    """How often each of these rewards is right by its own margin; those that are not trained have no rows, and are left out."""
    from stages.evaluation.charts import Share

    found = {}
    for entry in entries:
        with (folder / f"{entry}.csv").open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["by"] == "reward"]
        if rows:
            found[entry] = [
                Share(
                    predicted=float(row["predicted"]),
                    right=float(row["accuracy"]),
                    low=float(row["accuracy_low"]),
                    high=float(row["accuracy_high"]),
                    n=int(row["n"]),
                )
                for row in rows
            ]
    return found


def read_stage_metrics(folder: Path, nodes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the other stages measured, `metrics/<stage>/<entry>.json`, of these nodes."""
    paths = {name: folder / f"{name}.json" for name in nodes}
    return {_short(name): read_json(path) for name, path in paths.items() if path.is_file()}


def summary(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The headline figures of every policy, with their bounds, as `<policy>.<figure>`."""
    keys = [f"{key}{end}" for key in SUMMARISED for end in ("", "_low", "_high")] + ["length_tokens", "n"]
    return {f"{policy}.{key}": of[key] for policy, of in metrics.items() for key in keys if of.get(key) is not None}


def _short(name: str) -> str:
    stage, _, entry = name.partition("/")
    return stage if stage == entry else name


@hydra.main(version_base=None, config_path="../conf", config_name="report")
@explained
def main(config: DictConfig) -> None:
    run(typed(config))


if __name__ == "__main__":
    register("report", ReportStage)
    main()
