"""Proximal policy optimisation of a language model: roll out, score, advantages, update; again.

The whole of a step is `PpoTrainer.step`. Several processes each sample and measure a share of the rollouts, then exchange
them, so that every process computes the same advantages; in the updates each takes its share of every minibatch and
gradients are summed over processes. Hence there is no other distributed arithmetic, and any number of processes computes
what one would, but for rounding.
"""

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from torch import Tensor, nn
from tqdm import tqdm

from stages.methods.ppo.config import PpoConfig, validate
from stages.methods.ppo.guard import diagnose, require_finite
from stages.methods.ppo.losses import (
    Targets,
    clipped_surrogate,
    clipped_value_loss,
    entropies,
    explained_variance,
    generalised_advantages,
    kl_k1,
    kl_k3,
    learning_rate_factor,
    per_token_logps,
    token_rewards,
    whiten,
)
from stages.methods.ppo.models import (
    Batch,
    CompletionLogits,
    ValueModel,
    collate,
    disable_dropout,
    enable_gradient_checkpointing,
    reference_of,
)
from stages.methods.ppo.rollout import (
    Episode,
    Rollouts,
    Sampler,
    by_length,
    measure,
    prompts_at,
    random_stream,
    stack,
)
from stages.methods.ppo.shaping import KlController, LagrangeMultiplier, RunningMoments, shape_scores
from stages.models.chat import prompt_ids
from stages.models.rewards import Reward
from stages.pipeline.records import Message

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

CHECKPOINT = "ppo.pt"
Metrics = dict[str, float]


class Sums(NamedTuple):
    """Sums over the tokens of a forward pass of what is reported as means over the tokens of a minibatch."""

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
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.minibatches += 1
        self.ratio_max = max(self.ratio_max, ratio_max)

    def metrics(self) -> Metrics:
        means = {name: value / self.minibatches for name, value in self.sums.items()}
        return {**means, "ratio_max": self.ratio_max, "minibatches": self.minibatches, "stopped_early": float(self.stopped_early)}


