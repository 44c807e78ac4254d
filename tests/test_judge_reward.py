"""A judge's own rating as the reward: the same number as labels have, no default where none can be read, nothing bought twice."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from judging_model import sample
from judging_server import running, worth
from ppo_tiny import PROMPTS, tiny_config, tiny_policy, word_tokenizer

from stages.evaluation.recipe import learns_from_gold, recipe_nodes
from stages.judging.backends.endpoint import BudgetError
from stages.judging.chat import Ledger, Reply, Request
from stages.judging.config import (
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
from stages.judging.gate import GateError
from stages.judging.judge import AskingJudge, Member
from stages.label import LabelEntry, LabelStage
from stages.label import run as run_label
from stages.models.rewards import WeightedSum, finish, held_out_accuracy, load_reward, outcomes
from stages.models.training import save_policy
from stages.pipeline.records import read_json, read_jsonl, write_json, write_jsonl
from stages.pipeline.tracking import Run
from stages.reject import RejectEntry, RejectStage
from stages.reject import run as run_reject
from stages.reward import RewardEntry, RewardStage
from stages.reward import run as run_reward
from stages.rewards.judged import JudgeReward
from stages.world.annotator import AnnotatorConfig
from stages.world.verifier import verify
from tests.test_composing import check, stage

ANNOTATOR = AnnotatorConfig(error_rate=0.1, position_bias=0.0, length_bias=0.0, revision_skill=0.7, seed=1)
SIMULATED = SimulatedJudge(annotator=ANNOTATOR)
PROMPT = [{"role": "user", "content": "Say something."}]
DIRECT = {"kind": "judge", "init": "none", "signal": "none", "second": "none"}


@pytest.fixture
def sampled(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a small sample of the closed world, as under DVC."""
    monkeypatch.setenv("DVC_STAGE", "by test")
    monkeypatch.setenv("DVC_ROOT", str(project))
    for place in ("none", "policy/none", "reward/none"):
        (project / "artifacts" / place).mkdir(parents=True)
    (project / "data/annotations").mkdir(parents=True)
    write_jsonl("artifacts/sample/round1/completions.jsonl", sample(15, 4, seed=3))
    return project


def make(judge: JudgeConfig, name: str = "simulated", **changes: Any) -> Path:
    """Runs the reward stage and returns the reward's folder."""
    settings: dict[str, Any] = DIRECT | {"judge": name} | changes
    run_reward(RewardStage(seed=17, threads=1, reward=RewardEntry(**settings), judge=judge), "direct")
    return Path("artifacts/reward/direct")


def texts_of(rows: list[dict[str, Any]]) -> tuple[list[Any], list[str]]:
    return [row["prompt"] for row in rows], [row["completion"][0]["content"] for row in rows]


# ---- composing ------------------------------------------------------------------------------------------------------


def with_direct(recipe: str, **changes: Any) -> str:
    params = yaml.safe_load(recipe)
    params["reward"]["direct"] = {key: value for key, value in (DIRECT | changes).items() if value is not None}
    return yaml.safe_dump(params, sort_keys=False)


@pytest.mark.parametrize(("entry", "backend"), [("direct", "openai"), ("rm", "none")])
def test_an_entry_composes_with_the_judge_that_it_names(project: Path, entry: str, backend: str) -> None:
    recipe = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(with_direct(recipe, judge="openai"))
    done = stage("stages.reward", f"reward={entry}", "--cfg", "job", cwd=project)
    assert done.returncode == 0, done.stderr
    assert f"backend: {backend}" in done.stdout


def test_a_recipe_with_a_judge_as_reward_is_sound(project: Path) -> None:
    (project / "params.yaml").write_text(with_direct((project / "params.yaml").read_text(), judge="openai"))
    done = stage("stages.check", cwd=project)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judge": "none"}, "reward.direct.judge: kind: judge needs a judge, found none: name a file of conf/judge"),
        ({"judge": None}, "reward.direct.judge: missing; DVC needs it"),
        ({"judge": "simulated", "kind": None}, "reward.direct.judge: expected none, since kind: model asks no judge"),
        ({"judge": "simulatd"}, "reward.direct: judge: 'simulatd' has no file"),
    ],
)
def test_a_judge_that_does_not_fit_stops_the_build(project: Path, changes: dict[str, Any], message: str) -> None:
    assert message in check(project, with_direct((project / "params.yaml").read_text(), **changes))


# ---- scores ---------------------------------------------------------------------------------------------------------


