"""Completions of a policy on rows of prompts: from model folder to rows of JSON Lines."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.pipeline.tracking import Run

SHOWN = 24


def complete(
    folder: Path,
    prompts: Sequence[Mapping[str, Any]],
    *,
    n: int,
    temperature: float,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    title: str,
) -> list[dict[str, Any]]:
    """Samples `n` completions of each prompt row from the policy in `folder`: prompts in order, a prompt's completions adjacent.

    A row is the prompt's columns, then `index` (0 … n − 1), `completion`, `finished` (end-of-turn reached), `tokens` and `ids` (what was
    sampled: tokenising the text again may give other tokens).

    Raises:
        ValueError: there are no prompts, or one leaves no room for `max_new_tokens` in the model's context.
    """
    from tqdm import tqdm
    from transformers import AutoTokenizer

    from stages.models.chat import end_of_turn_id, prompt_ids
    from stages.models.loading import context_of, load_policy, rows_in_cache
    from stages.models.sampling import sample

    if not prompts:
        raise ValueError(f"{title}: expected prompts, found none; see metrics/prepare/prepare.json for what was dropped and why")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load_policy(folder)
    encoded = [prompt_ids(tokenizer, row["prompt"]) for row in prompts]
    require_room(encoded, context_of(model.config), max_new_tokens, title)
    with tqdm(total=n * len(prompts), desc=title, unit="completion") as bar:
        sampled = sample(
            model,
            tokenizer,
            [ids for ids in encoded for _ in range(n)],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            batch_size=rows_in_cache(model, max(map(len, encoded)) + max_new_tokens, batch_size),
            end_ids=[end_of_turn_id(tokenizer)],
            progress=bar.update,
        )
    texts = tokenizer.batch_decode([one.ids for one in sampled], skip_special_tokens=True)
    return [
        {
            **prompts[number // n],
            "index": number % n,
            "completion": [{"role": "assistant", "content": text}],
            "finished": one.finished,
            "tokens": len(one.ids),
            "ids": one.ids,
        }
        for number, (one, text) in enumerate(zip(sampled, texts, strict=True))
    ]


def require_room(encoded: Sequence[Sequence[int]], context_tokens: int | None, max_new_tokens: int, title: str) -> None:
    """Refuses prompts that leave no room for an answer, instead of truncating them; context_tokens None: there is always room."""
    longest = max(range(len(encoded)), key=lambda index: len(encoded[index]))
    if context_tokens and len(encoded[longest]) + max_new_tokens > context_tokens:
        over = sum(len(ids) + max_new_tokens > context_tokens for ids in encoded)
        raise ValueError(
            f"{title}: {over} of {len(encoded)} prompts leave no room for max_new_tokens {max_new_tokens} in a context of "
            f"{context_tokens} (longest: {len(encoded[longest])} tokens, prompt {longest}). Lower max_new_tokens, or drop long prompts "
            "in `prepare` (policy.answer_tokens in conf/data)."
        )


def log_samples(run: "Run", folder: Path, prompts: Sequence[Mapping[str, Any]], *, seed: int, max_new_tokens: int) -> None:
    """Logs a table of what a freshly trained policy says to a few held-out prompts, of those that leave it room."""
    if run.id is None:
        return
    from transformers import AutoConfig, AutoTokenizer

    from stages.models.chat import prompt_ids
    from stages.models.loading import context_of

    tokenizer, context = AutoTokenizer.from_pretrained(folder), context_of(AutoConfig.from_pretrained(folder))
    prompts = [row for row in prompts if not context or len(prompt_ids(tokenizer, row["prompt"])) + max_new_tokens <= context]
    shown = prompts[:: max(1, len(prompts) // SHOWN)][:SHOWN]
    if not shown:
        return
    rows = complete(
        folder,
        shown,
        n=1,
        temperature=1.0,
        max_new_tokens=max_new_tokens,
        batch_size=SHOWN,
        seed=seed,
        title="samples to look at",
    )
    run.log_table(
        "samples",
        [{"prompt": row["prompt"][-1]["content"], "completion": row["completion"][0]["content"]} for row in rows],
    )
