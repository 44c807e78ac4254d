"""Sampling: the right distribution and the right log-probabilities, however rows are padded, dropped or batched."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from bigram import POLICY, bigram
from ppo_tiny import tiny_policy, unhurried_policy, word_tokenizer
from torch.nn.functional import pad
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from plumbline.models import cache as caching
from plumbline.models.cache import RoomyLayer, read_prompts
from plumbline.models.chat import end_of_turn_id
from plumbline.models.sampling import Sampled, draw, fill_holes, sample

PROMPTS = [[5], [6, 7, 8], [9, 10, 5, 6, 7, 8], [5], [10, 9], [6, 6, 6, 6]]


@pytest.fixture(scope="module")
def policy() -> LlamaForCausalLM:
    return tiny_policy()


def completions(policy: LlamaForCausalLM, prompts: list[list[int]] = PROMPTS, **changes: object) -> list[Sampled]:
    settings: dict = {"max_new_tokens": 12, "temperature": 1.0, "seed": 5, "with_logps": True} | changes
    return sample(policy, word_tokenizer(), prompts, **settings)


def recomputed_logps(model: LlamaForCausalLM, prompt: list[int], completion: list[int], temperature: float) -> list[float]:
    """One sequence at a time, without cache, padding or batch."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1)[range(len(completion)), completion].tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_reported_logps_are_those_of_each_sequence_alone(policy: LlamaForCausalLM, temperature: float) -> None:
    for prompt, one in zip(PROMPTS, completions(policy, temperature=temperature), strict=True):
        assert one.per_token_logps == pytest.approx(recomputed_logps(policy, prompt, one.ids, temperature), abs=1e-4)


def learnt_positions() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=11, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3)
    ).eval()


def grouped_heads_and_a_sliding_window() -> MistralForCausalLM:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=11, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=32,
        sliding_window=4, initializer_range=0.3,
    )  # fmt: skip
    return MistralForCausalLM(config).eval()


def biased_attention() -> BloomForCausalLM:
    """ALiBi: it has no positions."""
    torch.manual_seed(0)
    return BloomForCausalLM(BloomConfig(vocab_size=11, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.3)).eval()


def convolutions_between_attention() -> Lfm2ForCausalLM:
    """Layers whose cache is a state instead of keys and values."""
    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=11, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=32,
        layer_types=["conv", "full_attention", "conv"], initializer_range=0.3, pad_token_id=0,
    )  # fmt: skip
    return Lfm2ForCausalLM(config).eval()


