"""The key-value cache of a batch of prompts: read quickly, extended in place, and cheaply rid of rows.

`transformers` copies the whole cache at every token. Here tokens are written into room that is already there (`RoomyLayer`).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from plumbline.models.batching import batches_by_length

# Prompts are read this many tokens at a time, padding included. Activations of more would not stay in the processor's cache: in one pass, 512
# prompts of 15 to 38 tokens take 1.7 times as long.
READ_TOKENS = 2048


class Read(NamedTuple):
    """What is left of prompts that the model has read."""

    logits: torch.Tensor
    """Of the next token: (prompts, vocabulary)."""
    cache: DynamicCache
    mask: torch.Tensor
    """(prompts, tokens), 1 at tokens and 0 at padding, which is on the left."""


class RoomyLayer(DynamicLayer):
    """A `DynamicLayer` that writes further tokens into spare room, instead of copying all keys and values at every token.

    key_room, value_room: (batch, heads, tokens and spare room, head_dim), of which the first `length` tokens are in use.
    """

    def __init__(self, key_room: torch.Tensor, value_room: torch.Tensor, length: int):
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(key_room, value_room)
        self.key_room, self.value_room = key_room, value_room
        self.keys, self.values = key_room[:, :, :length], value_room[:, :, :length]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values (batch, heads, new_tokens, head_dim) and return all of them so far."""
        assert self.keys is not None
        assert self.values is not None
        self.key_room, self.keys = _append(self.key_room, self.keys, key_states)
        self.value_room, self.values = _append(self.value_room, self.values, value_states)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep the rows `beam_idx` of the batch, in this order."""
        length = self.get_seq_length()
        # Only the rows that move are copied, in place: new memory would cost more than the copying.
        moved = (beam_idx != torch.arange(len(beam_idx), device=beam_idx.device)).nonzero().squeeze(-1)
        for room in (self.key_room, self.value_room):
            room[moved, :, :length] = room[beam_idx[moved], :, :length]
        self.key_room, self.value_room = self.key_room[: len(beam_idx)], self.value_room[: len(beam_idx)]
        self.keys, self.values = self.key_room[:, :, :length], self.value_room[:, :, :length]


def _append(room: torch.Tensor, past: torch.Tensor, new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Write `new` behind `past`, which is the used part of `room`. Return the room, a larger one if it was full, and its used part."""
    length = past.shape[-2]
    end = length + new.shape[-2]
    if end > room.shape[-2]:
        # A quarter more: attention is faster if what it reads lies close together, so room for all tokens would cost more than copying.
        room = new.new_empty(*new.shape[:2], end + end // 4, new.shape[-1])
        room[:, :, :length] = past
    room[:, :, length:end] = new
    return room, room[:, :, :end]


def read_prompts(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> Read:
    """Read prompts of token ids, equal ones once, into one cache."""
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    # Only the caches of plain attention layers can be joined: sliding-window, linear-attention and other layers keep their own bookkeeping.
    joinable = all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)
    parts = batches_by_length([len(prompt) for prompt in distinct], tokens=READ_TOKENS if joinable else math.inf)
    reads = [_read_part(model, [distinct[row] for row in part]) for part in parts]
    row_of = {distinct[row]: number for number, row in enumerate(row for part in parts for row in part)}
    copies = torch.tensor([row_of[tuple(prompt)] for prompt in prompts], device=model.device)
    width = max(read.mask.shape[1] for read in reads)
    return Read(
        torch.cat([read.logits for read in reads])[copies],
        _joined([read.cache for read in reads], width, copies),
        torch.cat([pad(read.mask, (width - read.mask.shape[1], 0)) for read in reads])[copies],
    )


def _read_part(model: PreTrainedModel, prompts: list[tuple[int, ...]]) -> Read:
    width = max(map(len, prompts))
    # Left padding puts every row's next token into the same column. Padding is 0, which the mask hides.
    input_ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=model.device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    mask = (torch.arange(width, device=model.device) >= (width - lengths).unsqueeze(-1)).long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    return Read(next_logits(model, input_ids, mask, positions, cache), cache, mask)


def _joined(caches: list[DynamicCache], width: int, copies: torch.Tensor) -> DynamicCache:
    """Join caches of at most `width` tokens; row j becomes row `copies[j]` of all of them together."""
    whole = caches[0]
    for number, layers in enumerate(zip(*(cache.layers for cache in caches), strict=True)):
        if type(layers[0]) is not DynamicLayer:
            layers[0].reorder_cache(copies)
            continue
        key_room, value_room = (
            torch.cat([pad(states, (0, 0, width - states.shape[-2], width // 4)) for states in parts])[copies]
            for parts in ([layer.keys for layer in layers], [layer.values for layer in layers])
        )
        whole.layers[number] = RoomyLayer(key_room, value_room, width)
        for layer in layers:
            layer.reset()
    return whole


def next_logits(
    model: PreTrainedModel, input_ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: DynamicCache
) -> torch.Tensor:
    """Read `input_ids` (batch, new_tokens) into the cache and return next-token logits (batch, vocabulary).

    mask: (batch, tokens), of all tokens including the new ones.
    """
    # Architectures without positions, such as ALiBi's, take the argument and ignore it.
    logits: torch.Tensor = model(
        input_ids=input_ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
    ).logits
    return logits[:, -1]