class PpoTrainer:
    """Everything that a run carries from step to step."""

    def __init__(
        self,
        *,
        policy: "PreTrainedModel | PeftModel",
        reference: "PreTrainedModel | None",
        value_model: ValueModel,
        reward: Reward,
        tokenizer: "PreTrainedTokenizerBase",
        prompts: Sequence[list[Message]],
        config: PpoConfig,
        seed: int,
        cost: Reward | None = None,
        init_lambda: float = 1.0,
    ) -> None:
        # without cpu=True, several processes without an accelerator would not find each other
        self.processes = PartialState(cpu=not torch.accelerator.is_available())
        validate(config, self.processes.num_processes)
        self.config, self.seed = config, seed
        self.device = self.processes.device
        self.tokenizer = tokenizer
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self.prompts = prompts
        self.encoded = [prompt_ids(tokenizer, prompt) for prompt in prompts]
        self.policy, self.value_model = policy.to(self.device), value_model.to(self.device)
        self.reference = None if reference is None else reference.to(self.device).eval().requires_grad_(False)
        for model in (self.policy, self.value_model):
            disable_dropout(model)
            model.eval()
        if config.gradient_checkpointing:
            enable_gradient_checkpointing(self.policy)
            enable_gradient_checkpointing(self.value_model.backbone)
        self.logits = CompletionLogits(self.policy, config.temperature)
        self.reference_logits = self.logits if self.reference is None else CompletionLogits(self.reference, config.temperature)
        self.sampler = Sampler(
            self.policy, tokenizer, reward, config.max_new_tokens, config.temperature, config.sampling_batch_size, cost
        )
        self.parameters = {
            "policy": [parameter for parameter in self.policy.parameters() if parameter.requires_grad],
            "value": [parameter for parameter in self.value_model.parameters() if parameter.requires_grad],
        }
        self.optimiser = self._new_optimiser()
        self.controller = KlController(config.init_kl_coef, config.target_kl, config.kl_gain)
        self.multiplier = None
        if cost is not None:
            limit = 0.0 if config.cost_limit is None else config.cost_limit
            self.multiplier = LagrangeMultiplier(init_lambda, limit, config.lambda_learning_rate, config.max_lambda)
        self.moments = RunningMoments()
        self.history: list[Metrics] = []
        self.warned: set[str] = set()

    def _new_optimiser(self) -> torch.optim.Optimizer:
        # Two networks that share no weight: each has its own learning rate and its own gradient clipping, and no
        # coefficient weighs their losses against each other (Adam would cancel it).
        rates = {"policy": self.config.learning_rate, "value": self.config.value_learning_rate}
        groups = [{"params": self.parameters[name], "lr": rate, "peak": rate} for name, rate in rates.items()]
        # ε: detail 1.4 of arXiv:2403.17031
        return torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-5, weight_decay=self.config.weight_decay, fused=True)

    # -------------------------------------------------------------------------------------------------------------- one step

    def step(self, number: int) -> tuple[list[Episode], Metrics, Metrics]:
        """Runs step `number` (from 0); returns its episodes, its metrics, and how long its parts took."""
        began = time.perf_counter()
        episodes, timings = self.roll_out(number)
        rollouts = stack(episodes, self.device)
        scores = self.shape(episodes)
        beta = self.controller.beta
        rewards = token_rewards(
            rollouts.policy_logps - rollouts.reference_logps, torch.tensor(scores, device=self.device), rollouts.mask, beta
        )
        targets = generalised_advantages(rewards, rollouts.values, rollouts.mask, self.config.gamma, self.config.lam)
        if self.config.whiten_advantages:
            targets = targets._replace(advantages=whiten(targets.advantages, rollouts.mask))
        learning_rate = self.set_learning_rate(number)
        update_began = time.perf_counter()
        statistics = self.update(number, episodes, rollouts, targets)
        now = time.perf_counter()
        metrics = {
            **rollout_metrics(episodes, rollouts, scores, beta),
            **statistics.metrics(),
            "explained_variance": explained_variance(rollouts.values[rollouts.mask], targets.returns[rollouts.mask]),
            "beta": beta,
            "learning_rate": learning_rate,
        }
        self.controller.update(metrics["kl_k1"])
        if self.multiplier is not None:
            metrics |= {"cost": sum(episode.cost for episode in episodes) / len(episodes), "lambda": self.multiplier.value}
            self.multiplier.update(metrics["cost"])
        tokens = sum(len(episode.completion_ids) for episode in episodes)
        timings["update_seconds"] = now - update_began
        timings |= {"tokens_per_second": tokens / (now - began), "samples_per_second": len(episodes) / (now - began)}
        return episodes, metrics, timings

    def roll_out(self, number: int) -> tuple[list[Episode], Metrics]:
        """Draws, rewards and measures a batch of completions; each process does a share and gets them all."""
        size, seen = self.config.rollout_batch_size, self.processes
        chosen = prompts_at(number, size, len(self.prompts), self.seed)
        # Row by row, so that a completion does not depend on which process draws it.
        uniforms = torch.rand(
            size, self.config.max_new_tokens, generator=random_stream(self.seed, 1, number), dtype=torch.float64
        )
        share = slice(size * seen.process_index // seen.num_processes, size * (seen.process_index + 1) // seen.num_processes)
        encoded = [self.encoded[prompt] for prompt in chosen[share]]

        times = [time.perf_counter()]
        with self.autocast():
            drawn = self.sampler.draw(encoded, uniforms[share])
        times.append(time.perf_counter())
        completions = [ids for ids, _, _ in drawn]
        asked = [self.prompts[prompt] for prompt in chosen[share]]
        texts, rewards = self.sampler.score(asked, completions)
        costs = self.sampler.costs(asked, texts)
        times.append(time.perf_counter())
        with self.autocast():
            figures = measure(
                encoded,
                completions,
                policy=self.logits,
                reference=self.reference_at,
                value_model=self.value_model,
                micro_batch_size=self.config.micro_batch_size,
                pad_id=self.pad_id,
                device=self.device,
            )
        times.append(time.perf_counter())
        episodes = [
            Episode(prompt, ids, completion, finished, text, reward, logps, figure, cost)
            for prompt, ids, (completion, finished, logps), text, reward, figure, cost in zip(
                chosen[share], encoded, drawn, texts, rewards, figures, costs, strict=True
            )
        ]
        if seen.num_processes > 1:
            episodes = gather_object(episodes)
        seconds = (later - earlier for earlier, later in itertools.pairwise(times))
        return episodes, dict(zip(("generation_seconds", "reward_seconds", "scoring_seconds"), seconds, strict=True))

    def reference_at(self, batch: Batch) -> Tensor:
        """The reference's logits at the completion tokens."""
        with reference_of(self.policy, self.reference):
            return self.reference_logits(batch)

    def shape(self, episodes: Sequence[Episode]) -> list[float]:
        """Scores of the episodes; takes their rewards into the running moments."""
        rewards = [episode.reward for episode in episodes]
        if self.multiplier is not None:
            rewards = [self.multiplier.combine(episode.reward, episode.cost) for episode in episodes]
        if self.config.normalise_scores:
            self.moments.update(rewards)
        return shape_scores(
            rewards,
            [episode.finished for episode in episodes],
            moments=self.moments if self.config.normalise_scores else None,
            clip=self.config.clip_score,
            missing_eos_penalty=self.config.missing_eos_penalty,
        )

    # ---------------------------------------------------------------------------------------------------------- the updates

    def update(self, number: int, episodes: Sequence[Episode], rollouts: Rollouts, targets: Targets) -> UpdateStatistics:
        """Several epochs of minibatches over the rollouts, until the policy has moved too far."""
        statistics = UpdateStatistics()
        for epoch in range(self.config.epochs):
            order = torch.randperm(len(episodes), generator=random_stream(self.seed, 2, number, epoch)).tolist()
            for start in range(0, len(order), self.config.minibatch_size):
                rows = order[start : start + self.config.minibatch_size]
                where = f"step {number}, epoch {epoch}, minibatch {start // self.config.minibatch_size}"
                values, ratio_max = self.accumulate_gradients(rows, episodes, rollouts, targets)
                for name, parameters in self.parameters.items():
                    norm = nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
                    values[f"{name}_gradient_norm"] = float(norm)
                if self.config.guard:
                    require_finite(values, where)
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
        """Leaves the gradients of a minibatch's mean losses in place; returns means over its tokens, and the largest ratio."""
        tokens = int(rollouts.mask[rows].sum())
        own = rows[self.processes.process_index :: self.processes.num_processes]
        sums = torch.zeros(len(Sums._fields), device=self.device)
        ratio_max = torch.zeros((), device=self.device)
        prompts, completions = ([getattr(episodes[row], name) for row in own] for name in ("prompt_ids", "completion_ids"))
        for places in by_length(prompts, completions, self.config.micro_batch_size):
            batch = collate(
                [prompts[place] for place in places], [completions[place] for place in places], self.pad_id, self.device
            )
            part, largest = self.backward(batch, [own[place] for place in places], rollouts, targets, tokens)
            sums += torch.stack(part)
            ratio_max = torch.maximum(ratio_max, largest)
        if self.processes.num_processes > 1:
            sums, ratio_max = self._add_up(sums, ratio_max)
        return dict(zip(Sums._fields, (sums / tokens).tolist(), strict=True)), float(ratio_max)

    def backward(self, batch: Batch, rows: list[int], rollouts: Rollouts, targets: Targets, tokens: int) -> tuple[Sums, Tensor]:
        """Adds one forward pass's share to the gradients: its tokens' losses over `tokens`, the whole minibatch's count."""
        mask = rollouts.mask[rows]
        old_logps, advantages = rollouts.policy_logps[rows][mask], targets.advantages[rows][mask]
        old_values, returns = rollouts.values[rows][mask], targets.returns[rows][mask]
        with self.autocast():
            logits = self.logits(batch)
        logps = per_token_logps(logits, batch.tokens)
        surrogate = clipped_surrogate(logps, old_logps, advantages, self.config.clip_range)
        objective = surrogate.loss.sum()
        if self.config.entropy_coefficient:
            objective = objective - self.config.entropy_coefficient * entropies(logits).sum()
        (objective / tokens).backward()
        with self.autocast():
            values = self.value_model(batch)
        value_loss = clipped_value_loss(values, old_values, returns, self.config.value_clip_range)
        (value_loss.loss.sum() / tokens).backward()
        with torch.no_grad():
            # KL(π_old ‖ π) at samples of π_old, by k3
            approx_kl = kl_k3(old_logps - logps).sum()
        sums = Sums(
            policy_loss=surrogate.loss.detach().sum(),
            value_loss=value_loss.loss.detach().sum(),
            clip_fraction=surrogate.clipped.sum(),
            value_clip_fraction=value_loss.clipped.sum(),
            ratio_mean=surrogate.ratio.sum(),
            approx_kl=approx_kl,
        )
        return sums, surrogate.ratio.max()

    def _add_up(self, sums: Tensor, ratio_max: Tensor) -> tuple[Tensor, Tensor]:
        """Sums gradients and statistics over processes: not their means, as shares hold different numbers of tokens."""
        parameters = [*self.parameters["policy"], *self.parameters["value"]]
        # a share may be without a row that reaches a parameter
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
        total = reduce(torch.cat([gradient.flatten() for gradient in gradients]), "sum")
        for parameter, gradient in zip(parameters, total.split([one.numel() for one in parameters]), strict=True):
            parameter.grad = gradient.view_as(parameter).clone()
        return reduce(sums, "sum"), torch.tensor(max(gather_object([float(ratio_max)])), device=self.device)

    def set_learning_rate(self, number: int) -> float:
        """Sets both learning rates for a step; returns the policy's."""
        factor = learning_rate_factor(number, self.config.steps, self.config.schedule, self.config.warmup_fraction)
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * factor
        return self.config.learning_rate * factor

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.bf16)

    # -------------------------------------------------------------------------------------------------- checkpoints, warnings

    def save(self, folder: Path) -> None:
        """Writes all that later steps depend on, at once or not at all. Randomness is no state: see `random_stream`."""
        if not self.processes.is_main_process:
            return
        state = {
            "weights": {name: [parameter.detach().cpu() for parameter in group] for name, group in self.parameters.items()},
            "optimiser": self.optimiser.state_dict(),
            "beta": self.controller.beta,
            "lambda": self.multiplier.value if self.multiplier else None,
            "moments": self.moments.state(),
            "history": self.history,
            "warned": sorted(self.warned),
        }
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{CHECKPOINT}.partial"
        torch.save(state, temporary)
        temporary.replace(folder / CHECKPOINT)

    def restore(self, folder: Path) -> int:
        """Goes back to the last checkpoint, if there is one; returns the step to go on with."""
        if not (folder / CHECKPOINT).exists():
            return 0
        state = torch.load(folder / CHECKPOINT, map_location=self.device, weights_only=True)
        with torch.no_grad():
            for name, group in self.parameters.items():
                for parameter, saved in zip(group, state["weights"][name], strict=True):
                    parameter.copy_(saved)
        self.optimiser.load_state_dict(state["optimiser"])
        self.controller.beta = state["beta"]
        if self.multiplier is not None:
            self.multiplier.value = state["lambda"]
        self.moments = RunningMoments(**state["moments"])
        self.history = state["history"]
        self.warned = set(state["warned"])
        return len(self.history)

    def warn(self) -> None:
        """Tells, once for each kind, in which known way the run goes astray."""
        config = self.config
        found = diagnose(self.history, entropy_fraction=config.warn_entropy_fraction, kl_limit=config.warn_kl)
        for kind in found.keys() - self.warned:
            self.warned.add(kind)
            if self.processes.is_main_process:
                logger.warning("ppo, step %d: %s", len(self.history) - 1, found[kind])


