"""PPO's updates: ratios, gradients and optima, the same bytes again and after a crash, memory options, and the guard."""

import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_tiny import PROMPTS, tiny_config, tiny_policy, tiny_value_model, trainer_of, word_tokenizer
from test_ppo_rollout import PAIRS, logps_of
from transformers import LlamaForCausalLM

from plumbline.methods.online.ppo.networks import ValueModel, add_adapter, reference_of
from plumbline.methods.online.ppo.rollout import stack
from plumbline.methods.online.ppo.settings import PpoConfig
from plumbline.methods.online.ppo.trainer import STATE, PpoTrainer, train
from plumbline.models.chat import prompt_ids
from plumbline.pipeline.resuming import numbered
from plumbline.rows import Message


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def run(config: PpoConfig, folder: Path, log: Any = None, **changes: Any) -> tuple[torch.Tensor, list[dict[str, float]]]:
    """A whole run: the policy's final weights, and the metrics of every step."""
    trainer = trainer_of(config, **changes)
    history = train(trainer, folder, log=log or (lambda *_: None), log_samples=lambda *_: None)
    return weights(trainer.policy), history


def gradients(trainer: PpoTrainer) -> torch.Tensor:
    """The policy's gradients over a whole rollout."""
    episodes, _ = trainer.roll_out(0)
    rollouts = stack(episodes, torch.device("cpu"))
    targets = trainer.targets(rollouts, trainer.shape(episodes), beta=0.1)
    trainer.updater.accumulate_gradients(list(range(len(episodes))), episodes, rollouts, targets)
    return torch.cat([parameter.grad.flatten() for parameter in trainer.updater.parameters["policy"]])


# ---- updates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [({}, 1e-4), ({"temperature": 0.6}, 1e-4), ({"gradient_checkpointing": True}, 1e-4), ({"bf16": True}, 0.05)],
)
def test_the_ratio_is_1_and_nothing_is_clipped_before_the_first_update_of_every_step(
    changes: dict[str, Any], tolerance: float
) -> None:
    trainer = trainer_of(tiny_config(update_epochs=1, batch_size=8, micro_batch_size=8, **changes))
    for number in range(3):
        _, metrics, _ = trainer.step(number)
        assert metrics["ratio_mean"] == pytest.approx(1, abs=tolerance)
        assert metrics["ratio_max"] == pytest.approx(1, abs=tolerance)
        assert metrics["clip_fraction"] == 0
        assert metrics["approx_kl"] == pytest.approx(0, abs=tolerance)


def test_dropout_is_off_even_in_training_mode() -> None:
    config = tiny_config(update_epochs=1, batch_size=8, micro_batch_size=8, gradient_checkpointing=True)
    trainer = trainer_of(config, policy=tiny_policy(attention_dropout=0.5))
    assert trainer.policy.training
    assert trainer.step(0)[1]["ratio_max"] == pytest.approx(1, abs=1e-4)


def test_later_minibatches_see_a_policy_that_has_moved_while_the_reference_stays() -> None:
    trainer = trainer_of(tiny_config(learning_rate=1e-2))
    before = weights(trainer.reference)
    first, second = trainer.step(0)[1], trainer.step(1)[1]
    assert first["kl_k1"] == pytest.approx(0, abs=1e-4)
    assert first["ratio_max"] > 1.01
    assert second["kl_k3"] > 1e-3
    assert torch.equal(weights(trainer.reference), before)


