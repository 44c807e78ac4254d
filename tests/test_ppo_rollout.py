"""What PPO samples and measures: log-probabilities at the right tokens, episodes that end, rewards from text, and a step's figures."""

import math
from collections.abc import Sequence

import pytest
import torch
from bigram import POLICY, REFERENCE, bigram
from ppo_tiny import PROMPTS, llama_config, tiny_config, tiny_policy, trainer_of, word_tokenizer
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedModel

from plumbline.methods.online.ppo.networks import CompletionLogits, collate
from plumbline.methods.online.ppo.rollout import prompts_at, stack
from plumbline.models.chat import ASSISTANT, END, end_of_turn_id
from plumbline.models.logps import per_token_logps
from plumbline.rows import Message

CPU = torch.device("cpu")

# ---- log-probabilities --------------------------------------------------------------------------------------------------

PAIRS = [([5, 6], [7, 8, 3]), ([9], [5]), ([10, 9, 8, 7, 6, 5], [5, 6, 7, 8, 9, 3]), ([7, 7, 7], [3])]


def logps_of(model: PreTrainedModel, pairs: Sequence[tuple[list[int], list[int]]], temperature: float = 1.0) -> list[list[float]]:
    """Log-probabilities of completions, as PPO computes them."""
    batch = collate([prompt for prompt, _ in pairs], [completion for _, completion in pairs], 0, CPU)
    with torch.no_grad():
        flat = CompletionLogits(model, temperature).per_token(batch, per_token_logps)
    return [part.tolist() for part in flat.split([len(completion) for _, completion in pairs])]