def test_the_reward_is_the_rating_that_labelling_gives_from_0_to_1(sampled: Path) -> None:
    label = LabelEntry(
        sample="round1", judge="simulated", way="rating", pairs="best_vs_worst", min_margin=1.0, keep_ties=False, pairs_per_prompt=0,
        opponents=0, prompts=0, strong=None, weak=None, constitution="none", known="none", validation_fraction=0.25,
    )  # fmt: skip
    run_label(LabelStage(seed=17, threads=1, label=label, judge=SIMULATED), "round1")
    ratings = [row["value"] for row in read_jsonl("artifacts/label/round1/verdicts.jsonl")]
    reward = load_reward(make(SIMULATED))
    found = reward(*texts_of(read_jsonl("artifacts/sample/round1/completions.jsonl")))
    assert found == [(rating - 1) / 9 for rating in ratings]
    assert len({*found}) > 5  # so another scale would be seen
    assert outcomes(reward) == {"judge_read": 60}
    assert read_json("metrics/reward/direct.json") == {"accuracy": None, "n": 0}
    assert held_out_accuracy(Path("artifacts/reward/direct")) is None  # so every method's gate lets it pass


def test_a_perfect_judges_reward_is_gold(sampled: Path) -> None:
    prompts, texts = texts_of(read_jsonl("artifacts/sample/round1/completions.jsonl"))
    gold = [verify(prompt, text).gold for prompt, text in zip(prompts, texts, strict=True)]
    assert load_reward(make(GoldJudge(), "gold"))(prompts, texts) == pytest.approx(gold)


class Scripted:
    """A chat that rates 7, but 3 of what says so, and says nothing readable of gibberish."""

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


def test_an_unread_rating_is_the_lowest_of_the_call_and_counted_while_few_are() -> None:
    reward, chat = scripted()
    assert score(reward, 38, 2) == [6 / 9] * 37 + [2 / 9] * 3
    assert outcomes(reward) == {"judge_read": 38, "judge_unparsed": 2}
    assert len(chat.asked) == 40 + 2  # the unread ones once more
    blend = WeightedSum([(1.0, reward), (0.5, scripted()[0])])
    assert blend([PROMPT], ["good"]) == [pytest.approx(1.0)]
    assert outcomes(blend) == {"judge_read": 40, "judge_unparsed": 2}
    assert finish(blend)["judge_calls"] == 42 + 1 + 1
    assert chat.share == 0.0


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
    with pytest.raises(GateError, match=r"5 of 40"):  # and a judge that breaks late does not live on what it said before
        score(reward, 35, 5)


def test_where_nothing_can_be_read_there_is_no_lowest_to_take() -> None:
    for limit in (0.05, 1.0, None):
        with pytest.raises(GateError, match=r"1 of 1|none of 1 verdicts could be read"):
            scripted(limit)[0]([PROMPT], ["gibberish"])
    assert score(scripted(None)[0], 2, 8)[2:] == [2 / 9] * 8


def test_a_pair_that_comes_twice_is_asked_once() -> None:
    reward, chat = scripted()
    other = [{"role": "user", "content": "Say something else."}]
    assert reward([PROMPT, other, PROMPT, PROMPT], ["good", "good", "three", "good"]) == [6 / 9, 6 / 9, 2 / 9, 6 / 9]
    assert len(chat.asked) == 3
    assert reward([], []) == []


# ---- judges that cost something -------------------------------------------------------------------------------------

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
            reward = load_reward(folder, "align@direct 1")
            assert reward([PROMPT] * 4, ["a", "b", "c", "a"]) == [(worth(text) - 1) / 9 for text in "abca"]
            taken = finish(reward)
            assert (taken["judge_bought"], taken["judge_cached"]) == (calls, 3 - calls)
            assert (taken["judge_cost"] > 0) == (calls > 0)
        assert KEY in server.headers[0]
    assert [file for file in sampled.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()] == []
    assert read_json(folder / "reward.json")["judge"]["api_key_env"] == "OPENAI_API_KEY"


def test_a_budget_is_one_runs_own_in_a_sum_too(sampled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with running() as server:
        make(endpoint(server.url, max_cost=0.2, concurrency=1), "openai")
        write_json("artifacts/reward/sum/reward.json", {"kind": "sum", "parts": [{"reward": "direct", "weight": 1.0}]})
        first, second = (load_reward(Path("artifacts/reward/sum"), f"align@direct {number}") for number in (1, 2))
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
        (NoJudge(), "found none: name a file of conf/judge, such as simulated"),
        (HumanJudge(annotations="data/annotations/a.csv"), "label a sample with `judge: human`, and train a reward"),
        (PanelJudge(members={"a": {"backend": "gold"}, "b": {"backend": "human", "annotations": "x"}}), "people cannot rate"),
        (PanelJudge(members={"a": {"backend": "openai", "model": "m", "api_key": "sk-1"}}), "Key 'api_key' not in 'OpenaiJudge'"),
        (OpenaiJudge(model="m", dry_run=True), "estimate on a `label` entry"),
    ],
)
def test_a_judge_that_cannot_be_a_reward_is_refused_with_what_can(sampled: Path, judge: JudgeConfig, message: str) -> None:
    with pytest.raises(ValueError, match=r"params\.yaml: reward\.direct\.judge: ") as error:
        make(judge, "some")
    assert message in str(error.value)
    assert not Path("artifacts/reward/direct").exists()


