"""What generates: this project's sampler in this process, or a server (served.py). A stage asks both in the same way."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from plumbline.models.decoding_values import Decoding
from plumbline.pipeline.engine import Engine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from plumbline.models.sampling import Sampled


class Generator(Protocol):
    """Draws completions by a policy."""

    @property
    def calls_repeated(self) -> int:
        """How many calls to a server were made again so far, because it failed; 0 without a server."""
        ...

    def make_room(self, longest_tokens: int) -> None:
        """Prepares for sequences of up to so many tokens, prompt and completion together; raises ValueError where they do not fit."""
        ...

    def draw(
        self,
        prompts_ids: Sequence[list[int]],
        rows: Sequence[int],
        decoding: Decoding,
        *,
        with_logps: bool,
        progress: Callable[[int], object],
    ) -> "list[Sampled]":
        """One completion of each prompt, in the order of the prompts. `rows[i]` is the number of completion i among all, which with the seed
        decides what is drawn; `progress` is called with the number of completions just drawn."""
        ...

    def close(self) -> None:
        """Ends; nothing more will be drawn."""
        ...


class Loaded:
    """A policy loaded into this process, and this project's sampler."""

    calls_repeated = 0

    def __init__(
        self, folder: Path, tokenizer: "PreTrainedTokenizerBase", *, max_new_tokens: int, batch_size: int, seed: int
    ) -> None:
        from plumbline.models.loading import load_policy

        self._model, self._tokenizer = load_policy(folder), tokenizer
        self._max_new_tokens, self._batch_size, self._seed = max_new_tokens, batch_size, seed

    def make_room(self, longest_tokens: int) -> None:
        """Samples fewer rows at a time if the cache of so many tokens would not fit into memory."""
        from plumbline.models.memory import rows_in_cache

        held = self._model.get_memory_footprint()
        self._batch_size = rows_in_cache(self._model, longest_tokens, self._batch_size, held=held)

    def draw(
        self,
        prompts_ids: Sequence[list[int]],
        rows: Sequence[int],
        decoding: Decoding,
        *,
        with_logps: bool,
        progress: Callable[[int], object],
    ) -> "list[Sampled]":
        """Samples in batches, by the uniform numbers of each row."""
        from plumbline.models.sampling import sample
        from plumbline.models.uniforms import uniforms_of

        return sample(
            self._model,
            self._tokenizer,
            prompts_ids,
            max_new_tokens=self._max_new_tokens,
            decoding=decoding,
            uniforms=uniforms_of(self._seed, rows, self._max_new_tokens),
            batch_size=self._batch_size,
            with_logps=with_logps,
            progress=progress,
        )

    def close(self) -> None:
        """Nothing is open."""


def generator_of(
    engine: Engine, folder: Path, tokenizer: "PreTrainedTokenizerBase", *, max_new_tokens: int, batch_size: int, seed: int
) -> Generator:
    """What the engine says generates, for the policy in a folder; raises as `Served`.

    batch_size: of this project's sampler; a server batches by itself.
    """
    if engine.server:
        from plumbline.models.served import Served

        return Served(engine.server, folder, tokenizer, max_new_tokens=max_new_tokens, seed=seed)
    return Loaded(folder, tokenizer, max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed)
