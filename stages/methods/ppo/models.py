"""The models of a PPO run: policy, reference, value model; and their figures at completion tokens, and nowhere else."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.models.loading import context_of
from stages.models.training import lora_config
from stages.pipeline.records import read_json

if TYPE_CHECKING:
    from peft import PeftModel

    from stages.methods.ppo.config import PpoConfig


class Batch(NamedTuple):
    """Some episodes, ready for a forward pass. Right-padded: attention is causal, so no token sees padding: no mask."""

    input_ids: Tensor
    """(rows, width): prompt and completion, without the last token, from which nothing is predicted."""
    positions: Tensor
    """(n,): where in the flattened `input_ids` each completion token is predicted, row by row."""
    tokens: Tensor
    """(n,): the completion tokens themselves."""


def collate(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> Batch:
    """Lays out episodes in one rectangle; no completion may be without a token."""
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


class CompletionLogits:
    """Next-token logits (n, vocabulary) of a causal LM at the completion tokens of a batch, divided by the temperature.

    The output layer is a fifth of a small model's arithmetic and most of a large vocabulary's memory, so it is applied to
    those positions only. Architectures that do more than one linear layer there (soft-capping, scaling) are recognised and
    go through their own forward.
    """

    def __init__(self, model: "PreTrainedModel | PeftModel", temperature: float) -> None:
        self.model = model
        self.temperature = temperature
        self.core = core_of(model)
        self.direct = self._output_is_linear()

    def __call__(self, batch: Batch) -> Tensor:
        if self.direct:
            hidden = self.core.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
            logits = self.core.get_output_embeddings()(hidden.flatten(0, 1)[batch.positions])
        else:
            logits = self.model(input_ids=batch.input_ids, use_cache=False).logits.flatten(0, 1)[batch.positions]
        return logits.float() / self.temperature

    @torch.no_grad()
    def _output_is_linear(self) -> bool:
        output = self.core.get_output_embeddings()
        if output is None or self.core.base_model is self.core:
            return False
        probe = torch.arange(min(8, self.core.config.get_text_config().vocab_size), device=self.core.device).unsqueeze(0)
        expected = self.core(input_ids=probe, use_cache=False).logits
        found = output(self.core.base_model(input_ids=probe, use_cache=False).last_hidden_state)
        return expected.shape == found.shape and torch.equal(expected, found)


class ValueModel(nn.Module):
    """A backbone with a scalar head: V of the state before each completion token (n,)."""

    def __init__(self, backbone: PreTrainedModel, head: nn.Linear) -> None:
        super().__init__()
        self.backbone: nn.Module = backbone
        self.head = head

    def forward(self, batch: Batch) -> Tensor:
        hidden = self.backbone(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        return self.head(hidden.flatten(0, 1)[batch.positions]).squeeze(-1).float()


def value_model_from_reward_model(folder: Path) -> ValueModel:
    """Initialises the value model from a reward model, head included (InstructGPT, arXiv:2203.02155, App. C.4)."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear):
        return _with_new_head(model.base_model)
    return ValueModel(model.base_model, head)


def value_model_from_policy(folder: Path) -> ValueModel:
    """Initialises the value model from a causal LM, with a head of zeros: V = 0 everywhere at first."""
    from transformers import AutoModel

    return _with_new_head(AutoModel.from_pretrained(folder, dtype=torch.float32))


def _with_new_head(backbone: PreTrainedModel) -> ValueModel:
    head = nn.Linear(backbone.config.get_text_config().hidden_size, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return ValueModel(backbone, head)


def reward_model_folder(signal: Path) -> Path | None:
    """The folder of the reward model behind a reward: itself, or the first model in a sum; None where there is none."""
    description = read_json(signal / "reward.json")
    match description["kind"]:
        case "model":
            return signal
        case "sum":
            return next(
                filter(None, (reward_model_folder(signal.parent / part["reward"]) for part in description["parts"])), None
            )
    return None


def load_value_model(signal: Path, init: Path, tokenizer: PreTrainedTokenizerBase) -> ValueModel:
    """The reward model's own weights if it reads the policy's token ids, else the policy's."""
    from transformers import AutoConfig, AutoTokenizer

    folder = reward_model_folder(signal)
    if folder is not None and AutoTokenizer.from_pretrained(folder).get_vocab() == tokenizer.get_vocab():
        contexts = [context_of(AutoConfig.from_pretrained(path)) or 0 for path in (folder, init)]
        if contexts[0] >= contexts[1]:
            return value_model_from_reward_model(folder)
    return value_model_from_policy(init)


def core_of(model: Any) -> Any:
    """The model itself, which a peft model wraps."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def add_adapter(model: Any, config: "PpoConfig") -> "PeftModel":
    """Adds a low-rank adapter (LoRA, arXiv:2106.09685) to every linear layer but the output; only it is trained."""
    from peft import get_peft_model

    adapter = lora_config(config)
    assert adapter is not None
    return get_peft_model(model, adapter)


def disable_dropout(model: nn.Module) -> None:
    """Sets every dropout, module or number, to 0: the ratio of two dropout masks is no ratio of two policies."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if name.endswith("dropout") and isinstance(value, float):
                setattr(module, name, 0.0)


def enable_gradient_checkpointing(model: Any) -> None:
    """Has activations computed again in the backward pass: done in training mode only, hence `disable_dropout`."""
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
