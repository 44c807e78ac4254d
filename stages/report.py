"""One self-contained HTML page that shows what was run and what came of it, for a reader who did not run it.

Reads the recipe, `artifacts/evaluate/`, `artifacts/figures/`, `artifacts/curves/` and `artifacts/data_report/section.html`. Writes
`artifacts/report/report.html`: pictures included, no network, the same bytes for the same inputs; a script searches the answers, and nothing
is missing without it. Beside it, `report.md` says the same in short for the comment of a pull request, and `comparisons.json` has every two
policies compared, and their ratings (plumbline/evaluation/comparisons.py).

Shows the policies of params.yaml's `evaluate` section and ignores files that older recipes left behind. Marks policies that learned
from the verifier. Its MLflow run sums up the result: the recipe, and every policy's figures as `<policy>.<figure>`.
"""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import MISSING, DictConfig

from plumbline.evaluation.section import EvaluateSection
from plumbline.graph import Node, nodes
from plumbline.models.decoding_values import read_decoding
from plumbline.pipeline.composing import register, typed
from plumbline.pipeline.execution import executing, launched
from plumbline.pipeline.ranges import COUNT, NOT_NEGATIVE, outside
from plumbline.pipeline.records import read_json, read_jsonl, replacing, write_json

if TYPE_CHECKING:
    from plumbline.evaluation.comparisons import Comparisons, Pair
    from plumbline.report.charts import Share

SCORED, FIGURES, CURVES = Path("artifacts/evaluate"), Path("artifacts/figures"), Path("artifacts/curves")
DATA_REPORT = Path("artifacts/data_report")
BEST_BY = ("gold", "win_rate", "instructions_followed", "accuracy", "reward")
"""The figures by which MLflow names the best policy: the first that all policies have."""
SUMMARISED = (
    "gold", "gold_gain", "gold_at_1", "win_rate", "win_rate_length_controlled", "reward", "kl", "accuracy", "harmful_fraction",
    "over_refusal_fraction", "instructions_followed", "perplexity", "preference_accuracy",
)  # fmt: skip

Section = dict[str, Any]


@dataclass
class ReportSection:
    """What the page shows."""

    prompts: int = MISSING  # prompts shown with the answers of every policy side by side
    listed: int = MISSING  # prompts in the list below them that can be searched, those first where the policies differ most

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        return outside(self, prompts=COUNT, listed=NOT_NEGATIVE)


@dataclass
class ReportStage:
    """The whole recipe, which the page describes; `evaluate` names the policies that it shows."""

    seed: int = MISSING
    threads: int = MISSING
    model: str = MISSING
    data: str = MISSING
    pretrain: Section = field(default_factory=dict)
    sft: Section = field(default_factory=dict)
    feedback: Section = field(default_factory=dict)
    sample: Section = field(default_factory=dict)
    pool: Section = field(default_factory=dict)
    filter: Section = field(default_factory=dict)
    revise: Section = field(default_factory=dict)
    label: Section = field(default_factory=dict)
    reward_model: Section = field(default_factory=dict)
    reward_rules: Section = field(default_factory=dict)
    reward_verifier: Section = field(default_factory=dict)
    reward_judge: Section = field(default_factory=dict)
    reward_sum: Section = field(default_factory=dict)
    reject: Section = field(default_factory=dict)
    align: Section = field(default_factory=dict)
    rl: Section = field(default_factory=dict)
    overoptimisation: Section = field(default_factory=dict)
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)
    report: ReportSection = field(default_factory=ReportSection)


def run(config: ReportStage) -> None:
    """Reads what the stages wrote, writes the page and logs the summary."""
    section = config.evaluate
    with executing("report", None, config, [SCORED, FIGURES, CURVES, DATA_REPORT]) as work:
        from plumbline.evaluation.comparisons import compare_policies
        from plumbline.report.markdown_page import render_markdown
        from plumbline.report.material import Material
        from plumbline.report.page import render

        recipe = asdict(config)
        answers = {policy: read_answers(policy) for policy in section.policies}
        comparisons = compare_policies(answers, section.against, config.seed)
        recipe_nodes = nodes(recipe)
        data_section = DATA_REPORT / "section.html"
        material = Material(
            recipe=recipe,
            policies=section.policies,
            against=section.against,
            decoding=read_decoding(FIGURES / "answer" / f"{section.against}.json"),
            figures={policy: read_json(SCORED / policy / "figures.json") for policy in section.policies},
            answers=answers,
            comparisons=comparisons,
            curves=read_curves(CURVES, recipe_nodes),
            stage_figures=read_stage_figures(FIGURES, recipe_nodes),
            calibration=read_calibration(FIGURES / "reward_model", config.reward_model),
            data_section=data_section.read_text(encoding="utf-8") if data_section.is_file() else "",
            prompts=config.report.prompts,
            listed=config.report.listed,
            optimisations=read_optimisations(CURVES, config.overoptimisation),
        )
        folder = work.output("artifacts/report")
        for name, rendered in (("report.html", render(material)), ("report.md", render_markdown(material))):
            with replacing(folder / name) as file:
                file.write(rendered)
        write_json(folder / "comparisons.json", {one.measure: comparisons_entry(one) for one in comparisons})
        metric = next(
            (name for name in BEST_BY if all(figures.get(name) is not None for figures in material.figures.values())), None
        )
        work.run.log_figures(summary(material.figures), [f"{policy}.{metric}" for policy in section.policies])
        if metric:
            best = max(section.policies, key=lambda policy: material.figures[policy][metric])
            work.run.log_best(Path("artifacts/policy") / best, metric)


