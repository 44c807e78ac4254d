"""Over-optimisation: what a proxy reward gains, and what gold does meanwhile, over the square root of KL (Gao et al., arXiv:2210.10760).

Reads `artifacts/policy/<init>`, from which optimisation starts, `artifacts/reward/<proxy>` and `artifacts/reward/<gold>`, and held-out prompts
(`evaluate.split`). With `steps: none` it measures best of n of `init` by the proxy, for n = 1, 2, 4 … up to `answers`; else the policies in
`artifacts/steps/<steps>`, which an entry of `align` or `rl` kept during training (`keep_steps`). `gold` is any other reward that stands for what is
wanted: the verifier's gold in the closed world, else a judge's rating or another reward model.

Writes `artifacts/curves/overoptimisation/<entry>.csv`, a row for each n or step, `artifacts/figures/overoptimisation/<entry>.json`, the fitted forms
among them (plumbline/evaluation/optimisation.py), and `artifacts/overoptimisation/<entry>/answers.jsonl`, every answer with both rewards.

Answers are drawn at temperature 1, from the whole distribution, with the same uniform numbers for every policy. KL of a policy is estimated
from its own answers (k1), and that of best of n is its upper bound, log n − (n − 1)/n. Expect the proxy to rise throughout. Gold rises with it for a
while, and falls where the proxy no longer stands for it. It costs `answers` answers to each prompt, of `init` or of each kept policy.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import MISSING, DictConfig

from plumbline.evaluation.section import EvaluateSection
from plumbline.pipeline.composing import entry_name, register, typed
from plumbline.pipeline.execution import executing, launched
from plumbline.pipeline.ranges import COUNT, NOT_NEGATIVE, outside
from plumbline.pipeline.records import read_jsonl, write_json, write_jsonl
from plumbline.rewards.reward import Reward, finish, load_reward
from plumbline.rows import Row, last_turn, text_of

if TYPE_CHECKING:
    from plumbline.evaluation.optimisation import Point
    from plumbline.evaluation.statistics import Floats

POLICIES, STEPS, REWARDS = Path("artifacts/policy"), Path("artifacts/steps"), Path("artifacts/reward")
NONE = "none"
SHOWN = 40
"""The number of answers in MLflow's table."""
HEADLINE = ("proxy_gain", "gold_gain", "gold_gain_highest", "gold_lost", "kl")
"""The figures that MLflow shows first."""

Rewards = dict[str, Reward]


@dataclass
class OveroptimisationEntry:
    """One entry of params.yaml's `overoptimisation`; values and their meaning: conf/overoptimisation.yaml."""

    init: str = MISSING
    steps: str = MISSING
    proxy: str = MISSING
    gold: str = MISSING
    prompts: int = MISSING
    answers: int = MISSING
    batch_size: int = MISSING

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        complaints = outside(self, prompts=NOT_NEGATIVE, answers=COUNT, batch_size=COUNT)
        if self.steps == NONE and self.answers == 1:
            complaints.append("answers: expected 2 or more with steps: none, since best of n chooses among them, found 1")
        return complaints


@dataclass
class OveroptimisationStage:
    """The config of the stage: an entry, and the split and the longest answer of `evaluate`."""

    seed: int = MISSING
    threads: int = MISSING
    overoptimisation: OveroptimisationEntry = field(default_factory=OveroptimisationEntry)
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)


def run(config: OveroptimisationStage, entry: str) -> None:
    """Samples, scores and sums up one way of optimising a proxy."""
    settings = config.overoptimisation
    init, of_prompts = POLICIES / settings.init, Path(f"artifacts/data/prompts/{config.evaluate.split}.jsonl")
    kept = [] if settings.steps == NONE else [STEPS / settings.steps]
    folders = {"proxy": REWARDS / settings.proxy, "gold": REWARDS / settings.gold}
    with executing("overoptimisation", entry, config, [init, *kept, *dict.fromkeys(folders.values()), of_prompts]) as work:
        from plumbline.evaluation.optimisation import curve_figures, curve_of, curve_table
        from plumbline.models.determinism import make_deterministic

        make_deterministic(config.seed, config.threads)
        prompts = some_prompts(read_jsonl(of_prompts), settings.prompts, config.seed)
        rewards = {name: load_reward(folder, f"{work.name} {work.key} {name}") for name, folder in folders.items()}
        if kept:
            points, answers = along_training(config, init, kept_policies(kept[0]), prompts, rewards)
        else:
            points, answers = best_of_all(config, init, prompts, rewards)
        curve = curve_of("training" if kept else "best_of_n", points, config.seed)
        rows, figures = curve_table(curve), curve_figures(curve)
        write_jsonl(work.output(f"artifacts/overoptimisation/{entry}") / "answers.jsonl", answers)
        write_table(work.output(f"artifacts/curves/overoptimisation/{entry}.csv"), rows)
        write_json(work.output(f"artifacts/figures/overoptimisation/{entry}.json"), figures)
        for size, row in zip(curve.sizes, rows, strict=True):
            work.run.log_metrics({name: float(value) for name, value in row.items() if value is not None}, step=size)
        work.run.log_figures(figures, HEADLINE)
        work.run.log_table("answers", [_shown(row) for row in answers[-SHOWN:]])
        if ledgers := [ledger for reward in rewards.values() if (ledger := finish(reward))]:
            work.log_timing(**{name: value for ledger in ledgers for name, value in ledger.items()})


