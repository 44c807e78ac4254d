"""A judge's rating as the reward: the number that labels have, no default for an unreadable rating, and nothing bought twice."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from judging_model import sample
from judging_server import running, worth
from ppo_tiny import PROMPTS, tiny_config, tiny_policy, word_tokenizer

from plumbline.judging.asking import Ledger, Reply, Request
from plumbline.judging.backends.endpoint import BudgetError
from plumbline.judging.gate import GateError
from plumbline.judging.judges import (
    GateLimits,
    GoldJudge,
    HumanJudge,
    JudgeConfig,
    NoJudge,
    OpenaiJudge,
    PanelJudge,
    Prices,
    SamplingConfig,
    SimulatedJudge,
)
from plumbline.judging.panel import AskingJudge, Member
from plumbline.labelling.entry import LabelEntry
from plumbline.methods.job import OnlineJob
from plumbline.models.saving import save_policy
from plumbline.pipeline.records import read_json, read_jsonl, write_json, write_jsonl
from plumbline.pipeline.shard_files import read_table, write_table
from plumbline.pipeline.tracking import Run
from plumbline.rewards import reward as rewards
from plumbline.rewards.judged import JudgeReward
from plumbline.rewards.reward import WeightedSum, finish, held_out_accuracy, load_reward, outcomes, spending, spent
from plumbline.rows import Message, Row, text_of
from plumbline.world.annotate import AnnotatorConfig
from plumbline.world.verify import verify
from stages.label import LabelStage
from stages.label import run as run_label
from stages.reject import RejectEntry, RejectStage
from stages.reject import run as run_reject
from stages.reward_judge import RewardJudgeEntry, RewardJudgeStage
from stages.reward_judge import run as run_reward_judge
from tests.test_composing import stage

ANNOTATOR = AnnotatorConfig(error_rate=0.1, position_bias=0.0, length_bias=0.0, revision_skill=0.7, seed=1)
SIMULATED = SimulatedJudge(annotator=ANNOTATOR)
PROMPT = [{"role": "user", "content": "Say something."}]
SAMPLE = Path("artifacts/sample/round1")


@pytest.fixture
def sampled(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a small sample of the closed world, as under DVC."""
    monkeypatch.setenv("DVC_STAGE", "by test")
    monkeypatch.setenv("DVC_ROOT", str(project))
    (project / "data/annotations").mkdir(parents=True)
    write_table(SAMPLE, sample(15, 4, seed=3), 4)
    return project


def make(judge: JudgeConfig, name: str = "simulated") -> Path:
    """Runs the stage and returns the reward's folder."""
    entry = RewardJudgeEntry(judge=name)
    run_reward_judge(RewardJudgeStage(seed=17, threads=1, reward_judge=entry, judge=judge), "direct")
    return Path("artifacts/reward/direct")


def columns_of(rows: Sequence[Row]) -> tuple[list[list[Message]], list[str]]:
    return [row["prompt"] for row in rows], [text_of(row["completion"]) for row in rows]


def gold_of(rows: Sequence[Row]) -> list[float]:
    return [verify(row["prompt"], text_of(row["completion"])).gold for row in rows]


# ---- composing ------------------------------------------------------------------------------------------------------


