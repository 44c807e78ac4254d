"""The models of a PPO run (policy, reference, value model) and what they compute at the tokens of completions."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from plumbline.models.adapters import lora_config
from plumbline.models.batching import batches_by_length
from plumbline.models.loading import context_of, load_causal_lm, training_dtype
from plumbline.models.logps import in_chunks, linear_output
from plumbline.pipeline.records import read_json

if TYPE_CHECKING:
    from peft import PeftModel

    from plumbline.methods.online.ppo.settings import PpoConfig


class Batch(NamedTuple):
    """Some episodes, ready for a forward pass.

    Rows are padded on the right. Attention is causal, so no token sees padding, and no mask is needed.
    """

    input_ids: Tensor
    """(rows, width): prompt and completion without the last token, from which nothing is predicted."""
    positions: Tensor
    """(n,): the index in the flattened `input_ids` at which each completion token is predicted, row by row."""
    tokens: Tensor
    """(n,): the completion tokens themselves."""


def collate(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> Batch:
    """Lays out episodes as one rectangle; every completion needs at least one token."""
    width = max(len(prompt) + len(completion) - 1 for prompt, completion in zip(prompts, completions, strict=True))
    rows: list[list[int]] = []
    positions: list[int] = []
    for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        row = [*prompt, *completion[:-1]]
        rows.append(row + [pad_id] * (width - len(row)))
        start = number * width + len(prompt) - 1  # the prompt's last token predicts the completion's first
        positions.extend(range(start, start + len(completion)))
    tokens = [token for completion in completions for token in completion]
    return Batch(*(torch.tensor(values, device=device) for values in (rows, positions, tokens)))


def micro_batches(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], size: int, pad_id: int, device: torch.device
) -> Iterator[tuple[list[int], Batch]]:
    """Episodes in batches of at most `size` of similar length; yields the rows of each batch and the batch."""
    lengths = [len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True)]
    for rows in batches_by_length(lengths, rows=size):
        yield rows, collate([prompts[row] for row in rows], [completions[row] for row in rows], pad_id, device)


class CompletionLogits:
    """Next-token logits (n, vocabulary) of a causal LM at the completion tokens of a batch, divided by the temperature.

    The output layer is a fifth of a small model's arithmetic, and most of the memory if the vocabulary is large. So it is applied at
    those positions only, and to a part of them at a time (`per_token`). An architecture that does more there than one linear layer (soft-capping,
    scaling) is recognised and goes through its own forward, which makes the logits of the whole batch.
    """

    def __init__(self, model: "PreTrainedModel | PeftModel", temperature: float) -> None:
        self.model = model
        self.temperature = temperature
        self.core = core_of(model)
        self.output = linear_output(self.core)

    def __call__(self, batch: Batch) -> Tensor:
        if self.output is None:
            logits = self.model(input_ids=batch.input_ids, use_cache=False).logits.flatten(0, 1)[batch.positions]
        else:
            logits = self.output(self._hidden(batch))
        return logits.float() / self.temperature

    def per_token(self, batch: Batch, figures: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """`figures` (…, n) of the logits (n, vocabulary) and of the completion tokens (n,)."""
        output = self.output
        if output is None:
            return figures(self(batch), batch.tokens)
        return in_chunks(
            lambda hidden, tokens: figures(output(hidden).float() / self.temperature, tokens),
            self._hidden(batch),
            batch.tokens,
            self.core.config.get_text_config().vocab_size,
        )

    def _hidden(self, batch: Batch) -> Tensor:
        hidden = self.core.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        return hidden.flatten(0, 1)[batch.positions]


class ValueModel(nn.Module):
    """A backbone with a scalar head: V of the state before each completion token (n,).

    The head is trained in full and so in float32, also if the backbone below an adapter is not.
    """

    def __init__(self, backbone: PreTrainedModel, head: nn.Linear) -> None:
        super().__init__()
        self.backbone: nn.Module = backbone
        self.head = head.float()

    def forward(self, batch: Batch) -> Tensor:
        hidden = self.backbone(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        states = hidden.flatten(0, 1)[batch.positions].to(self.head.weight.dtype)
        return self.head(states).squeeze(-1).float()


# ---- loading ------------------------------------------------------------------------------------------------------------


class Networks(NamedTuple):
    """The models that a run starts with."""

    policy: Any
    """A causal LM, or a peft model that wraps one."""
    reference: PreTrainedModel | None
    """None for a peft policy, whose reference is the policy with its adapter disabled."""
    value_model: ValueModel


def load_networks(
    policy: PreTrainedModel, config: "PpoConfig", init: Path, reward: Path, tokenizer: PreTrainedTokenizerBase
) -> Networks:
    """Loads the reference from `init` and the value model from `reward` or `init`, and adds adapters if the config asks for them."""
    value_model = load_value_model(reward, init, tokenizer, training_dtype(config.lora_rank))
    if not config.lora_rank:
        return Networks(policy, load_causal_lm(init), value_model)
    adapted = add_adapter(policy, config)
    value_model.backbone = add_adapter(value_model.backbone, config)
    return Networks(adapted, None, value_model)


def load_value_model(reward: Path, init: Path, tokenizer: PreTrainedTokenizerBase, dtype: Any = torch.float32) -> ValueModel:
    """The value model with the reward model's weights if that reads the policy's token ids, else with the policy's."""
    from transformers import AutoConfig, AutoTokenizer

    folder = reward_model_folder(reward)
    if folder is not None and AutoTokenizer.from_pretrained(folder).get_vocab() == tokenizer.get_vocab():
        contexts = [context_of(AutoConfig.from_pretrained(path)) or 0 for path in (folder, init)]
        if contexts[0] >= contexts[1]:
            return value_model_from_reward_model(folder, dtype)
    return value_model_from_policy(init, dtype)