def rollout_metrics(episodes: Sequence[Episode], rollouts: Rollouts, scores: Sequence[float], beta: float) -> Metrics:
    """What a batch of rollouts shows. KL: of the policy to the reference, at the policy's samples, in nats per completion."""
    count = len(episodes)
    tokens = sum(len(episode.completion_ids) for episode in episodes)
    log_ratio = rollouts.policy_logps - rollouts.reference_logps
    k1 = float(kl_k1(log_ratio)[rollouts.mask].sum()) / count
    gaps = [
        abs(drawn - measured)
        for episode in episodes
        for drawn, measured in zip(episode.behaviour_logps, episode.figures.policy_logps, strict=True)
    ]
    score = sum(scores) / count
    return {
        "reward": sum(episode.reward for episode in episodes) / count,
        "score": score,
        "rlhf_reward": score - beta * k1,
        "kl_k1": k1,
        "kl_k3": float(kl_k3(log_ratio)[rollouts.mask].sum()) / count,
        "entropy": sum(episode.figures.entropy for episode in episodes) / tokens,
        "length_tokens": tokens / count,
        "end_of_turn_fraction": sum(episode.finished for episode in episodes) / count,
        # how far the sampler's log-probabilities are from the trainer's: rounding, or something is wrong
        "behaviour_gap": max(gaps),
    }


