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

Each policy and each reward passes over all shards of answers alone, so that memory holds one model at a time, and the answers of one shard; the curve
needs the scores of all. A run that was killed continues at the shard it was at.
"""

import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import MISSING, DictConfig

from plumbline.evaluation.section import EvaluateSection
from plumbline.pipeline.composing import entry_name, register, typed
from plumbline.pipeline.execution import Work, executing, launched
from plumbline.pipeline.ranges import COUNT, NOT_NEGATIVE, outside
from plumbline.pipeline.records import chunked, read_json, stream_jsonl, write_json, write_jsonl
from plumbline.pipeline.shard_files import read_shard, write_shard
from plumbline.pipeline.shard_work import by_shard, only_here
from plumbline.pipeline.shard_workers import Compute
from plumbline.rewards.reward import finishing, load_reward, modules_of, score, spending, spent
from plumbline.rows import Row, last_turn, text_of

if TYPE_CHECKING:
    from plumbline.evaluation.optimisation import Point
    from plumbline.evaluation.statistics import Floats
    from plumbline.models.room import Fitting

POLICIES, STEPS, REWARDS = Path("artifacts/policy"), Path("artifacts/steps"), Path("artifacts/reward")
NONE = "none"
SHOWN = 40
"""The number of answers in MLflow's table."""
HEADLINE = ("proxy_gain", "gold_gain", "gold_gain_highest", "gold_lost", "kl")
"""The figures that MLflow shows first."""

TABLE, KEPT = "answers.parquet", ("id", "index", "prompt", "completion", "finished", "tokens", "ids")
"""A shard's answers, and their columns."""
SCORES = "scores.json"
"""A reward of each of a shard's answers."""
Shards = Mapping[int, Sequence[Path]]
"""The step that a policy was kept after, 0 for the start → what is kept of each shard of its answers."""


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
    shard_prompts: int = MISSING

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        complaints = outside(self, prompts=NOT_NEGATIVE, answers=COUNT, batch_size=COUNT, shard_prompts=COUNT)
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
    """Draws, scores and sums up one way of optimising a proxy."""
    settings = config.overoptimisation
    init, of_prompts = POLICIES / settings.init, Path(f"artifacts/data/prompts/{config.evaluate.split}.jsonl")
    kept = [] if settings.steps == NONE else [STEPS / settings.steps]
    rewards = {"proxy": REWARDS / settings.proxy, "gold": REWARDS / settings.gold}
    inputs = [init, *kept, *dict.fromkeys(rewards.values()), of_prompts]
    loads = modules_of(*rewards.values())
    with executing("overoptimisation", entry, config, inputs, loads) as work, work.checkpoints() as checkpoints:
        from plumbline.evaluation.optimisation import curve_figures, curve_of, curve_table
        from plumbline.models.determinism import make_deterministic

        make_deterministic(config.seed, config.threads)
        policies = {0: init} | {step: policy for folder in kept for step, policy in kept_policies(folder).items()}
        prompts = checkpoints / "prompts.jsonl"
        write_jsonl(prompts, some_prompts(of_prompts, settings.prompts, config.seed))
        answers = {step: drawn(config, policy, prompts, step, checkpoints / "answers") for step, policy in policies.items()}
        scores = {name: scored(folder, answers, checkpoints / name, work) for name, folder in rewards.items()}
        points = measured(config, policies, answers, scores, checkpoints / "divergence")
        curve = curve_of("training" if kept else "best_of_n", points, config.seed)
        rows, figures = curve_table(curve), curve_figures(curve)
        file = work.output(f"artifacts/overoptimisation/{entry}") / "answers.jsonl"
        write_jsonl(file, scored_answers(answers, scores))
        write_table(work.output(f"artifacts/curves/overoptimisation/{entry}.csv"), rows)
        write_json(work.output(f"artifacts/figures/overoptimisation/{entry}.json"), figures)
        for size, row in zip(curve.sizes, rows, strict=True):
            work.run.log_metrics({name: float(value) for name, value in row.items() if value is not None}, step=size)
        work.run.log_figures(figures, HEADLINE)
        work.run.log_table("answers", [_shown(row) for row in deque(stream_jsonl(file), maxlen=SHOWN)])


def some_prompts(file: Path, count: int, seed: int) -> Iterator[Row]:
    """So many of a file's prompts, drawn at random, in their order; all of them for 0."""
    total = sum(1 for _ in stream_jsonl(file))
    if not count or count >= total:
        return stream_jsonl(file)
    chosen = {*random.Random(seed).sample(range(total), count)}
    return (row for number, row in enumerate(stream_jsonl(file)) if number in chosen)


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


