"""Whether prompts leave room for an answer in a model's context."""

from collections.abc import Iterable
from typing import NamedTuple


class Fitting(NamedTuple):
    """Prompts that leave room for an answer: how many, and the longest, in tokens."""

    prompts: int
    longest_tokens: int


def require_room(prompt_tokens: Iterable[int], context_tokens: int | None, max_new_tokens: int, title: str) -> Fitting:
    """Refuses prompts that leave no room for an answer, instead of truncating them.

    prompt_tokens: the length of each prompt. context_tokens: the longest sequence that the model can read; None if there is no limit.

    Raises:
        ValueError: a prompt and `max_new_tokens` together exceed the context.
    """
    count = longest = position = over = 0
    for count, tokens in enumerate(prompt_tokens, 1):
        over += bool(context_tokens) and tokens + max_new_tokens > (context_tokens or 0)
        if tokens > longest:
            longest, position = tokens, count - 1
    if over:
        raise ValueError(
            f"{title}: {over} of {count} prompts leave no room for max_new_tokens {max_new_tokens} in a context of "
            f"{context_tokens} tokens (longest: {longest} tokens, prompt {position}). Lower max_new_tokens, or have `prepare` "
            "drop long prompts (policy.answer_tokens in conf/data)."
        )
    return Fitting(count, longest)