def test_a_recipe_with_a_judge_as_reward_composes_with_that_judge_and_needs_one(project: Path) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text())
    recipe = params | {"reward_judge": {"direct": {"judge": "openai"}, "nobody": {"judge": "none"}}}
    (project / "params.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    done = stage("stages.reward_judge", "reward_judge=direct", "--cfg", "job", cwd=project)
    assert "backend: openai" in done.stdout, done.stderr
    errors = stage("stages.check", cwd=project).stderr
    assert "reward_judge.nobody: judge: expected a judge, found none" in errors
    assert "reward_judge.direct" not in errors


# ---- scores ---------------------------------------------------------------------------------------------------------


def test_the_reward_is_the_rating_that_labelling_gives_from_0_to_1(sampled: Path) -> None:
    label = LabelEntry(
        sample="round1", judge="simulated", way="rating", pairs="best_vs_worst", min_margin=1.0, keep_ties=False, pairs_per_prompt=0,
        opponents=0, prompts=0, strong=None, weak=None, known="none", validation_fraction=0.25,
    )  # fmt: skip
    run_label(LabelStage(seed=17, threads=1, label=label, judge=SIMULATED), "round1")
    ratings = [row["value"] for row in read_jsonl("artifacts/verdicts/round1.jsonl")]
    reward = load_reward(make(SIMULATED))
    scores = reward(*columns_of(read_table(SAMPLE)))
    assert scores == [(rating - 1) / 9 for rating in ratings]
    assert len(set(scores)) > 5  # so that another scale would be seen
    assert outcomes(reward) == {"judge_read": 60}
    assert held_out_accuracy(Path("artifacts/reward/direct")) is None  # so that every method's gate lets it pass


@pytest.mark.parametrize(
    ("judge", "marked"),
    [
        (SIMULATED, False),
        (GoldJudge(), True),
        (PanelJudge(members={"a": {"backend": "openai", "model": "m"}}), False),
    ],
)
def test_a_reward_from_the_verifier_is_marked(sampled: Path, judge: JudgeConfig, marked: bool) -> None:
    make(judge)
    assert read_json("artifacts/figures/reward_judge/direct.json") == {"uses_gold": marked}


def test_a_perfect_judges_reward_is_gold(sampled: Path) -> None:
    rows = read_table(SAMPLE)
    assert load_reward(make(GoldJudge(), "gold"))(*columns_of(rows)) == pytest.approx(gold_of(rows))


class Scripted:
    """A chat that rates texts with `three` in them 3 and others 7, and gives no verdict on gibberish."""

    model, identity, share = "scripted", "scripted", 1.0

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.asked: list[Request] = []

    def complete(self, requests: Sequence[Request]) -> list[Reply]:
        self.asked += requests
        self.ledger.calls += len(requests)
        return [Reply(self.reply(request.messages[0]["content"])) for request in requests]

    def reply(self, question: str) -> str:
        return "I would rather not say" if "gibberish" in question else f"Rating: {3 if 'three' in question else 7}"

    def finish(self) -> None:
        self.share = 0.0


def scripted(limit: float | None = 0.05, minimum: int = 30) -> tuple[JudgeReward, Scripted]:
    chat, config = Scripted(), SimulatedJudge(attempts=2)
    judge = AskingJudge("scripted", [Member("scripted", chat, config)], config, seed=1)
    return JudgeReward(judge, GateLimits(unparsed_fraction=limit, minimum=minimum)), chat


def score(reward: JudgeReward, good: int, unread: int) -> list[float]:
    texts = [f"good {number}" for number in range(good - 1)] + ["three"] + [f"gibberish {number}" for number in range(unread)]
    return reward([PROMPT] * len(texts), texts)


def test_an_unread_rating_is_the_lowest_of_the_call_and_counted_while_there_are_few() -> None:
    reward, chat = scripted()
    assert score(reward, 38, 2) == [6 / 9] * 37 + [2 / 9] * 3
    assert outcomes(reward) == {"judge_read": 38, "judge_unparsed": 2}
    assert len(chat.asked) == 40 + 2  # the unread ones once more
    blend = WeightedSum([(1.0, reward), (0.5, scripted()[0])])
    assert blend([PROMPT], ["good"]) == [pytest.approx(1.0)]
    assert outcomes(blend) == {"judge_read": 40, "judge_unparsed": 2}
    assert finish(blend)["judge_calls"] == 42 + 1 + 1
    assert chat.share == 0.0


@pytest.mark.parametrize("stage", ["reject", "filter", "evaluate"])
def test_a_reward_is_finished_when_a_shard_fails(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    scorer, chat = scripted()
    preparing = {"reject": "scoring", "filter": "filtering", "evaluate": "rewarding"}[stage]
    module: Any = importlib.import_module(f"stages.{stage}")
    monkeypatch.setattr(module if hasattr(module, "load_reward") else rewards, "load_reward", lambda *_: scorer)
    config = SimpleNamespace(seed=1, threads=1, filter=None, policy="sft", evaluate=SimpleNamespace(against="sft"))
    with pytest.raises(RuntimeError, match="a shard"), getattr(module, preparing)(config, Path("artifacts/reward/rm"), "a run"):
        assert chat.share == 1.0
        raise RuntimeError("a shard")
    assert chat.share == 0.0


def test_what_a_judges_replies_took_is_of_all_shards_in_however_many_attempts(tmp_path: Path) -> None:
    shards = [tmp_path / name for name in ("0", "1")]
    for shard, count in zip(shards, (5, 3), strict=True):
        shard.mkdir()
        blend = WeightedSum([(1.0, scripted()[0]), (0.5, scripted()[0])])  # a new process loads the reward anew
        blend([PROMPT], ["before the shard"])
        with spending(blend, shard):
            blend([PROMPT] * count, [f"good {number}" for number in range(count)])
        finish(blend)
    assert spent(shards)["judge_calls"] == 2 * (5 + 3)
    assert spent(shards)["judge_cost"] == 0.0
    with spending(DigitsReward(), shards[0]):
        pass
    assert spent(shards[:1]) == {}


class DigitsReward:
    """A reward without a judge."""

    def __call__(self, prompts: Any, completions: Any) -> list[float]:
        return [float(text.isdigit()) for text in completions]


def test_too_many_unread_ratings_stop_scoring_with_their_number_and_examples() -> None:
    with pytest.raises(
        GateError, match=r"(?s)no default reward.*\(3 of 40\), expected at most 0\.05.*rather not say.*judge\.attempts"
    ):
        score(scripted()[0], 37, 3)
    reward, _ = scripted()
    for _ in range(7):
        score(reward, 4, 0)
    with pytest.raises(GateError, match=r"2 of 33"):  # small calls add up
        score(reward, 3, 2)
    reward, _ = scripted()
    score(reward, 4000, 0)
    with pytest.raises(GateError, match=r"5 of 40"):  # earlier replies do not hide a judge that breaks late
        score(reward, 35, 5)


def test_if_nothing_can_be_read_there_is_no_lowest_rating_to_take() -> None:
    for limit in (0.05, 1.0, None):
        with pytest.raises(GateError, match=r"1 of 1|none of 1 verdicts could be read"):
            scripted(limit)[0]([PROMPT], ["gibberish"])
    assert score(scripted(None)[0], 2, 8)[2:] == [2 / 9] * 8


def test_a_small_call_of_which_nothing_can_be_read_stops_no_stage_and_many_of_them_do() -> None:
    reward, _ = scripted()
    score(reward, 1000, 0)
    assert reward([PROMPT], ["gibberish"]) == [0.0]  # such as the last shard of a sample
    with pytest.raises(GateError, match=r"30 of 30"):  # a judge that breaks late, asked in small calls
        for number in range(40):
            reward([PROMPT], [f"gibberish {number}"])


def test_a_pair_that_comes_twice_is_asked_once() -> None:
    reward, chat = scripted()
    other = [{"role": "user", "content": "Say something else."}]
    assert reward([PROMPT, other, PROMPT, PROMPT], ["good", "good", "three", "good"]) == [6 / 9, 6 / 9, 2 / 9, 6 / 9]
    assert len(chat.asked) == 3
    assert reward([], []) == []


# ---- judges that cost money -----------------------------------------------------------------------------------------

KEY = "planted/0123456789+abcdef"


def endpoint(url: str, **changes: Any) -> OpenaiJudge:
    settings: dict[str, Any] = {
        "model": "m", "base_url": url, "sampling": SamplingConfig(max_tokens=10), "prices": Prices(input=100.0, output=1000.0),
        "retries": 0,
    }  # fmt: skip
    return OpenaiJudge(**(settings | changes))


def test_what_was_bought_is_not_bought_again_and_no_key_is_written(sampled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with running() as server:
        folder = make(endpoint(server.url), "openai")
        for calls in (3, 0):
            reward = load_reward(folder, "rl@direct 1")
            assert reward([PROMPT] * 4, ["a", "b", "c", "a"]) == [(worth(text) - 1) / 9 for text in "abca"]
            totals = finish(reward)
            assert (totals["judge_bought"], totals["judge_cached"]) == (calls, 3 - calls)
            assert (totals["judge_cost"] > 0) == (calls > 0)
        assert KEY in server.headers[0]
    assert [file for file in sampled.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()] == []
    assert read_json(folder / "reward.json")["judge"]["api_key_env"] == "OPENAI_API_KEY"


def test_each_run_has_its_own_budget_in_a_sum_too(sampled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with running() as server:
        make(endpoint(server.url, max_cost=0.2, concurrency=1), "openai")
        write_json("artifacts/reward/sum/reward.json", {"kind": "sum", "parts": [{"reward": "direct", "weight": 1.0}]})
        first, second = (load_reward(Path("artifacts/reward/sum"), f"rl@direct {number}") for number in (1, 2))
        texts = [f"answer {number}" for number in range(9)]
        with pytest.raises(BudgetError, match=r"max_cost 0\.2"):
            first([PROMPT] * 9, texts)
        assert 0 < server.calls < 9
        assert len(second([PROMPT], ["answer 8"])) == 1  # another run may buy what this one could not
        finish(first)
        finish(second)


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (NoJudge(), "expected a judge, found none"),
        (HumanJudge(annotations="data/annotations/a.csv"), "found people: label a sample"),
        (
            PanelJudge(members={"a": {"backend": "human", "annotations": "x"}}),
            "members.a.backend: .*which can be asked, found 'human'",
        ),
        (PanelJudge(members={"a": {"backend": "gold"}}), "members.a.backend: .*which can be asked, found 'gold'"),
        (PanelJudge(members={"a": {"backend": "openai", "model": "m", "api_key": "sk-1"}}), "members.a: unknown key 'api_key'"),
        (OpenaiJudge(model="m", dry_run=True), r"\.dry_run: expected false .* estimate with an entry of `label`"),
    ],
)
def test_a_judge_that_cannot_be_a_reward_is_refused_with_what_can(sampled: Path, judge: JudgeConfig, message: str) -> None:
    with pytest.raises(ValueError, match=f"^judge.*{message}"):
        make(judge, "some")
    assert not Path("artifacts/reward/direct").exists()


def test_a_panel_of_simulated_judges_scores_by_the_mean_of_its_members(sampled: Path) -> None:
    annotators = [
        {"error_rate": rate, "position_bias": 0.0, "length_bias": 0.0, "revision_skill": 0.7, "seed": 1} for rate in (0.1, 0.3)
    ]
    members = {f"m{number}": {"backend": "simulated", "annotator": values} for number, values in enumerate(annotators)}
    columns = columns_of(read_table(SAMPLE))
    scores = load_reward(make(PanelJudge(members=members), "panel"))(*columns)
    singles = [load_reward(make(SimulatedJudge(annotator=AnnotatorConfig(**values)), "one"))(*columns) for values in annotators]
    assert scores == pytest.approx([(a + b) / 2 for a, b in zip(*singles, strict=True)])
    assert singles[0] != singles[1]


# ---- what uses the reward -------------------------------------------------------------------------------------------


def test_rejection_sampling_keeps_what_the_judge_rates_highest(sampled: Path) -> None:
    make(SIMULATED)
    entry = RejectEntry(
        sample="round1", reward="direct", strategy="best", keep=1, threshold=None, fraction=None, beta=None, pairs="none",
        validation_fraction=0.0,
    )  # fmt: skip
    run_reject(RejectStage(seed=1, threads=1, reject=entry), "rs")
    metrics = read_json("artifacts/figures/reject/rs.json")
    assert metrics["judge_read"] == metrics["completions"] == 60
    assert metrics["reward_gain"] > 0.1
    kept, everything = gold_of(read_jsonl("artifacts/reject/rs/train.jsonl")), gold_of(read_table(SAMPLE))
    assert sum(kept) / len(kept) > sum(everything) / len(everything) + 0.1


class Recorder(Run):
    """A tracked run that keeps the last value of each metric."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.last |= metrics

    def log_costs(self, figures: Any) -> None:
        self.last |= figures


def test_ppo_learns_from_a_judge_and_the_same_run_again_buys_nothing(sampled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from plumbline.methods.online.ppo import align

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    save_policy(tiny_policy(), word_tokenizer(), sampled / "artifacts/policy/sft")
    prompts = Path("artifacts/data/prompts/train.jsonl")
    write_jsonl(prompts, [{"id": str(number), "prompt": prompt} for number, prompt in enumerate(PROMPTS)])
    runs: list[Recorder] = []
    with running() as server:
        reward = make(endpoint(server.url), "openai")
        for name in ("one", "two"):
            runs.append(Recorder())
            job = OnlineJob(
                init=Path("artifacts/policy/sft"), output=sampled / name, curve=sampled / f"{name}.csv", run=runs[-1], seed=3,
                checkpoints=sampled / f"checkpoints-{name}", reward=reward, prompts=prompts,
            )  # fmt: skip
            assert 0 <= align(tiny_config(), job)["reward"] <= 1
    assert runs[0].last["judge_bought"] > 0 == runs[1].last["judge_bought"]
    assert runs[0].last["judge_read"] == runs[1].last["judge_read"] == 32
