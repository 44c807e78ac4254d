"""Scores the answers of one policy by the verifier, the judge and the reward, and measures its KL from an opponent.

Reads `artifacts/answer/` and `artifacts/policy/` of the policy and of the opponent (`evaluate.against`), the policy's decoding from
`artifacts/figures/answer`, `artifacts/reward/<reward>`, and the validation rows of `artifacts/data/preferences`, `artifacts/data/sft` and
`artifacts/data/pretrain`. Writes `metrics/<policy>.json`, the headline figures that DVC shows, and in `artifacts/evaluate/<policy>` all figures
with their bounds (`figures.json`; null if a figure does not apply), the policy's card with these figures (`README.md`), and each answer with its
scores and, where one is known, a right answer to its prompt (`answers.jsonl`).

- gold, harmful, over-refusal, accuracy: by the closed world's verifier. For prompts that it does not know gold is null, and the others are by
  string match for prompts that state what they call for (AdvBench, XSTest: plumbline/checking/refusals.py), by comparison with
  the `answer` of prompts that have one (plumbline/checking/maths.py), and by running the programs in answers to prompts that have `tests` (MBPP,
  HumanEval: plumbline/checking/program_runs.py); else null. `programs_<outcome>` counts how programs ended.
- instructions followed: the share of answers that follow all `instructions` of their prompt (IFEval: plumbline/checking/following.py).
- pass@k: of prompts with several answers that are checked, those answered rightly in k attempts (plumbline/evaluation/attempts.py).
- win rate: the judge compares the policy's answer with the opponent's answer of the same index, in both orders. A tie, or orders
  that disagree, counts one half. Verdicts that cannot be read are left out and counted. 0.5 for the opponent itself.
- length-controlled win rate: AlpacaEval 2's (plumbline/evaluation/length_control.py).
- judge agreement, reward agreement: how often each orders two answers as they are known to be (plumbline/evaluation/calibration.py). For the
  latter the opponent's answers are scored by the reward as well, unless it is a judge's rating.
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

It costs four forward passes over the answers, the policy's, the opponent's, and the reward model's over both, and two over the held-out rows.
Scoring goes shard by shard, and continues at the shard at which a killed run was; the figures hold the scores and texts of all answers.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import MISSING, DictConfig

from plumbline.checking.program_runs import Programs
from plumbline.evaluation.section import COMPLETIONS, COMPLETIONS_AT_1, NONE, EvaluateSection
from plumbline.pipeline.composing import register, typed
from plumbline.pipeline.digests import input_digest
from plumbline.pipeline.engine import Engine
from plumbline.pipeline.execution import Work, executing, launched
from plumbline.pipeline.ranges import NOT_NEGATIVE, outside
from plumbline.pipeline.records import replacing, stream_jsonl, write_json
from plumbline.pipeline.shard_files import read_shard
from plumbline.pipeline.shard_work import as_lines, counts
from plumbline.reasoning import without_reasoning
from plumbline.rewards.reward import modules_of
from plumbline.rows import Row, conversation_text, text_of

if TYPE_CHECKING:
    from plumbline.evaluation.answer_shards import Columns, FindColumns, Pair

ANSWERS, POLICIES, REWARDS = Path("artifacts/answer"), Path("artifacts/policy"), Path("artifacts/reward")
DECODING = Path("artifacts/figures/answer")
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
    engine: Engine = field(default_factory=Engine)
    policy: str = MISSING
    programs: Programs = field(default_factory=Programs)
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
    """Scores the policy's answers, shard by shard, and writes the figures."""
    policy, section = config.policy, config.evaluate
    folders = [root / name for root in (ANSWERS, POLICIES) for name in dict.fromkeys((policy, section.against))]
    rewards = [] if section.reward == NONE else [REWARDS / section.reward]
    inputs = [*folders, decoding_file(policy), *rewards, *HELD_OUT]
    with (
        executing("evaluate", policy, config, inputs, modules_of(*rewards)) as work,
        work.checkpoints() as checkpoints,
    ):
        from plumbline.evaluation.answer_shards import OURS, SCORED, THEIRS, scores_of
        from plumbline.evaluation.figures import headline_figures, policy_figures
        from plumbline.evaluation.repetition import distinct
        from plumbline.evaluation.statistics import flat
        from plumbline.models.determinism import make_deterministic

        make_deterministic(config.seed, config.threads)
        shards, shards_at_1 = scored_shards(config, rewards, checkpoints, work)
        scores, scores_at_1 = scores_of(shards, OURS), scores_of(shards_at_1, OURS)
        against, against_at_1 = scores, scores_at_1
        if policy != section.against:
            against, against_at_1 = scores_of(shards, THEIRS), scores_of(shards_at_1, THEIRS)
        figures = policy_figures(scores, against, config.seed, scores_at_1, against_at_1)
        figures |= counts(shards)
        folder = work.output(f"artifacts/evaluate/{policy}")
        as_lines(shards, SCORED, folder / SCORED)
        texts, ids = shown_answers(folder / SCORED, section.thinking_marks)
        for n in DISTINCT:
            figures |= flat(f"distinct_{n}", distinct(texts, ids, n))
        figures |= held_out(config)
        write_json(folder / "figures.json", figures)
        headline = headline_figures(figures)
        write_json(work.output(f"metrics/{policy}.json"), headline)
        shown = {name: value for name, value in headline.items() if not name.endswith("_low")}  # a bound stands beside its figure
        write_card(config, figures, shown, folder, work)
        work.run.log_figures(figures, ())
        first = islice((row for row in stream_jsonl(folder / SCORED) if row["index"] == 0), SHOWN)
        work.run.log_table("scored_answers", [*map(_shown, first)])


