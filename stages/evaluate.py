"""Scores the answers of one policy by the verifier, the judge and the reward, and measures its KL from an opponent.

Reads `artifacts/answer/` and `artifacts/policy/` of the policy and of the opponent (`evaluate.against`), `artifacts/reward/<reward>`, and
the validation rows of `artifacts/data/preferences`, `artifacts/data/sft` and `artifacts/data/pretrain`. Writes `metrics/<policy>.json`, the
headline figures that DVC shows, and in `artifacts/evaluate/<policy>` all figures with their bounds (`figures.json`; null if a figure does not
apply), the policy's card with these figures (`README.md`), and each answer with its scores and, where one is known, a right answer to its prompt
(`answers.jsonl`).

- gold, harmful, over-refusal, accuracy: by the closed world's verifier. For prompts that it does not know gold is null, and the others are by
  string match for prompts that state what they call for (AdvBench, XSTest: plumbline/checking/refusals.py), and by comparison with
  the `answer` of prompts that have one (plumbline/checking/maths.py); else null.
- instructions followed: the share of answers that follow all `instructions` of their prompt (IFEval: plumbline/checking/following.py).
- pass@k: of prompts with several answers that are checked, those answered rightly in k attempts (plumbline/evaluation/attempts.py).
- win rate: the judge compares the policy's answer with the opponent's answer of the same index, in both orders. A tie, or orders
  that disagree, counts one half. Verdicts that cannot be read are left out and counted. 0.5 for the opponent itself.
- length-controlled win rate: AlpacaEval 2's (plumbline/evaluation/length_control.py).
- judge agreement, reward agreement: how often each orders two answers as they are known to be (plumbline/evaluation/calibration.py).
- kl: log π − log π_against summed over an answer's tokens, sampled from the whole distribution of π at temperature 1 (k1 estimator); kl_k3 is
  another estimator of the same (plumbline/evaluation/divergence.py).
- `<figure>_at_1`: gold, its gain, harmful, over-refusal, accuracy and instructions followed of answers at temperature 1, the policy's whole
  distribution. The judge and the reward see the answers of `evaluate`'s decoding alone.
- `<figure>_<language>`: gold, harmful, over-refusal, accuracy and instructions followed of each language, if the data has several.
- length: tokens of the answers, without their reasoning (evaluate.thinking_marks), which the verifier does not see either.
- distinct-n, repeated: how much answers repeat each other and themselves (plumbline/evaluation/repetition.py).
- perplexity, preference accuracy, text: of at most `held_out_rows` validation demonstrations, preferences and plain texts
  (plumbline/evaluation/held_out.py).
- Bounds: 95 %, over prompts with all their answers; gains are paired (plumbline/evaluation/statistics.py).

It costs three forward passes over the answers, the reward model's, the policy's and the opponent's, and two over the held-out rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import MISSING, DictConfig

from plumbline.checking.following import require_checkers
from plumbline.evaluation.section import COMPLETIONS, COMPLETIONS_AT_1, NONE, EvaluateSection
from plumbline.pipeline.composing import register, typed
from plumbline.pipeline.digests import input_digest
from plumbline.pipeline.execution import Work, executing, launched
from plumbline.pipeline.ranges import NOT_NEGATIVE, outside
from plumbline.pipeline.records import read_jsonl, replacing, write_json, write_jsonl
from plumbline.reasoning import without_reasoning
from plumbline.rows import Row, conversation_text, text_of

if TYPE_CHECKING:
    from plumbline.evaluation.figures import Score

ANSWERS, POLICIES, REWARDS = Path("artifacts/answer"), Path("artifacts/policy"), Path("artifacts/reward")
HELD_OUT = {
    Path("artifacts/data") / role / "validation.jsonl": column
    for role, column in {"preferences": "chosen", "sft": "completion", "pretrain": "text"}.items()
}
"""The files of held-out rows → the column that a row must have: pretraining text may also hold dialogues."""

DISTINCT = (1, 2, 3)  # words in the spans that are counted
SHOWN = 40  # rows of the table in MLflow


@dataclass
class EvaluateStage:
    """The policy to evaluate, params.yaml's `evaluate` section, and the judge that it names."""

    seed: int = MISSING
    threads: int = MISSING
    policy: str = MISSING
    held_out_rows: int = 0  # the most validation demonstrations, preferences, and texts, whose likelihood is measured
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)
    judge: Any = MISSING

    def problems(self) -> list[str]:
        """What is wrong with the values; empty if nothing is."""
        complaints = outside(self, held_out_rows=NOT_NEGATIVE)
        if self.judge.backend != "human":
            return complaints
        return [
            *complaints,
            "evaluate.judge: expected a judge that can be asked about any answer, found human, who judged samples only; "
            "name another file of conf/judge/, or none for no win rate",
        ]


