"""Which rows are held out for validation."""

import hashlib


def held_out(prompt_id: str, fraction: float, seed: int) -> bool:
    """Whether a prompt belongs to the validation split: by its own id, so the split does not move when prompts are added."""
    digest = hashlib.sha256(f"{seed}:{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
