"""A chat model in this process: questions are batched by length, and every reply is kept in the store."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from plumbline.judging.asking import Ledger, Reply, Request
from plumbline.judging.judges import TransformersJudge
from plumbline.judging.store import VerdictStore, content_key, store_folder
from plumbline.models.loading import context_of
from plumbline.pipeline.digests import pin_problems, pinned

SAMPLING_ALONE = "sampling alone"
"""What decides a reply besides the model and the question; earlier replies also went by the model's generation_config.json."""


class LocalChat:
    """Replies of a Hugging Face causal LM with a chat template."""

    def __init__(self, config: TransformersJudge) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = Path(config.model)
        if complaints := pin_problems(config.model, config.revision, "judge.model"):
            raise ValueError(complaints[0])
        version = pinned(folder, config.revision, "judge.revision") if folder.is_dir() else config.revision
        commit = None if folder.is_dir() else config.revision
        self._config = config
        self._tokenizer = AutoTokenizer.from_pretrained(config.model, revision=commit, padding_side="left")
        if not self._tokenizer.chat_template:
            raise ValueError(
                f"judge.model: expected a model with a chat template, found {config.model} without: choose an instruction-tuned one"
            )
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._device = torch.device(config.device)
        model: Any = AutoModelForCausalLM.from_pretrained(config.model, revision=commit)
        self._model = model.to(self._device).eval()
        self._store = VerdictStore(store_folder())
        self.model = config.model
        self.identity = str(content_key(["transformers", config.model, version, asdict(config.sampling), SAMPLING_ALONE]))
        self.ledger = Ledger()
        self.share = 1.0
        self._warned = False

    def complete(self, requests: Sequence[Request]) -> list[Reply]:
        """The replies, from the store or else generated, the longest questions first."""
        keys = [content_key([self.identity, *request]) for request in requests]
        replies = {key: reply for key in keys if (reply := self._store.get(key)) is not None}
        self.ledger.calls += len(requests)
        self.ledger.cached += sum(key in replies for key in keys)
        items = sorted(zip(keys, requests, strict=True), key=lambda item: -len(item[1].messages[-1]["content"]))
        with tqdm(total=len(keys), desc=f"judge {self.model}", unit="reply", disable=None) as bar:
            for start in range(0, len(items), self._config.batch):
                batch = items[start : start + self._config.batch]
                # A batch that a crash cut short is generated again as a whole: a reply may depend on what else is in its batch.
                if any(key not in replies for key, _ in batch):
                    for (key, _), reply in zip(batch, self._generate([request for _, request in batch]), strict=True):
                        self._keep(replies, key, reply)
                bar.update(len(batch))
        return [replies[key] for key in keys]

    def _keep(self, replies: dict[str, Reply], key: str, reply: Reply) -> None:
        if key not in replies:
            self._store.keep(key, reply)
            replies[key] = reply
            self.ledger.bought += 1
            self.ledger.input_tokens += reply.input_tokens
            self.ledger.output_tokens += reply.output_tokens

    def close(self) -> None:
        """Closes the store."""
        self._store.close()

    def finish(self) -> None:
        """Closes the store."""
        self.close()

    def _generate(self, requests: Sequence[Request]) -> list[Reply]:
        texts = [
            str(self._tokenizer.apply_chat_template(request.messages, add_generation_prompt=True, tokenize=False))
            for request in requests
        ]
        context = context_of(self._model.config)
        reply_tokens = self._config.sampling.max_tokens
        lengths = [len(ids) for ids in self._tokenizer(texts, add_special_tokens=False)["input_ids"]]
        if context and max(lengths) + reply_tokens > context and not self._warned:
            self._warned = True
            tqdm.write(
                f"judge: a question of {max(lengths)} tokens and a reply of {reply_tokens} exceed the context of {self.model} ({context}), "
                "so it has no verdict: choose another model, or lower judge.sampling.max_tokens",
                file=sys.stderr,
            )
        fits = [not context or length + reply_tokens <= context for length in lengths]
        replies = iter(self._write([text for text, fit in zip(texts, fits, strict=True) if fit], requests[0]))
        return [next(replies) if fit else Reply("", "length", length) for fit, length in zip(fits, lengths, strict=True)]

    def _write(self, texts: Sequence[str], first: Request) -> list[Reply]:
        """Generates a reply to each rendered question; `first` decides the seed."""
        import torch

        if not texts:
            return []
        sampling = self._config.sampling
        encoded = self._tokenizer(list(texts), add_special_tokens=False, padding=True, return_tensors="pt").to(self._device)
        longest = encoded["input_ids"].shape[1]
        if sampling.temperature > 0:  # the first request decides, so that a batch is reproducible as a whole
            torch.manual_seed(int(content_key([sampling.seed, *first])[:8], 16))
        warmth = {"temperature": sampling.temperature, "top_k": 0, "top_p": sampling.top_p, "min_p": None}
        with torch.inference_mode():
            output = self._model.generate(
                **encoded,
                max_new_tokens=sampling.max_tokens,
                do_sample=sampling.temperature > 0,
                repetition_penalty=1.0,
                pad_token_id=self._tokenizer.pad_token_id,
                **(warmth if sampling.temperature > 0 else {}),
            )
        ends = self._model.generation_config.eos_token_id
        stops = set(ends if isinstance(ends, list) else [ends]) | {self._tokenizer.eos_token_id}
        replies = []
        for row, mask in zip(output[:, longest:].tolist(), encoded["attention_mask"].sum(1).tolist(), strict=True):
            end = next((index for index, token in enumerate(row) if token in stops), None)
            tokens = row if end is None else row[:end]
            text = str(self._tokenizer.decode(tokens, skip_special_tokens=True))
            replies.append(Reply(text, "length" if end is None else "stop", int(mask), len(tokens)))
        return replies
