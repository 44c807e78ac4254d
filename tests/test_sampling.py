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
from plumbline.models.decoding_values import Decoding
from plumbline.models.sampling import Sampled, draw, fill_holes, penalised, sample, truncations

PROMPTS = [[5], [6, 7, 8], [9, 10, 5, 6, 7, 8], [5], [10, 9], [6, 6, 6, 6]]


@pytest.fixture(scope="module")
def policy() -> LlamaForCausalLM:
    return tiny_policy()


NARROW = Decoding(temperature=0.8, top_k=8, top_p=0.9, min_p=0.05, repetition_penalty=1.3)


def completions(policy: LlamaForCausalLM, prompts: list[list[int]] = PROMPTS, **changes: object) -> list[Sampled]:
    """Fields of a decoding are `changes` as well."""
    decoding = Decoding(**{name: changes.pop(name) for name in Decoding._fields if name in changes})  # type: ignore[arg-type]
    settings: dict = {
        "max_new_tokens": 12,
        "decoding": decoding,
        "seed": 5,
        "with_logps": decoding.is_whole_distribution,
    } | changes
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


@pytest.mark.parametrize("decoding", [Decoding(), NARROW])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_row_does_not_depend_on_its_batch(policy: LlamaForCausalLM, batch_size: int, decoding: Decoding) -> None:
    together, apart = (completions(policy, batch_size=size, **decoding._asdict()) for size in (512, batch_size))
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


# ---- decodings that narrow the distribution ------------------------------------------------------------------------------


def kept_tokens(decoding: Decoding, probabilities: list[float]) -> dict[int, float]:
    """The tokens that can be drawn of a distribution, with the frequencies of 1,000 evenly spread draws."""
    uniforms = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    logits = torch.tensor(probabilities).log().repeat(1000, 1)
    tokens, _ = draw(logits, uniforms, decoding.temperature, warpers=truncations(decoding), with_logps=False)
    return {token: count / 1000 for token, count in enumerate(torch.bincount(tokens).tolist()) if count}


@pytest.mark.parametrize(
    ("decoding", "expected"),
    [
        (Decoding(top_k=2), {1: 5 / 8, 2: 3 / 8}),
        (Decoding(top_p=0.7), {1: 5 / 8, 2: 3 / 8}),  # 0.5 is less than 0.7
        (Decoding(top_p=0.4), {1: 1.0}),
        (Decoding(min_p=0.25), {0: 1.5 / 9.5, 1: 5 / 9.5, 2: 3 / 9.5}),  # at least 0.125
        (Decoding(min_p=1.0), {1: 1.0}),
        # squared: 0.0225, 0.25, 0.09 and 0.0025 of 0.365, so that two tokens have 0.93 and no other a quarter of the first
        (Decoding(temperature=0.5, top_p=0.9), {1: 25 / 34, 2: 9 / 34}),
        (Decoding(temperature=0.5, min_p=0.25), {1: 25 / 34, 2: 9 / 34}),
        # of the three tokens that top-k leaves, two have 8 / 9.5; of all, they would have 0.8
        (Decoding(top_k=3, top_p=0.82), {1: 5 / 8, 2: 3 / 8}),
    ],
)
def test_what_a_decoding_keeps_is_drawn_in_proportion(decoding: Decoding, expected: dict[int, float]) -> None:
    found = kept_tokens(decoding, [0.15, 0.5, 0.3, 0.05])
    assert found == {token: pytest.approx(share, abs=2e-3) for token, share in expected.items()}


