"""A reward model: a sequence classifier whose only logit is the reward.

It takes text and renders it with its own tokenizer and template, so it can score a policy with another tokenizer.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.rows import Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH_TOKENS = 2**14
"""The most tokens that are scored together, padding included: 32 conversations of 512. Long ones go in smaller batches, in the same memory."""


class RewardModel:
    """A sequence classifier with one output, which is read at the completion's last token, the end of turn.

    Raises:
        ValueError: the tokenizer pads with the end-of-turn token, so the classifier would skip it as padding.
    """

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch_size: int = 32) -> None:
        from plumbline.models.chat import end_of_turn_id

        if tokenizer.pad_token_id in (None, end_of_turn_id(tokenizer)) or model.config.pad_token_id != tokenizer.pad_token_id:
            raise ValueError(
                "reward model: expected a padding token that is not the end-of-turn token and is the same in tokenizer and model, found "
                f"{tokenizer.pad_token!r} ({tokenizer.pad_token_id}) and {model.config.pad_token_id}. The score would be read one token early: set "
                "another padding token"
            )
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.batch_size = batch_size

    def __call__(self, prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
        """Rewards, in the order given; they do not depend on batch size or padding (right padding, causal attention)."""
        import torch

        from plumbline.models.batching import batches_by_length
        from plumbline.models.chat import encode_turns
        from plumbline.models.loading import context_of

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
        rewards = [0.0] * len(sequences)
        device = self.model.device
        with torch.inference_mode():
            for rows in batches_by_length(list(map(len, sequences)), rows=self.batch_size, tokens=BATCH_TOKENS):
                batch = self.tokenizer.pad({"input_ids": [sequences[row] for row in rows]}, return_tensors="pt").to(device)
                logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
                for row, value in zip(rows, logits[:, 0].float().tolist(), strict=True):
                    rewards[row] = value
        return rewards


def with_float32_head(model: "PreTrainedModel") -> "PreTrainedModel":
    """A classifier whose head computes in float32, whatever the precision of the rest.

    A bfloat16 has three digits: rewards would tie, and small steps of a head that is trained in full would be rounded away.
    """
    import torch

    head: Any = getattr(model, "score", None)
    if isinstance(head, torch.nn.Linear) and head.weight.dtype != torch.float32:
        head.float().register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    return model


def load(folder: Path, description: Mapping[str, Any], run: str) -> RewardModel:
    """Loads the reward model in a folder, in the precision in which it was saved, onto the GPU if there is one."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from plumbline.models.loading import device

    model: Any = AutoModelForSequenceClassification.from_pretrained(folder)
    scoring: Any = with_float32_head(model)
    return RewardModel(scoring.to(device()), AutoTokenizer.from_pretrained(folder))
