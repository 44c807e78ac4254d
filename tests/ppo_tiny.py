"""What the tests of PPO share: a vocabulary of words, a policy of a few thousand parameters, a config that runs in a second."""

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stages.methods.ppo.config import PpoConfig
from stages.methods.ppo.models import ValueModel
from stages.methods.ppo.trainer import PpoTrainer
from stages.models.chat import END, PAD, SPECIAL_TOKENS, TINY_TEMPLATE
from stages.pipeline.records import Message

WORDS = ("a", "b", "c", "d", "q", "r")
PROMPTS: list[list[Message]] = [
    [{"role": "user", "content": content}] for content in ("q", "r q", "q r q r", "r r", "q q q", "r", "q q", "r q r")
]


def word_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """One token for each word, and the special tokens."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[token for token in SPECIAL_TOKENS if token not in (END, PAD)],
        chat_template=TINY_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def llama_config(vocabulary: int, **changes: Any) -> LlamaConfig:
    settings: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,  # far from uniform
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": True,
    }
    return LlamaConfig(**(settings | changes))


def tiny_policy(seed: int = 2, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(llama_config(len(word_tokenizer()), **changes)).eval()


def tiny_value_model(seed: int = 1, **changes: Any) -> ValueModel:
    backbone = tiny_policy(seed, **changes).model
    return ValueModel(backbone, torch.nn.Linear(16, 1))


def count_a(prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
    """A reward: one point for each `a`."""
    return [float(completion.split().count("a")) for completion in completions]


def tiny_config(**changes: Any) -> PpoConfig:
    settings: dict[str, Any] = {
        "init": "sft",
        "signal": "reward/rm",
        "episodes": 32,
        "rollout_batch_size": 8,
        "minibatch_size": 4,
        "micro_batch_size": 4,
        "epochs": 2,
        "families": [],
        "max_new_tokens": 6,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "sampling_batch_size": 8,
        "missing_eos_penalty": 1.0,
        "normalise_scores": False,
        "clip_score": None,
        "init_kl_coef": 0.1,
        "target_kl": None,
        "kl_gain": 0.1,
        "min_reward_accuracy": 0.6,
        "cost_limit": None,
        "lambda_learning_rate": 0.1,
        "max_lambda": 10.0,
        "gamma": 1.0,
        "lam": 0.95,
        "whiten_advantages": True,
        "clip_range": 0.2,
        "value_clip_range": 0.2,
        "entropy_coefficient": 0.0,
        "max_approx_kl": None,
        "learning_rate": 1e-3,
        "value_learning_rate": 1e-3,
        "schedule": "linear",
        "warmup_fraction": 0.0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "lora_rank": 0,
        "lora_alpha": 16,
        "lora_output": "merged",
        "bf16": False,
        "gradient_checkpointing": False,
        "guard": True,
        "warn_entropy_fraction": 0.25,
        "warn_kl": 20.0,
        "samples_every": 2,
        "checkpoint_every": 2,
    }
    return PpoConfig(**(settings | changes))


def trainer_of(config: PpoConfig, **changes: Any) -> PpoTrainer:
    parts: dict[str, Any] = {
        "policy": tiny_policy(),
        "reference": tiny_policy(),
        "value_model": tiny_value_model(),
        "reward": count_a,
        "tokenizer": word_tokenizer(),
        "prompts": PROMPTS,
        "config": config,
        "seed": 3,
    }
    return PpoTrainer(**(parts | changes))
