"""What draws the rollouts of GRPO and RLOO: the training process (draws.py), or the engine's server.

A server has the policy that training starts from, and loads the adapter of each rollout while it runs. TRL's own way to a server needs vLLM and NCCL
in this process; this one needs neither. TRL's trainers notice no difference: `ServedRollouts` has the two methods of `trainer.vllm_generation`.

A server computes with other kernels, and often in another precision, so that it draws from a distribution a little beside the policy's. What a
completion adds to the loss is therefore weighed by its importance ratio: its probability in training, divided by that at the server which drew it. A
completion whose ratio exceeds `MOST_RATIO` is left out (masked importance sampling of whole completions; Liu, Li et al. 2025, "When Speed Kills
Stability: Demystifying RL Collapse from the Training-Inference Mismatch"). TRL's GRPO does so for its own server; with `beta` above 0,
such a completion still adds its KL term, which comes after the ratio. TRL's RLOO corrects nothing, so that `weigh_by_ratio` does it here.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from plumbline.methods.job import HERE, OnlineJob
from plumbline.methods.online.draws import draw_by_rows
from plumbline.methods.online.groups import Grouped, GroupStart
from plumbline.models.adapters import save_adapter
from plumbline.models.decoding_values import NEUTRAL
from plumbline.models.sampling import Sampled
from plumbline.pipeline import processes
from plumbline.pipeline.digests import content_digest
from plumbline.pipeline.engine import NAME_DIGITS

ADAPTERS = "adapters"
"""The folder among the checkpoints from which the server loads adapters."""

MOST_RATIO = 3.0
"""The highest importance ratio of a completion that is learnt from; TRL's default."""


@contextmanager
def drawing(trainer: Any, start: GroupStart, config: Grouped, job: OnlineJob) -> Iterator[None]:
    """Has rollouts drawn by what `config.sampler` names as long as the context lasts; `trainer` is TRL's, of GRPO or RLOO.

    Raises:
        EndpointError: the server cannot be reached, refuses, or loads no adapters.
        ValueError: it does not serve the policy that training starts from, or not with a context that is long enough.
    """
    if config.sampler == HERE:
        draw_by_rows(trainer, start.tokenizer, config.steps_of_rollout)
        yield
        return
    with closing(ServedRollouts(trainer, start, config, job)) as rollouts:
        trainer.use_vllm, trainer.vllm_generation, trainer._last_loaded_step = True, rollouts, -1
        if not hasattr(trainer, "vllm_importance_sampling_correction"):
            weigh_by_ratio(trainer, rollouts)
        yield
        rollouts.forget()


