"""Draws that do not depend on how many processes share the work: a stream for each purpose and step, a row of numbers for each completion.

PPO, GRPO and RLOO sample the policy's whole distribution by such rows, with this project's sampler (plumbline/models/sampling.py). Only sharded
models are left to transformers' `generate`: their processes have to make equally many steps, and the sampler ends with the last unfinished row.
"""

from typing import Any

import numpy
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from plumbline.models.decoding_values import Decoding
from plumbline.models.memory import held_bytes, rows_in_cache
from plumbline.models.sampling import draw, sample
from plumbline.pipeline import processes


def random_stream(seed: int, *names: int) -> torch.Generator:
    """A generator for one purpose in one step. It has no state to save, so randomness resumes exactly after a crash."""
    (state,) = numpy.random.SeedSequence([seed, *names]).generate_state(1, numpy.uint64)
    return torch.Generator().manual_seed(int(state >> numpy.uint64(1)))


class DrawnByRow(LogitsProcessor):
    """Draws each row's next token by the row's next uniform number, and leaves transformers' `generate` no other to choose.

    uniforms: (rows, max_new_tokens), numbers in [0, 1).
    """

    def __init__(self, uniforms: torch.Tensor, temperature: float) -> None:
        self.uniforms, self.temperature, self.position = uniforms, temperature, 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """scores (rows, vocabulary), before the temperature → 0 at the token that is drawn and −∞ elsewhere."""
        column = self.uniforms[:, self.position].to(scores.device)
        self.position += 1
        tokens, _ = draw(scores, column, self.temperature, with_logps=False)
        drawn: Any = torch.full_like(scores, -torch.inf).scatter_(1, tokens.unsqueeze(-1), 0.0)
        return drawn


def draw_by_rows(trainer: Any, tokenizer: PreTrainedTokenizerBase, steps_of_rollout: int) -> None:
    """Makes a trainer draw row i of a rollout by row i of the rollout's numbers, whichever process samples it.

    trainer: TRL's, of GRPO or RLOO; it gives each process an equal share of a rollout, in the order of the processes.
    """
    policy = trainer.model.get_base_model() if hasattr(trainer.model, "get_base_model") else trainer.model
    generate = policy.generate

    def generate_by_rows(input_ids: torch.Tensor, attention_mask: torch.Tensor, **inputs: Any) -> Any:
        rows, first = len(input_ids), len(input_ids) * processes.index()
        stream = random_stream(trainer.args.seed, trainer.state.global_step // steps_of_rollout)
        uniforms = torch.rand(rows * processes.count(), trainer.max_completion_length, generator=stream, dtype=torch.float64)
        uniforms = uniforms[first : first + rows]
        if processes.sharded():
            by_rows = LogitsProcessorList([DrawnByRow(uniforms, trainer.temperature)])
            return generate(input_ids=input_ids, attention_mask=attention_mask, **inputs, logits_processor=by_rows)
        prompts = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)]
        tokens = input_ids.shape[1] + trainer.max_completion_length
        held = held_bytes(policy, reference=trainer.ref_model)  # it has one unless there is an adapter, or beta is 0
        sampled = sample(
            policy,
            tokenizer,
            prompts,
            max_new_tokens=trainer.max_completion_length,
            decoding=Decoding(trainer.temperature),
            uniforms=uniforms,
            batch_size=rows_in_cache(policy, tokens, rows, held=held),
        )
        completions = pad_sequence(
            [torch.tensor(one.ids) for one in sampled], batch_first=True, padding_value=tokenizer.pad_token_id
        )
        return torch.cat([input_ids, completions.to(input_ids.device)], dim=1)

    policy.generate = generate_by_rows