def some_prompts(rows: list[Row], count: int, seed: int) -> list[Row]:
    """So many of the prompts, drawn at random, in their order; all of them for 0."""
    if not count or count >= len(rows):
        return rows
    return [rows[number] for number in sorted(random.Random(seed).sample(range(len(rows)), count))]


def kept_policies(folder: Path) -> dict[int, Path]:
    """The policies that a stage kept: steps → folder.

    Raises:
        ValueError: it kept none.
    """
    kept = {int(policy.name): policy for policy in folder.glob("[0-9]*")}
    if not kept:
        raise ValueError(
            f"expected policies of several steps in {folder}, found none. Name the steps in `keep_steps` of the entry {folder.name}, or measure best "
            "of n by `steps: none`"
        )
    return dict(sorted(kept.items()))


def drawn(config: OveroptimisationStage, policy: Path, prompts: list[Row], rewards: Rewards, size: int) -> list[Row]:
    """The policy's answers with both rewards; `size` is the step that it was kept after."""
    from plumbline.models.completions import Completer, Draws

    settings = config.overoptimisation
    completer = Completer(
        policy,
        prompts,
        [Draws(settings.answers)],
        max_new_tokens=config.evaluate.max_new_tokens,
        batch_size=settings.batch_size,
        seed=config.seed,
        title=f"overoptimisation, step {size}",
    )
    [rows] = completer.complete(prompts)
    asked, texts = [row["prompt"] for row in rows], [text_of(row["completion"]) for row in rows]
    scores = {name: reward(asked, texts) for name, reward in rewards.items()}
    columns = ("id", "index", "prompt", "completion", "finished", "tokens", "ids")
    return [
        {"step": size, **{column: row[column] for column in columns}, **{name: of[number] for name, of in scores.items()}}
        for number, row in enumerate(rows)
    ]


def best_of_all(
    config: OveroptimisationStage, init: Path, prompts: list[Row], rewards: Rewards
) -> "tuple[list[Point], list[Row]]":
    """Best of n for n = 1, 2, 4 …, all from the same answers."""
    import numpy as np

    from plumbline.evaluation.best_of_n import best_of_n_kl, expected_best
    from plumbline.evaluation.optimisation import MEASURES, Point, standardised

    answers, most = drawn(config, init, prompts, rewards, 0), config.overoptimisation.answers
    scores = {name: np.array([float(row[name]) for row in answers]).reshape(len(prompts), most) for name in MEASURES}

    def gain(name: str, n: int) -> "Floats":
        of_best = [expected_best(keys, values, n) for keys, values in zip(scores["proxy"], scores[name], strict=True)]
        return standardised(np.array(of_best) - scores[name].mean(axis=1), scores[name].ravel())

    sizes = [2**power for power in range(most.bit_length())]
    kl = np.ones(len(prompts))
    points = [Point(n, best_of_n_kl(n) * kl, gain("proxy", n), gain("gold", n)) for n in sizes]
    return points, [_without_ids(row) for row in answers]


def along_training(
    config: OveroptimisationStage, init: Path, kept: dict[int, Path], prompts: list[Row], rewards: Rewards
) -> "tuple[list[Point], list[Row]]":
    """The start, and the policy after each of the kept steps."""
    import numpy as np

    from plumbline.evaluation.optimisation import MEASURES, Point, standardised

    def by_prompt(values: Sequence[float]) -> "Floats":
        means: Floats = np.array(values, dtype=np.float64).reshape(len(prompts), -1).mean(axis=1)
        return means

    points, answers = [], []
    start: dict[str, list[float]] = {}
    for size, policy in {0: init, **kept}.items():
        rows = drawn(config, policy, prompts, rewards, size)
        scores = {name: [float(row[name]) for row in rows] for name in MEASURES}
        start = start or scores
        gains = [standardised(by_prompt(scores[name]) - by_prompt(start[name]), start[name]) for name in MEASURES]
        kl = by_prompt(log_ratios(policy, init, rows) if size else [0.0] * len(rows))
        points.append(Point(size, kl, *gains))
        answers += [_without_ids(row) for row in rows]
    return points, answers


def log_ratios(policy: Path, reference: Path, rows: list[Row]) -> list[float]:
    """log π − log π_reference of each of the policy's answers, in nats, summed over its tokens: k1 estimates of KL(π ‖ π_reference)."""
    from transformers import AutoTokenizer

    from plumbline.evaluation.divergence import completion_logps
    from plumbline.models.chat import prompt_ids
    from plumbline.models.loading import load_policy

    tokenizer = AutoTokenizer.from_pretrained(policy)
    asked, completions = [prompt_ids(tokenizer, row["prompt"]) for row in rows], [row["ids"] for row in rows]
    ours, theirs = (completion_logps(load_policy(folder), asked, completions) for folder in (policy, reference))
    return [mine - other for mine, other in zip(ours, theirs, strict=True)]


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the curve as CSV, with an empty cell where a figure is missing."""
    import pandas

    path.parent.mkdir(parents=True, exist_ok=True)
    pandas.DataFrame(rows).to_csv(path, index=False, lineterminator="\n")


def _without_ids(row: Row) -> Row:
    return {column: value for column, value in row.items() if column != "ids"}


def _shown(row: Row) -> Row:
    scores = {name: row[name] for name in ("step", "proxy", "gold")}
    return {"prompt": last_turn(row["prompt"]), "completion": text_of(row["completion"]), **scores}


@hydra.main(version_base=None, config_path="../conf", config_name="overoptimisation")
@launched
def main(config: DictConfig) -> None:
    run(typed(config), entry_name("overoptimisation"))


if __name__ == "__main__":
    register("overoptimisation", OveroptimisationStage)
    main()
