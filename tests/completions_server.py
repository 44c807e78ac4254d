"""A server with OpenAI's completions API on loopback that draws by this project's sampler, one row at a time, and fails as often as configured.

It knows a request by its standard fields alone: `prompt`, the decoding, and `seed`, from which it finds the row whose numbers it draws by. It loads
adapters by vLLM's calls, and answers those calls as vLLM does.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from judging_server import Server
from peft import PeftModel
from transformers import AutoTokenizer

from plumbline.models.decoding_values import Decoding
from plumbline.models.loading import load_policy
from plumbline.models.sampling import sample
from plumbline.models.uniforms import request_seed, uniforms_of


@dataclass
class CompletionsServer(Server):
    """The server's settings; `folder` holds the policy."""

    folder: Path = Path()
    model: str = ""
    of_seed: int = 3  # the seed of the run whose rows it draws
    rows: int = 64
    max_model_len: int | None = None
    gives_ids: bool = True
    gives_end: bool = True  # the end-of-turn token among the ids
    choices: int = 1
    breaks_after: int | None = None  # from this call on, every call fails
    over: dict[str, Any] = field(default_factory=dict)  # put over the fields of a choice
    numbers: Callable[[int, int], torch.Tensor] | None = (
        None  # of a row and its most tokens: what it draws by; None: those of this project's stages
    )
    believed: float = 0.0  # added to the log-probability of each completion, as by a server that computes otherwise
    loads: bool = True  # adapters, as with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING
    keeps_from: int | None = None  # after so many changes of adapters, every further one fails
    loses: int = 0  # how many of its answers about adapters get lost
    changes: list[str] = field(default_factory=list)  # of adapters: `load <name>`, `unload <name>`

    def __post_init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.policy = load_policy(self.folder)
        self.adapters: dict[str, Any] = {}
        self.row_of = {request_seed(self.of_seed, row): row for row in range(self.rows)}

    def page(self) -> dict[str, Any]:
        adapters = [{"id": name, "parent": self.model, "max_model_len": None} for name in self.adapters]
        return {"data": [{"id": self.model, "max_model_len": self.max_model_len}, *adapters]}

    async def answer(self, head: str, body: bytes, writer: asyncio.StreamWriter) -> bool:
        path = head.split()[1]
        if not path.endswith("_lora_adapter"):
            return await super().answer(head, body, writer)
        if self.keeps_from is not None and len(self.changes) >= self.keeps_from:
            await self.send(writer, b"oops", 500)
            return True
        words, status = (
            self.change(path.rpartition("/")[2].partition("_")[0], json.loads(body)) if self.loads else ("Not Found", 404)
        )
        if self.loses and status == 200:
            self.loses -= 1
            return False
        plain = words.encode() if status == 200 else json.dumps({"error": {"message": words}}).encode()
        await self.send(writer, plain, status, "" if status != 200 else "x-from: vllm\r\n")  # vLLM names no type here
        return True

    def change(self, action: str, request: dict[str, str]) -> tuple[str, int]:
        """Loads or unloads an adapter: what to answer, and the status."""
        name = request["lora_name"]
        if (name in self.adapters) == (action == "load"):
            return f"The lora adapter '{name}' has already been loaded" if action == "load" else f"'{name}' cannot be found", 400
        self.changes.append(f"{action} {name}")
        if action == "load":
            with (
                torch.random.fork_rng()
            ):  # a new adapter is filled with random numbers first, here with those of the training process
                self.adapters[name] = PeftModel.from_pretrained(load_policy(self.folder), request["lora_path"])
        else:
            del self.adapters[name]
        return f"Success: LoRA adapter '{name}' {action}ed", 200

    def refusal(self, request: dict[str, Any], fault: str) -> tuple[bytes, int, str] | None:
        if self.breaks_after is not None and self.calls > self.breaks_after:
            return b"oops", 500, ""
        return super().refusal(request, fault)

    def reply(self, request: dict[str, Any], fault: str) -> bytes:
        row, most = self.row_of[request["seed"]], request["max_tokens"]
        [drawn] = sample(
            self.policy if request["model"] == self.model else self.adapters[request["model"]].get_base_model(),
            self.tokenizer,
            [request["prompt"]],
            max_new_tokens=most,
            decoding=Decoding(**{name: request[name] for name in Decoding._fields}),
            uniforms=self.numbers(row, most) if self.numbers else uniforms_of(self.of_seed, [row], most),
            with_logps="logprobs" in request,
        )
        ids = drawn.ids if self.gives_end or not drawn.finished else drawn.ids[:-1]
        choice = {
            "text": self.tokenizer.decode(drawn.ids, skip_special_tokens=True),
            "finish_reason": "stop" if drawn.finished else "length",
            **({"token_ids": ids} if self.gives_ids else {}),
            **(
                {"logprobs": {"token_logprobs": [one + self.believed / len(ids) for one in drawn.per_token_logps]}}
                if drawn.per_token_logps
                else {}
            ),
        }
        usage = {"prompt_tokens": len(request["prompt"]), "completion_tokens": len(drawn.ids)}
        answer = {"model": request["model"], "choices": [choice | self.over] * self.choices, "usage": usage}
        return json.dumps(answer | self.extra).encode()