@pytest.mark.parametrize(
    "architecture", [learnt_positions, grouped_heads_and_a_sliding_window, biased_attention, convolutions_between_attention]
)
def test_other_architectures_get_the_same_logps(
    architecture: Callable[[], LlamaForCausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "READ_TOKENS", 8)
    model = architecture()
    for prompt, one in zip(PROMPTS, completions(model), strict=True):
        assert one.per_token_logps == pytest.approx(recomputed_logps(model, prompt, one.ids, 1.0), abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_row_does_not_depend_on_its_batch(policy: LlamaForCausalLM, batch_size: int) -> None:
    together, apart = completions(policy), completions(policy, batch_size=batch_size)
    assert [one.ids for one in together] == [one.ids for one in apart]


def test_the_same_seed_gives_the_same_ids_and_another_seed_others(policy: LlamaForCausalLM) -> None:
    assert completions(policy) == completions(policy)
    assert [one.ids for one in completions(policy)] != [one.ids for one in completions(policy, seed=6)]


def test_uniforms_of_a_share_give_the_completions_of_the_whole(policy: LlamaForCausalLM) -> None:
    uniforms = torch.rand(len(PROMPTS), 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = completions(policy, uniforms=uniforms)
    share = completions(policy, PROMPTS[3:], uniforms=uniforms[3:])
    assert [one.ids for one in whole[3:]] == [one.ids for one in share]


def test_equal_prompts_get_different_completions(policy: LlamaForCausalLM) -> None:
    ids = [one.ids for one in completions(policy, [[5, 6]] * 8)]
    assert len({tuple(row) for row in ids}) > 1


def test_a_completion_ends_at_its_first_end_of_turn_and_tells_whether_it_did() -> None:
    """Under the table, a token ends the turn with a probability between 1/11 and 1/2: some of 60 completions end, some do not."""
    end = end_of_turn_id(word_tokenizer())
    rows = completions(bigram(POLICY), PROMPTS * 10, max_new_tokens=4)
    assert {one.finished for one in rows} == {True, False}
    for one in rows:
        assert one.finished == (one.ids[-1] == end)
        assert end not in one.ids[:-1]
        assert len(one.ids) == len(one.per_token_logps or [])
        assert one.finished or len(one.ids) == 4


def test_frequencies_are_the_models_probabilities(policy: LlamaForCausalLM) -> None:
    draws = 20_000
    rows = completions(policy, [[6, 7]] * draws, max_new_tokens=1, temperature=0.8, batch_size=draws)
    counts = torch.bincount(torch.tensor([one.ids[0] for one in rows]), minlength=11) / draws
    with torch.no_grad():
        expected = (policy(torch.tensor([[6, 7]])).logits[0, -1] / 0.8).softmax(-1)
    # four standard deviations of a frequency
    assert (counts - expected).abs().max() < 4 * math.sqrt(0.25 / draws)


def test_temperature_0_is_generate_without_sampling(policy: LlamaForCausalLM) -> None:
    end = end_of_turn_id(word_tokenizer())
    for prompt, one in zip(PROMPTS, completions(policy, temperature=0), strict=True):
        expected = policy.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=end, pad_token_id=0)
        assert one.ids == expected[0, len(prompt) :].tolist()


def test_draw_inverts_the_cumulative_distribution() -> None:
    logits = torch.tensor([0.2, 0.0, 0.5, 0.3]).log().repeat(5, 1)
    tokens, logps = draw(logits, torch.tensor([0.0, 0.19, 0.21, 0.69, 0.999], dtype=torch.float64), 1.0, with_logps=True)
    assert tokens.tolist() == [0, 0, 2, 2, 3]  # token 1 has probability 0
    assert logps is not None
    assert logps.exp().tolist() == pytest.approx([0.2, 0.2, 0.5, 0.5, 0.3], abs=1e-6)


@pytest.mark.parametrize("unfinished", list(itertools.product([True, False], repeat=4)))
def test_fill_holes_keeps_every_unfinished_row_and_moves_rows_from_the_end_only(unfinished: tuple[bool, ...]) -> None:
    kept = fill_holes(torch.tensor(unfinished)).tolist()
    assert sorted(kept) == [row for row, alive in enumerate(unfinished) if alive]
    assert all(kept[row] == row for row in range(len(kept)) if unfinished[row])


def test_a_roomy_layer_holds_what_a_dynamic_layer_holds() -> None:
    dynamic = DynamicLayer()
    dynamic.update(*torch.randn(2, 4, 2, 3, 4))
    roomy = RoomyLayer(*(pad(states, (0, 0, 0, 1)) for states in (dynamic.keys, dynamic.values)), length=3)
    for length, indices in [(1, [0, 3, 2]), (1, [0, 2]), (2, [1, 0]), (1, [1])]:
        keys, values = torch.randn(2, len(dynamic.keys), 2, length, 4)
        for layer in (roomy, dynamic):
            layer.update(keys, values)
            layer.reorder_cache(torch.tensor(indices))
        assert torch.equal(roomy.keys, dynamic.keys)
        assert torch.equal(roomy.values, dynamic.values)
        assert roomy.get_seq_length() == dynamic.get_seq_length()


def test_a_roomy_layer_copies_what_it_holds_only_when_its_room_is_full() -> None:
    layer = RoomyLayer(*torch.zeros(2, 1, 1, 8, 4), length=8)
    rooms = [layer.update(*torch.zeros(2, 1, 1, 1, 4))[0].data_ptr() for _ in range(4)]
    assert rooms[0] == rooms[1] == rooms[2] != rooms[3]  # 9 tokens and a quarter: room for 11


def test_distinct_prompts_are_read_once_in_small_parts(policy: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of them is what one pass over all of them leaves."""
    whole = read_prompts(policy, PROMPTS)
    monkeypatch.setattr(caching, "READ_TOKENS", 8)
    shapes: list[tuple[int, ...]] = []
    hook = policy.model.embed_tokens.register_forward_hook(lambda _, arguments, __: shapes.append(tuple(arguments[0].shape)))
    parts = read_prompts(policy, PROMPTS)
    hook.remove()
    assert shapes == [(2, 2), (2, 4), (1, 6)]  # rows and tokens: lengths 1 and 2, 3 and 4, 6
    assert torch.equal(parts.mask, whole.mask)
    assert torch.allclose(parts.logits, whole.logits, atol=1e-5)
    shown = whole.mask[:, None, :, None]  # what stands in padding's place is never read
    for one, other in zip(parts.cache.layers, whole.cache.layers, strict=True):
        assert torch.allclose(one.keys * shown, other.keys * shown, atol=1e-5)
        assert torch.allclose(one.values * shown, other.values * shown, atol=1e-5)


def test_dropping_finished_rows_does_not_change_the_cache_of_the_others() -> None:
    """The last rows alive have moved several times, so a wrong cache row, mask or position would show in their log-probabilities."""
    policy = unhurried_policy()
    prompts = [PROMPTS[row % len(PROMPTS)] for row in range(64)]
    rows = completions(policy, prompts, max_new_tokens=30)
    longest = sorted(range(64), key=lambda row: -len(rows[row].ids))[:5]
    assert len(rows[longest[0]].ids) > 20
    for row in longest:
        assert rows[row].per_token_logps == pytest.approx(recomputed_logps(policy, prompts[row], rows[row].ids, 1.0), abs=1e-4)


def test_progress_counts_every_prompt_once(policy: LlamaForCausalLM) -> None:
    counts: list[int] = []
    completions(policy, batch_size=4, progress=counts.append)
    assert sum(counts) == len(PROMPTS)


def test_the_model_keeps_its_mode(policy: LlamaForCausalLM) -> None:
    policy.train()
    completions(policy)
    assert policy.training
    policy.eval()


def test_no_prompts_give_no_completions(policy: LlamaForCausalLM) -> None:
    assert completions(policy, []) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -1.0}, "temperature: expected"),
        ({"max_new_tokens": 0}, "max_new_tokens, batch_size: expected"),
        ({"batch_size": 0}, "max_new_tokens, batch_size: expected"),
    ],
)
def test_impossible_arguments_are_refused(policy: LlamaForCausalLM, changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        completions(policy, **changes)


def test_a_prompt_without_tokens_is_refused(policy: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="row 1"):
        completions(policy, [[5], []])


def test_only_plain_attention_layers_get_room_and_are_read_in_parts(
    policy: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "READ_TOKENS", 8)
    assert {type(layer) for layer in read_prompts(policy, PROMPTS).cache.layers} == {RoomyLayer}
    windowed = read_prompts(grouped_heads_and_a_sliding_window(), PROMPTS).cache
    assert {type(layer) for layer in windowed.layers} == {DynamicSlidingWindowLayer}