def scored_shards(config: EvaluateStage, rewards: Sequence[Path], checkpoints: Path, work: Work) -> tuple[list[Path], list[Path]]:
    """The scores of both policies' answers, and of those at temperature 1, with the policy's log-ratios; none of the latter if none were drawn."""
    from plumbline.evaluation.answer_shards import pairs_of, score_shards
    from plumbline.evaluation.divergence_shards import Surroundings, divergence_pass

    section, policies = config.evaluate, (POLICIES / config.policy, POLICIES / config.evaluate.against)
    tables, engine = (ANSWERS / config.policy, ANSWERS / section.against), config.engine
    surroundings = Surroundings(config.seed, config.threads, engine)
    pairs = pairs_of(*(table / COMPLETIONS for table in tables))
    passes = [wins(config, pairs, checkpoints / "wins", work), rewards_of(rewards, pairs, checkpoints / "rewards", work, config)]
    # the whole distribution at temperature 1: all answers of a table have their log-probability, or none
    of_policy_itself = all(row["logp"] is not None for row in read_shard(pairs[0].ours))
    if of_policy_itself:
        passes.append(divergence_pass(checkpoints / "divergence", [pair.ours for pair in pairs], *policies, surroundings))
    marks = section.thinking_marks
    passes_made = [of_pass for of_pass in passes if of_pass]
    shards = score_shards(checkpoints / "scores", pairs, passes_made, policies, marks, config.programs, engine)
    if of_policy_itself:
        return shards, shards
    if not section.samples_at_1:
        return shards, []
    at_1 = pairs_of(*(table / COMPLETIONS_AT_1 for table in tables))
    divergences = divergence_pass(checkpoints / "divergence_at_1", [pair.ours for pair in at_1], *policies, surroundings)
    scores = score_shards(checkpoints / "scores_at_1", at_1, [divergences], policies, marks, config.programs, engine)
    return shards, scores


def write_card(config: EvaluateStage, figures: Mapping[str, Any], shown: Mapping[str, Any], folder: Path, work: Work) -> None:
    """Writes the policy's card with its figures, and logs both."""
    from plumbline.models.model_card import FILE, evaluated_card

    card = evaluated_card(POLICIES / config.policy, circumstances(config, figures), figures, [*shown])
    with replacing(folder / FILE) as file:
        file.write(card)
    work.run.log_evaluation(POLICIES / config.policy, shown, card)


def decoding_file(policy: str) -> Path:
    """The figures of the stage that drew a policy's answers, the decoding among them."""
    return DECODING / f"{policy}.json"


