"""Randomness that does not depend on how many processes share the work: a stream for each purpose and step, a row of numbers for each completion.

PPO samples by such rows whatever the launcher. TRL's trainers draw from torch's stream in a stage that trains in its own process. Launched processes
would each have a stream of their own, and another number of processes would learn from other completions; so they read rows, too
(`share_draws`). Either way a completion is a sample of the policy's whole distribution.
"""

from typing import Any

import numpy
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from plumbline.models.sampling import draw
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


def share_draws(trainer: Any, steps_of_rollout: int) -> None:
    """Makes launched processes draw what one of them would: row i of a rollout reads row i of the rollout's numbers, whoever samples it.

    trainer: TRL's, of GRPO or RLOO; it gives each process an equal share of a rollout, in the order of the processes.
    """
    if not processes.is_launched():
        return
    policy = trainer.model.get_base_model() if hasattr(trainer.model, "get_base_model") else trainer.model
    generate = policy.generate

    def generate_by_rows(**inputs: Any) -> Any:
        rows, first = len(inputs["input_ids"]), len(inputs["input_ids"]) * processes.index()
        stream = random_stream(trainer.args.seed, trainer.state.global_step // steps_of_rollout)
        uniforms = torch.rand(rows * processes.count(), trainer.max_completion_length, generator=stream, dtype=torch.float64)
        by_rows = DrawnByRow(uniforms[first : first + rows], trainer.temperature)
        return generate(**inputs, logits_processor=LogitsProcessorList([by_rows]))

    policy.generate = generate_by_rows
