"""A Llama that is exactly a table of next-token probabilities, so that a loss can be derived by hand.

Attention and MLP add nothing, and embeddings are unit vectors. So the logits after token i are column i of the output layer, which holds
the logarithms of whole numbers, and P(next | i) is a fraction. Every row of the table sums to 32, or is uniform over the 11 tokens.

The pair that losses are derived for, under the policy P and the reference Q, with log-ratio h = log P/Q:

    chosen    "a b <|end|>"    P = 1/2 · 1/2 · 1/2    Q = 1/4 · 1/2 · 1/2    h = ln 2     3 tokens
    rejected  "c <|end|>"      P = 1/8 · 1/4          Q = 1/4 · 1/4          h = −ln 2    2 tokens
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from ppo_tiny import word_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from plumbline.models.chat import ASSISTANT, END
from plumbline.models.saving import save_policy
from plumbline.rows import assistant

TOKENIZER = word_tokenizer()
SIZE = len(TOKENIZER)  # 11: five special tokens and a, b, c, d, q, r
WIDTH = 12

Table = dict[str, dict[str, int]]

# A token that a row does not mention has weight 1.
SAME: Table = {"a": {"b": 16, END: 7}, "b": {END: 16, "a": 4, "b": 4}, "c": {END: 8, "b": 15}}
POLICY: Table = {ASSISTANT: {"a": 16, "b": 4, "c": 4}, **SAME}  # P(a) 1/2, P(c) 1/8
REFERENCE: Table = {ASSISTANT: {"a": 8, "b": 8, "c": 8}, **SAME}  # Q(a) 1/4, Q(c) 1/4

LN2 = math.log(2)
PROMPT = [{"role": "user", "content": "q"}]
OTHER_PROMPT = [{"role": "user", "content": "r"}]
CHOSEN, REJECTED = assistant("a b"), assistant("c")
PAIR = {"prompt": PROMPT, "chosen": CHOSEN, "rejected": REJECTED}
SWAPPED = {"prompt": OTHER_PROMPT, "chosen": REJECTED, "rejected": CHOSEN}


def weights(table: Table, before: int) -> list[int]:
    """The weight of each token after the token `before`."""
    row = table.get(TOKENIZER.convert_ids_to_tokens(before), {})
    return [row.get(token, 1) for token in TOKENIZER.convert_ids_to_tokens(list(range(SIZE)))]


def logp(table: Table, before: int, token: int) -> float:
    """log P(token | before), in float64 and without a model."""
    row = weights(table, before)
    return math.log(row[token] / sum(row))


def sequence_logp(table: Table, start: int, tokens: Sequence[int]) -> float:
    """log P(tokens | start), summed."""
    return sum(logp(table, before, token) for before, token in zip([start, *tokens], tokens, strict=False))


def bigram(table: Table) -> LlamaForCausalLM:
    """The table as a model in which only the output layer is trainable."""
    config = LlamaConfig(
        vocab_size=SIZE, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4, rms_norm_eps=1e-12,
        max_position_embeddings=64, tie_word_embeddings=False, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    layer = model.model.layers[0]
    layer.self_attn.o_proj.weight.zero_()
    layer.mlp.down_proj.weight.zero_()
    model.model.embed_tokens.weight.copy_(torch.eye(SIZE, WIDTH))
    columns = [[math.log(weight) for weight in weights(table, before)] for before in range(SIZE)]
    model.lm_head.weight.zero_()
    model.lm_head.weight[:, :SIZE] = torch.tensor(columns, dtype=torch.float64).T / math.sqrt(WIDTH)  # RMSNorm scales by √width
    model.lm_head.weight.requires_grad_(True)
    return model


def save_bigram(table: Table, folder: Path) -> Path:
    """The table as a model folder."""
    save_policy(bigram(table), TOKENIZER, folder)
    return folder