def exact_optimum(policy: LlamaForCausalLM, prompt: list[int], rewards: torch.Tensor, beta: float) -> torch.Tensor:
    """π*(y) ∝ π_ref(y) exp(r(y)/β): the maximum of E[r] − β KL(π ‖ π_ref)."""
    with torch.no_grad():
        reference = policy(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    return (reference + rewards / beta).softmax(-1)


@pytest.mark.parametrize("beta", [1.0, 0.4])
def test_a_two_armed_bandit_reaches_the_closed_form_optimum(beta: float, tmp_path: Path) -> None:
    """One token: arm `a` pays 1, arm `b` pays 0.5, and the rest of the vocabulary pays nothing."""
    tokenizer = word_tokenizer()
    payouts = {"a": 1.0, "b": 0.5}
    rewards = torch.tensor([payouts.get(token, 0.0) for token in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))])
    config = tiny_config(
        episodes=256 * 25, rollout_batch_size=256, batch_size=256, micro_batch_size=256, update_epochs=4, max_new_tokens=1,
        sampling_batch_size=256, missing_eos_penalty=0.0, beta=beta, learning_rate=1e-2, value_learning_rate=1e-2,
        max_grad_norm=10.0, checkpoint_every=1000,
    )  # fmt: skip

    def reward(prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
        return [payouts.get(completion.strip(), 0.0) for completion in completions]

    policy, reference = tiny_policy(num_hidden_layers=1), tiny_policy(num_hidden_layers=1)
    value_model = tiny_value_model(num_hidden_layers=1)
    run(config, tmp_path, policy=policy, reference=reference, value_model=value_model, prompts=PROMPTS[:1], reward=reward)
    prompt = prompt_ids(tokenizer, PROMPTS[0])
    optimum = exact_optimum(reference, prompt, rewards, beta)
    with torch.no_grad():
        after, before = (model(torch.tensor([prompt])).logits[0, -1].softmax(-1) for model in (policy, reference))
    distance, first_distance = (0.5 * float((one - optimum).abs().sum()) for one in (after, before))
    assert first_distance > 0.1
    assert distance < 0.06, f"total variation {distance:.3f}, at first {first_distance:.3f}"


def test_an_entropy_bonus_raises_entropy() -> None:
    """Rewards and values are 0, so the bonus is all that moves the policy."""
    entropies = {}
    for coefficient in (0.0, 1.0):
        value_model = ValueModel(tiny_policy(seed=1).model, torch.nn.Linear(16, 1))
        torch.nn.init.zeros_(value_model.head.weight)
        torch.nn.init.zeros_(value_model.head.bias)
        config = tiny_config(
            entropy_coefficient=coefficient, whiten_advantages=False, beta=0.0, missing_eos_penalty=0.0, max_new_tokens=1,
            rollout_batch_size=8, batch_size=8, micro_batch_size=8,
        )  # fmt: skip
        trainer = trainer_of(config, value_model=value_model, reward=lambda prompts, completions: [0.0] * len(completions))
        entropies[coefficient] = [trainer.step(number)[1]["entropy"] for number in (0, 1)]
    assert entropies[0.0][0] == entropies[1.0][0]
    assert entropies[0.0][1] == pytest.approx(entropies[0.0][0], abs=1e-4)  # the same eight prompts, each with one token
    assert entropies[1.0][1] > entropies[1.0][0] + 1e-3


def test_updates_stop_once_the_policy_has_moved_too_far() -> None:
    metrics = trainer_of(tiny_config(max_approx_kl=1e-4, learning_rate=1e-2, update_epochs=8)).step(0)[1]
    assert metrics["stopped_early"] == 1
    assert metrics["minibatches"] < 16
    free = trainer_of(tiny_config(learning_rate=1e-2, update_epochs=8)).step(0)[1]
    assert (free["stopped_early"], free["minibatches"]) == (0, 16)


def test_both_learning_rates_follow_the_schedule() -> None:
    trainer = trainer_of(tiny_config(update_epochs=1, learning_rate=1e-3, value_learning_rate=4e-3))
    metrics = trainer.step(1)[1]  # of 4, from 0
    assert metrics["learning_rate"] == pytest.approx(0.75e-3)
    assert [group["lr"] for group in trainer.updater.optimiser.param_groups] == pytest.approx([0.75e-3, 3e-3])


def test_beta_adapts_towards_the_target() -> None:
    trainer = trainer_of(tiny_config(target_kl=1.0))
    first, second = trainer.step(0)[1], trainer.step(1)[1]
    assert first["beta"] == pytest.approx(0.1)
    assert second["beta"] == pytest.approx(0.1 * (1 - 0.1 * 0.2))  # the KL is 0 at first, and the error is clipped to −0.2


def test_scores_are_normalised_by_all_rewards_so_far() -> None:
    trainer = trainer_of(tiny_config(normalise_scores=True, missing_eos_penalty=0.0))
    assert trainer.step(0)[1]["score"] == pytest.approx(0, abs=1e-6)
    trainer.step(1)
    assert trainer.moments.count == 16


def test_the_size_of_micro_batches_does_not_change_the_gradients() -> None:
    one, three, eight = (
        gradients(trainer_of(tiny_config(batch_size=8, micro_batch_size=size, whiten_advantages=False))) for size in (1, 3, 8)
    )
    assert one.abs().max() > 1e-3
    torch.testing.assert_close(three, one, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(eight, one, atol=1e-5, rtol=1e-3)


# ---- reproducibility ----------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    (first, _), (second, _), (other, _) = (run(tiny_config(), tmp_path / str(i), seed=seed) for i, seed in enumerate((3, 3, 4)))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


RESUMABLE = {"target_kl": 1.0, "normalise_scores": True, "checkpoint_every": 2, "episodes": 48}


class Killed(RuntimeError):
    """Stands for a killed process."""


def killed_at(number: int) -> Callable[..., None]:
    def die(step: int, metrics: dict[str, float], timings: dict[str, float]) -> None:
        if step == number:
            raise Killed

    return die


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """Stopped in the fourth step, with the last checkpoint after the second."""
    whole, history = run(tiny_config(**RESUMABLE), tmp_path / "whole")
    with pytest.raises(Killed):
        run(tiny_config(**RESUMABLE), tmp_path / "killed", log=killed_at(3))
    assert [folder.name for folder in numbered(tmp_path / "killed")] == ["checkpoint-2"]
    logged: list[int] = []
    resumed, resumed_history = run(tiny_config(**RESUMABLE), tmp_path / "killed", log=lambda step, *_: logged.append(step))
    assert torch.equal(resumed, whole)
    assert resumed_history == history
    assert logged == list(range(6))


def test_a_checkpoint_that_was_cut_short_is_not_read_and_the_one_before_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, history = run(tiny_config(**RESUMABLE), tmp_path / "whole")
    assert [folder.name for folder in numbered(tmp_path / "whole")] == ["checkpoint-4", "checkpoint-6"]
    with pytest.raises(Killed):
        run(tiny_config(**RESUMABLE), tmp_path / "killed", log=killed_at(5))
    os.truncate(tmp_path / "killed/checkpoint-4" / STATE, 1000)
    resumed, resumed_history = run(tiny_config(**RESUMABLE), tmp_path / "killed")
    assert torch.equal(resumed, whole)
    assert resumed_history == history
    said = capsys.readouterr().out
    assert f"checkpoint-4 cannot be used and is deleted: expected {STATE} of " in said
    assert f"Training resumes from {tmp_path}/killed/checkpoint-2\n" in said


# ---- memory -------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_read_from_its_mapped_file_never_onto_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a second copy of the weights would lie beside them. Training on leaves the file as it was."""
    saved, resumed = (trainer_of(tiny_config(**RESUMABLE)) for _ in range(2))
    saved.history.append(saved.step(0)[1])
    saved.save(tmp_path)
    [file] = tmp_path.glob(f"*/{STATE}")
    before, load, read = file.read_bytes(), torch.load, []

    def spy(path: Path, **options: Any) -> Any:
        read.append((options["map_location"], options.get("mmap")))
        return load(path, **options)

    monkeypatch.setattr(torch, "load", spy)
    assert resumed.restore(tmp_path) == 1
    assert read == [("cpu", True)]
    assert torch.equal(weights(resumed.policy), weights(saved.policy))
    assert {parameter.device for parameter in resumed.policy.parameters()} == {resumed.device}
    resumed.step(1)
    assert file.read_bytes() == before


def test_a_lora_policy_trains_its_adapter_against_itself_without_it() -> None:
    config = tiny_config(lora_rank=2, learning_rate=1e-2)
    torch.manual_seed(0)
    policy = add_adapter(tiny_policy(), config)
    base = {name: value.clone() for name, value in policy.state_dict().items() if "lora" not in name}
    trainer = trainer_of(config, policy=policy, reference=None)
    first, second = trainer.step(0)[1], trainer.step(1)[1]
    assert first["kl_k1"] == pytest.approx(0, abs=1e-4)
    assert second["kl_k3"] > 1e-5
    assert all(torch.equal(policy.state_dict()[name], value) for name, value in base.items())
    with reference_of(policy, None) as reference:
        assert logps_of(reference, PAIRS)[2] == pytest.approx(logps_of(tiny_policy(), PAIRS)[2], abs=1e-4)
    adapted = logps_of(policy, PAIRS)
    assert adapted[2] != pytest.approx(logps_of(tiny_policy(), PAIRS)[2], abs=1e-3)
    merged = policy.merge_and_unload()
    assert isinstance(merged, LlamaForCausalLM)
    assert logps_of(merged, PAIRS)[2] == pytest.approx(adapted[2], abs=1e-4)


def test_gradient_checkpointing_does_not_change_the_gradients() -> None:
    plain, recomputed = (trainer_of(tiny_config(gradient_checkpointing=on)) for on in (False, True))
    assert recomputed.policy.is_gradient_checkpointing
    torch.testing.assert_close(gradients(recomputed), gradients(plain), atol=1e-5, rtol=1e-3)


def test_bf16_computes_in_bfloat16_and_keeps_float32_weights() -> None:
    trainer = trainer_of(tiny_config(bf16=True, update_epochs=1))
    types: set[torch.dtype] = set()
    trainer.policy.model.layers[0].mlp.register_forward_hook(lambda module, args, output: types.add(output.dtype))
    trainer.step(0)
    assert types == {torch.bfloat16}
    assert {parameter.dtype for parameter in trainer.policy.parameters()} == {torch.float32}
    exact = trainer_of(tiny_config(update_epochs=1))
    exact.step(0)
    assert (weights(trainer.policy) - weights(exact.policy)).abs().max() < 0.01  # two Adam steps of 1e-3 each move a weight less


# ---- the guard ----------------------------------------------------------------------------------------------------------


def with_broken_value_model(trainer: PpoTrainer) -> PpoTrainer:
    with torch.no_grad():
        trainer.value_model.head.weight.fill_(math.nan)
    return trainer


def test_a_loss_that_is_not_finite_stops_the_run_unless_the_guard_is_off() -> None:
    with pytest.raises(FloatingPointError, match=r"step 0, epoch 0, minibatch 0: expected a finite \w+, found nan"):
        with_broken_value_model(trainer_of(tiny_config())).step(0)
    with_broken_value_model(trainer_of(tiny_config(guard=False, whiten_advantages=False))).step(0)


def test_a_warning_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    trainer = trainer_of(tiny_config())
    start, end = {"reward": 0.0, "entropy": 2.0, "kl_k1": 0.5}, {"reward": 1.0, "entropy": 0.1, "kl_k1": 50.0}
    trainer.history = [start] * 5 + [end] * 5
    with caplog.at_level(logging.WARNING):
        trainer.warn()
        trainer.warn()
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert all(any(kind in message for message in messages) for kind in ("the entropy fell", "the KL to the reference grew"))