def run(config: EvaluateStage) -> None:
    """Scores the policy's answers and writes the figures."""
    policy, section = config.policy, config.evaluate
    folders = [root / name for root in (ANSWERS, POLICIES) for name in dict.fromkeys((policy, section.against))]
    rewards = [] if section.reward == NONE else [REWARDS / section.reward]
    with executing("evaluate", policy, config, [*folders, *rewards, *HELD_OUT]) as work:
        from plumbline.evaluation.figures import flat, headline_figures, policy_figures
        from plumbline.evaluation.repetition import distinct
        from plumbline.evaluation.scoring import right_answer, unread_figures
        from plumbline.models.determinism import make_deterministic
        from plumbline.models.model_card import FILE as CARD
        from plumbline.models.model_card import evaluated_card

        make_deterministic(config.seed, config.threads)
        answers, opposing = paired_answers(config, COMPLETIONS)
        columns = {"win": wins(config, answers, opposing, work), "reward": rewards_of(rewards, answers, work)}
        of_policy_itself = all(row["logp"] is not None for row in answers)  # the whole distribution at temperature 1
        if of_policy_itself:
            columns |= divergence_columns(config, answers)
        scores = scored(answers, policy, section.thinking_marks, **columns)
        against = scored(opposing, section.against, section.thinking_marks)
        at_1, against_at_1 = (scores, against) if of_policy_itself else scored_at_1(config)
        figures = policy_figures(scores, against, config.seed, at_1, against_at_1)
        figures |= unread_figures(answers, [score.refused for score in scores])
        texts, ids = shown_texts(answers, section.thinking_marks), [row["id"] for row in answers]
        for n in DISTINCT:
            figures |= flat(f"distinct_{n}", distinct(texts, ids, n))
        figures |= held_out(config)
        rows = [
            score.row()
            | {
                "prompt": row["prompt"],
                "completion": row["completion"],
                "right_answer": right_answer(row["prompt"], row["family"]) or row.get("answer"),
            }
            for score, row in zip(scores, answers, strict=True)
        ]
        folder = work.output(f"artifacts/evaluate/{policy}")
        write_jsonl(folder / "answers.jsonl", rows)
        write_json(folder / "figures.json", figures)
        headline = headline_figures(figures)
        write_json(work.output(f"metrics/{policy}.json"), headline)
        shown = {name: value for name, value in headline.items() if not name.endswith("_low")}  # a bound stands beside its figure
        card = evaluated_card(POLICIES / policy, circumstances(config, answers), figures, [*shown])
        with replacing(folder / CARD) as file:
            file.write(card)
        work.run.log_evaluation(POLICIES / policy, shown, card)
        work.run.log_figures(figures, ())
        work.run.log_table("scored_answers", [_shown(row) for row in rows if row["index"] == 0][:SHOWN])


def circumstances(config: EvaluateStage, answers: Sequence[Row]) -> dict[str, Any]:
    """How a policy was evaluated, for its card; `answer` knows the decoding, on which this stage does not depend."""
    model = getattr(config.judge, "model", None)
    return {
        "prompts": len({row["id"] for row in answers}),
        "answers": len(answers),
        "decoding": f"stated in `artifacts/figures/answer/{config.policy}.json`",
        "compared with": f"`{config.evaluate.against}`",
        "judge": f"`{config.evaluate.judge}`{f' (`{model}`)' if model else ''}",
        "reward": f"`{config.evaluate.reward}`",
        "seed": config.seed,
    }


