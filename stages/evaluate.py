"""The figures of one policy: by the verifier, by the judge against an opponent, by the reward model, and its KL.

Reads `artifacts/answer/` and `artifacts/policy/` of policy and opponent (`evaluate.against`), and `artifacts/reward/<reward>`;
writes `metrics/<policy>.json` (flat; every figure with its bounds, null where it does not apply) and
`artifacts/evaluate/<policy>/answers.jsonl` (each answer with its scores).

- gold, harmful, over-refusal, accuracy: the closed world's verifier; null for prompts that it does not know.
- win rate: the judge compares the policy's answer with the opponent's answer of the same index, in both orders; a tie, or orders
  that disagree, counts one half; verdicts that cannot be read are left out and counted. 0.5 for the opponent itself.
- kl_to_sft: log π − log π_against summed over an answer's tokens, sampled from π, both at temperature 1 (k1 estimator).
- Bounds: 95 %, bootstrapped over prompts with all their answers; gains are paired (stages/evaluation/statistics.py).

What it costs is three forward passes over the answers: reward model, policy and opponent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import MISSING, DictConfig

from stages.evaluation.section import NONE, EvaluateSection, check_section
from stages.pipeline.composing import register, typed
from stages.pipeline.execution import Work, executing, explained, input_digest
from stages.pipeline.records import read_jsonl, write_json, write_jsonl

if TYPE_CHECKING:
    from stages.evaluation.figures import Score

Row = dict[str, Any]
ANSWERS, POLICIES, REWARDS = Path("artifacts/answer"), Path("artifacts/policy"), Path("artifacts/reward")
SHOWN = 40


@dataclass
class EvaluateStage:
    """Whom to evaluate, params.yaml's `evaluate` section, and the judge that it names."""

    seed: int = MISSING
    threads: int = MISSING
    policy: str = MISSING
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)
    judge: Any = MISSING


def run(config: EvaluateStage) -> None:
    """Scores the policy's answers and writes its figures."""
    policy, section = config.policy, config.evaluate
    check_section(section)
    folders = [root / name for root in (ANSWERS, POLICIES) for name in dict.fromkeys((policy, section.against))]
    rewards = [] if section.reward == NONE else [REWARDS / section.reward]
    with executing("evaluate", policy, config, [*folders, *rewards]) as work:
        from stages.evaluation.figures import policy_metrics
        from stages.models.training import make_deterministic

        make_deterministic(config.seed, config.threads)
        answers, opposing = (read_jsonl(ANSWERS / name / "completions.jsonl") for name in (policy, section.against))
        check_pairs(answers, opposing)
        columns = verifier_columns(answers) | {
            "win": wins(config, answers, opposing, work),
            "reward": rewards_of(rewards, answers, work),
            "log_ratio": log_ratios_of(policy, section, answers),
        }
        scores = scored(answers, columns)
        metrics = policy_metrics(scores, scored(opposing, verifier_columns(opposing)), config.seed)
        rows = [score.row() | _texts(answer) for score, answer in zip(scores, answers, strict=True)]
        write_jsonl(work.output(f"artifacts/evaluate/{policy}") / "answers.jsonl", rows)
        write_json(work.output(f"metrics/{policy}.json"), metrics)
        work.run.log_metrics({key: value for key, value in metrics.items() if value is not None})
        work.run.log_table("scored_answers", [_shown(row) for row in rows if row["index"] == 0][:SHOWN])


def check_pairs(answers: Sequence[Row], opposing: Sequence[Row]) -> None:
    """Requires that both policies answered the same prompts equally often, in the same order.

    Raises:
        ValueError: with the first place where they part.
    """
    ours, theirs = ([(row["id"], row["index"]) for row in rows] for rows in (answers, opposing))
    if ours != theirs:
        first = next((pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]), (len(ours), len(theirs)))
        raise ValueError(
            "evaluate: expected answers to the same prompts from both policies, found "
            f"{len(ours)} and {len(theirs)} that part at {first[0]} and {first[1]}; "
            "answer both again with the same data and `evaluate` section"
        )


