"""Proximal policy optimisation of a language model: roll out, score, compute advantages, update, repeat.

`PpoTrainer.step` is a whole step. With several processes, each samples and measures a share of the rollouts. They then exchange their
shares, so that every process computes the same advantages. In the updates each process takes its share of every minibatch, and gradients
are summed over processes. There is no other distributed arithmetic, so any number of processes computes what one would, up to rounding.
"""

import itertools
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from plumbline.methods.online.draws import random_stream
from plumbline.methods.online.ppo.guard import diagnose
from plumbline.methods.online.ppo.losses import Targets, explained_variance, generalised_advantages, token_rewards, whiten
from plumbline.methods.online.ppo.networks import (
    Batch,
    CompletionLogits,
    ValueModel,
    autocast,
    core_of,
    disable_dropout,
    enable_gradient_checkpointing,
    reference_of,
)
from plumbline.methods.online.ppo.rollout import (
    Episode,
    Metrics,
    Rollouts,
    Sampler,
    measure,
    prompts_at,
    rollout_metrics,
    sample_table,
    stack,
)
from plumbline.methods.online.ppo.settings import PpoConfig, require_divisible
from plumbline.methods.online.ppo.shaping import KlController, LagrangeMultiplier, RunningMoments, shape_scores
from plumbline.methods.online.ppo.updates import Updater
from plumbline.models.chat import prompt_ids
from plumbline.models.logps import per_token_logps
from plumbline.models.memory import held_bytes, rows_in_cache
from plumbline.pipeline.resuming import last_checkpoint, numbered, seal
from plumbline.rewards.reward import Reward
from plumbline.rows import Message

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