def drawn(config: OveroptimisationStage, policy: Path, prompts: Path, step: int, folder: Path) -> list[Path]:
    """The shards of the policy's answers; `step` is the one that it was kept after."""
    from plumbline.models.completions import fitting_of

    title, kept = f"overoptimisation, step {step}", folder / str(step)
    fitting = fitting_of(policy, stream_jsonl(prompts), config.evaluate.max_new_tokens, title, kept)
    parts = chunked(stream_jsonl(prompts), config.overoptimisation.shard_prompts)
    shards = by_shard(kept, parts, partial(drawing, config, policy, fitting, title))
    return [shard / TABLE for shard in shards]


@contextmanager
def drawing(config: OveroptimisationStage, policy: Path, fitting: "Fitting", title: str) -> Iterator[Compute]:
    """Loads a policy, and computes shards of its answers."""
    from plumbline.models.completions import Completer, Draws

    settings = config.overoptimisation
    completer = Completer(
        policy,
        fitting,
        [Draws(settings.answers)],
        max_new_tokens=config.evaluate.max_new_tokens,
        batch_size=settings.batch_size,
        seed=config.seed,
        title=title,
    )

    def complete(number: int, rows: list[Row], shard: Path) -> None:
        [answers] = completer.complete(rows, number * settings.shard_prompts)
        write_shard(shard / TABLE, [{column: row[column] for column in KEPT} for row in answers])

    with closing(completer):
        yield complete


def scored(reward: Path, answers: Shards, folder: Path, work: Work) -> dict[int, list[Path]]:
    """The rewards of all answers, shard by shard; `folder`, where they are kept, has the name of what the reward stands for."""
    scorer = load_reward(reward, f"{work.name} {work.key} {folder.name}")

    def compute(number: int, file: Path, shard: Path) -> None:
        rows = read_shard(file)
        with spending(scorer, shard):
            rewards, _ = score(scorer, rows)
        write_json(shard / SCORES, rewards)

    with finishing(scorer):
        shards = {step: by_shard(folder / str(step), files, only_here(compute)) for step, files in answers.items()}
    if ledger := spent(shard for of_step in shards.values() for shard in of_step):
        work.log_timing(**{f"{folder.name}_{name}": value for name, value in ledger.items()})
    return {step: [shard / SCORES for shard in of_step] for step, of_step in shards.items()}


def measured(
    config: OveroptimisationStage, policies: Mapping[int, Path], answers: Shards, scores: Mapping[str, Shards], folder: Path
) -> "list[Point]":
    """The points of the curve: best of n, or the start and the policies that were kept, whose estimates of KL are kept in `folder`."""
    import numpy as np

    from plumbline.evaluation.divergence_shards import COLUMNS, Surroundings, divergence_pass
    from plumbline.evaluation.optimisation import best_of_n_points, training_points

    def by_prompt(shards: Iterable[Sequence[float]]) -> "Floats":  # (prompts, answers)
        values = np.concatenate([np.array(of_shard, dtype=np.float64) for of_shard in shards])
        return values.reshape(-1, config.overoptimisation.answers)

    rewards = {step: {name: by_prompt(map(read_json, of[step])) for name, of in scores.items()} for step in policies}
    if config.overoptimisation.steps == NONE:
        return best_of_n_points(rewards[0])
    kl, surroundings = {}, Surroundings(config.seed, config.threads)
    for step, policy in policies.items():
        estimates = divergence_pass(folder / str(step), answers[step], policy, policies[0], surroundings)
        kl[step] = by_prompt(read_json(shard / COLUMNS)["kl_k1"] for shard in estimates)
    return training_points(rewards, kl)


def scored_answers(answers: Shards, scores: Mapping[str, Shards]) -> Iterator[Row]:
    """The rows of answers.jsonl: every answer with both rewards, and without its tokens."""
    for step, files in answers.items():
        for number, file in enumerate(files):
            of_shard = {name: read_json(of[step][number]) for name, of in scores.items()}
            for position, row in enumerate(read_shard(file)):
                shown = {column: row[column] for column in KEPT if column != "ids"}
                yield {"step": step, **shown, **{name: values[position] for name, values in of_shard.items()}}


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the curve as CSV, with an empty cell where a figure is missing."""
    import pandas

    path.parent.mkdir(parents=True, exist_ok=True)
    pandas.DataFrame(rows).to_csv(path, index=False, lineterminator="\n")


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
