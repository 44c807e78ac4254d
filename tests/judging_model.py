"""Samples to judge, and small models that judge them with a reply that is known in advance."""

import random
from pathlib import Path

from plumbline.models.chat import ASSISTANT, END, PAD, SPECIAL_TOKENS, TINY_TEMPLATE
from plumbline.rows import Row, assistant
from plumbline.world.answers import Style, write_answer
from plumbline.world.families.catalog import FAMILIES, understand

LIKED = "marvellous"
CONTEXT_TOKENS = 4096
WIDTH = 16


def sample(prompts: int, each: int, seed: int) -> list[Row]:
    """Completions of the closed world, good and bad, as rows of artifacts/sample."""
    rng, rows = random.Random(seed), []
    for number in range(prompts):
        family = FAMILIES[sorted(FAMILIES)[number % len(FAMILIES)]]
        prompt = family.ask(rng.choice(family.intents()), "en", rng)
        task = understand(prompt)
        assert task is not None
        for index in range(each):
            style = Style(rng.choice(["right", "wrong"]), rng.choice(["kind", "plain", "rude"]), rng.random() < 0.5)
            rows.append({"id": f"p{number}", "index": index, "prompt": prompt, "policy": "sft", "finished": True, "tokens": 5,
                         "completion": assistant(write_answer(task, style, rng))})  # fmt: skip
    return rows


def save_speaker(folder: Path, reply: str = "", reply_if_liked: str = "") -> Path:
    """Saves a Llama that says `reply` to every question, or `reply_if_liked` if the question contains the word LIKED.

    Its weights are set by hand, so that every other token has a probability below e^-100, at any usual temperature and on any machine. A reply is
    one token of the vocabulary. Attention is uniform and copies whether LIKED has occurred. Without a reply, all tokens are equally likely.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = [*SPECIAL_TOKENS, "other", LIKED, *dict.fromkeys(text for text in (reply, reply_if_liked) if text)]
    vocabulary = {word: index for index, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="other"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END, pad_token=PAD, chat_template=TINY_TEMPLATE, clean_up_tokenization_spaces=False,
        additional_special_tokens=[token for token in SPECIAL_TOKENS if token not in (END, PAD)],
    )  # fmt: skip
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4,
        max_position_embeddings=CONTEXT_TOKENS, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=vocabulary[END], pad_token_id=vocabulary[PAD],
    )  # fmt: skip
    model = LlamaForCausalLM(config).requires_grad_(False)
    attention, output = model.model.layers[0].self_attn, model.lm_head.weight
    for weight in (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight, attention.o_proj.weight,
                   model.model.layers[0].mlp.down_proj.weight, output):  # fmt: skip
        weight.zero_()
    model.model.embed_tokens.weight.copy_(torch.eye(len(words), WIDTH))
    seen = WIDTH - 1  # the component that says how much of the text so far is LIKED
    attention.v_proj.weight[seen, vocabulary[LIKED]] = attention.o_proj.weight[seen, seen] = 1.0
    # After the question: `reply` by 1, `reply_if_liked` by 1e4 times the share of LIKED. After a reply: the end, which outweighs both.
    if reply:
        output[vocabulary[reply], vocabulary[ASSISTANT]] = 100.0
        output[vocabulary[END], vocabulary[reply]] = 1e8
    if reply_if_liked:
        output[vocabulary[reply_if_liked], seen] = 1e6
        output[vocabulary[END], vocabulary[reply_if_liked]] = 1e8
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
