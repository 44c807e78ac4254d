"""Completions of prompts by a policy: from a model folder to rows."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from plumbline.models.decoding_values import NEUTRAL, Decoding
from plumbline.models.generating import generator_of
from plumbline.models.room import Fitting, require_room
from plumbline.pipeline.engine import Engine
from plumbline.pipeline.records import read_json, write_json
from plumbline.rows import assistant

if TYPE_CHECKING:
    from plumbline.models.sampling import Sampled

FITTING = "fitting.json"
"""Among a stage's checkpoints: how many prompts there are, and the length of the longest."""


class Draws(NamedTuple):
    """How many completions of each prompt are drawn, and by which decoding."""

    n: int
    decoding: Decoding = NEUTRAL
    with_logp: bool = False
    """Whether each row also gets `logp`: the completion's log-probability at the decoding's temperature, in nats."""


def fitting_of(
    folder: Path, prompts: Iterable[Mapping[str, Any]], max_new_tokens: int, title: str, checkpoints: Path | None = None
) -> Fitting:
    """Makes sure that all prompts leave room for an answer by the policy in `folder`, before the first is completed.

    That takes about a millisecond for each prompt, so the stage's process does it once for all its workers.

    prompts: all of them, which are read once. title: heads error messages. checkpoints: the stage's, where the result is kept, so that a run
    that goes on does not tokenise them again.

    Raises:
        ValueError: there are no prompts, or one leaves no room for `max_new_tokens` in the model's context.
    """
    kept = checkpoints / FITTING if checkpoints else None
    if kept:
        with suppress(FileNotFoundError, ValueError, TypeError):  # a file that cannot be read is one that is not there
            return Fitting(**read_json(kept))
    from tqdm import tqdm
    from transformers import AutoConfig, AutoTokenizer

    from plumbline.models.chat import prompt_ids
    from plumbline.models.loading import context_of

    tokenizer = AutoTokenizer.from_pretrained(folder)
    with tqdm(prompts, desc=f"{title}, lengths of prompts", unit="prompt", delay=10) as bar:
        tokens = (len(prompt_ids(tokenizer, row["prompt"])) for row in bar)
        fitting = require_room(tokens, context_of(AutoConfig.from_pretrained(folder)), max_new_tokens, title)
    if not fitting.prompts:
        raise ValueError(
            f"{title}: expected prompts, found none. artifacts/figures/prepare/prepare.json counts the rows that prepare dropped, by reason"
        )
    if kept:
        write_json(kept, fitting._asdict())
    return fitting


