"""One answer, token by token, for somebody who is waiting for it.

The tokens are those that `sample` draws for the prompt alone with the same seed (a test compares the two): the same reading of the prompt,
the same uniform numbers, the same decoding. Only what makes many rows fast is left out.
"""

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from plumbline.models.cache import next_logits, read_prompts
from plumbline.models.chat import end_of_turn_id
from plumbline.models.decoding_values import Decoding
from plumbline.models.sampling import draw, penalised, truncations
from plumbline.models.uniforms import uniforms_of


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    decoding: Decoding,
    seed: int,
) -> Iterator[int]:
    """The ids of one completion as they are drawn, the last of them the end of turn if it is reached within `max_new_tokens`.

    The model has to be in evaluation mode. Between two tokens nothing is held but the cache, so a reader may stop at any time, and several
    may read from one model.
    """
    end_id, warpers = end_of_turn_id(tokenizer), truncations(decoding)
    uniforms = uniforms_of(seed, [0], max_new_tokens).to(model.device)
    ids = torch.tensor([list(prompt)], device=model.device)
    padding = torch.zeros(1, dtype=torch.long, device=model.device)
    with torch.inference_mode():  # not around a `yield`: the mode would be the reader's too
        logits, cache, mask = read_prompts(model, [prompt])
    for step in range(max_new_tokens):
        with torch.inference_mode():
            if decoding.repetition_penalty != 1:
                logits = penalised(logits, ids, padding, decoding.repetition_penalty)
            token, _ = draw(logits, uniforms[:, step], decoding.temperature, warpers=warpers, with_logps=False)
        yield int(token)
        if int(token) == end_id or step + 1 == max_new_tokens:
            return
        with torch.inference_mode():
            ids = torch.cat([ids, token.unsqueeze(-1)], dim=1)
            mask = torch.cat([mask, mask.new_ones(1, 1)], dim=1)
            positions = torch.tensor([[ids.shape[1] - 1]], device=model.device)
            logits = next_logits(model, token.unsqueeze(-1), mask, positions, cache)