def test_a_penalty_is_for_each_token_of_prompt_and_completion_once_and_not_for_padding() -> None:
    logits = torch.tensor([[4.0, 4.0, -4.0, 4.0], [4.0, 4.0, -4.0, 4.0]])
    ids = torch.tensor([[0, 0, 1, 2, 2], [0, 3, 1, 2, 0]])  # the first row has two padding tokens, the second one
    assert penalised(logits, ids, torch.tensor([2, 1]), 2.0).tolist() == [[4.0, 2.0, -8.0, 4.0], [2.0, 2.0, -8.0, 2.0]]


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(temperature=0.7),
        Decoding(top_k=3),
        Decoding(top_p=0.8),
        Decoding(min_p=0.2),
        Decoding(repetition_penalty=1.4),
        NARROW,
    ],
)
def test_a_token_is_drawn_from_the_distribution_that_generate_draws_from(policy: LlamaForCausalLM, decoding: Decoding) -> None:
    """`generate` reports the scores after all its processors, of prompts that are padded to one length. Every token of our completions is where the
    inverse of their cumulative distribution puts its uniform number."""
    uniforms = torch.rand(len(PROMPTS), 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = completions(policy, uniforms=uniforms, **decoding._asdict())
    width = max(map(len, PROMPTS))
    for row, one in enumerate(ours):
        for step, token in enumerate(one.ids):
            ids = PROMPTS[row] + one.ids[:step]
            padded = [0] * (width - len(PROMPTS[row])) + ids
            mask = [0] * (len(padded) - len(ids)) + [1] * len(ids)
            scores = policy.generate(
                torch.tensor([padded]), attention_mask=torch.tensor([mask]), max_new_tokens=1, do_sample=True, output_scores=True,
                return_dict_in_generate=True, pad_token_id=0, **decoding._replace(min_p=decoding.min_p or None)._asdict(),
            ).scores[0][0]  # fmt: skip
            cumulative = scores.softmax(-1).double().cumsum(-1)
            below = cumulative[token - 1] if token else 0.0
            assert below - 1e-5 <= uniforms[row, step] <= cumulative[token] + 1e-5
            assert scores[token] > -math.inf


def test_neutral_values_give_the_same_bits_without_any_processor(
    policy: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = completions(policy)
    for name in ("RepetitionPenaltyLogitsProcessor", "TopKLogitsWarper", "TopPLogitsWarper", "MinPLogitsWarper"):
        monkeypatch.setattr(f"plumbline.models.sampling.{name}", None)
    assert completions(policy, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0) == before


def test_greedy_decoding_heeds_the_penalty_and_nothing_else_as_generate_does(policy: LlamaForCausalLM) -> None:
    end = end_of_turn_id(word_tokenizer())
    greedy = completions(policy, temperature=0.0, with_logps=False)
    assert completions(policy, temperature=0.0, top_k=3, top_p=0.5, min_p=0.5, with_logps=False) == greedy
    penalised_too = completions(policy, temperature=0.0, repetition_penalty=1.5)
    assert penalised_too != greedy
    for prompt, one in zip(PROMPTS, penalised_too, strict=True):
        expected = policy.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=end, pad_token_id=0, repetition_penalty=1.5
        )
        assert one.ids == expected[0, len(prompt) :].tolist()


def test_dropping_finished_rows_does_not_change_the_penalties_of_the_others() -> None:
    """The last rows alive have moved several times. Under a penalty this strong, the prompt or completion of another row would show in their ids."""
    policy = unhurried_policy()
    prompts = [PROMPTS[row % len(PROMPTS)] for row in range(64)]
    uniforms = torch.rand(64, 30, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    settings: dict = {"max_new_tokens": 30, "repetition_penalty": 2.0, "top_k": 6}
    together = completions(policy, prompts, uniforms=uniforms, **settings)
    longest = sorted(range(64), key=lambda row: -len(together[row].ids))[:8]
    assert len(together[longest[0]].ids) > 20
    for row in longest:
        [alone] = completions(policy, [prompts[row]], uniforms=uniforms[[row]], **settings)
        assert alone.ids == together[row].ids


@pytest.mark.parametrize("changes", [{"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}, {"repetition_penalty": 1.1}])
def test_log_probabilities_of_a_narrower_distribution_are_refused(policy: LlamaForCausalLM, changes: dict[str, float]) -> None:
    [(name, value)] = changes.items()
    with pytest.raises(
        ValueError, match=rf"with_logps: expected the whole distribution, found temperature 1, {name} {value}, of which"
    ):
        completions(policy, with_logps=True, **changes)


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
        ({"top_k": -1}, "top_k: expected 0 or above, found -1"),
        ({"top_p": 0.0}, "top_p: expected above 0 and at most 1, found 0.0"),
        ({"min_p": 1.5}, "min_p: expected a fraction from 0 to 1, found 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: expected a positive number, found 0.0"),
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