def paired_answers(config: EvaluateStage, file: str) -> tuple[list[Row], list[Row]]:
    """The policy's answers and the opponent's, which `check_pairs` has compared."""
    answers, opposing = (read_jsonl(ANSWERS / name / file) for name in (config.policy, config.evaluate.against))
    check_pairs(answers, opposing)
    return answers, opposing


def check_pairs(answers: Sequence[Row], opposing: Sequence[Row]) -> None:
    """Requires that both policies answered the same prompts, equally often and in the same order.

    Raises:
        ValueError: they did not; the message names the first difference.
    """
    ours, theirs = ([(row["id"], row["index"]) for row in rows] for rows in (answers, opposing))
    if ours != theirs:
        first = next((pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]), (len(ours), len(theirs)))
        raise ValueError(
            f"evaluate: expected answers to the same prompts from both policies, found {len(ours)} and {len(theirs)} answers that "
            f"first differ at {first[0]} and {first[1]}; answer both again with the same data and `evaluate` section"
        )


def lengths(policy: str, answers: Sequence[Row], marks: str) -> list[int]:
    """The tokens of each answer without its reasoning, the end of turn included."""
    tokens = [int(row["tokens"]) for row in answers]
    texts, shown = [text_of(row["completion"]) for row in answers], shown_texts(answers, marks)
    if shown != texts:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(POLICIES / policy)
        for position, (text, answer) in enumerate(zip(texts, shown, strict=True)):
            if answer != text:
                end = int(answers[position]["finished"])
                tokens[position] = len(tokenizer(answer, add_special_tokens=False)["input_ids"]) + end
    return tokens


def shown_texts(answers: Sequence[Row], marks: str) -> list[str]:
    """What each answer says, without its reasoning."""
    return [without_reasoning(text_of(row["completion"]), marks) for row in answers]


def verdict_columns(answers: Sequence[Row], marks: str) -> dict[str, list[Any]]:
    """The verdicts as columns of Score: the verifier's, or those by what the prompt's row states; None for a prompt without either."""
    from plumbline.evaluation.scoring import VERDICT_COLUMNS, RightAnswers, stated_values, verdict_values

    require_checkers(one for row in answers for one in row.get("instructions") or ())
    right = RightAnswers()
    values: list[dict[str, Any]] = []
    for row, answer in zip(answers, shown_texts(answers, marks), strict=True):
        verdict = verdict_values(row["prompt"], row["family"], answer)
        values.append(verdict if verdict["gold"] is not None else stated_values(row, answer, right))
    return {name: [row[name] for row in values] for name in VERDICT_COLUMNS}


def wins(config: EvaluateStage, answers: Sequence[Row], opposing: Sequence[Row], work: Work) -> list[float | None]:
    """The score of each answer against the opponent's: 1, 0.5 or 0; None without a judge or without a verdict."""
    if config.judge.backend == NONE:
        return [None] * len(answers)
    from plumbline.evaluation.winrate import compare
    from plumbline.judging.building import load_judge

    # The budget is for these answers: what a crashed run spent counts when it runs again, what another policy spent does not.
    digests = [input_digest(ANSWERS / name / COMPLETIONS) for name in (config.policy, config.evaluate.against)]
    run_name = f"{work.name} {digests[0]} {digests[1]}"
    judge = load_judge(config.judge, seed=config.seed, run=run_name)
    ours, theirs = ([text_of(row["completion"]) for row in rows] for rows in (answers, opposing))
    scores = compare(judge, [row["prompt"] for row in answers], ours, theirs)
    judge.finish()
    work.run.log_traces(judge.traces(work.name))
    work.log_timing(judge_calls=judge.ledger.calls, judge_bought=judge.ledger.bought, judge_cached=judge.ledger.cached)
    return scores


def rewards_of(folders: Sequence[Path], answers: Sequence[Row], work: Work) -> list[float | None]:
    """The reward of each answer; None without a reward."""
    if not folders:
        return [None] * len(answers)
    from plumbline.rewards.reward import finish, load_reward

    reward = load_reward(folders[0], f"{work.name} {work.key}")
    rewards = reward([row["prompt"] for row in answers], [text_of(row["completion"]) for row in answers])
    if counts := finish(reward):
        work.log_timing(**{f"reward_{name}": count for name, count in counts.items()})
    return [*rewards]


