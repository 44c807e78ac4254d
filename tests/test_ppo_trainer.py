"""PPO as a whole: what a step feeds to the mathematics, and what comes out of a run."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_tiny import (
    PROMPTS,
    count_a,
    llama_config,
    tiny_config,
    tiny_policy,
    tiny_value_model,
    trainer_of,
    word_tokenizer,
)
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaForCausalLM, PreTrainedModel

from stages.methods.ppo.config import PpoConfig, validate
from stages.methods.ppo.losses import per_token_logps
from stages.methods.ppo.models import CompletionLogits, add_adapter, collate, reference_of
from stages.methods.ppo.rollout import Episode, prompts_at, stack
from stages.methods.ppo.trainer import PpoTrainer, train
from stages.models.chat import end_of_turn_id, prompt_ids
from stages.pipeline.records import Message


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def run(config: PpoConfig, folder: Path, **changes: Any) -> tuple[PreTrainedModel, list[dict[str, float]]]:
    policy = changes.pop("policy", None) or tiny_policy()
    parts: dict[str, Any] = {
        "reference": tiny_policy(), "value_model": tiny_value_model(), "reward": count_a, "tokenizer": word_tokenizer(),
        "prompts": PROMPTS, "config": config, "seed": 3, "checkpoint_folder": folder,
        "log": lambda step, metrics, timings: None, "log_samples": lambda step, rows: None,
    }  # fmt: skip
    history = train(policy=policy, **(parts | changes))
    return policy, history


# ------------------------------------------------------------------------------------------- log-probabilities and ratios


PAIRS = [([5, 6], [7, 8, 3]), ([9], [5]), ([10, 9, 8, 7, 6, 5], [5, 6, 7, 8, 9, 3]), ([7, 7, 7], [3])]


def logps_of(model: PreTrainedModel, pairs: Sequence[tuple[list[int], list[int]]], temperature: float = 1.0) -> list[list[float]]:
    batch = collate([prompt for prompt, _ in pairs], [completion for _, completion in pairs], 0, torch.device("cpu"))
    with torch.no_grad():
        flat = per_token_logps(CompletionLogits(model, temperature)(batch), batch.tokens)
    return [part.tolist() for part in flat.split([len(completion) for _, completion in pairs])]


def test_episodes_are_fed_without_their_last_token_and_each_token_is_predicted_at_the_one_before() -> None:
    batch = collate([[5, 6], [9], [4]], [[7, 8, 3], [5], [6, 2]], 0, torch.device("cpu"))
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [9, 0, 0, 0], [4, 6, 0, 0]]
    assert batch.positions.tolist() == [1, 2, 3, 4, 8, 9]  # of 5 6 7 8 9 0 0 0 4 6 0 0
    assert batch.tokens.tolist() == [7, 8, 3, 5, 6, 2]


def test_logps_depend_on_neither_padding_nor_batch() -> None:
    policy = tiny_policy()
    together = logps_of(policy, PAIRS, 0.7)
    for pair, found in zip(PAIRS, together, strict=True):
        prompt, completion = pair
        assert logps_of(policy, [pair], 0.7)[0] == pytest.approx(found, abs=1e-5)
        with torch.no_grad():
            logits = policy(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / 0.7
        assert logits.log_softmax(-1)[range(len(completion)), completion].tolist() == pytest.approx(found, abs=1e-5)


def test_an_output_layer_that_is_more_than_linear_is_not_bypassed() -> None:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=11, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        intermediate_size=32, final_logit_softcapping=0.5, initializer_range=0.3, sliding_window=4,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).eval()
    assert not CompletionLogits(model, 1.0).direct
    assert CompletionLogits(tiny_policy(), 1.0).direct
    for pair, found in zip(PAIRS, logps_of(model, PAIRS), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([pair[0] + pair[1]])).logits[0, len(pair[0]) - 1 : -1]
        assert logits.log_softmax(-1)[range(len(pair[1])), pair[1]].tolist() == pytest.approx(found, abs=1e-5)


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.6}, {"gradient_checkpointing": True}, {"bf16": True}])
def test_the_ratio_is_1_and_nothing_is_clipped_before_the_first_update_of_every_step(changes: dict[str, Any]) -> None:
    trainer = trainer_of(tiny_config(epochs=1, minibatch_size=8, micro_batch_size=8, **changes))
    for number in range(3):
        _, metrics, _ = trainer.step(number)
        assert metrics["ratio_mean"] == pytest.approx(1, abs=1e-5)
        assert metrics["ratio_max"] == pytest.approx(1, abs=1e-5)
        assert metrics["clip_fraction"] == 0
        assert metrics["approx_kl"] == pytest.approx(0, abs=1e-6)


def test_later_minibatches_see_a_policy_that_has_moved() -> None:
    _, metrics, _ = trainer_of(tiny_config(learning_rate=1e-2)).step(0)
    assert metrics["ratio_max"] > 1.01
    assert metrics["approx_kl"] > 1e-5


def test_the_samplers_logps_agree_with_the_trainers() -> None:
    trainer = trainer_of(tiny_config(temperature=0.8))
    for number in range(3):
        _, metrics, _ = trainer.step(number)
        assert metrics["behaviour_gap"] < 1e-5


def test_the_reference_stays_and_kl_is_measured_against_it() -> None:
    trainer = trainer_of(tiny_config(learning_rate=1e-2))
    before = weights(trainer.reference)
    first = trainer.step(0)[1]
    second = trainer.step(1)[1]
    assert first["kl_k1"] == pytest.approx(0, abs=1e-5)
    assert second["kl_k3"] > 1e-3
    assert torch.equal(weights(trainer.reference), before)


def test_dropout_is_off_even_in_training_mode() -> None:
    config = tiny_config(epochs=1, minibatch_size=8, micro_batch_size=8, gradient_checkpointing=True)
    trainer = trainer_of(config, policy=tiny_policy(attention_dropout=0.5))
    assert trainer.policy.training
    assert trainer.step(0)[1]["ratio_max"] == pytest.approx(1, abs=1e-5)


# ------------------------------------------------------------------------------------------------------------- rollouts


def test_an_episode_ends_with_its_end_of_turn_and_nothing_behind_it_counts() -> None:
    trainer = trainer_of(tiny_config(rollout_batch_size=32, minibatch_size=32))
    end = end_of_turn_id(trainer.tokenizer)
    episodes, _ = trainer.roll_out(0)
    assert {episode.finished for episode in episodes} == {True, False}
    rollouts = stack(episodes, torch.device("cpu"))
    for row, episode in enumerate(episodes):
        assert episode.completion_ids.count(end) == episode.finished
        assert int(rollouts.mask[row].sum()) == len(episode.completion_ids) == len(episode.figures.values)
        assert rollouts.mask[row, : len(episode.completion_ids)].all()


def test_an_empty_completion_is_legal() -> None:
    """A policy that says nothing: its bias towards end-of-turn is absolute."""
    policy = tiny_policy(tie_word_embeddings=False)
    end = end_of_turn_id(word_tokenizer())
    with torch.no_grad():
        policy.lm_head.weight.zero_()
        policy.model.norm.weight.copy_(torch.ones(16))
        hidden = policy.model(torch.arange(1, 11).unsqueeze(0)).last_hidden_state[0]
        policy.lm_head.weight[end] = 50 * hidden.mean(0)
    seen: list[str] = []

    def reward(prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
        seen.extend(completions)
        return [1.0] * len(completions)

    trainer = trainer_of(tiny_config(rollout_batch_size=32, minibatch_size=32), policy=policy, reward=reward)
    episodes, metrics, _ = trainer.step(0)
    assert "" in seen
    assert next(episode.completion_ids for episode in episodes if episode.text == "") == [end]
    assert all(math.isfinite(value) for value in metrics.values())


def test_the_missing_eos_penalty_lowers_the_score_of_unfinished_episodes() -> None:
    without, penalised = (trainer_of(tiny_config(missing_eos_penalty=penalty)) for penalty in (0.0, 3.0))
    episodes, metrics, _ = without.step(0)
    _, lowered, _ = penalised.step(0)
    unfinished = sum(not episode.finished for episode in episodes) / len(episodes)
    assert 0 < unfinished < 1
    assert metrics["score"] - lowered["score"] == pytest.approx(3.0 * unfinished)
    assert metrics["reward"] == lowered["reward"]
    assert not torch.equal(weights(without.policy), weights(penalised.policy))


def test_the_metrics_are_means_over_the_batch_of_what_the_episodes_hold() -> None:
    trainer = trainer_of(tiny_config(), reference=tiny_policy(seed=9))
    episodes, metrics, _ = trainer.step(0)
    k1 = [sum(episode.figures.policy_logps) - sum(episode.figures.reference_logps) for episode in episodes]
    assert metrics["kl_k1"] == pytest.approx(sum(k1) / 8, abs=1e-5)
    assert metrics["rlhf_reward"] == pytest.approx(metrics["score"] - 0.1 * metrics["kl_k1"])
    assert metrics["length_tokens"] == sum(len(episode.completion_ids) for episode in episodes) / 8
    assert metrics["end_of_turn_fraction"] == sum(episode.finished for episode in episodes) / 8
    assert metrics["reward"] == sum(episode.text.split().count("a") for episode in episodes) / 8


def test_every_prompt_comes_once_before_any_comes_twice() -> None:
    order = [prompt for step in range(6) for prompt in prompts_at(step, 4, 8, seed=1)]
    assert [sorted(order[start : start + 8]) for start in (0, 8, 16)] == [list(range(8))] * 3
    assert order[:8] != order[8:16]
    assert prompts_at(0, 20, 8, seed=1)[:4] == order[:4]


def test_rewards_come_from_text_so_another_tokenizer_and_template_will_do() -> None:
    """The reward model's ids differ from the policy's for every word; only text may pass."""
    from transformers import LlamaForSequenceClassification

    from stages.models.rewards import RewardModel

    other = word_tokenizer(["r", "q", "zzz", "d", "c", "b", "a"])
    other.chat_template = "{%- for m in messages -%}{{ m['content'] + ' <|end|> ' }}{%- endfor -%}"
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(llama_config(len(other), num_labels=1))
    reward = RewardModel(model, other)
    trainer = trainer_of(tiny_config(), reward=reward)
    episodes, _, _ = trainer.step(0)
    ids = other(f"{PROMPTS[episodes[0].prompt][0]['content']} <|end|> {episodes[0].text} <|end|>")["input_ids"]
    with torch.no_grad():
        expected = float(model(torch.tensor([ids])).logits)
    assert episodes[0].reward == pytest.approx(expected, abs=1e-5)


# ------------------------------------------------------------------------------------------------------------ optimisation


def exact_optimum(policy: LlamaForCausalLM, prompt: list[int], rewards: torch.Tensor, beta: float) -> torch.Tensor:
    """π*(y) ∝ π_ref(y) exp(r(y)/β): the maximum of E[r] − β KL(π ‖ π_ref)."""
    with torch.no_grad():
        reference = policy(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    return (reference + rewards / beta).softmax(-1)


@pytest.mark.parametrize("beta", [1.0, 0.4])
def test_a_two_armed_bandit_reaches_the_closed_form_optimum(beta: float, tmp_path: Path) -> None:
    """One token, arm `a` pays 1 and arm `b` 0.5; the rest of the vocabulary pays nothing."""
    tokenizer = word_tokenizer()
    pays = {"a": 1.0, "b": 0.5}
    rewards = torch.tensor([pays.get(token, 0.0) for token in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))])
    config = tiny_config(
        episodes=256 * 25, rollout_batch_size=256, minibatch_size=256, micro_batch_size=256, epochs=4, max_new_tokens=1,
        sampling_batch_size=256, missing_eos_penalty=0.0, init_kl_coef=beta, learning_rate=1e-2, value_learning_rate=1e-2,
        max_grad_norm=10.0, checkpoint_every=1000,
    )  # fmt: skip

    def reward(prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
        return [pays.get(completion.strip(), 0.0) for completion in completions]

    models = {name: tiny_policy(num_hidden_layers=1) for name in ("policy", "reference")}
    value_model = tiny_value_model(num_hidden_layers=1)
    policy, _ = run(config, tmp_path, prompts=PROMPTS[:1], reward=reward, value_model=value_model, **models)
    prompt = prompt_ids(tokenizer, PROMPTS[0])
    reference = tiny_policy(num_hidden_layers=1)
    optimum = exact_optimum(reference, prompt, rewards, beta)
    with torch.no_grad():
        reached = policy(torch.tensor([prompt])).logits[0, -1].softmax(-1)
        begun = reference(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    distance, before = (0.5 * float((one - optimum).abs().sum()) for one in (reached, begun))
    assert before > 0.1
    assert distance < 0.03, f"total variation {distance:.3f}, at first {before:.3f}"


def test_an_entropy_bonus_raises_entropy(tmp_path: Path) -> None:
    plain = run(tiny_config(episodes=160), tmp_path / "a")[1][-1]["entropy"]
    bonus = run(tiny_config(episodes=160, entropy_coefficient=1.0), tmp_path / "b")[1][-1]["entropy"]
    assert bonus > plain + 0.05


def test_updates_stop_once_the_policy_has_moved_too_far() -> None:
    trainer = trainer_of(tiny_config(max_approx_kl=1e-4, learning_rate=1e-2, epochs=8))
    metrics = trainer.step(0)[1]
    assert metrics["stopped_early"] == 1
    assert metrics["minibatches"] < 16
    free = trainer_of(tiny_config(learning_rate=1e-2, epochs=8)).step(0)[1]
    assert (free["stopped_early"], free["minibatches"]) == (0, 16)


def test_both_learning_rates_follow_the_schedule() -> None:
    trainer = trainer_of(tiny_config(epochs=1, learning_rate=1e-3, value_learning_rate=4e-3))
    metrics = trainer.step(1)[1]  # of 4, from 0
    assert metrics["learning_rate"] == pytest.approx(0.75e-3)
    assert [group["lr"] for group in trainer.optimiser.param_groups] == pytest.approx([0.75e-3, 3e-3])


def test_beta_adapts_towards_the_target() -> None:
    trainer = trainer_of(tiny_config(target_kl=1.0))
    first, second = trainer.step(0)[1], trainer.step(1)[1]
    assert first["beta"] == pytest.approx(0.1)
    assert second["beta"] == pytest.approx(0.1 * (1 - 0.1 * 0.2))  # KL 0 at first: the error is clipped to −0.2


def test_scores_are_normalised_by_all_rewards_so_far() -> None:
    trainer = trainer_of(tiny_config(normalise_scores=True, missing_eos_penalty=0.0))
    assert trainer.step(0)[1]["score"] == pytest.approx(0, abs=1e-6)
    trainer.step(1)
    assert trainer.moments.count == 16


def test_micro_batches_do_not_change_the_gradients() -> None:
    gradients = []
    for size in (1, 3, 8):
        trainer = trainer_of(tiny_config(minibatch_size=8, micro_batch_size=size, whiten_advantages=False))
        episodes, _ = trainer.roll_out(0)
        rollouts = stack(episodes, torch.device("cpu"))
        targets = trainer_targets(trainer, episodes)
        trainer.accumulate_gradients(list(range(8)), episodes, rollouts, targets)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in trainer.parameters["policy"]]))
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(gradients[2], gradients[0], atol=1e-6, rtol=1e-4)


def trainer_targets(trainer: PpoTrainer, episodes: Sequence[Episode]) -> Any:
    from stages.methods.ppo.losses import generalised_advantages, token_rewards

    rollouts = stack(episodes, torch.device("cpu"))
    rewards = token_rewards(
        rollouts.policy_logps - rollouts.reference_logps, torch.tensor(trainer.shape(episodes)), rollouts.mask, 0.1
    )
    return generalised_advantages(rewards, rollouts.values, rollouts.mask, 1.0, 0.95)


# --------------------------------------------------------------------------------------------------------- reproducibility


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    (first, _), (second, _), (other, _) = (run(tiny_config(), tmp_path / str(i), seed=seed) for i, seed in enumerate((3, 3, 4)))
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))


RESUMABLE = {"target_kl": 1.0, "normalise_scores": True, "checkpoint_every": 2, "episodes": 48}


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    """Stopped in the fourth step, with the last checkpoint after the second."""
    whole, history = run(tiny_config(**RESUMABLE), tmp_path / "whole")

    class Killed(RuntimeError):
        pass

    def die(step: int, metrics: dict[str, float], timings: dict[str, float]) -> None:
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        run(tiny_config(**RESUMABLE), tmp_path / "killed", log=die)
    logged: list[int] = []
    resumed, resumed_history = run(
        tiny_config(**RESUMABLE), tmp_path / "killed", log=lambda step, metrics, timings: logged.append(step)
    )
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed_history == history
    assert logged == list(range(6))


def test_a_half_written_checkpoint_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "ppo.pt.partial").write_bytes(b"half")
    policy, _ = run(tiny_config(), tmp_path)
    assert torch.equal(weights(policy), weights(run(tiny_config(), tmp_path / "other")[0]))


# ---------------------------------------------------------------------------------------------------------------- memory


def test_a_lora_policy_trains_its_adapter_against_itself_without_it(tmp_path: Path) -> None:
    config = tiny_config(lora_rank=2, learning_rate=1e-2)
    torch.manual_seed(0)
    policy = add_adapter(tiny_policy(), config)
    base = {name: value.clone() for name, value in policy.state_dict().items() if "lora" not in name}
    trainer = trainer_of(config, policy=policy, reference=None)
    first, second = trainer.step(0)[1], trainer.step(1)[1]
    assert first["kl_k1"] == pytest.approx(0, abs=1e-5)
    assert second["kl_k3"] > 1e-4
    assert all(torch.equal(policy.state_dict()[name], value) for name, value in base.items())
    with reference_of(policy, None) as reference:
        assert logps_of(reference, PAIRS)[2] == pytest.approx(logps_of(tiny_policy(), PAIRS)[2], abs=1e-5)
    adapted = logps_of(policy, PAIRS)
    merged = policy.merge_and_unload()
    assert isinstance(merged, LlamaForCausalLM)
    assert logps_of(merged, PAIRS)[2] == pytest.approx(adapted[2], abs=1e-4)
    assert adapted[2] != pytest.approx(logps_of(tiny_policy(), PAIRS)[2], abs=1e-3)


def test_gradient_checkpointing_changes_no_weight(tmp_path: Path) -> None:
    plain, recomputed = (run(tiny_config(gradient_checkpointing=on), tmp_path / str(on))[0] for on in (False, True))
    assert recomputed.is_gradient_checkpointing
    torch.testing.assert_close(weights(recomputed), weights(plain), atol=1e-6, rtol=1e-5)


def test_bf16_computes_in_bfloat16_and_keeps_float32_weights(tmp_path: Path) -> None:
    trainer = trainer_of(tiny_config(bf16=True, epochs=1))
    seen: set[torch.dtype] = set()
    trainer.policy.model.layers[0].mlp.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    metrics = trainer.step(0)[1]
    assert seen == {torch.bfloat16}
    assert {parameter.dtype for parameter in trainer.policy.parameters()} == {torch.float32}
    assert 0 < metrics["behaviour_gap"] < 0.1  # why the sampler's log-probabilities are not used in the ratio
    exact = trainer_of(tiny_config(epochs=1))
    exact.step(0)
    assert (weights(trainer.policy) - weights(exact.policy)).abs().max() < 0.01


# ---------------------------------------------------------------------------------------------------------- bad input, guard


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 50}, "support"),
        ({"top_p": 0.9}, "support"),
        ({"episodes": 100}, "episodes 100 is no multiple of rollout_batch_size 8: set episodes to 96 or 104"),
        ({"minibatch_size": 3}, "rollout_batch_size 8 is no multiple of minibatch_size 3: set rollout_batch_size to 6 or 9, or "
                                "minibatch_size to 2"),
        ({"minibatch_size": 0}, "at least 1"),
        ({"temperature": 0.0}, "temperature"),
        ({"schedule": "linaer"}, "linaer"),
        ({"target_kl": 6.0, "init_kl_coef": 0.0}, "target_kl"),
        ({"missing_eos_penalty": -1.0}, "missing_eos_penalty"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_run_is_refused_with_what_to_write(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(tiny_config(**changes))


def test_all_complaints_come_at_once() -> None:
    with pytest.raises(ValueError, match=r"(?s)top_k.*episodes.*temperature"):
        validate(tiny_config(top_k=5, episodes=100, temperature=-1.0))


def test_a_minibatch_that_does_not_divide_among_processes_is_refused() -> None:
    with pytest.raises(ValueError, match="set it to 6, and rollout_batch_size to a multiple of that, 12"):
        validate(tiny_config(), processes=3)


def test_a_reward_that_is_not_finite_stops_with_the_completion() -> None:
    def broken(prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
        return [math.nan if i == 2 else 0.0 for i in range(len(completions))]

    with pytest.raises(FloatingPointError, match="reward is nan"):
        trainer_of(tiny_config(), reward=broken).step(0)


def test_a_reward_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="7 values for 8 completions"):
        trainer_of(tiny_config(), reward=lambda prompts, completions: [0.0] * 7).step(0)


def test_a_loss_that_is_not_finite_stops_with_what_and_where() -> None:
    trainer = trainer_of(tiny_config())
    with torch.no_grad():
        trainer.value_model.head.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"step 0, epoch 0, minibatch 0: \w+ is nan"):
        trainer.step(0)


def test_the_guard_can_be_switched_off() -> None:
    trainer = trainer_of(tiny_config(guard=False, whiten_advantages=False))
    with torch.no_grad():
        trainer.value_model.head.weight.fill_(math.nan)
    trainer.step(0)


def test_a_warning_is_given_once(caplog: pytest.LogCaptureFixture) -> None:
    trainer = trainer_of(tiny_config())
    start, end = {"reward": 0.0, "entropy": 2.0, "kl_k1": 0.5}, {"reward": 1.0, "entropy": 0.1, "kl_k1": 50.0}
    trainer.history = [start] * 5 + [end] * 5
    with caplog.at_level(logging.WARNING):
        trainer.warn()
        trainer.warn()
    assert len(caplog.records) == 2
    assert any("entropy fell" in record.getMessage() for record in caplog.records)