def read_answers(policy: str) -> list[dict[str, Any]]:
    """The scored answers of a policy, in the order of the split."""
    return read_jsonl(SCORED / policy / "answers.jsonl")


def read_curves(folder: Path, of: Iterable[Node]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """The training curves of these nodes: node → metric → (step, value), without the steps that have no value.

    Those of `overoptimisation` are over KL, and have a section of their own.
    """
    import pandas

    curves = {}
    for node in of:
        path = folder / node.stage / f"{node.entry or node.stage}.csv"
        if path.is_file() and node.stage != "overoptimisation":
            table = pandas.read_csv(path)
            metrics = [column for column in table.columns if column != "step"]
            points = {metric: table[["step", metric]].dropna() for metric in metrics}
            curves[node.name] = {
                metric: [(float(step), float(value)) for step, value in rows.itertuples(index=False)]
                for metric, rows in points.items()
            }
    return curves


def read_optimisations(folder: Path, entries: Iterable[str]) -> dict[str, list[dict[str, float]]]:
    """The points of these entries of `overoptimisation`."""
    import pandas

    return {entry: pandas.read_csv(folder / "overoptimisation" / f"{entry}.csv").to_dict("records") for entry in entries}  # type: ignore[misc]


def read_calibration(folder: Path, entries: Iterable[str]) -> "dict[str, list[Share]]":
    """How often each of these reward models is right, by its own margin; one without held-out preferences is left out."""
    from plumbline.report.charts import Share

    calibration = {}
    for entry in entries:
        with (folder / f"{entry}.calibration.csv").open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["by"] == "reward"]
        if rows:
            calibration[entry] = [
                Share(
                    predicted=float(row["predicted"]),
                    right=float(row["accuracy"]),
                    low=float(row["accuracy_low"]),
                    high=float(row["accuracy_high"]),
                    n=int(row["n"]),
                )
                for row in rows
            ]
    return calibration


def read_stage_figures(folder: Path, of: Iterable[Node]) -> dict[str, dict[str, Any]]:
    """The figures in which these nodes measured their own work, by node; nodes without figures are left out."""
    paths = {node.name: folder / node.stage / f"{node.entry or node.stage}.json" for node in of}
    return {name: read_json(path) for name, path in paths.items() if path.is_file()}


def comparisons_entry(comparisons: "Comparisons") -> dict[str, Any]:
    """What comparisons.json holds of a measure."""
    from plumbline.evaluation.comparisons import MEASURES
    from plumbline.evaluation.statistics import flat

    return {
        "better": "lower" if MEASURES[comparisons.measure].lower_is_better else "higher",
        "ratings": {policy: flat("rating", rating) for policy, rating in comparisons.rated},
        "pairs": [_pair_entry(pair) for pair in comparisons.pairs],
        "without_common_prompts": comparisons.left_out,
    }


def _pair_entry(pair: "Pair") -> dict[str, Any]:
    from plumbline.evaluation.statistics import flat, rounded

    values = {key: rounded(value) for key, value in pair._asdict().items() if key != "difference"}
    return values | flat("difference", pair.difference) | {"prompts": pair.difference.n}


def summary(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The headline figures of every policy, with their bounds, as `<policy>.<figure>`."""
    keys = [f"{key}{end}" for key in SUMMARISED for end in ("", "_low", "_high")] + ["length_tokens", "n"]
    return {
        f"{policy}.{key}": figures[key] for policy, figures in metrics.items() for key in keys if figures.get(key) is not None
    }


@hydra.main(version_base=None, config_path="../conf", config_name="report")
@launched
def main(config: DictConfig) -> None:
    run(typed(config))


if __name__ == "__main__":
    register("report", ReportStage)
    main()
