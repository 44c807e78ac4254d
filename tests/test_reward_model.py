"""Reward models: margins, batches of whole prompts, calibration, and scores that depend on the text alone."""

import csv
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_tiny import llama_config, tiny_policy, word_tokenizer
from transformers import LlamaForSequenceClassification, PreTrainedTokenizerFast

from stages.models.chat import END, encode_turns
from stages.models.rewards import RewardModel, load_reward
from stages.models.training import save_policy
from stages.pipeline.records import read_json, read_jsonl, write_json, write_jsonl
from stages.reward import RewardEntry, RewardStage, run
from stages.rewards.cost import cost_rows, sign_loss
from stages.rewards.preferences import calibration, calibration_error, order_by_prompt, with_margins
from stages.rewards.sandbox import Limits


def said(text: str, role: str = "assistant") -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


# ---- scores ---------------------------------------------------------------------------------------------------------

PROMPTS = [said("q", "user"), said("q r q r", "user"), said("r", "user"), said("q q", "user"), said("r", "user")]
COMPLETIONS = ["a", "b c d a b", "", "a b", "d c b a d c b a"]


def reward_model(tokenizer: PreTrainedTokenizerFast, batch_size: int) -> RewardModel:
    torch.manual_seed(4)
    model = LlamaForSequenceClassification(llama_config(len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id))
    return RewardModel(model, tokenizer, batch_size)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_scores_do_not_depend_on_batch_size_or_padding(batch_size: int) -> None:
    tokenizer = word_tokenizer()
    together = reward_model(tokenizer, 256)(PROMPTS, COMPLETIONS)
    assert reward_model(tokenizer, batch_size)(PROMPTS, COMPLETIONS) == pytest.approx(together, abs=1e-5)
    assert max(together) - min(together) > 0.1  # so a difference would be seen


def test_a_score_is_read_at_the_completions_end_of_turn() -> None:
    """Computed anew for each text alone, from the hidden state at its last token."""
    tokenizer = word_tokenizer()
    reward = reward_model(tokenizer, 256)
    for prompt, completion, found in zip(PROMPTS, COMPLETIONS, reward(PROMPTS, COMPLETIONS), strict=True):
        turn = encode_turns(tokenizer, [(prompt, said(completion))])[0]
        assert turn.completion[-1] == tokenizer.convert_tokens_to_ids(END)
        with torch.no_grad():
            hidden = reward.model.model(torch.tensor([turn.prompt + turn.completion])).last_hidden_state[0, -1]
            assert found == pytest.approx(float(reward.model.score(hidden)), abs=1e-5)


def test_padding_by_the_end_of_turn_would_be_read_one_token_early_so_it_is_refused() -> None:
    """The pitfall: the classifier takes the last token that is no padding, so with pad = end-of-turn it never reads the end of turn."""
    tokenizer = word_tokenizer()
    tokenizer.pad_token = END
    with pytest.raises(ValueError, match="padding token other than the end-of-turn token"):
        reward_model(tokenizer, 256)


# ---- margins --------------------------------------------------------------------------------------------------------


def pair(prompt: str, margin: float | None = None, **more: Any) -> dict[str, Any]:
    return {"prompt": said(prompt, "user"), "chosen": said("a b"), "rejected": said("c d"), "margin": margin, **more}


def test_margins_are_the_judges_times_the_scale() -> None:
    rows = [pair("q", 3.0), pair("q", score_chosen=9, score_rejected=7.5)]
    assert [row["margin"] for row in with_margins(rows, 0.5)] == [1.5, 0.75]
    assert all(set(row) == {"prompt", "chosen", "rejected"} for row in with_margins(rows, 0.0))
    with pytest.raises(ValueError, match="score_chosen and score_rejected"):
        with_margins([pair("q")], 0.5)


def test_the_trainers_loss_has_the_margin_inside_the_sigmoid(tmp_path: Path) -> None:
    """Llama 2's Eq. 2 as TRL computes it: −log σ(r_c − r_r − m), here by hand."""
    from trl import RewardConfig, RewardTrainer
    from trl.trainer.reward_trainer import DataCollatorForPreference

    tokenizer = word_tokenizer()
    model = reward_model(tokenizer, 1).model
    arguments = RewardConfig(output_dir=str(tmp_path), report_to="none", bf16=False, gradient_checkpointing=False, use_cpu=True)
    from datasets import Dataset

    rows = [{"prompt": said("q", "user"), "chosen": said("a b"), "rejected": said("c d"), "margin": 0.7}]
    trainer = RewardTrainer(model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    batch = DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id)([trainer.train_dataset[0]])
    with torch.no_grad():
        loss = float(trainer.compute_loss(model, batch))
    better, worse = RewardModel(model, tokenizer)([said("q", "user")] * 2, ["a b", "c d"])
    assert loss == pytest.approx(math.log1p(math.exp(-(better - worse - 0.7))), abs=1e-5)


