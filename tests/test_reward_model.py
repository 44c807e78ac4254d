"""Reward models: scores that depend on the text alone, the losses of preferences and costs, the stage, and adapters."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from ppo_tiny import llama_config, tiny_policy, word_tokenizer
from transformers import LlamaForSequenceClassification, PreTrainedTokenizerFast
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from plumbline.models.chat import END, encode_preferences, encode_turns
from plumbline.models.saving import save_policy
from plumbline.pipeline.composing import problems
from plumbline.pipeline.records import read_json, read_jsonl, write_jsonl
from plumbline.rewards.cost import CostCollator, CostTrainer, cost_rows, sign_loss
from plumbline.rewards.model import RewardModel
from plumbline.rewards.reward import load_reward
from plumbline.rows import Message, Row, assistant, text_of
from stages.reward_model import RewardModelEntry, RewardModelStage, run


def user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


# ---- scores ---------------------------------------------------------------------------------------------------------

PROMPTS = [user("q"), user("q r q r"), user("r"), user("q q"), user("r")]
COMPLETIONS = ["a", "b c d a b", "", "a b", "d c b a d c b a"]


def reward_model(tokenizer: PreTrainedTokenizerFast, batch_size: int = 256) -> RewardModel:
    torch.manual_seed(4)
    model = LlamaForSequenceClassification(llama_config(len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id))
    return RewardModel(model, tokenizer, batch_size)


def test_long_conversations_are_scored_in_batches_of_as_many_tokens_as_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plumbline.rewards.model.BATCH_TOKENS", 48)
    model, shapes = reward_model(word_tokenizer(), batch_size=6), []
    forward = model.model.forward
    monkeypatch.setattr(model.model, "forward", lambda **given: shapes.append(given["input_ids"].shape) or forward(**given))
    together = model([user("q")] * 9, ["a"] * 7 + ["a b c d " * 4] * 2)
    assert all(rows <= 6 and (rows * width <= 48 or rows == 1) for rows, width in shapes)
    assert max(rows for rows, _ in shapes) > 1
    assert together == pytest.approx([model([user("q")], [text])[0] for text in ["a"] * 7 + ["a b c d " * 4] * 2], abs=1e-5)


def test_scores_do_not_depend_on_batch_size_or_padding() -> None:
    """Up to rounding, which is far below the differences between the scores."""
    tokenizer = word_tokenizer()
    together = reward_model(tokenizer)(PROMPTS, COMPLETIONS)
    spread = max(together) - min(together)
    for batch_size in (1, 2, 3):
        assert reward_model(tokenizer, batch_size)(PROMPTS, COMPLETIONS) == pytest.approx(together, abs=1e-3 * spread)


def test_a_score_is_read_at_the_completions_end_of_turn() -> None:
    """Computed anew for each text alone, from the hidden state at its last token."""
    tokenizer = word_tokenizer()
    reward = reward_model(tokenizer)
    for prompt, completion, score in zip(PROMPTS, COMPLETIONS, reward(PROMPTS, COMPLETIONS), strict=True):
        turn = encode_turns(tokenizer, [(prompt, assistant(completion))])[0]
        assert turn.completion[-1] == tokenizer.convert_tokens_to_ids(END)
        with torch.no_grad():
            hidden = reward.model.model(torch.tensor([turn.prompt + turn.completion])).last_hidden_state[0, -1]
            assert score == pytest.approx(float(reward.model.score(hidden)), abs=1e-4)


def test_padding_with_the_end_of_turn_is_refused_because_the_score_would_be_read_one_token_early() -> None:
    """The classifier reads the last token that is not padding; if the end of turn is the padding, it never reads that."""
    tokenizer = word_tokenizer()
    tokenizer.pad_token = END
    with pytest.raises(ValueError, match="padding token that is not the end-of-turn token"):
        reward_model(tokenizer)


# ---- losses ---------------------------------------------------------------------------------------------------------


def trainer_arguments(folder: Path) -> RewardConfig:
    return RewardConfig(output_dir=str(folder), report_to="none", bf16=False, activation_checkpointing=False, use_cpu=True)


def test_the_trainers_loss_has_the_margin_inside_the_sigmoid(tmp_path: Path) -> None:
    """Llama 2's Eq. 2 as TRL computes it: −log σ(r_c − r_r − m), here by hand."""
    tokenizer = word_tokenizer()
    model = reward_model(tokenizer).model
    rows = Dataset.from_list([{"prompt": user("q"), "chosen": assistant("a b"), "rejected": assistant("c d"), "margin": 0.7}])
    trainer = RewardTrainer(model=model, args=trainer_arguments(tmp_path), train_dataset=rows, processing_class=tokenizer)
    batch = DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id)([trainer.train_dataset[0]])
    with torch.no_grad():
        loss = float(trainer.compute_loss(model, batch))
    better, worse = RewardModel(model, tokenizer)([user("q")] * 2, ["a b", "c d"])
    assert loss == pytest.approx(math.log1p(math.exp(-(better - worse - 0.7))), abs=1e-4)