def circumstances(config: EvaluateStage, figures: Mapping[str, Any]) -> dict[str, Any]:
    """How a policy was evaluated, for its card; `answer` has written the decoding, in which no value is null any more."""
    from plumbline.models.decoding_values import read_decoding

    model = getattr(config.judge, "model", None)
    return {
        "prompts": figures["n"],
        "answers": figures["answers"],
        "decoding": read_decoding(decoding_file(config.policy)).words,
        "compared with": f"`{config.evaluate.against}`",
        "judge": f"`{config.evaluate.judge}`{f' (`{model}`)' if model else ''}",
        "reward": f"`{config.evaluate.reward}`",
        "seed": config.seed,
    }


def shown_answers(file: Path, marks: str) -> tuple[list[str], list[str]]:
    """What each answer in a file of scored answers says, without its reasoning, and the id of its prompt."""
    pairs = [(without_reasoning(text_of(row["completion"]), marks), row["id"]) for row in stream_jsonl(file)]
    return [text for text, _ in pairs], [prompt_id for _, prompt_id in pairs]


def wins(config: EvaluateStage, pairs: "Sequence[Pair]", folder: Path, work: Work) -> list[Path]:
    """A pass that scores each answer against the opponent's: 1, 0.5 or 0; None without a verdict. No pass without a judge."""
    if config.judge.backend == NONE:
        return []
    from plumbline.evaluation.answer_shards import pass_over
    from plumbline.evaluation.winrate import compare
    from plumbline.judging.asked import asked, recorded
    from plumbline.judging.building import load_judge
    from plumbline.judging.judges import must_see_all

    # The budget is for these answers: what a crashed run spent counts when it runs again, what another policy spent does not.
    digests = [input_digest(ANSWERS / name / COMPLETIONS) for name in (config.policy, config.evaluate.against)]
    run_name = f"{work.name} {digests[0]} {digests[1]}"
    judge = load_judge(config.judge, seed=config.seed, run=run_name)

    def columns(answers: list[Row], opposing: list[Row], shard: Path) -> "Columns":
        ours, theirs = ([text_of(row["completion"]) for row in rows] for rows in (answers, opposing))
        with recorded(judge, shard):
            return {"win": compare(judge, [row["prompt"] for row in answers], ours, theirs)}

    with judge.at_work():
        shards = pass_over(folder, pairs, lambda: nullcontext(columns), afresh=must_see_all(config.judge))
    ledger, conversations = asked(shards)
    work.run.log_traces(conversations.traces(work.name))
    work.log_timing(judge_calls=ledger.calls, judge_bought=ledger.bought, judge_cached=ledger.cached)
    return shards


def rewards_of(folders: Sequence[Path], pairs: "Sequence[Pair]", folder: Path, work: Work, config: EvaluateStage) -> list[Path]:
    """A pass that finds the reward of each answer. No pass without a reward."""
    if not folders:
        return []
    from plumbline.evaluation.answer_shards import pass_over
    from plumbline.rewards.reward import asks_judge, spent

    prepare = partial(rewarding, config, folders[0], f"{work.name} {work.key}")
    shards = pass_over(folder, pairs, prepare, None if asks_judge(folders[0]) else config.engine)
    if counted := spent(shards):
        work.log_timing(**{f"reward_{name}": count for name, count in counted.items()})
    return shards


@contextmanager
def rewarding(config: EvaluateStage, folder: Path, run_name: str) -> "Iterator[FindColumns]":
    """Loads the reward, and finds the reward of each answer and, unless a judge would have to be asked again, of the opponent's.

    run_name: for the budget of a reward that is a judge's rating.
    """
    from plumbline.evaluation.answer_shards import THEIR_REWARD
    from plumbline.models.determinism import make_deterministic
    from plumbline.rewards.reward import asks_judge, finishing, load_reward, score, spending

    make_deterministic(config.seed, config.threads)
    reward = load_reward(folder, run_name)
    scores_both = config.policy != config.evaluate.against and not asks_judge(folder)

    def columns(answers: list[Row], opposing: list[Row], shard: Path) -> "Columns":
        with spending(reward, shard):
            found: dict[str, Sequence[float | None]] = {"reward": score(reward, answers)[0]}
            return found | ({THEIR_REWARD: score(reward, opposing)[0]} if scores_both else {})

    with finishing(reward):
        yield columns


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
