"""A server with OpenAI's completions API on loopback that draws by this project's sampler, one row at a time, and fails as often as configured.

It knows a request by its standard fields alone: `prompt`, the decoding, and `seed`, from which it finds the row whose numbers it draws by.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from judging_server import Server
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

    def __post_init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.policy = load_policy(self.folder)
        self.row_of = {request_seed(self.of_seed, row): row for row in range(self.rows)}

    def page(self) -> dict[str, Any]:
        return {"data": [{"id": self.model, "max_model_len": self.max_model_len}]}

    def refusal(self, request: dict[str, Any], fault: str) -> tuple[bytes, int, str] | None:
        if self.breaks_after is not None and self.calls > self.breaks_after:
            return b"oops", 500, ""
        return super().refusal(request, fault)

    def reply(self, request: dict[str, Any], fault: str) -> bytes:
        row = self.row_of[request["seed"]]
        [drawn] = sample(
            self.policy,
            self.tokenizer,
            [request["prompt"]],
            max_new_tokens=request["max_tokens"],
            decoding=Decoding(**{name: request[name] for name in Decoding._fields}),
            uniforms=uniforms_of(self.of_seed, [row], request["max_tokens"]),
            with_logps="logprobs" in request,
        )
        ids = drawn.ids if self.gives_end or not drawn.finished else drawn.ids[:-1]
        choice = {
            "text": self.tokenizer.decode(drawn.ids, skip_special_tokens=True),
            "finish_reason": "stop" if drawn.finished else "length",
            **({"token_ids": ids} if self.gives_ids else {}),
            **({"logprobs": {"token_logprobs": drawn.per_token_logps}} if drawn.per_token_logps else {}),
        }
        usage = {"prompt_tokens": len(request["prompt"]), "completion_tokens": len(drawn.ids)}
        answer = {"model": self.model, "choices": [choice | self.over] * self.choices, "usage": usage}
        return json.dumps(answer | self.extra).encode()
