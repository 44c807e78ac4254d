"""A tiny PPO run for tests: a vocabulary of words, a policy of a few thousand parameters, a config that runs in a second."""

from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import OmegaConf
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from plumbline.methods.online.ppo.networks import ValueModel
from plumbline.methods.online.ppo.settings import PpoConfig
from plumbline.methods.online.ppo.trainer import PpoTrainer
from plumbline.models.chat import END, PAD, SPECIAL_TOKENS, TINY_TEMPLATE, end_of_turn_id
from plumbline.pipeline.composing import CONF, size_section
from plumbline.rows import Message

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


def unhurried_policy() -> LlamaForCausalLM:
    """A tiny policy whose end-of-turn logit is always 0: it ends about one time in twenty, wherever it is."""
    policy = tiny_policy()
    with torch.no_grad():
        policy.model.embed_tokens.weight[end_of_turn_id(word_tokenizer())] = 0
    return policy


def tiny_value_model(seed: int = 1, **changes: Any) -> ValueModel:
    backbone = tiny_policy(seed, **changes).model
    return ValueModel(backbone, torch.nn.Linear(16, 1))


def count_a(prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
    """A reward of one point for each `a`."""
    return [float(completion.split().count("a")) for completion in completions]


SMALL: dict[str, Any] = {
    "init": "sft", "reward": "rm", "episodes": 32, "rollout_batch_size": 8, "batch_size": 4, "micro_batch_size": 4, "update_epochs": 2,
    "max_new_tokens": 6, "sampling_batch_size": 8, "beta": 0.1, "learning_rate": 1e-3, "value_learning_rate": 1e-3, "warmup_fraction": 0.0,
    "samples_every": 2, "checkpoint_every": 2,
}  # fmt: skip


def tiny_config(**changes: Any) -> PpoConfig:
    """The method's conf file, shrunk to four steps of eight completions."""
    values = OmegaConf.load(CONF / "method/ppo.yaml")
    del values["defaults"]
    by_size = size_section("tiny", "ppo")
    config: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PpoConfig), values, by_size, SMALL | changes))
    return config


def trainer_of(config: PpoConfig, **changes: Any) -> PpoTrainer:
    """A trainer of a fresh policy; `changes` replace its parts."""
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
