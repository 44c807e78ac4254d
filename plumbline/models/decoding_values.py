"""The decoding: what is done to a policy's next-token distribution before a token is drawn from it.

RL and KL need the whole distribution. People deploy a narrower one, because a model's unlikely tokens are mostly mistakes. The order is that of
transformers' `generate`: repetition penalty, temperature, top-k, top-p, min-p.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from plumbline.pipeline.ranges import FRACTION, NOT_NEGATIVE, Range, outside
from plumbline.pipeline.records import read_json

if TYPE_CHECKING:
    from transformers import GenerationConfig

RANGES = {
    "temperature": Range("0 (greedy) or a positive number", lambda value: 0 <= value < float("inf")),
    "top_k": NOT_NEGATIVE,
    "top_p": Range("above 0 and at most 1", lambda value: 0 < value <= 1),
    "min_p": FRACTION,
    "repetition_penalty": Range("a positive number", lambda value: 0 < value < float("inf")),
}


class Decoding(NamedTuple):
    """A decoding; the defaults leave the distribution as it is."""

    temperature: float = 1.0
    """Logits are divided by it; 0 is greedy decoding: the likeliest token, whatever `top_k`, `top_p` and `min_p` say."""
    top_k: int = 0
    """The number of likeliest tokens that are kept; 0 keeps all."""
    top_p: float = 1.0
    """The likeliest tokens that together have this probability are kept (nucleus sampling, arXiv:1904.09751)."""
    min_p: float = 0.0
    """Tokens with at least this share of the likeliest token's probability are kept (arXiv:2407.01082)."""
    repetition_penalty: float = 1.0
    """What the logits of tokens in the prompt and in the completion so far are divided by, or multiplied with if negative (arXiv:1909.05858)."""

    def problems(self) -> list[str]:
        """What is wrong with the values; empty if nothing is."""
        return outside(self, **RANGES)

    @property
    def is_whole_distribution(self) -> bool:
        """Whether no token is left out or penalised, so that a token's log-probability is the policy's, at this temperature."""
        return self[1:] == NEUTRAL[1:]

    @property
    def words(self) -> str:
        """The decoding as a reader sees it, such as `temperature 0.7, top_p 0.9`: the temperature, and what is not neutral."""
        at_work = ["repetition_penalty"] if self.temperature == 0 else [*self._fields[1:]]
        changed = [f"{name} {getattr(self, name):g}" for name in at_work if getattr(self, name) != getattr(NEUTRAL, name)]
        return ", ".join([f"temperature {self.temperature:g}{' (greedy)' if self.temperature == 0 else ''}", *changed])

    def generation_values(self) -> dict[str, Any]:
        """The decoding as values of transformers' GenerationConfig; `min_p` and `repetition_penalty` only where they are not neutral."""
        always = {"do_sample": True, "temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        values: dict[str, Any] = {"do_sample": False} if self.temperature == 0 else always
        if self.min_p and self.temperature:
            values["min_p"] = self.min_p
        if self.repetition_penalty != 1:
            values["repetition_penalty"] = self.repetition_penalty
        return values


NEUTRAL = Decoding()
"""The policy itself: its whole distribution at temperature 1."""


@dataclass
class DecodingFields:
    """A decoding as a section of params.yaml says it; null is the model's own value, from the generation_config.json in the policy's folder."""

    temperature: float | None = 1.0
    top_k: int | None = 0
    top_p: float | None = 1.0
    min_p: float | None = 0.0
    repetition_penalty: float | None = 1.0

    def decoding_problems(self, **counts: int) -> list[str]:
        """What is wrong with these values; counts: how many completions of each prompt are drawn, by the key that says so."""
        return outside(self, **RANGES) + [
            f"{key}: expected 1 at temperature 0 (greedy), where all completions of a prompt are the same, found {count}. Set {key} to 1, or a "
            "temperature above 0"
            for key, count in counts.items()
            if self.temperature == 0 and count > 1
        ]

    def decoding(self, policy: Path) -> Decoding:
        """The decoding of the policy in a folder, with its own values for null."""
        values: dict[str, Any] = {name: value for name in Decoding._fields if (value := getattr(self, name)) is not None}
        if len(values) == len(Decoding._fields):
            return Decoding(**values)
        from transformers import GenerationConfig

        return own_decoding(GenerationConfig.from_pretrained(policy))._replace(**values)


def read_decoding(figures: Path) -> Decoding:
    """The decoding that `answer` or `sample` wrote into its figures, without null."""
    values = read_json(figures)
    return Decoding(**{name: values[name] for name in Decoding._fields})


def own_decoding(config: "GenerationConfig") -> Decoding:
    """The decoding that a model's generation config asks for: neutral where it says nothing, greedy if it says not to sample.

    Raises:
        ValueError: a value is out of range.
    """
    kinds = {name: type(value) for name, value in NEUTRAL._asdict().items()}  # JSON's 1 is a float here
    values = {name: kind(value) for name, kind in kinds.items() if (value := getattr(config, name)) is not None}
    if config.do_sample is False:  # a model that says neither is sampled from
        values["temperature"] = 0.0
    own = Decoding(**values)
    if problems := own.problems():
        raise ValueError(
            f"the model's generation_config.json: {problems[0]}. Correct it in a copy of the model, and give the copy's folder as path"
        )
    return own