def judged(chosen: str, rejected: str, score_chosen: float, score_rejected: float, prompt: str = "q") -> Row:
    """A preference for harmlessness, with the scores of a judge."""
    scores = {"score_chosen": score_chosen, "score_rejected": score_rejected}
    return {"prompt": user(prompt), "chosen": assistant(chosen), "rejected": assistant(rejected), **scores}


def test_the_worse_side_comes_first_and_signs_say_which_sides_are_harmful() -> None:
    (row,) = cost_rows([judged("a", "c", 0.9, 0.2)], 0.5)
    assert (row["chosen"], row["rejected"], row["signs"]) == (assistant("c"), assistant("a"), [1.0, -1.0])
    assert next(cost_rows([judged("a", "c", 0.9, 0.6)], 0.5))["signs"] == [-1.0, -1.0]  # both are safe
    assert next(cost_rows([judged("a", "c", 0.4, 0.2)], 0.5))["signs"] == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"kind: cost: .*score_chosen and score_rejected"):
        next(cost_rows([{"prompt": user("q"), "chosen": assistant("a"), "rejected": assistant("c")}], 0.5))


def test_the_sign_loss_by_hand_and_at_zero() -> None:
    """Two pairs, costs (2, −1) of the worse sides and (0.5, −3) of the better ones."""
    costs, signs = torch.tensor([2.0, -1.0, 0.5, -3.0]), torch.tensor([1.0, -1.0, -1.0, -1.0])
    terms = [math.log1p(math.exp(-s * c)) for s, c in zip(signs.tolist(), costs.tolist(), strict=True)]
    assert float(sign_loss(costs, signs)) == pytest.approx(sum(terms) / 2, rel=1e-6)
    assert float(sign_loss(torch.zeros(4), signs)) == pytest.approx(2 * math.log(2))


def test_the_cost_trainers_loss_is_the_pairwise_one_and_a_term_for_each_sides_sign(tmp_path: Path) -> None:
    """Safe RLHF's Eq. 6, from the costs that the model gives each text, over two pairs of which one is harmful on both sides."""
    tokenizer = word_tokenizer()
    model = reward_model(tokenizer).model
    rows = [*cost_rows([judged("a b", "c d", 0.9, 0.2), judged("d", "c c", 0.3, 0.1)], 0.5)]
    collator = CostCollator(pad_token_id=tokenizer.pad_token_id)
    trainer = CostTrainer(
        model=model, args=trainer_arguments(tmp_path), data_collator=collator, processing_class=tokenizer,
        train_dataset=Dataset.from_list(encode_preferences(tokenizer, rows)),
    )  # fmt: skip
    with torch.no_grad():
        loss = float(trainer.compute_loss(model, next(iter(trainer.get_train_dataloader()))))
    cost = RewardModel(model, tokenizer)
    worse, better = (cost([user("q")] * 2, [text_of(row[side]) for row in rows]) for side in ("chosen", "rejected"))

    def softplus(x: float) -> float:
        return math.log1p(math.exp(x))

    first = softplus(better[0] - worse[0]) + softplus(-worse[0]) + softplus(better[0])
    second = softplus(better[1] - worse[1]) + softplus(-worse[1]) + softplus(-better[1])
    assert loss == pytest.approx((first + second) / 2, abs=1e-4)


# ---- the stage ------------------------------------------------------------------------------------------------------