def reward_model_folder(reward: Path) -> Path | None:
    """The folder of the reward model behind a reward: the reward itself, or the first model of a sum; None if there is no model."""
    description = read_json(reward / "reward.json")
    match description["kind"]:
        case "model":
            return reward
        case "sum":
            return next(
                filter(None, (reward_model_folder(reward.parent / part["reward"]) for part in description["parts"])), None
            )
    return None


def value_model_from_reward_model(folder: Path, dtype: Any = torch.float32) -> ValueModel:
    """Initialises the value model from a reward model, including its head (InstructGPT, arXiv:2203.02155, App. C.4)."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype)
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear):
        return _with_new_head(model.base_model)
    return ValueModel(model.base_model, head)


def value_model_from_policy(folder: Path, dtype: Any = torch.float32) -> ValueModel:
    """Initialises the value model from a causal LM, with a head of zeros: V = 0 everywhere at first."""
    from transformers import AutoModel

    return _with_new_head(AutoModel.from_pretrained(folder, dtype=dtype))


def _with_new_head(backbone: PreTrainedModel) -> ValueModel:
    head = nn.Linear(backbone.config.get_text_config().hidden_size, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return ValueModel(backbone, head)


# ---- preparing ----------------------------------------------------------------------------------------------------------


def core_of(model: Any) -> Any:
    """The model itself if a peft model wraps it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def add_adapter(model: Any, config: "PpoConfig") -> "PeftModel":
    """Adds a low-rank adapter (LoRA, arXiv:2106.09685) to every linear layer except the output; only the adapter is trained."""
    from peft import get_peft_model

    adapter = lora_config(config)
    assert adapter is not None
    return get_peft_model(model, adapter)


def disable_dropout(model: nn.Module) -> None:
    """Sets every dropout, in modules and as numbers, to 0: the ratio under two dropout masks is not the ratio of two policies."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if name.endswith("dropout") and isinstance(value, float):
                setattr(module, name, 0.0)


def enable_gradient_checkpointing(model: Any) -> None:
    """Recomputes activations in the backward pass. This works in training mode only, which is why `disable_dropout` exists."""
    core_of(model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()


@contextmanager
def reference_of(policy: Any, reference: PreTrainedModel | None) -> Iterator["PreTrainedModel | PeftModel"]:
    """The frozen reference: a model of its own, or the policy with its adapter disabled."""
    if reference is not None:
        yield reference
    else:
        with policy.disable_adapter():
            yield policy


def autocast(device: torch.device, bf16: bool) -> AbstractContextManager[Any]:
    """Computes in bfloat16 if `bf16` is set; weights stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)
