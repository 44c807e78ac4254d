"""The updates of a PPO step: epochs of minibatches over the rollouts, with clipped losses for the policy and the value model.

With several processes, each takes its share of every minibatch, and gradients are summed over processes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from torch import Tensor, nn

from plumbline.methods.online.draws import random_stream
from plumbline.methods.online.ppo.guard import require_finite
from plumbline.methods.online.ppo.losses import (
    Targets,
    clipped_surrogate,
    clipped_value_loss,
    kl_k3,
    learning_rate_factor,
)
from plumbline.methods.online.ppo.networks import Batch, CompletionLogits, ValueModel, autocast, micro_batches
from plumbline.methods.online.ppo.rollout import Episode, Metrics, Rollouts, logps_and_entropies
from plumbline.methods.online.ppo.settings import PpoConfig
from plumbline.models.logps import per_token_logps


class Sums(NamedTuple):
    """Sums over the tokens of a forward pass; they are reported as means over the tokens of a minibatch."""

    policy_loss: Tensor
    value_loss: Tensor
    clip_fraction: Tensor
    value_clip_fraction: Tensor
    ratio_mean: Tensor
    approx_kl: Tensor


@dataclass
class UpdateStatistics:
    """What happened in the updates of a step: means over tokens and minibatches, and extremes."""

    sums: dict[str, float] = field(default_factory=dict)
    minibatches: int = 0
    ratio_max: float = 0.0
    stopped_early: bool = False

    def add(self, values: Mapping[str, float], ratio_max: float) -> None:
        """Adds the means of a minibatch."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.minibatches += 1
        self.ratio_max = max(self.ratio_max, ratio_max)

    def metrics(self) -> Metrics:
        """The means and extremes by their names in the curve."""
        means = {name: value / self.minibatches for name, value in self.sums.items()}
        return {**means, "ratio_max": self.ratio_max, "minibatches": self.minibatches, "stopped_early": float(self.stopped_early)}


