"""Completions of prompts by a policy: from a model folder to rows of JSON Lines."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from plumbline.models.decoding_values import NEUTRAL, Decoding
from plumbline.rows import assistant

if TYPE_CHECKING:
    from plumbline.models.sampling import Sampled


class Draws(NamedTuple):
    """How many completions of each prompt are drawn, and by which decoding."""

    n: int
    decoding: Decoding = NEUTRAL
    with_logp: bool = False
    """Whether each row also gets `logp`: the completion's log-probability at the decoding's temperature, in nats."""


def complete(
    folder: Path,
    prompts: Sequence[Mapping[str, Any]],
    draws: Sequence[Draws],
    *,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    title: str,
) -> list[list[dict[str, Any]]]:
    """Samples completions of each prompt row from the policy in `folder`: the rows of each of `draws`.

    Prompts keep their order, and the completions of a prompt are adjacent. A row holds the prompt's columns, then `index` (0 … n − 1),
    `completion`, `finished` (the end of turn was reached), `tokens` (their number) and `ids`. The ids are kept because tokenising the
    text again may give other tokens. All `draws` use the same seed. `title` heads the progress bar and error messages.

    Raises:
        ValueError: there are no prompts, one leaves no room for `max_new_tokens` in the model's context, or greedy decoding is to give several
            completions of a prompt.
    """
    from tqdm import tqdm
    from transformers import AutoTokenizer

    from plumbline.models.chat import openings, prompt_ids
    from plumbline.models.loading import context_of, load_policy
    from plumbline.models.memory import rows_in_cache
    from plumbline.models.sampling import sample

    if not prompts:
        raise ValueError(
            f"{title}: expected prompts, found none. artifacts/figures/prepare/prepare.json counts the rows that prepare dropped, by reason"
        )
    for n, decoding, _ in draws:
        if decoding.temperature == 0 and n > 1:
            raise ValueError(
                f"{title}: expected one completion of each prompt by greedy decoding (temperature 0), where all are the same, found {n}. Draw one, "
                "or set a temperature above 0"
            )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load_policy(folder)
    encoded = [prompt_ids(tokenizer, row["prompt"]) for row in prompts]
    require_room(encoded, context_of(model.config), max_new_tokens, title)
    starts = openings(tokenizer, [row["prompt"] for row in prompts])
    longest = max(map(len, encoded)) + max_new_tokens
    side_by_side = rows_in_cache(model, longest, batch_size, held=model.get_memory_footprint())
    rows = []
    for n, decoding, with_logp in draws:
        with tqdm(total=n * len(prompts), desc=f"{title}, {decoding.words}", unit="completion") as bar:
            samples = sample(
                model,
                tokenizer,
                [ids for ids in encoded for _ in range(n)],
                max_new_tokens=max_new_tokens,
                decoding=decoding,
                seed=seed,
                batch_size=side_by_side,
                with_logps=with_logp,
                progress=bar.update,
            )
        texts = tokenizer.batch_decode([one.ids for one in samples], skip_special_tokens=True)
        rows.append(
            [
                _row(prompts[number // n], number % n, one, starts[number // n] + text)
                for number, (one, text) in enumerate(zip(samples, texts, strict=True))
            ]
        )
    return rows


def _row(prompt: Mapping[str, Any], index: int, sampled: "Sampled", text: str) -> dict[str, Any]:
    logps = sampled.per_token_logps
    return {
        **prompt,
        "index": index,
        "completion": assistant(text),
        "finished": sampled.finished,
        "tokens": len(sampled.ids),
        "ids": sampled.ids,
    } | ({} if logps is None else {"logp": round(sum(logps), 6)})


def drawn_figures(rows: Sequence[Mapping[str, Any]], decoding: Decoding) -> dict[str, float]:
    """How many completions ended before the token limit, their mean length in tokens, and the decoding they were drawn by."""
    return {
        "finished_fraction": sum(row["finished"] for row in rows) / len(rows),
        "length_tokens": sum(row["tokens"] for row in rows) / len(rows),
        **decoding._asdict(),
    }


def require_room(encoded: Sequence[Sequence[int]], context_tokens: int | None, max_new_tokens: int, title: str) -> None:
    """Refuses prompts that leave no room for an answer, instead of truncating them.

    context_tokens: the longest sequence that the model can read; None if there is no limit.

    Raises:
        ValueError: a prompt and `max_new_tokens` together exceed the context.
    """
    longest = max(range(len(encoded)), key=lambda index: len(encoded[index]))
    if context_tokens and len(encoded[longest]) + max_new_tokens > context_tokens:
        over = sum(len(ids) + max_new_tokens > context_tokens for ids in encoded)
        raise ValueError(
            f"{title}: {over} of {len(encoded)} prompts leave no room for max_new_tokens {max_new_tokens} in a context of "
            f"{context_tokens} tokens (longest: {len(encoded[longest])} tokens, prompt {longest}). Lower max_new_tokens, or have `prepare` "
            "drop long prompts (policy.answer_tokens in conf/data)."
        )