def verifier_columns(answers: Sequence[Row]) -> dict[str, list[Any]]:
    """The verifier's verdicts as columns of Score; None throughout where it does not know the prompt."""
    from stages.evaluation.gold import VERDICT_COLUMNS, verdict_values

    values = [verdict_values(row["prompt"], row["family"], _text(row)) for row in answers]
    return {name: [row[name] for row in values] for name in VERDICT_COLUMNS}


def wins(config: EvaluateStage, answers: Sequence[Row], opposing: Sequence[Row], work: Work) -> list[float | None]:
    """1, 0.5 or 0 for each answer against the opponent's; None without a judge or without a verdict."""
    if config.judge.backend == NONE:
        return [None] * len(answers)
    from stages.judging.loading import load_judge
    from stages.judging.winrate import compare

    if config.judge.backend == "human":
        raise ValueError(
            "evaluate.judge: people have judged samples, not these answers: label with judge: human, evaluate with another"
        )
    # A budget is for these answers: a crashed run's spending counts when it is run again, another policy's does not.
    run_name = f"{work.name} {input_digest(ANSWERS / config.policy)} {input_digest(ANSWERS / config.evaluate.against)}"
    judge = load_judge(config.judge, seed=config.seed, run=run_name)
    prompts, ours, theirs = [row["prompt"] for row in answers], [_text(row) for row in answers], [_text(row) for row in opposing]
    outcome = compare(judge, prompts, ours, theirs)
    judge.finish()
    work.log_timing(judge_calls=judge.ledger.calls, judge_bought=judge.ledger.bought, judge_cached=judge.ledger.cached)
    return outcome


def rewards_of(folders: Sequence[Path], answers: Sequence[Row], work: Work) -> list[float | None]:
    """The reward of each answer; None without a reward."""
    if not folders:
        return [None] * len(answers)
    from stages.models.rewards import finish, load_reward

    reward = load_reward(folders[0], f"{work.name} {work.key}")
    found = reward([row["prompt"] for row in answers], [_text(row) for row in answers])
    if taken := finish(reward):
        work.log_timing(**{f"reward_{name}": value for name, value in taken.items()})
    return [*found]


def log_ratios_of(policy: str, section: EvaluateSection, answers: Sequence[Row]) -> list[float] | list[None]:
    """log π − log π_against of each answer, of the tokens that were sampled; 0 where both are one policy.

    None at another temperature than 1: the answers are then not the policy's own, and their mean would be no KL.
    """
    against = section.against
    if section.temperature != 1:
        return [None] * len(answers)
    if policy == against:
        return [0.0] * len(answers)
    from transformers import AutoTokenizer

    from stages.evaluation.divergence import log_ratios
    from stages.models.chat import prompt_ids

    tokenizer = AutoTokenizer.from_pretrained(POLICIES / policy)
    prompts = [prompt_ids(tokenizer, row["prompt"]) for row in answers]
    return log_ratios(POLICIES / policy, POLICIES / against, prompts, [row["ids"] for row in answers])


def scored(answers: Sequence[Row], columns: dict[str, list[Any]]) -> "list[Score]":
    """Answers with their scores, given column by column."""
    from stages.evaluation.figures import Score

    kept = ("id", "index", "family", "language", "finished", "tokens")
    given = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [Score(**{key: row[key] for key in kept}, **values) for row, values in zip(answers, given, strict=True)]


def _text(row: Row) -> str:
    return str(row["completion"][0]["content"])


def _texts(row: Row) -> Row:
    return {"prompt": row["prompt"], "completion": row["completion"]}


def _shown(row: Row) -> Row:
    """A row of the table in MLflow: conversations as text."""
    prompt = "\n".join(f"{message['role']}: {message['content']}" for message in row["prompt"])
    return {"prompt": prompt, "completion": _text(row)} | {k: v for k, v in row.items() if k not in ("prompt", "completion")}


@hydra.main(version_base=None, config_path="../conf", config_name="evaluate")
@explained
def main(config: DictConfig) -> None:
    run(typed(config))


if __name__ == "__main__":
    register("evaluate", EvaluateStage)
    main()