def logps_alone(model: PreTrainedModel, prompt: list[int], completion: list[int], temperature: float = 1.0) -> list[float]:
    """Log-probabilities of one completion, from the model's own logits."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1)[range(len(completion)), completion].tolist()


def test_episodes_are_read_without_their_last_token_and_each_token_is_predicted_at_the_one_before() -> None:
    batch = collate([[5, 6], [9], [4]], [[7, 8, 3], [5], [6, 2]], 0, CPU)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [9, 0, 0, 0], [4, 6, 0, 0]]
    assert batch.positions.tolist() == [1, 2, 3, 4, 8, 9]  # of 5 6 7 8 9 0 0 0 4 6 0 0
    assert batch.tokens.tolist() == [7, 8, 3, 5, 6, 2]


def test_logps_depend_on_neither_padding_nor_batch() -> None:
    policy = tiny_policy()
    for pair, together in zip(PAIRS, logps_of(policy, PAIRS, 0.7), strict=True):
        assert logps_of(policy, [pair], 0.7)[0] == pytest.approx(together, abs=1e-4)
        assert logps_alone(policy, *pair, 0.7) == pytest.approx(together, abs=1e-4)


def test_an_output_layer_that_is_more_than_linear_is_not_bypassed() -> None:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=11, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        intermediate_size=32, final_logit_softcapping=0.5, initializer_range=0.3, sliding_window=4,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).eval()
    assert CompletionLogits(model, 1.0).output is None
    assert CompletionLogits(tiny_policy(), 1.0).output is not None
    for pair, together in zip(PAIRS, logps_of(model, PAIRS), strict=True):
        assert logps_alone(model, *pair) == pytest.approx(together, abs=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_the_samplers_logps_agree_with_the_trainers(temperature: float) -> None:
    trainer = trainer_of(tiny_config(temperature=temperature, update_epochs=1))
    assert all(trainer.step(number)[1]["behaviour_gap"] < 1e-4 for number in range(3))


# ---- episodes -----------------------------------------------------------------------------------------------------------


def test_an_episode_ends_at_its_end_of_turn_and_nothing_after_it_counts() -> None:
    """Under the table, a token ends the turn with a known probability between 1/11 and 1/2: some of 32 episodes end, some do not."""
    config = tiny_config(rollout_batch_size=32, batch_size=32, max_new_tokens=4)
    trainer = trainer_of(config, policy=bigram(POLICY), reference=bigram(REFERENCE))
    end = end_of_turn_id(trainer.tokenizer)
    episodes, _ = trainer.roll_out(0)
    assert {episode.finished for episode in episodes} == {True, False}
    rollouts = stack(episodes, CPU)
    for row, episode in enumerate(episodes):
        assert episode.completion_ids.count(end) == episode.finished
        assert episode.finished == (episode.completion_ids[-1] == end)
        assert int(rollouts.mask[row].sum()) == len(episode.completion_ids) == len(episode.figures.values)
        assert rollouts.mask[row, : len(episode.completion_ids)].all()


def test_an_empty_completion_is_legal() -> None:
    """Under this table two thirds of the completions are empty."""
    texts: list[str] = []

    def reward(prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
        texts.extend(completions)
        return [1.0] * len(completions)

    config = tiny_config(rollout_batch_size=32, batch_size=32)
    trainer = trainer_of(config, policy=bigram({ASSISTANT: {END: 22}}), reference=bigram(REFERENCE), reward=reward)
    episodes, metrics, _ = trainer.step(0)
    assert "" in texts
    assert [end_of_turn_id(trainer.tokenizer)] in [episode.completion_ids for episode in episodes if episode.text == ""]
    assert all(math.isfinite(value) for value in metrics.values())


def test_rewards_come_from_text_so_the_reward_model_may_have_another_tokenizer_and_template() -> None:
    """The reward model's ids differ from the policy's for every word."""
    from transformers import LlamaForSequenceClassification

    from plumbline.rewards.model import RewardModel

    other = word_tokenizer(["r", "q", "zzz", "d", "c", "b", "a"])
    other.chat_template = "{%- for m in messages -%}{{ m['content'] + ' <|end|> ' }}{%- endfor -%}"
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(llama_config(len(other), num_labels=1))
    episodes, _ = trainer_of(tiny_config(), reward=RewardModel(model, other)).roll_out(0)
    ids = other(f"{PROMPTS[episodes[0].prompt][0]['content']} <|end|> {episodes[0].text} <|end|>")["input_ids"]
    with torch.no_grad():
        expected = float(model(torch.tensor([ids])).logits)
    assert episodes[0].reward == pytest.approx(expected, abs=1e-4)


def test_every_prompt_comes_once_before_any_comes_twice() -> None:
    order = [prompt for step in range(6) for prompt in prompts_at(step, 4, 8, seed=1)]
    assert [sorted(order[start : start + 8]) for start in (0, 8, 16)] == [list(range(8))] * 3
    assert order[:8] != order[8:16]
    assert prompts_at(0, 20, 8, seed=1)[:4] == order[:4]


def test_a_reward_that_is_not_finite_is_named_with_its_completion() -> None:
    def broken(prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
        return [math.nan if i == 2 else 0.0 for i in range(len(completions))]

    with pytest.raises(FloatingPointError, match=r"scoring the completion .*: expected a finite reward, found nan"):
        trainer_of(tiny_config(), reward=broken).roll_out(0)


def test_a_reward_with_a_wrong_number_of_values_is_refused() -> None:
    with pytest.raises(ValueError, match="found 7 for 8 completions"):
        trainer_of(tiny_config(), reward=lambda prompts, completions: [0.0] * 7).roll_out(0)


# ---- figures of a step --------------------------------------------------------------------------------------------------


def test_the_metrics_are_means_over_the_batch_of_what_the_episodes_hold() -> None:
    trainer = trainer_of(tiny_config(), reference=tiny_policy(seed=9))
    episodes, metrics, _ = trainer.step(0)
    k1 = [sum(episode.figures.policy_logps) - sum(episode.figures.reference_logps) for episode in episodes]
    assert metrics["kl_k1"] == pytest.approx(sum(k1) / 8, abs=1e-4)
    assert metrics["rlhf_reward"] == pytest.approx(metrics["score"] - 0.1 * metrics["kl_k1"])
    assert metrics["length_tokens"] == sum(len(episode.completion_ids) for episode in episodes) / 8
    assert metrics["end_of_turn_fraction"] == sum(episode.finished for episode in episodes) / 8
    assert metrics["reward"] == sum(episode.text.split().count("a") for episode in episodes) / 8


def test_the_missing_eos_penalty_lowers_the_score_of_unfinished_episodes() -> None:
    """Both trainers sample the same completions, so their scores differ by the penalty alone."""
    (episodes, plain, _), (_, penalised, _) = (
        trainer_of(
            tiny_config(missing_eos_penalty=penalty, rollout_batch_size=32, batch_size=32, max_new_tokens=4),
            policy=bigram(POLICY),
            reference=bigram(REFERENCE),
        ).step(0)
        for penalty in (0.0, 3.0)
    )
    unfinished = sum(not episode.finished for episode in episodes) / len(episodes)
    assert 0 < unfinished < 1
    assert plain["score"] - penalised["score"] == pytest.approx(3.0 * unfinished)
    assert plain["reward"] == penalised["reward"]
