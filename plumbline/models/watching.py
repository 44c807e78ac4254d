"""Completions of a few fixed prompts while a policy trains, in one table of MLflow that grows: how the policy changes, before anything is evaluated.

Watching changes nothing: completions are greedy, no generator of the training is touched, and the model is left in the mode it was in. It is
rare (conf/tracking.yaml): between the first and the last step, it waits until it has cost less than its share of the time. There is none without
MLflow.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.pipeline.records import stream_jsonl
from plumbline.pipeline.tracking_values import tracking_values
from plumbline.rows import last_turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback

    from plumbline.methods.job import Job
    from plumbline.pipeline.tracking import Run

TABLE = "samples"


def due_steps(steps: int, times: int) -> list[int]:
    """When to look during `steps` steps: `times` at equal distances, before the first and after the last among them."""
    return sorted({round(index * steps / (times - 1)) for index in range(times)})


class Watch:
    """Samples the prompts at the due steps and logs what the policy answered."""

    def __init__(self, run: "Run", tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[Any], steps: int) -> None:
        from plumbline.models.chat import prompt_ids

        self._values = tracking_values()
        self._run = run
        self._tokenizer = tokenizer
        self._prompts = [(last_turn(prompt), prompt_ids(tokenizer, prompt)) for prompt in prompts]
        self._steps = steps
        self._due = due_steps(steps, self._values.sample_times)
        self._began = time.perf_counter()
        self._spent = 0.0
        self._rows: list[dict[str, Any]] = []
        self._last: int | None = None

    def at(self, step: int, model: Any) -> None:
        """Looks if it is time; `step` counts the steps that are done."""
        if step == self._last or not any(step >= due > (-1 if self._last is None else self._last) for due in self._due):
            return
        first_or_last = self._last is None or step >= self._steps
        allowed = self._values.sample_cost_fraction * (time.perf_counter() - self._began)
        if first_or_last or self._spent <= allowed:
            self._look(step, model)
        self._last = step

    def _look(self, step: int, model: Any) -> None:
        from plumbline.models.decoding_values import Decoding
        from plumbline.models.loading import context_of
        from plumbline.models.sampling import sample

        began = time.perf_counter()
        context = context_of(model.config) or sys.maxsize
        fitting = [(text, ids) for text, ids in self._prompts if len(ids) < context]
        if fitting:
            sampled = sample(
                model,
                self._tokenizer,
                [ids for _, ids in fitting],
                max_new_tokens=min(self._values.sample_tokens, context - max(len(ids) for _, ids in fitting)),
                decoding=Decoding(temperature=0.0),
            )
            self._rows += [
                {
                    "prompt": text,
                    "step": step,
                    "completion": self._tokenizer.decode(one.ids, skip_special_tokens=True),
                    "tokens": len(one.ids),
                }
                for (text, _), one in zip(fitting, sampled, strict=True)
            ]
            order = {text: position for position, (text, _) in enumerate(fitting)}
            together = sorted(self._rows, key=lambda row: order[row["prompt"]])  # the steps of a prompt
            self._run.log_table(TABLE, together)
        self._spent += time.perf_counter() - began


def watch(job: "Job", tokenizer: "PreTrainedTokenizerBase", steps: int) -> Watch | None:
    """A watch over the policy that a job trains, on a few prompts of its held-out rows; None without MLflow or prompts."""
    most = tracking_values().sample_prompts
    if job.run.id is None or not most or not job.watched.is_file():
        return None
    return Watch(job.run, tokenizer, spread(job.watched, most), steps)


def spread(file: Path, most: int) -> list[Any]:
    """At most so many prompts of a file's rows, all different, at equal distances: a file often holds one kind of prompt after another."""

    def prompts() -> Iterator[Any]:
        return (row["prompt"] for row in stream_jsonl(file) if isinstance(row.get("prompt"), list))

    first_rows: dict[int, int] = {}  # the hash of what is shown of a prompt → the row where it comes first
    for position, prompt in enumerate(prompts()):
        first_rows.setdefault(hash(last_turn(prompt)), position)
    rows = [*first_rows.values()]
    chosen = {rows[(2 * part + 1) * len(rows) // (2 * most)] for part in range(most)} if rows else set()
    return [prompt for position, prompt in enumerate(prompts()) if position in chosen]


def watching(trainer: "Trainer", job: "Job") -> "list[TrainerCallback]":
    """The callback by which one of transformers' trainers is watched, in a list; none where weights lie in parts on several GPUs."""
    from transformers import TrainerCallback

    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or not trainer.is_world_process_zero():
        return []

    class Watching(TrainerCallback):
        looking: Watch | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            tokenizer: Any = trainer.processing_class
            self.looking = watch(job, tokenizer, state.max_steps)
            self.on_step_end(args, state, control, **kwargs)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.looking:
                self.looking.at(state.global_step, kwargs["model"])

    return [Watching()]
