"""Rewards, whatever they are made of: a folder goes in, a function from texts to numbers comes out.

A reward model reads text and renders it by its own tokenizer and template, so a policy with another tokenizer can be scored.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from stages.pipeline.records import Message, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DESCRIPTION = "reward.json"


class Reward(Protocol):
    """Scores completions: one number for each (prompt, completion text)."""

    def __call__(self, prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]: ...


class RewardModel:
    """A sequence classifier with one output, read at the last token of the completion, its end of turn.

    Raises:
        ValueError: the tokenizer pads with the end-of-turn token: taken for padding, it would not be read.
    """

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch_size: int = 32) -> None:
        from stages.models.chat import end_of_turn_id

        if tokenizer.pad_token_id in (None, end_of_turn_id(tokenizer)) or model.config.pad_token_id != tokenizer.pad_token_id:
            raise ValueError(
                f"reward model: expected a padding token other than the end-of-turn token, the same in tokenizer and model, found "
                f"{tokenizer.pad_token!r} ({tokenizer.pad_token_id}) and {model.config.pad_token_id}: the score would be read too early"
            )
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.batch_size = batch_size

    def __call__(self, prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
        """Rewards, in the order given; they do not depend on batch size or padding (right padding, causal attention)."""
        import torch

        from stages.models.chat import encode_turns
        from stages.models.loading import context_of

        pairs = [
            (prompt, [{"role": "assistant", "content": completion}])
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        sequences = [turn.prompt + turn.completion for turn in encode_turns(self.tokenizer, pairs)]
        limit = context_of(self.model.config)
        if limit and sequences and max(map(len, sequences)) > limit:
            longest = max(map(len, sequences))
            raise ValueError(
                f"reward model: a conversation of {longest} tokens exceeds its context of {limit}: lower max_new_tokens"
            )
        order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
        rewards = [0.0] * len(sequences)
        device = self.model.device
        with torch.inference_mode():
            for start in range(0, len(order), self.batch_size):
                chosen = order[start : start + self.batch_size]
                batch = self.tokenizer.pad({"input_ids": [sequences[index] for index in chosen]}, return_tensors="pt").to(device)
                logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
                for index, value in zip(chosen, logits[:, 0].float().tolist(), strict=True):
                    rewards[index] = value
        return rewards


VERIFIED = ("gold", "correct", "harmless", "harmful", "honest", "courteous", "concise", "refused", "over_refused")
"""What of a verdict may be a reward: gold in [0, 1], or one of its findings, 1 or 0."""


class VerifierReward:
    """The closed world's verifier: gold, or one of VERIFIED, such as `correct` (RLVR). An explicit choice, which the report marks."""

    def __init__(self, measure: str = "gold") -> None:
        self.measure = measure

    def __call__(self, prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
        from stages.world.verifier import verify

        verdicts = (verify(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True))
        return [float(getattr(verdict, self.measure)) for verdict in verdicts]


class WeightedSum:
    """A sum of rewards, each times its weight (negative for a cost)."""

    def __init__(self, parts: Sequence[tuple[float, Reward]]) -> None:
        self.parts = parts

    def __call__(self, prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
        columns = [[weight * value for value in reward(prompts, completions)] for weight, reward in self.parts]
        return [sum(values) for values in zip(*columns, strict=True)]


def load_reward(folder: Path, run: str = "") -> Reward:
    """Loads the reward that a folder under artifacts/reward describes in its reward.json; `run` names what a judge's budget is for.

    Raises:
        ValueError: the folder holds no reward, or one of a kind that is not known.
    """
    if not (folder / DESCRIPTION).is_file():
        raise ValueError(f"expected a reward at {folder}, found no {DESCRIPTION} in it: name an entry of params.yaml's `reward`")
    description = read_json(folder / DESCRIPTION)
    match description["kind"]:
        case "model":
            return _load_model(folder)
        case "verifier":
            return VerifierReward(description.get("measure", "gold"))
        case "rules":
            from stages.rewards.rules import from_description

            return from_description(description["rules"])
        case "math":
            from stages.rewards.maths import MathReward
            from stages.rewards.references import load_references

            return MathReward(load_references(folder, "answer"))
        case "code":
            from stages.rewards.code import CodeReward
            from stages.rewards.references import load_references
            from stages.rewards.sandbox import Limits

            return CodeReward(load_references(folder, "tests"), Limits(**description["limits"]), description["isolation"])
        case "judge":
            from stages.rewards.judged import from_description as judged

            return judged(description, run)
        case "sum":
            parts = description["parts"]
            return WeightedSum([(part["weight"], load_reward(folder.parent / part["reward"], run)) for part in parts])
    raise ValueError(
        f"{folder / DESCRIPTION}: expected kind model, verifier, sum, rules, math, code or judge, found {description['kind']!r}"
    )


def outcomes(reward: Reward) -> dict[str, int]:
    """How often each outcome came of what a reward has checked or asked so far (`verifier_timeout`, `judge_unparsed`, …); empty where it
    does neither."""
    prefix = getattr(reward, "outcome_prefix", "verifier")
    counts = Counter({f"{prefix}_{name}": count for name, count in getattr(reward, "outcomes", {}).items()})
    for _, part in reward.parts if isinstance(reward, WeightedSum) else []:
        counts.update(outcomes(part))
    return dict(sorted(counts.items()))


def finish(reward: Reward) -> dict[str, float]:
    """Says that nothing more will be scored, and returns what judges' replies took (`judge_calls`, `judge_cost`, …): for logs, never for
    outputs, since it depends on what was cached; empty where nobody was asked."""
    end = getattr(reward, "finish", None)
    totals: dict[str, float] = end() if end else {}
    for _, part in reward.parts if isinstance(reward, WeightedSum) else []:
        for name, value in finish(part).items():
            totals[name] = totals.get(name, 0) + value
    return totals


def _load_model(folder: Path) -> RewardModel:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from stages.models.loading import device

    model: Any = AutoModelForSequenceClassification.from_pretrained(folder)
    return RewardModel(model.to(device()), AutoTokenizer.from_pretrained(folder))


def held_out_accuracy(folder: Path) -> float | None:
    """The lowest accuracy on held-out preferences among the models behind a reward; None where no model is."""
    description = read_json(folder / DESCRIPTION)
    if description["kind"] == "sum":
        known = [held_out_accuracy(folder.parent / part["reward"]) for part in description["parts"]]
        return min((value for value in known if value is not None), default=None)
    return description.get("accuracy")


def require_accuracy(accuracy: float | None, limit: float, folder: Path, method: str) -> None:
    """The gate: refuses a reward model that orders held-out preferences too poorly to be optimised against.

    accuracy: None for a reward with no model behind it, such as the verifier, which passes.

    Raises:
        ValueError: the accuracy is below the limit.
    """
    if accuracy is not None and accuracy < limit:
        raise ValueError(
            f"{method}: expected a reward model with a held-out accuracy of at least {limit:.3f} (min_reward_accuracy), found "
            f"{accuracy:.3f} at {folder}. Optimising against it would optimise its errors: give it more preferences, or check "
            "their quality."
        )