def stage(**changes: Any) -> RewardModelStage:
    settings: dict[str, Any] = {
        "kind": "preference", "init": "sft", "signal": "label/round1", "boundary": 0.5, "margin_scale": 0.0,
        "whole_prompts": False, "centring": 0.01, "learning_rate": 1e-2, "epochs": 4, "batch_size": 12, "micro_batch_size": 12,
        "schedule": "constant", "warmup_fraction": 0.0, "weight_decay": 0.0, "adam_beta2": 0.999, "max_grad_norm": 1.0,
        "max_steps": -1, "evaluate_every": 1, "checkpoint_every": 6, "keep": "last", "bf16": False, "gradient_checkpointing": False,
        "lora_rank": 0, "lora_alpha": 32, "lora_output": "merged", "optimiser": "adamw",
    }  # fmt: skip
    return RewardModelStage(seed=1, threads=1, reward_model=RewardModelEntry(**(settings | changes)))


@pytest.fixture
def labelled(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A policy, and 36 preferences for `a` (harmless) over `c` (harmful), three to a prompt."""
    monkeypatch.setenv("DVC_STAGE", "reward_model@rm")
    monkeypatch.setenv("DVC_ROOT", str(project))
    save_policy(tiny_policy(), word_tokenizer(), project / "artifacts/policy/sft")
    prompts = [" ".join("qr"[number >> bit & 1] for bit in range(4)) for number in range(12)]
    rows = [
        judged(f"a {tail}", f"c {tail}", 0.9, 0.2, prompt) | {"margin": 1.0 + number}
        for number, prompt in enumerate(prompts)
        for tail in ("b", "d b", "b b")
    ]
    write_jsonl("artifacts/label/round1/train.jsonl", rows)
    write_jsonl("artifacts/label/round1/validation.jsonl", rows[:9])
    return project


def held_out_rewards(folder: Path) -> tuple[list[float], list[float]]:
    """What a saved model gives the chosen and the rejected completions of the validation rows, each scored alone."""
    rows = read_jsonl("artifacts/label/round1/validation.jsonl")
    reward = load_reward(folder)
    chosen, rejected = ([reward([row["prompt"]], [text_of(row[side])])[0] for row in rows] for side in ("chosen", "rejected"))
    return chosen, rejected


def validation_losses() -> list[float]:
    with Path("artifacts/curves/reward_model/rm.csv").open() as curve:
        return [float(row["eval_loss"]) for row in csv.DictReader(curve) if row["eval_loss"]]


def test_a_model_learns_with_margins_on_whole_prompts_and_its_figures_are_those_of_the_saved_folder(labelled: Path) -> None:
    """The completions differ in a word that decides the preference, so any trainer that follows the gradient lowers the loss."""
    run(stage(margin_scale=0.1, whole_prompts=True), "rm")
    losses = validation_losses()
    assert losses[-1] < losses[0]
    figures = read_json("artifacts/figures/reward_model/rm.json")
    chosen, rejected = held_out_rewards(labelled / "artifacts/reward/rm")
    margins = [better - worse for better, worse in zip(chosen, rejected, strict=True)]
    assert figures["accuracy"] == pytest.approx(sum(margin > 0 for margin in margins) / 9)
    assert figures["margin"] == pytest.approx(sum(margins) / 9, abs=1e-3)
    assert figures["prompts_split"] == 0
    assert read_json("artifacts/reward/rm/reward.json")["accuracy"] == figures["accuracy"]
    with Path("artifacts/figures/reward_model/rm.calibration.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert {by: sum(int(row["n"]) for row in rows if row["by"] == by) for by in ("reward", "label")} == {"reward": 9, "label": 9}


def test_a_cost_model_learns_and_counts_how_often_a_cost_lies_on_its_side_of_zero(labelled: Path) -> None:
    run(stage(kind="cost"), "rm")
    losses = validation_losses()
    assert losses[-1] < losses[0]
    figures = read_json("artifacts/figures/reward_model/rm.json")
    harmless, harmful = held_out_rewards(labelled / "artifacts/reward/rm")
    on_their_side = sum(cost < 0 for cost in harmless) + sum(cost > 0 for cost in harmful)
    assert figures["sign_accuracy"] == pytest.approx(on_their_side / 18)
    assert figures["accuracy"] == pytest.approx(sum(c > a for a, c in zip(harmless, harmful, strict=True)) / 9)


def test_an_unknown_kind_is_a_problem() -> None:
    (complaint,) = problems(stage(kind="model"))
    assert complaint.startswith("reward_model.kind: expected one of preference, cost")


# ---- LoRA -----------------------------------------------------------------------------------------------------------


class Trained:
    """What a trainer changed, and what its model gave the texts above when it was done."""

    names: set[str]
    scores: list[float]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trained:
    """Filled in by the next training."""
    watched, training = Trained(), RewardTrainer.train

    def train(self: RewardTrainer, *arguments: Any, **named: Any) -> Any:
        before = {name: weight.detach().clone() for name, weight in self.model.named_parameters()}
        result = training(self, *arguments, **named)
        watched.names = {name for name, weight in self.model.named_parameters() if not torch.equal(weight, before[name])}
        watched.scores = RewardModel(self.model, word_tokenizer())(PROMPTS, COMPLETIONS)
        return result

    monkeypatch.setattr(RewardTrainer, "train", train)
    return watched


@pytest.mark.parametrize("kind", ["preference", "cost"])
def test_only_an_adapter_and_the_head_are_trained_and_the_merged_folder_scores_as_they_do(
    labelled: Path, trained: Trained, kind: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    run(stage(kind=kind, lora_rank=2, lora_output="adapter"), "rm")
    assert all(".lora_" in name or "score.modules_to_save" in name for name in trained.names)
    assert {name.split("lora_")[-1][0] for name in trained.names if "lora_" in name} == {"A", "B"}
    assert any("score.modules_to_save" in name for name in trained.names)
    scores = pytest.approx(trained.scores, rel=1e-3, abs=1e-3)
    folder = labelled / "artifacts/reward/rm"
    merged = load_reward(folder)
    assert isinstance(merged, RewardModel)
    assert merged(PROMPTS, COMPLETIONS) == scores
    plain = AutoModelForSequenceClassification.from_pretrained(labelled / "artifacts/policy/sft", num_labels=1, pad_token_id=0)
    assert merged.model.state_dict().keys() == plain.state_dict().keys()
    embeddings, projections = (
        [weights for name, weights in merged.model.state_dict().items() if part in name] for part in ("embed_tokens", "q_proj")
    )
    assert all(map(torch.equal, embeddings, [plain.state_dict()["model.embed_tokens.weight"]]))
    assert not torch.equal(projections[0], plain.state_dict()["model.layers.0.self_attn.q_proj.weight"])
    adapted = PeftModel.from_pretrained(plain, folder / "adapter")  # the head comes with it
    assert RewardModel(adapted, merged.tokenizer)(PROMPTS, COMPLETIONS) == scores


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_reward_model_of_a_bfloat16_policy_is_written_as_that_and_scores_by_a_float32_head(
    labelled: Path, lora_rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_policy(tiny_policy().to(torch.bfloat16), word_tokenizer(), labelled / "artifacts/policy/sft")
    types: dict[str, torch.dtype] = {}
    step = RewardTrainer.training_step

    def watching(self: RewardTrainer, *arguments: Any, **named: Any) -> Any:
        types.update({name: weight.dtype for name, weight in self.model.named_parameters() if weight.requires_grad})
        return step(self, *arguments, **named)

    monkeypatch.setattr(RewardTrainer, "training_step", watching)
    run(stage(lora_rank=lora_rank, epochs=1), "rm")
    assert set(types.values()) == {torch.float32}
    reward = load_reward(labelled / "artifacts/reward/rm")
    assert isinstance(reward, RewardModel)
    assert reward.model.model.dtype == torch.bfloat16
    scores = reward(PROMPTS, COMPLETIONS)
    assert any(score != float(torch.tensor(score).bfloat16()) for score in scores)  # finer than three digits


def test_keeping_the_adapter_changes_nothing_else(labelled: Path) -> None:
    """The same computation twice on one machine: the models are equal to the last bit."""
    for output in ("merged", "adapter"):
        run(stage(lora_rank=2, lora_output=output, epochs=1), output)
    folders = [labelled / "artifacts/reward" / output for output in ("merged", "adapter")]
    assert [(folder / "adapter").exists() for folder in folders] == [False, True]
    first, second = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert first == second
