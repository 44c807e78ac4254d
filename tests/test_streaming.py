"""An answer that is streamed is the answer that `sample` gives, and its reader may stop."""

from itertools import islice

import pytest
import torch
from ppo_tiny import tiny_policy, word_tokenizer
from transformers import LlamaForCausalLM

from plumbline.models.decoding_values import NEUTRAL, Decoding
from plumbline.models.sampling import sample
from plumbline.models.streaming import stream

PROMPTS = [[5], [6, 7, 8], [9, 10, 5, 6, 7, 8]]
DECODINGS = [
    NEUTRAL,
    Decoding(temperature=0.0),
    Decoding(temperature=0.7, top_p=0.9),
    Decoding(temperature=0.8, top_k=8, top_p=0.9, min_p=0.05, repetition_penalty=1.3),
]


@pytest.fixture(scope="module")
def policy() -> LlamaForCausalLM:
    return tiny_policy().eval()


@pytest.mark.parametrize("decoding", DECODINGS, ids=lambda decoding: decoding.words)
def test_a_streamed_answer_is_the_one_that_sample_draws(policy: LlamaForCausalLM, decoding: Decoding) -> None:
    finished = set()
    for prompt in PROMPTS:
        for seed in range(6):
            [whole] = sample(policy, word_tokenizer(), [prompt], max_new_tokens=5, decoding=decoding, seed=seed)
            streamed = [*stream(policy, word_tokenizer(), prompt, max_new_tokens=5, decoding=decoding, seed=seed)]
            assert streamed == whole.ids
            finished.add(whole.finished)
    assert finished == {True, False} or decoding.temperature == 0  # both ways to end were seen


def test_a_reader_may_stop_and_others_are_not_disturbed(policy: LlamaForCausalLM) -> None:
    whole = [*stream(policy, word_tokenizer(), [6, 7, 8], max_new_tokens=12, decoding=NEUTRAL, seed=3)]
    first = stream(policy, word_tokenizer(), [6, 7, 8], max_new_tokens=12, decoding=NEUTRAL, seed=3)
    second = stream(policy, word_tokenizer(), [9, 10], max_new_tokens=12, decoding=NEUTRAL, seed=4)
    start = [*islice(first, 2)]
    assert not torch.is_inference_mode_enabled()
    next(second)
    second.close()
    assert [*start, *first] == whole