# ---- whole prompts --------------------------------------------------------------------------------------------------


def split_prompts(prompts: list[str], rows: list[int], batch_size: int) -> int:
    batches: dict[str, set[int]] = {}
    for place, row in enumerate(rows):
        batches.setdefault(prompts[row], set()).add(place // batch_size)
    return sum(len(found) > 1 for found in batches.values())


@pytest.mark.parametrize(("sizes", "batch_size", "expected"), [
    ([6] * 20, 12, 0),  # all pairs of 4 completions
    ([1, 2, 3, 6] * 10, 12, 0),
    ([6] * 20, 8, None),  # cannot be kept whole: counted
    ([20], 8, 1),
])  # fmt: skip
def test_all_pairs_of_a_prompt_lie_in_one_batch(sizes: list[int], batch_size: int, expected: int | None) -> None:
    prompts = [f"p{number}" for number, size in enumerate(sizes) for _ in range(size)]
    random.Random(0).shuffle(prompts)
    order = order_by_prompt(prompts, batch_size, seed=1)
    assert sorted(order.rows) == list(range(len(prompts)))
    assert order.split_count == split_prompts(prompts, order.rows, batch_size)
    assert order.split_count == expected if expected is not None else order.split_count > 0
    assert order.rows != order_by_prompt(prompts, batch_size, seed=2).rows or len(sizes) == 1
    given = split_prompts(prompts, list(range(len(prompts))), batch_size)
    assert order.split_count <= given


# ---- calibration ----------------------------------------------------------------------------------------------------


def test_margins_that_are_log_odds_are_calibrated_and_twice_them_are_not() -> None:
    """Preferences drawn with probability σ(m): the error is that of sampling; margins of 2m claim too much."""
    rng = random.Random(5)
    true = [rng.gauss(0, 1.5) for _ in range(20_000)]
    margins = [abs(m) if rng.random() < 1 / (1 + math.exp(-abs(m))) else -abs(m) for m in true]
    none = [None] * len(margins)
    assert calibration_error(calibration(margins, none)) < 0.015
    assert calibration_error(calibration([2 * m for m in margins], none)) > 0.05


def test_accuracy_by_margin_by_hand() -> None:
    found = calibration([2.0, -1.0, 0.0, 3.0], [1.0, 1.0, 4.0, None], bins=2)
    own, told = [one for one in found if one.by == "reward"], [one for one in found if one.by == "label"]
    assert [(one.n, one.accuracy, one.margin) for one in own] == [(2, 0.25, 0.5), (2, 1.0, 2.5)]
    assert own[1].predicted == pytest.approx((1 / (1 + math.exp(-2)) + 1 / (1 + math.exp(-3))) / 2)
    assert sum(one.n for one in told) == 3
    assert told[0].predicted is None
    assert all(one.accuracy_low <= one.accuracy <= one.accuracy_high for one in found)


# ---- the stage ------------------------------------------------------------------------------------------------------


def entry(**changes: Any) -> RewardEntry:
    settings: dict[str, Any] = {
        "kind": "model", "init": "sft", "signal": "label/round1", "second": "none", "judge": "none",
        "weight": 1.0, "second_weight": 1.0, "measure": "gold",
        "isolation": "bubblewrap", "limits": Limits(), "boundary": 0.5, "margin_scale": 0.0,
        "whole_prompts": False, "centring": 0.01, "learning_rate": 1e-2, "epochs": 4, "batch_size": 12, "micro_batch_size": 12,
        "schedule": "constant", "warmup_fraction": 0.0, "weight_decay": 0.0, "adam_beta2": 0.999, "max_grad_norm": 1.0,
        "max_steps": -1, "evaluate_every": 50, "keep": "last", "bf16": False, "gradient_checkpointing": False,
        "lora_rank": 0, "lora_alpha": 32, "lora_output": "merged",
    }  # fmt: skip
    return RewardEntry(**(settings | changes))


@pytest.fixture
def labelled(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_STAGE", "reward@rm")
    monkeypatch.setenv("DVC_ROOT", str(project))
    save_policy(tiny_policy(), word_tokenizer(), project / "artifacts/policy/sft")
    (project / "artifacts/reward/none").mkdir(parents=True)
    rows = []
    for number in range(12):
        prompt = " ".join("qr"[number >> bit & 1] for bit in range(4))
        rows += [{"prompt": said(prompt, "user"), "chosen": said(f"a {tail}"), "rejected": said(f"c {tail}"), "margin": 1.0 + number}
                 for tail in ("b", "d b", "b b")]  # fmt: skip
    write_jsonl("artifacts/label/round1/train.jsonl", rows)
    write_jsonl("artifacts/label/round1/validation.jsonl", rows[:9])
    return project


def test_a_model_trains_with_margins_on_whole_prompts_and_reports_its_calibration(labelled: Path) -> None:
    run(RewardStage(seed=1, threads=1, reward=entry(margin_scale=0.1, whole_prompts=True)), "rm")
    metrics = read_json("metrics/reward/rm.json")
    assert metrics["prompts_split"] == 0
    assert metrics["accuracy"] > 0.8
    assert 0 <= metrics["calibration_error"] <= 1
    rows = list(csv.DictReader((labelled / "artifacts/calibration/rm.csv").open()))
    assert {row["by"] for row in rows} == {"reward", "label"}
    assert sum(int(row["n"]) for row in rows if row["by"] == "reward") == 9


# ---- LoRA -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["model", "cost"])
def test_an_adapter_and_the_head_are_all_that_is_trained_and_the_merged_folder_scores_as_they_do(
    labelled: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification
    from trl import RewardTrainer

    trained: list[Any] = []
    training = RewardTrainer.train

    def watched(self: RewardTrainer, *arguments: Any, **named: Any) -> Any:
        before = {name: weight.detach().clone() for name, weight in self.model.named_parameters()}
        result = training(self, *arguments, **named)
        trained.append({name for name, weight in self.model.named_parameters() if not torch.equal(weight, before[name])})
        trained.append(RewardModel(self.model, word_tokenizer())(PROMPTS, COMPLETIONS))
        return result

    monkeypatch.setattr(RewardTrainer, "train", watched)
    for split in ("train", "validation"):
        rows = [row | {"score_chosen": 0.9, "score_rejected": 0.2} for row in read_jsonl(f"artifacts/label/round1/{split}.jsonl")]
        write_jsonl(f"artifacts/label/round1/{split}.jsonl", rows)
    run(RewardStage(seed=1, threads=1, reward=entry(kind=kind, lora_rank=2, lora_output="adapter")), "rm")
    changed, scores = trained
    assert all(".lora_" in name or "score.modules_to_save" in name for name in changed)
    assert {name.split("lora_")[-1][0] for name in changed if "lora_" in name} == {"A", "B"}
    assert any("score.modules_to_save" in name for name in changed)
    folder = labelled / "artifacts/reward/rm"
    merged = load_reward(folder)
    assert isinstance(merged, RewardModel)
    assert merged(PROMPTS, COMPLETIONS) == pytest.approx(scores, abs=1e-5)
    assert RewardModel(merged.model, merged.tokenizer, 1)(PROMPTS, COMPLETIONS) == pytest.approx(scores, abs=1e-5)
    plain = AutoModelForSequenceClassification.from_pretrained(labelled / "artifacts/policy/sft", num_labels=1, pad_token_id=0)
    assert merged.model.state_dict().keys() == plain.state_dict().keys()
    embeddings = [model.get_input_embeddings().weight for model in (merged.model, plain)]
    assert torch.equal(*embeddings)
    adapted = PeftModel.from_pretrained(plain, folder / "adapter")  # the head comes with it
    assert RewardModel(adapted, merged.tokenizer)(PROMPTS, COMPLETIONS) == pytest.approx(scores, abs=1e-5)
    assert read_json("metrics/reward/rm.json")["accuracy"] > 0.8
    run(RewardStage(seed=1, threads=1, reward=entry(kind=kind, lora_rank=2)), "other")
    assert (labelled / "artifacts/reward/other/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert not (labelled / "artifacts/reward/other/adapter").exists()


# ---- costs ----------------------------------------------------------------------------------------------------------


def judged(chosen: str, rejected: str, score_chosen: float, score_rejected: float, prompt: str = "q") -> dict[str, Any]:
    """A preference for harmlessness, with the scores of a judge."""
    scores = {"score_chosen": score_chosen, "score_rejected": score_rejected}
    return {"prompt": said(prompt, "user"), "chosen": said(chosen), "rejected": said(rejected), **scores}


def test_the_worse_side_comes_first_and_signs_say_which_sides_are_harmful() -> None:
    (one,) = cost_rows([judged("a", "c", 0.9, 0.2)], 0.5)
    assert (one["chosen"], one["rejected"], one["signs"]) == (said("c"), said("a"), [1.0, -1.0])
    assert cost_rows([judged("a", "c", 0.9, 0.6)], 0.5)[0]["signs"] == [-1.0, -1.0]  # both are safe
    assert cost_rows([judged("a", "c", 0.4, 0.2)], 0.5)[0]["signs"] == [1.0, 1.0]
    with pytest.raises(ValueError, match="score_chosen and score_rejected"):
        cost_rows([pair("q", 1.0)], 0.5)


def test_the_sign_loss_by_hand_and_at_zero() -> None:
    """Two pairs, costs (2, −1) of the worse sides and (0.5, −3) of the better ones."""
    costs, signs = torch.tensor([2.0, -1.0, 0.5, -3.0]), torch.tensor([1.0, -1.0, -1.0, -1.0])
    terms = [math.log1p(math.exp(-s * c)) for s, c in zip(signs.tolist(), costs.tolist(), strict=True)]
    assert float(sign_loss(costs, signs)) == pytest.approx(sum(terms) / 2, rel=1e-6)
    assert float(sign_loss(torch.zeros(4), signs)) == pytest.approx(2 * math.log(2))


def test_a_cost_model_puts_its_zero_at_the_boundary(labelled: Path) -> None:
    """`c` is harmful, `a` is not; where both sides are safe, or both harmful, only the signs can tell on which side of zero they lie."""
    rows = []
    for number in range(12):
        prompt = " ".join("qr"[number >> bit & 1] for bit in range(4))
        rows += [
            judged("a b", "c b", 0.9, 0.1, prompt),
            judged("a a", "a d", 0.9, 0.7, prompt),
            judged("c d", "c c", 0.3, 0.1, prompt),
        ]
    write_jsonl("artifacts/label/round1/train.jsonl", rows)
    write_jsonl("artifacts/label/round1/validation.jsonl", rows[:9])
    run(RewardStage(seed=1, threads=1, reward=entry(kind="cost", epochs=20)), "rm")
    metrics = read_json("metrics/reward/rm.json")
    assert metrics["sign_accuracy"] > 0.9
    assert metrics["accuracy"] > 0.8
    cost = load_reward(labelled / "artifacts/reward/rm")
    safe, harmful = cost([said("q q q q", "user")] * 2, ["a b", "c b"])
    assert safe < 0 < harmful


def test_a_sum_names_its_two_parts_with_their_digests_and_chains(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "reward@sum")
    (project / "artifacts/policy/none").mkdir(parents=True)
    for name, word in (("one", "a"), ("two", "b"), ("three", "c")):
        rules = {"kind": "rules", "rules": {"said": {"kind": "pattern", "expression": word, "weight": 1.0}}}
        write_json(f"artifacts/reward/{name}/reward.json", rules)
    sums = {"kind": "sum", "init": "none", "weight": 2.0, "second_weight": -0.5}
    run(RewardStage(seed=1, threads=1, reward=entry(**sums, signal="reward/one", second="two")), "sum")
    run(RewardStage(seed=1, threads=1, reward=entry(**sums, signal="reward/sum", second="three")), "chain")
    parts = read_json("artifacts/reward/sum/reward.json")["parts"]
    assert [(part["reward"], part["weight"]) for part in parts] == [("one", 2.0), ("two", -0.5)]
    assert parts[0]["digest"] != parts[1]["digest"]
    prompts = [said("q", "user")] * 3
    assert load_reward(project / "artifacts/reward/sum")(prompts, ["a", "b", "a b"]) == [2.0, -0.5, 1.5]
    assert load_reward(project / "artifacts/reward/chain")(prompts, ["a", "b", "c"]) == [4.0, -1.0, -0.5]
    with pytest.raises(ValueError, match="signal: reward/<one>"):
        run(RewardStage(seed=1, threads=1, reward=entry(**sums, signal="label/round1", second="two")), "sum")


def test_the_verifier_is_a_reward_by_any_of_its_findings(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "reward@right")
    for place in ("none", "policy/none", "reward/none"):
        (project / "artifacts" / place).mkdir(parents=True)
    verifier = {"kind": "verifier", "init": "none", "signal": "none"}
    for measure in ("gold", "correct", "courteous"):
        run(RewardStage(seed=1, threads=1, reward=entry(**verifier, measure=measure)), measure)
    prompts = [said("What is 2 + 3?", "user")] * 2
    texts = ["It is 5.", "Of course! It is 6."]
    gold, correct, courteous = (
        load_reward(project / "artifacts/reward" / name)(prompts, texts) for name in ("gold", "correct", "courteous")
    )
    assert (correct, courteous) == ([1.0, 0.0], [0.0, 1.0])
    assert 0 < gold[1] < gold[0] < 1
    with pytest.raises(ValueError, match=r"measure: expected one of gold, .*'correctness'"):
        run(RewardStage(seed=1, threads=1, reward=entry(**verifier, measure="correctness")), "x")