class Updater:
    """Updates the policy and the value model in place."""

    def __init__(
        self,
        policy: Any,
        logits: CompletionLogits,
        value_model: ValueModel,
        *,
        config: PpoConfig,
        seed: int,
        pad_id: int,
        processes: PartialState,
    ) -> None:
        self.processes, self.device = processes, processes.device
        self.logits, self.value_model = logits, value_model
        self.config, self.seed, self.pad_id = config, seed, pad_id
        self.parameters = {
            name: [parameter for parameter in model.parameters() if parameter.requires_grad]
            for name, model in {"policy": policy, "value": value_model}.items()
        }
        # The two networks share no weights. Each has its own learning rate and its own gradient clipping, and no coefficient weighs
        # one loss against the other, because Adam would cancel it.
        rates = {"policy": config.learning_rate, "value": config.value_learning_rate}
        groups = [{"params": self.parameters[name], "lr": rate, "peak": rate} for name, rate in rates.items()]
        # ε: detail 1.4 of arXiv:2403.17031
        self.optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-5, weight_decay=config.weight_decay, fused=True)

    def set_learning_rate(self, number: int) -> float:
        """Sets both learning rates for step `number` and returns the policy's."""
        factor = learning_rate_factor(number, self.config.steps, self.config.schedule, self.config.warmup_fraction)
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * factor
        return self.config.learning_rate * factor

    def update(self, number: int, episodes: Sequence[Episode], rollouts: Rollouts, targets: Targets) -> UpdateStatistics:
        """Makes several epochs of minibatch updates, or fewer if the policy moves too far from the one that sampled (`max_approx_kl`).

        Raises:
            FloatingPointError: a loss or gradient is not finite, and `guard` is set.
        """
        statistics = UpdateStatistics()
        for epoch in range(self.config.update_epochs):
            order = torch.randperm(len(episodes), generator=random_stream(self.seed, 2, number, epoch)).tolist()
            for start in range(0, len(order), self.config.batch_size):
                rows = order[start : start + self.config.batch_size]
                values, ratio_max = self.accumulate_gradients(rows, episodes, rollouts, targets)
                for name, parameters in self.parameters.items():
                    norm = nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
                    values[f"{name}_gradient_norm"] = float(norm)
                if self.config.guard:
                    require_finite(values, f"step {number}, epoch {epoch}, minibatch {start // self.config.batch_size}")
                statistics.add(values, ratio_max)
                if self.config.max_approx_kl is not None and values["approx_kl"] > self.config.max_approx_kl:
                    self.optimiser.zero_grad()
                    statistics.stopped_early = True
                    return statistics
                self.optimiser.step()
                self.optimiser.zero_grad()
        return statistics

    def accumulate_gradients(
        self, rows: list[int], episodes: Sequence[Episode], rollouts: Rollouts, targets: Targets
    ) -> tuple[Metrics, float]:
        """Accumulates the gradients of a minibatch's mean losses; returns means over its tokens, and the largest ratio."""
        tokens = int(rollouts.mask[rows].sum())
        local_rows = rows[self.processes.process_index :: self.processes.num_processes]
        prompts = [episodes[row].prompt_ids for row in local_rows]
        completions = [episodes[row].completion_ids for row in local_rows]
        sums = torch.zeros(len(Sums._fields), device=self.device)
        ratio_max = torch.zeros((), device=self.device)
        for indices, batch in micro_batches(prompts, completions, self.config.micro_batch_size, self.pad_id, self.device):
            part, largest = self.backward(batch, [local_rows[index] for index in indices], rollouts, targets, tokens)
            sums += torch.stack(part)
            ratio_max = torch.maximum(ratio_max, largest)
        if self.processes.num_processes > 1:
            sums, ratio_max = self._over_processes(sums, ratio_max)
        return dict(zip(Sums._fields, (sums / tokens).tolist(), strict=True)), float(ratio_max)

    def backward(self, batch: Batch, rows: list[int], rollouts: Rollouts, targets: Targets, tokens: int) -> tuple[Sums, Tensor]:
        """Adds one forward pass's share to the gradients: the losses of its tokens, divided by `tokens`, the whole minibatch's count."""
        mask = rollouts.mask[rows]
        old_logps, advantages = rollouts.policy_logps[rows][mask], targets.advantages[rows][mask]
        old_values, returns = rollouts.values[rows][mask], targets.returns[rows][mask]
        with_entropies = bool(self.config.entropy_coefficient)
        with autocast(self.device, self.config.bf16):
            figures = self.logits.per_token(batch, logps_and_entropies if with_entropies else per_token_logps)
        logps = figures[0] if with_entropies else figures
        surrogate = clipped_surrogate(logps, old_logps, advantages, self.config.clip_range)
        objective = surrogate.loss.sum()
        if with_entropies:
            objective = objective - self.config.entropy_coefficient * figures[1].sum()
        (objective / tokens).backward()
        with autocast(self.device, self.config.bf16):
            values = self.value_model(batch)
        value_loss = clipped_value_loss(values, old_values, returns, self.config.value_clip_range)
        (value_loss.loss.sum() / tokens).backward()
        with torch.no_grad():
            approx_kl = kl_k3(old_logps - logps).sum()  # KL(π_old ‖ π) at samples from π_old
        sums = Sums(
            policy_loss=surrogate.loss.detach().sum(),
            value_loss=value_loss.loss.detach().sum(),
            clip_fraction=surrogate.clipped.sum(),
            value_clip_fraction=value_loss.clipped.sum(),
            ratio_mean=surrogate.ratio.sum(),
            approx_kl=approx_kl,
        )
        return sums, surrogate.ratio.max()

    def _over_processes(self, sums: Tensor, ratio_max: Tensor) -> tuple[Tensor, Tensor]:
        """Sums gradients and statistics over processes. Means would be wrong, because shares hold different numbers of tokens."""
        parameters = [*self.parameters["policy"], *self.parameters["value"]]
        # no row of this process may have reached a parameter
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
        total = reduce(torch.cat([gradient.flatten() for gradient in gradients]), "sum")
        for parameter, gradient in zip(parameters, total.split([one.numel() for one in parameters]), strict=True):
            parameter.grad = gradient.view_as(parameter).clone()
        return reduce(sums, "sum"), torch.tensor(max(gather_object([float(ratio_max)])), device=self.device)