STATE = "ppo.pt"
"""The file of a checkpoint."""


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
        require_divisible(config, self.processes.num_processes)
        self.config, self.seed = config, seed
        self.device = self.processes.device
        self.tokenizer = tokenizer
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self.prompts = prompts
        self.encoded = [prompt_ids(tokenizer, prompt) for prompt in prompts]
        self._place(policy, reference, value_model)
        longest = max(map(len, self.encoded)) + config.max_new_tokens
        held = held_bytes(self.policy, self.reference, self.value_model)
        side_by_side = rows_in_cache(core_of(self.policy), longest, config.sampling_batch_size, held)
        self.sampler = Sampler(self.policy, tokenizer, reward, config.max_new_tokens, config.temperature, side_by_side, cost)
        self.updater = Updater(
            self.policy, self.logits, self.value_model, config=config, seed=seed, pad_id=self.pad_id, processes=self.processes
        )
        self.controller = KlController(config.beta, config.target_kl, config.kl_gain)
        self.multiplier = None
        if cost is not None:
            limit = 0.0 if config.cost_limit is None else config.cost_limit
            self.multiplier = LagrangeMultiplier(init_lambda, limit, config.lambda_learning_rate, config.max_lambda)
        self.moments = RunningMoments()
        self.history: list[Metrics] = []
        self.warned: set[str] = set()

    def _place(self, policy: "PreTrainedModel | PeftModel", reference: "PreTrainedModel | None", value_model: ValueModel) -> None:
        """Moves the models to the device and prepares them: no dropout, a frozen reference, gradient checkpointing if configured."""
        self.policy, self.value_model = policy.to(self.device), value_model.to(self.device)
        self.reference = None if reference is None else reference.to(self.device).eval().requires_grad_(False)
        for model in (self.policy, self.value_model):
            disable_dropout(model)
            model.eval()
        if self.config.gradient_checkpointing:
            enable_gradient_checkpointing(self.policy)
            enable_gradient_checkpointing(self.value_model.backbone)
        self.logits = CompletionLogits(self.policy, self.config.temperature)
        self.reference_logits = (
            self.logits if self.reference is None else CompletionLogits(self.reference, self.config.temperature)
        )

    # ---- one step -------------------------------------------------------------------------------------------------------

    def step(self, number: int) -> tuple[list[Episode], Metrics, Metrics]:
        """Runs step `number` (from 0); returns its episodes, its metrics, and the seconds that its parts took."""
        started = time.perf_counter()
        episodes, timings = self.roll_out(number)
        rollouts = stack(episodes, self.device)
        scores = self.shape(episodes)
        beta = self.controller.beta
        targets = self.targets(rollouts, scores, beta)
        learning_rate = self.updater.set_learning_rate(number)
        update_started = time.perf_counter()
        statistics = self.updater.update(number, episodes, rollouts, targets)
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
        timings["update_seconds"] = now - update_started
        timings |= {"tokens_per_second": tokens / (now - started), "samples_per_second": len(episodes) / (now - started)}
        return episodes, metrics, timings

    def roll_out(self, number: int) -> tuple[list[Episode], Metrics]:
        """Samples, scores and measures a batch of completions; each process does a share of it and gets all of it."""
        size, processes = self.config.rollout_batch_size, self.processes
        # One row for each completion, so that it does not depend on the process that samples it.
        uniforms = torch.rand(
            size, self.config.max_new_tokens, generator=random_stream(self.seed, 1, number), dtype=torch.float64
        )
        share = slice(
            size * processes.process_index // processes.num_processes,
            size * (processes.process_index + 1) // processes.num_processes,
        )
        indices = prompts_at(number, size, len(self.prompts), self.seed)[share]
        encoded = [self.encoded[index] for index in indices]
        prompts = [self.prompts[index] for index in indices]

        times = [time.perf_counter()]
        with autocast(self.device, self.config.bf16):
            samples = self.sampler.sample(encoded, uniforms[share])
        times.append(time.perf_counter())
        completions = [one.ids for one in samples]
        texts, rewards = self.sampler.score(prompts, completions)
        costs = self.sampler.costs(prompts, texts)
        times.append(time.perf_counter())
        with autocast(self.device, self.config.bf16):
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
            Episode(index, ids, one.ids, one.finished, text, reward, one.per_token_logps or [], figure, cost)
            for index, ids, one, text, reward, figure, cost in zip(
                indices, encoded, samples, texts, rewards, figures, costs, strict=True
            )
        ]
        if processes.num_processes > 1:
            episodes = gather_object(episodes)
        seconds = (later - earlier for earlier, later in itertools.pairwise(times))
        return episodes, dict(zip(("generation_seconds", "reward_seconds", "scoring_seconds"), seconds, strict=True))

    def reference_at(self, batch: Batch) -> Tensor:
        """The reference's log-probabilities of the completion tokens."""
        with reference_of(self.policy, self.reference):
            return self.reference_logits.per_token(batch, per_token_logps)

    def shape(self, episodes: Sequence[Episode]) -> list[float]:
        """Scores of the episodes; adds their rewards to the running moments."""
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

    def targets(self, rollouts: Rollouts, scores: Sequence[float], beta: float) -> Targets:
        """Advantages and returns of every token, from the episodes' scores."""
        log_ratio = rollouts.policy_logps - rollouts.reference_logps
        rewards = token_rewards(log_ratio, torch.tensor(scores, device=self.device), rollouts.mask, beta)
        targets = generalised_advantages(rewards, rollouts.values, rollouts.mask, self.config.gamma, self.config.lam)
        if self.config.whiten_advantages:
            targets = targets._replace(advantages=whiten(targets.advantages, rollouts.mask))
        return targets

    # ---- checkpoints, warnings ------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Writes a checkpoint of everything that later steps depend on. Randomness has no state: see `random_stream`.

        The one before it stays, and those before that go first, so that there are never more than two.
        """
        if not self.processes.is_main_process:
            return
        state = {
            "weights": {
                name: [parameter.detach().cpu() for parameter in group] for name, group in self.updater.parameters.items()
            },
            "optimiser": self.updater.optimiser.state_dict(),
            "beta": self.controller.beta,
            "lambda": self.multiplier.value if self.multiplier else None,
            "moments": self.moments.state(),
            "history": self.history,
            "warned": sorted(self.warned),
        }
        for outdated in numbered(folder)[:-1]:
            shutil.rmtree(outdated, ignore_errors=True)
        checkpoint = folder / f"checkpoint-{len(self.history)}"
        checkpoint.mkdir(parents=True, exist_ok=True)
        torch.save(state, checkpoint / STATE)
        seal(checkpoint)

    def restore(self, folder: Path) -> int:
        """Restores the last whole checkpoint, if there is one; returns the step to continue with.

        Tensors move from the file, mapped into memory, one at a time: loaded onto a GPU, a second copy of the weights would lie there.
        """
        checkpoint = last_checkpoint(folder)
        if checkpoint is None:
            return 0
        state = torch.load(checkpoint / STATE, map_location="cpu", mmap=True, weights_only=True)
        with torch.no_grad():
            for name, group in self.updater.parameters.items():
                for parameter, saved in zip(group, state["weights"][name], strict=True):
                    parameter.copy_(saved)
        self.updater.optimiser.load_state_dict(state["optimiser"])
        self.controller.beta = state["beta"]
        if self.multiplier is not None:
            self.multiplier.value = state["lambda"]
        self.moments = RunningMoments(**state["moments"])
        self.history = state["history"]
        self.warned = set(state["warned"])
        return len(self.history)

    def warn(self) -> None:
        """Logs the known ways in which a run goes wrong, each kind once."""
        config = self.config
        warnings = diagnose(self.history, entropy_fraction=config.warn_entropy_fraction, kl_limit=config.warn_kl)
        for kind in warnings.keys() - self.warned:
            self.warned.add(kind)
            if self.processes.is_main_process:
                logger.warning("ppo, step %d: %s", len(self.history) - 1, warnings[kind])


def train(
    trainer: PpoTrainer,
    checkpoint_folder: Path,
    *,
    log: Callable[[int, Metrics, Metrics], None],
    log_samples: Callable[[int, list[dict[str, Any]]], None],
) -> list[Metrics]:
    """Trains the policy and the value model in place, from the last checkpoint if there is one; returns the metrics of every step.

    `log` and `log_samples` are called in the main process only.

    Args:
        log: called after every step with the step, its metrics and its timings. A resumed run first calls it with the metrics of the
            earlier steps, without timings.
        log_samples: called now and then with the step and the rows of a table.

    Raises:
        FloatingPointError: a loss, gradient or reward is not finite.
    """
    config = trainer.config
    start = trainer.restore(checkpoint_folder)
    main = trainer.processes.is_main_process
    for number, metrics in enumerate(trainer.history if main else []):
        log(number, metrics, {})
    with tqdm(initial=start, total=config.steps, desc="ppo", unit="step", disable=not main) as bar:
        for number in range(start, config.steps):
            episodes, metrics, timings = trainer.step(number)
            trainer.history.append(metrics)
            if main:
                log(number, metrics, timings)
            if main and (number % config.samples_every == 0 or number == config.steps - 1):
                log_samples(number, sample_table(number, episodes, trainer.prompts))
            if config.guard:
                trainer.warn()
            if (number + 1) % config.checkpoint_every == 0:
                trainer.save(checkpoint_folder)
            bar.set_postfix(reward=f"{metrics['reward']:.3f}", kl=f"{metrics['kl_k1']:.2f}")
            bar.update()
    return trainer.history