class ServedRollouts:
    """Draws rollouts at a server, by the methods that TRL's trainers call."""

    def __init__(self, trainer: Any, start: GroupStart, config: Grouped, job: OnlineJob) -> None:
        from plumbline.models.served import Served  # its client's libraries are needed for a server alone

        self._trainer, self._steps_of_rollout = trainer, config.steps_of_rollout
        self._adapters = job.checkpoints.resolve() / ADAPTERS
        assert job.server is not None
        self._served = Served(
            job.server,
            job.init,
            start.tokenizer,
            max_new_tokens=config.max_new_tokens,
            seed=job.seed,
            kept="The checkpoints written so far",
        )
        self._served.make_room(start.longest_tokens)
        self.logps: list[float] = []
        """The log-probability of each completion of this process's last rollout, at the server, in nats."""

    def sync_weights(self) -> None:
        """Gives the server the policy as it is now; TRL calls it before the first rollout after a step."""
        names = [self._hand_over() if processes.is_first() else ""]
        if processes.count() > 1:
            broadcast_object_list(names)
        self._served.use(names[0])

    def generate(self, prompts: Sequence[list[int]], **_: Any) -> tuple[None, list[list[int]], list[list[list[float]]], None]:
        """A completion of each of this process's prompts: ids, and the log-probability of each of them in a list of its own, as TRL reads them.

        Row i of a rollout draws the same, whichever process asks for it.
        """
        rollout = self._trainer.state.global_step // self._steps_of_rollout
        first = len(prompts) * (rollout * processes.count() + processes.index())
        rows = range(first, first + len(prompts))
        drawn = self._served.draw(prompts, rows, NEUTRAL, with_logps=True, progress=lambda _: None)
        ended = [_until(one, self._trainer.eos_token_ids) for one in drawn]
        self.logps = [sum(logps) for _, logps in ended]
        return None, [ids for ids, _ in ended], [[[logp] for logp in logps] for _, logps in ended], None

    def forget(self) -> None:
        """Makes the server forget the last adapter, when training is done; a server that has gone by then takes nothing from the policy."""
        if processes.is_first():
            from plumbline.pipeline.endpoint_calls import EndpointError  # with the client's libraries

            try:
                self._drop_others("")
            except EndpointError as error:
                print(f"The server may still hold the last adapter: {error}")

    def close(self) -> None:
        """Closes the connections."""
        self._served.close()

    def _hand_over(self) -> str:
        """Has the server load the policy's adapter instead of the one before, under a name with its digest."""
        new = self._adapters / ".new"
        shutil.rmtree(new, ignore_errors=True)  # of a run that was killed
        save_adapter(self._trainer.model, new)
        folder = self._adapters / f"{self._served.name}-{content_digest(new)[:NAME_DIGITS]}"
        if not folder.exists():
            new.rename(folder)
        self._drop_others(folder.name)
        self._served.load_adapter(folder)
        return folder.name

    def _drop_others(self, name: str) -> None:
        """Has the server forget all adapters but one, also those of a run that was killed; all processes are done with them."""
        for folder in sorted(self._adapters.glob("[!.]*")):
            if folder.name != name:
                self._served.unload_adapter(folder.name)
                shutil.rmtree(folder)


def weigh_by_ratio(trainer: Any, rollouts: ServedRollouts) -> None:
    """Makes TRL's RLOO weigh each completion's advantage by its importance ratio.

    The loss is −min(r·A, clip(r)·A), which a weight w ≥ 0 of A multiplies by w. The ratio r is that to the policy at the time of the rollout, as
    computed in training, and stays as it is.
    """
    score = trainer._generate_and_score_completions

    def weighed(inputs: Any) -> Any:
        outputs = score(inputs)
        logps = outputs["old_logps"]  # (rows,), 0 for a completion that `mask_truncated` leaves out
        counted = outputs["completion_mask"].any(1)
        ratios = importance_weights((logps - torch.tensor(rollouts.logps, dtype=logps.dtype, device=logps.device)) * counted)
        outputs["advantages"] = outputs["advantages"] * ratios
        everywhere = trainer.accelerator.gather(ratios)
        metrics = trainer._metrics["train"]
        metrics["sampling/importance_sampling_ratio/min"].append(everywhere.min().item())  # as TRL's GRPO names them
        metrics["sampling/importance_sampling_ratio/max"].append(everywhere.max().item())
        return outputs

    trainer._generate_and_score_completions = weighed


def importance_weights(log_ratios: torch.Tensor) -> torch.Tensor:
    """Log-ratios of completions (rows,), training to server → their weights: the ratio, and 0 if it exceeds `MOST_RATIO`."""
    ratios = log_ratios.exp()
    return ratios.masked_fill(ratios > MOST_RATIO, 0.0)


def _until(one: Sampled, end_ids: Sequence[int]) -> tuple[list[int], list[float]]:
    """Ids and their log-probabilities up to the first that ends a completion for TRL, which cuts off there what `generate` returns, too."""
    count = next((position for position, token in enumerate(one.ids, 1) if token in end_ids), len(one.ids))
    assert one.per_token_logps is not None
    return one.ids[:count], one.per_token_logps[:count]