def train(
    *,
    policy: "PreTrainedModel | PeftModel",
    reference: "PreTrainedModel | None",
    value_model: ValueModel,
    reward: Reward,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[list[Message]],
    config: PpoConfig,
    seed: int,
    checkpoint_folder: Path,
    log: Callable[[int, Metrics, Metrics], None],
    log_samples: Callable[[int, list[dict[str, Any]]], None],
    cost: Reward | None = None,
    init_lambda: float = 1.0,
) -> list[Metrics]:
    """Trains `policy` and `value_model` in place, from the last checkpoint if there is one; returns the metrics of every step.

    reference: frozen; None for a peft policy, whose reference is itself with the adapter disabled. reward: from texts. cost: from
    texts, kept to config.cost_limit by a multiplier that starts at init_lambda. log: called with step, metrics and timings after
    every step (after a resume, with the metrics of the earlier ones first, without timings). log_samples: rows of a table. Both are
    called in the main process only.

    Raises:
        ValueError: the config contradicts itself, or there are no prompts.
        FloatingPointError: a loss, gradient or reward is not finite.
    """
    if not prompts:
        raise ValueError("ppo: expected rollout prompts, found none")
    trainer = PpoTrainer(
        policy=policy, reference=reference, value_model=value_model, reward=reward, tokenizer=tokenizer,
        prompts=prompts, config=config, seed=seed, cost=cost, init_lambda=init_lambda,
    )  # fmt: skip
    start = trainer.restore(checkpoint_folder)
    main = trainer.processes.is_main_process
    for number, metrics in enumerate(trainer.history if main else []):
        log(number, metrics, {})
    with _progress(start, config.steps, main) as bar:
        for number in range(start, config.steps):
            episodes, metrics, timings = trainer.step(number)
            trainer.history.append(metrics)
            if main:
                log(number, metrics, timings)
            if main and (number % config.samples_every == 0 or number == config.steps - 1):
                log_samples(number, sample_table(number, episodes, prompts))
            if config.guard:
                trainer.warn()
            if (number + 1) % config.checkpoint_every == 0:
                trainer.save(checkpoint_folder)
            bar.set_postfix(reward=f"{metrics['reward']:.3f}", kl=f"{metrics['kl_k1']:.2f}")
            bar.update()
    return trainer.history


SHOWN = 16  # completions in a table


def sample_table(step: int, episodes: Sequence[Episode], prompts: Sequence[list[Message]]) -> list[dict[str, Any]]:
    """Some episodes of a step as rows to look at."""
    return [
        {
            "step": step,
            "prompt": prompts[episode.prompt][-1]["content"],
            "completion": episode.text,
            "reward": episode.reward,
            "kl_k1": sum(episode.figures.policy_logps) - sum(episode.figures.reference_logps),
            "finished": episode.finished,
        }
        for episode in episodes[:SHOWN]
    ]


@contextmanager
def _progress(start: int, steps: int, shown: bool) -> Iterator["tqdm[Any]"]:
    with tqdm(initial=start, total=steps, desc="ppo", unit="step", disable=not shown) as bar:
        yield bar