def test_a_panel_of_simulated_judges_scores(sampled: Path) -> None:
    annotators = [
        {"error_rate": rate, "position_bias": 0.0, "length_bias": 0.0, "revision_skill": 0.7, "seed": 1} for rate in (0.1, 0.3)
    ]
    members = {f"m{number}": {"backend": "simulated", "annotator": values} for number, values in enumerate(annotators)}
    reward = load_reward(make(PanelJudge(members=members), "panel"))
    prompts, texts = texts_of(read_jsonl("artifacts/sample/round1/completions.jsonl"))
    found = reward(prompts, texts)
    singles = [
        load_reward(make(SimulatedJudge(annotator=AnnotatorConfig(**values)), "one"))(prompts, texts) for values in annotators
    ]
    assert found == pytest.approx([(a + b) / 2 for a, b in zip(*singles, strict=True)])
    assert singles[0] != singles[1]


# ---- what learns from it --------------------------------------------------------------------------------------------


def test_rejection_sampling_keeps_what_the_judge_rates_highest(sampled: Path) -> None:
    make(SIMULATED)
    entry = RejectEntry(
        sample="round1", reward="direct", cost="none", strategy="best", keep=1, threshold=None, fraction=None, beta=None,
        max_cost_score=None, pairs="none", validation_fraction=0.0,
    )  # fmt: skip
    run_reject(RejectStage(seed=1, threads=1, reject=entry), "rs")
    metrics = read_json("metrics/reject/rs.json")
    assert metrics["judge_read"] == metrics["completions"] == 60
    assert metrics["reward_gain"] > 0.1
    kept = read_jsonl("artifacts/reject/rs/train.jsonl")
    gold = [verify(*arguments).gold for arguments in zip(*texts_of(kept), strict=True)]
    everything = [verify(*a).gold for a in zip(*texts_of(read_jsonl("artifacts/sample/round1/completions.jsonl")), strict=True)]
    assert sum(gold) / len(gold) > sum(everything) / len(everything) + 0.1


class Recorder(Run):
    def __init__(self) -> None:
        self.last: dict[str, float] = {}

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.last |= metrics


def test_ppo_learns_from_a_judge_and_a_second_run_buys_nothing(sampled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages.methods.ppo import align

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    save_policy(tiny_policy(), word_tokenizer(), sampled / "artifacts/policy/sft")
    write_jsonl("artifacts/data/prompts/train.jsonl", [{"id": str(i), "prompt": prompt} for i, prompt in enumerate(PROMPTS)])
    runs: list[Recorder] = []
    with running() as server:
        make(endpoint(server.url), "openai")
        for name in ("one", "two"):
            runs.append(Recorder())
            metrics = align(
                tiny_config(), init=Path("artifacts/policy/sft"), signal=Path("artifacts/reward/direct"), data=Path("artifacts/data"),
                output=sampled / name, checkpoints=sampled / f"checkpoints-{name}", curve=sampled / f"{name}.csv", run=runs[-1], seed=3,
            )  # fmt: skip
            assert 0 <= metrics["reward"] <= 1
    assert runs[0].last["judge_bought"] > 0 == runs[1].last["judge_bought"]
    assert runs[0].last["judge_read"] == runs[1].last["judge_read"] == 32
    assert (sampled / "one.csv").read_bytes() == (sampled / "two.csv").read_bytes()


@pytest.mark.parametrize("name", ["direct", "gold", "judge"])
def test_a_policy_trained_on_the_gold_judges_ratings_is_marked(name: str) -> None:
    """Whatever else is called as the judge or the kind is."""
    others = {other: DIRECT | {"kind": "rules", "judge": "none"} for other in ("gold", "judge")}
    params = {
        "sample": {"gold": {"policy": "sft"}},
        "label": {"l": {"sample": "gold", "judge": "gold"}},
        "reward": {key: value for key, value in others.items() if key != name} | {name: DIRECT | {"judge": "gold"}},
        "align": {
            "rl": {"method": "rloo", "init": "sft", "signal": f"reward/{name}"},
            "dpo": {"method": "dpo", "init": "sft", "signal": "label/l"},
            "fair": {"method": "rloo", "init": "sft", "signal": "reward/fair"},
        },
    }
    params["reward"]["fair"] = DIRECT | {"judge": "simulated"}
    nodes = recipe_nodes(params)
    assert [policy for policy in params["align"] if learns_from_gold(nodes, policy)] == ["rl", "dpo"]
