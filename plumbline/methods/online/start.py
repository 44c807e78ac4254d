"""What every method that learns from a reward starts with: the policy, its tokenizer, the prompts, and a reward that passes the gate."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from plumbline.methods.job import OnlineJob
from plumbline.pipeline import processes
from plumbline.rows import Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from plumbline.rewards.reward import Reward

LAST_FRACTION = 0.1
"""The fraction of the steps, at the end, over which the returned figures are averaged."""


class Sampling(Protocol):
    """The fields of a method's config that decide how it is loaded, what it samples, and which rewards pass."""

    families: list[str]
    lora_rank: int
    max_new_tokens: int
    min_reward_accuracy: float


class Start(NamedTuple):
    """What training on a reward starts with."""

    policy: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    prompts: list[list[Message]]
    longest_tokens: int
    """Of a prompt and a completion together."""


def load_start(config: Sampling, method: str, job: OnlineJob) -> Start:
    """Loads the policy of `job.init` as it is trained, its tokenizer, and the training prompts.

    Raises:
        ValueError: the reward model's held-out accuracy is too low, a family in the config has no prompt, or a prompt leaves no room for a
            completion.
    """
    from transformers import AutoTokenizer

    from plumbline.models.chat import prompt_ids
    from plumbline.models.loading import context_of, load_causal_lm, training_dtype
    from plumbline.models.room import require_room
    from plumbline.pipeline.records import read_jsonl
    from plumbline.rewards.reward import held_out_accuracy, require_accuracy

    require_accuracy(held_out_accuracy(job.reward), config.min_reward_accuracy, job.reward, method)
    tokenizer = AutoTokenizer.from_pretrained(job.init)
    policy = load_causal_lm(job.init, dtype=training_dtype(config.lora_rank))
    prompts = prompts_of(read_jsonl(job.prompts), config.families, method)
    tokens = (len(prompt_ids(tokenizer, prompt)) for prompt in prompts)
    fitting = require_room(tokens, context_of(policy.config), config.max_new_tokens, method)
    return Start(policy, tokenizer, prompts, fitting.longest_tokens + config.max_new_tokens)


def prompts_of(rows: Sequence[Mapping[str, Any]], families: Sequence[str], method: str) -> list[list[Message]]:
    """The prompts of the given families; of all families if the list is empty.

    Raises:
        ValueError: a family has no prompt, or there are no prompts at all.
    """
    present = {str(row["family"]) for row in rows if row.get("family") is not None}
    if unknown := [family for family in families if family not in present]:
        raise ValueError(
            f"{method}: families: expected families of the prompts ({', '.join(sorted(present)) or 'they have none'}), found "
            f"{', '.join(unknown)}. [] takes all prompts"
        )
    if not rows:
        raise ValueError(
            f"{method}: expected rollout prompts, found none. artifacts/figures/prepare/prepare.json counts the rows that prepare dropped, "
            "by reason"
        )
    return [row["prompt"] for row in rows if not families or str(row.get("family")) in families]


def reward_totals(reward: "Reward") -> dict[str, float]:
    """Ends a reward's work, and returns the outcomes of its checks and what its judges took, of all processes together.

    They are counted since the last resume, so they belong in MLflow and in no output.
    """
    from accelerate.utils import gather_object

    from plumbline.rewards.reward import finish, outcomes

    own = {**outcomes(reward), **finish(reward)}
    parts = gather_object([own]) if processes.count() > 1 else [own]
    return {name: sum(part.get(name, 0) for part in parts) for name in sorted({name for part in parts for name in part})}


def last_means(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each figure's mean over the last tenth of the steps. A figure that is missing there has its last value."""
    last_rows = history[-max(1, round(LAST_FRACTION * len(history))) :]
    means = {}
    for name in sorted({name for row in history for name in row} - {"step"}):
        values = [row[name] for row in last_rows if name in row] or [row[name] for row in history if name in row][-1:]
        means[name] = sum(values) / len(values)
    return means