class Completer:
    """A policy that completes prompts: loaded once, or found at a server, and then asked about any part of the prompts.

    What it draws for a prompt depends on the seed and on the prompt's number among all prompts, so that a part can be drawn alone.
    """

    def __init__(
        self,
        folder: Path,
        fitting: Fitting,
        draws: Sequence[Draws],
        *,
        max_new_tokens: int,
        batch_size: int,
        seed: int,
        title: str,
        engine: Engine | None = None,
    ) -> None:
        """Loads the policy in `folder`.

        fitting: of all prompts, since the longest decides how many are completed together. draws: how each is completed; all of them use the same
        seed. title: heads the progress bar and error messages. engine: says what generates; None for this process.

        Raises:
            ValueError: greedy decoding is to give several completions of a prompt, or the engine's server does not serve this policy, or not
                with a context that holds the longest prompt and `max_new_tokens`.
            EndpointError: the engine's server cannot be reached.
        """
        from tqdm import tqdm
        from transformers import AutoTokenizer

        for n, decoding, _ in draws:
            if decoding.temperature == 0 and n > 1:
                raise ValueError(
                    f"{title}: expected one completion of each prompt by greedy decoding (temperature 0), where all are the same, found {n}. "
                    "Draw one, or set a temperature above 0"
                )
        self.draws = draws
        self._repeated = 0
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.generator = generator_of(
            engine or Engine(), folder, self.tokenizer, max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed
        )
        with ExitStack() as unless_fitting:
            unless_fitting.callback(self.generator.close)
            self.generator.make_room(fitting.longest_tokens + max_new_tokens)
            unless_fitting.pop_all()
        words = "; ".join(one.decoding.words for one in draws)
        self.bar = tqdm(total=fitting.prompts * sum(one.n for one in draws), desc=f"{title}, {words}", unit="completion")

    def complete(self, prompts: Sequence[Mapping[str, Any]], first: int = 0) -> list[list[dict[str, Any]]]:
        """Samples completions of prompts that stand together, the first of which has the number `first`: the rows of each of the draws.

        Prompts keep their order, and the completions of a prompt are adjacent. A row holds the prompt's columns, then `index` (0 … n − 1),
        `completion`, `finished` (the end of turn was reached), `tokens` (their number) and `ids`. The ids are kept because tokenising the
        text again may give other tokens. `retokenised` marks a row whose ids are such tokens, because a server did not say which it drew.
        """
        from plumbline.models.chat import openings, prompt_ids

        encoded = [prompt_ids(self.tokenizer, row["prompt"]) for row in prompts]
        starts = openings(self.tokenizer, [row["prompt"] for row in prompts])
        before = first * sum(one.n for one in self.draws)
        if self.bar.n < before:  # of a run that was interrupted
            self.bar.initial = self.bar.n = before
        return [self._drawn(prompts, encoded, starts, first, one) for one in self.draws]

    def _drawn(
        self,
        prompts: Sequence[Mapping[str, Any]],
        encoded: Sequence[list[int]],
        starts: Sequence[str],
        first: int,
        draws: Draws,
    ) -> list[dict[str, Any]]:
        n = draws.n
        samples = self.generator.draw(
            [ids for ids in encoded for _ in range(n)],
            range(first * n, (first + len(prompts)) * n),
            draws.decoding,
            with_logps=draws.with_logp,
            progress=self.bar.update,
        )
        texts = self.tokenizer.batch_decode([one.ids for one in samples], skip_special_tokens=True)
        return [
            _row(prompts[number // n], number % n, one, starts[number // n] + text)
            for number, (one, text) in enumerate(zip(samples, texts, strict=True))
        ]

    def calls_repeated(self) -> int:
        """How many calls to a server were made again, because it failed, since this was asked last; 0 without a server."""
        before, self._repeated = self._repeated, self.generator.calls_repeated
        return self._repeated - before

    def close(self) -> None:
        """Ends the progress bar and what generates; nothing more will be completed."""
        self.bar.close()
        self.generator.close()


def _row(prompt: Mapping[str, Any], index: int, sampled: "Sampled", text: str) -> dict[str, Any]:
    logps = sampled.per_token_logps
    marks = {"retokenised": True} if sampled.retokenised else {}
    return (
        {
            **prompt,
            "index": index,
            "completion": assistant(text),
            "finished": sampled.finished,
            "tokens": len(sampled.ids),
            "ids": sampled.ids,
        }
        | marks
        | ({} if logps is None else {"logp": round(sum(logps), 6)})
    )


def drawn_counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """What `drawn_figures` needs to know of sampled completions; counts of parts may be summed."""
    return {
        "drawn": len(rows),
        "drawn_finished": sum(row["finished"] for row in rows),
        "drawn_tokens": sum(row["tokens"] for row in rows),
        "drawn_retokenised": sum("retokenised" in row for row in rows),
    }


def drawn_figures(counts: Mapping[str, int], decoding: Decoding) -> dict[str, float]:
    """How many completions ended before the token limit, their mean length in tokens, and the decoding they were drawn by.

    Also the fraction whose ids are those of their text tokenised again, if there are any.
    """
    retokenised = counts["drawn_retokenised"] / counts["drawn"]
    return {
        "finished_fraction": counts["drawn_finished"] / counts["drawn"],
        "length_tokens": counts["drawn_tokens"] / counts["drawn"],
        **({"retokenised_fraction": retokenised} if retokenised else {}),
        **decoding._asdict(),
    }