def divergence_columns(config: EvaluateStage, answers: Sequence[Row]) -> dict[str, list[float | None]]:
    """The estimates of KL(π ‖ π_against), in nats, by each answer, which was sampled from π at temperature 1; 0 if both are the same policy.

    Summed over the answer's tokens, including its end-of-turn if it was reached; the mean over answers is unbiased. Both sides' log-probabilities
    are a forward pass's, so that what sampling rounds otherwise, as it does in bfloat16, does not count as distance.
    """
    from plumbline.evaluation.divergence import Divergence, divergence, token_logps

    policy, against = config.policy, config.evaluate.against
    estimates = [Divergence(0.0, 0.0)] * len(answers)
    if policy != against:
        from transformers import AutoTokenizer

        from plumbline.models.chat import prompt_ids
        from plumbline.models.loading import load_policy

        tokenizer = AutoTokenizer.from_pretrained(POLICIES / policy)
        of_prompt = {row["id"]: prompt_ids(tokenizer, row["prompt"]) for row in answers if row["index"] == 0}
        prompts, completions = [of_prompt[row["id"]] for row in answers], [row["ids"] for row in answers]
        ours, theirs = (token_logps(load_policy(POLICIES / name), prompts, completions) for name in (policy, against))
        estimates = [divergence(*logps) for logps in zip(ours, theirs, strict=True)]
    return {name: [getattr(estimate, name) for estimate in estimates] for name in Divergence._fields}


def held_out(config: EvaluateStage) -> dict[str, float | int | None]:
    """The figures of held-out rows; none if `held_out_rows` is 0."""
    if not config.held_out_rows:
        return {}
    from plumbline.evaluation.held_out import chosen_rows, held_out_figures

    policy, against = (POLICIES / name for name in (config.policy, config.evaluate.against))
    preferences, demonstrations, documents = (
        chosen_rows(file, config.held_out_rows, config.seed, column) for file, column in HELD_OUT.items()
    )
    return held_out_figures(policy, against, preferences, demonstrations, config.seed, [row["text"] for row in documents])


def scored_at_1(config: EvaluateStage) -> "tuple[list[Score], list[Score]]":
    """The scores of both policies' answers at temperature 1, with the policy's log-ratios; none if none were drawn."""
    if not config.evaluate.samples_at_1:
        return [], []
    answers, opposing = paired_answers(config, COMPLETIONS_AT_1)
    marks = config.evaluate.thinking_marks
    return (
        scored(answers, config.policy, marks, **divergence_columns(config, answers)),
        scored(opposing, config.evaluate.against, marks),
    )


def scored(answers: Sequence[Row], policy: str, marks: str, **columns: Sequence[float | None]) -> "list[Score]":
    """Each answer's scores: the verdicts, its length, and others column by column."""
    from plumbline.evaluation.figures import Score
    from plumbline.evaluation.repetition import repeated_fraction

    texts = shown_texts(answers, marks)
    of_texts = {"characters": [len(text) for text in texts], "repeated": [repeated_fraction(text) for text in texts]}
    every = verdict_columns(answers, marks) | {"tokens": lengths(policy, answers, marks)} | of_texts | columns
    kept = ("id", "index", "family", "language", "finished")
    by_answer = [dict(zip(every, values, strict=True)) for values in zip(*every.values(), strict=True)]
    return [Score(**{key: row[key] for key in kept}, **values) for row, values in zip(answers, by_answer, strict=True)]


def _shown(row: Row) -> Row:
    """A row of the table in MLflow: conversations as text."""
    scores = {key: value for key, value in row.items() if key not in ("prompt", "completion")}
    return {"prompt": conversation_text(row["prompt"]), "completion": text_of(row["completion"])} | scores


@hydra.main(version_base=None, config_path="../conf", config_name="evaluate")
@launched
def main(config: DictConfig) -> None:
    run(typed(config))


if __name__ == "__main__":
    register("evaluate", EvaluateStage)
    main()
