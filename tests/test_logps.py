"""Log-probabilities are the same, and never in memory with the logits of a whole batch, whatever the size of the vocabulary."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from ppo_tiny import tiny_policy
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM

from plumbline.evaluation.divergence import BATCH_TOKENS, completion_logps
from plumbline.methods.online.ppo.networks import CompletionLogits, collate
from plumbline.methods.online.ppo.rollout import logps_and_entropies
from plumbline.models import logps
from plumbline.models.logps import linear_output, per_token_logps
from plumbline.pipeline.composing import CONF

PROMPTS, COMPLETIONS = [[5, 6], [9], [10, 9, 8, 7, 6, 5]], [[7, 8, 3], [5], [5, 6, 7, 8, 9, 3]]
WORDS = 11
BATCH = collate(PROMPTS, COMPLETIONS, 0, torch.device("cpu"))  # ten completion tokens


class Sizes:
    """The number of logits that each call of an output layer made."""

    def __init__(self, output: nn.Module) -> None:
        self.seen: list[int] = []
        output.register_forward_hook(lambda module, args, logits: self.seen.append(logits.numel()))


@pytest.fixture
def three_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits of three tokens fill a chunk."""
    monkeypatch.setattr(logps, "CHUNK_LOGITS", 3 * WORDS + 1)


def gradients(policy: nn.Module, loss: Tensor) -> Tensor:
    policy.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters() if parameter.grad is not None])


def test_chunks_give_the_figures_and_gradients_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    whole = CompletionLogits(policy, 0.7).per_token(BATCH, logps_and_entropies)
    expected = gradients(policy, whole.square().sum())
    monkeypatch.setattr(logps, "CHUNK_LOGITS", 3 * WORDS + 1)
    parts = CompletionLogits(policy, 0.7).per_token(BATCH, logps_and_entropies)
    assert parts.shape == whole.shape == (2, 10)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(gradients(policy, parts.square().sum()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("three_at_a_time")
def test_no_more_logits_are_made_at_a_time_than_a_chunk_holds_also_in_the_backward_pass() -> None:
    policy = tiny_policy()
    figures = CompletionLogits(policy, 1.0)
    sizes = Sizes(policy.lm_head)
    figures.per_token(BATCH, per_token_logps).sum().backward()
    assert sorted(sizes.seen) == [WORDS] * 2 + [3 * WORDS] * 6  # once in the forward pass, once in the backward pass
    sizes.seen.clear()
    completion_logps(policy, PROMPTS, COMPLETIONS)
    assert max(sizes.seen[2:]) <= 3 * WORDS  # after the two probes that ask whether the layer is linear


def test_what_fits_is_computed_at_once_and_so_to_the_same_bits_as_ever() -> None:
    policy = tiny_policy()
    figures, sizes = CompletionLogits(policy, 1.0), Sizes(policy.lm_head)
    with torch.no_grad():
        whole = per_token_logps(figures(BATCH), BATCH.tokens)
        assert torch.equal(figures.per_token(BATCH, per_token_logps), whole)
    assert sizes.seen == [10 * WORDS] * 2


def test_the_closed_world_never_fills_a_chunk() -> None:
    vocabulary, ppo = OmegaConf.load(CONF / "model/tiny.yaml").vocabulary_size, OmegaConf.load(CONF / "size/tiny.yaml").ppo
    assert BATCH_TOKENS * vocabulary <= logps.CHUNK_LOGITS
    assert ppo.micro_batch_size * ppo.max_new_tokens * vocabulary <= logps.CHUNK_LOGITS


@pytest.mark.parametrize("soft_capping", [None, 0.5])
def test_the_likelihood_of_a_completion_does_not_depend_on_chunks(
    soft_capping: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that caps its logits is asked for fewer rows at a time instead."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        intermediate_size=32, final_logit_softcapping=soft_capping, initializer_range=0.3, sliding_window=4,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).eval()
    assert (linear_output(model) is None) == (soft_capping is not None)
    whole = completion_logps(model, PROMPTS, COMPLETIONS)
    monkeypatch.setattr(logps, "CHUNK_LOGITS", 3 * WORDS + 1)
    assert completion_logps(model, PROMPTS, COMPLETIONS) == pytest.approx(whole, abs=1e-4)
