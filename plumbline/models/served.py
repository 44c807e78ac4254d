"""Completions from a server with OpenAI's completions API, such as vLLM: what it is asked, and what its answers mean.

Each completion is a request of its own: the prompt as token ids, the whole decoding (a server takes missing values from the model's
generation config), and a seed that belongs to the row (uniforms.py). So what a server draws for a row does not depend on which rows it draws at the
same time, as far as the server keeps seeds apart. The same seed gives other draws than in this project's sampler.

As in that sampler only the end-of-turn token ends a completion, and rows of the embeddings without a token are never drawn. `stop_token_ids`,
`ignore_eos`, `return_token_ids`, `top_k`, `min_p` and `repetition_penalty` are vLLM's names; another server may ignore them, which no answer shows.
"""

import asyncio
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import AutoConfig, PreTrainedTokenizerBase

from plumbline.models.chat import end_of_turn_id
from plumbline.models.decoding_values import NEUTRAL, Decoding
from plumbline.models.loading import rows_without_token
from plumbline.models.sampling import Sampled
from plumbline.models.uniforms import request_seed
from plumbline.pipeline.endpoint_calls import Caller, EndpointError, RefusedError, TransientError
from plumbline.pipeline.engine import Server, address_of, served_name

BANNED = -100
"""The bias of a token that is never drawn; OpenAI's lowest."""

FIRST_TRIES = 3
"""Of asking for the models: nothing is lost yet, so that a server that does not run is reported soon."""


class Served:
    """A policy behind a server (`Generator` in generating.py)."""

    def __init__(
        self,
        server: Server,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_new_tokens: int,
        seed: int,
        kept: str = "The shards completed so far",
    ) -> None:
        """Asks the server whether it serves the policy in `folder`.

        kept: what is not lost if calls fail; messages say so.

        Raises:
            EndpointError: the server cannot be reached, or refuses.
            ValueError: it does not serve this policy.
        """
        self._server, self._folder, self._tokenizer = server, folder, tokenizer
        self._max_new_tokens, self._seed = max_new_tokens, seed
        self.name = self._model = served_name(server, folder)
        self._end_id = end_of_turn_id(tokenizer)
        self._caller = Caller(server, address_of(server), kept)
        self._runner = asyncio.Runner()
        self._noted = False
        self._calls = self._answered = 0
        self._rows = AutoConfig.from_pretrained(folder).get_text_config().vocab_size
        self._bias = {str(row): BANNED for row in rows_without_token(tokenizer, self._rows)}
        with ExitStack() as unless_served:
            unless_served.callback(self.close)
            self._served_context = self._runner.run(self._caller.patiently(self._context, FIRST_TRIES))
            unless_served.pop_all()

    def make_room(self, longest_tokens: int) -> None:
        """Makes sure that the server reads sequences of so many tokens, prompt and completion together.

        Raises:
            ValueError: it says that it does not.
        """
        if self._served_context and longest_tokens > self._served_context:
            raise ValueError(
                f"engine: expected {self._caller.address} to serve {self.name!r} with a context of at least {longest_tokens} tokens, found "
                f"{self._served_context}. Start it with a longer one (vLLM: --max-model-len {longest_tokens}), or lower max_new_tokens"
            )

    def draw(
        self,
        prompts_ids: Sequence[list[int]],
        rows: Sequence[int],
        decoding: Decoding,
        *,
        with_logps: bool,
        progress: Callable[[int], object],
    ) -> list[Sampled]:
        """One completion of each prompt, in the order of the prompts; row `rows[i]` of all completions is that of prompt i.

        Raises:
            EndpointError: the server refuses, kept failing, or answers what cannot be used.
            ValueError: log-probabilities are asked for of a decoding that is not the policy's own distribution.
        """
        if with_logps and decoding != NEUTRAL:
            raise ValueError(
                f"engine: with_logps: expected the whole distribution at temperature 1, of which servers report log-probabilities, found "
                f"{decoding.words}"
            )
        samples: list[Sampled | None] = [None] * len(prompts_ids)

        async def complete(position: int) -> None:
            body = self._body(prompts_ids[position], rows[position], decoding, with_logps)
            samples[position] = await self._caller.patiently(partial(self._complete, body))
            self._answered += 1
            progress(1)

        self._runner.run(self._caller.at_once(range(len(prompts_ids)), complete))
        return [one for one in samples if one is not None]

    @property
    def calls_repeated(self) -> int:
        """How many calls for a completion were made again, because the server failed."""
        return self._calls - self._answered

    def load_adapter(self, folder: Path) -> None:
        """Makes the server load the adapter in a folder, under the folder's name, unless it has one of that name.

        Raises:
            EndpointError: the server cannot be reached, does not load adapters while it runs, or cannot load this one.
        """
        call = partial(self._change_adapters, "load", folder.name, lora_path=str(folder.resolve()))
        self._runner.run(self._caller.patiently(call, FIRST_TRIES if self._model == self.name else None))

    def unload_adapter(self, name: str) -> None:
        """Makes the server forget an adapter, if it has it; raises EndpointError as `draw`."""
        self._runner.run(self._caller.patiently(partial(self._change_adapters, "unload", name)))

    def use(self, model: str) -> None:
        """Draws completions by another of the server's models from now on: an adapter on the policy."""
        self._model = model

    def close(self) -> None:
        """Closes the connections."""
        if self._caller.is_open:
            self._runner.run(self._caller.close())
        self._runner.close()

    async def _change_adapters(self, action: str, name: str, **body: str) -> None:
        """Makes the server load or unload an adapter (vLLM's calls), unless an earlier try did, whose answer was lost."""
        if (name in await self._models()) == (action == "load"):
            return
        try:
            await self._caller.post(f"/{action}_lora_adapter", {"lora_name": name, **body})
        except RefusedError as error:
            raise EndpointError(
                f"engine: expected {self._caller.address} to {action} the adapter {body.get('lora_path', name)}, found that it refuses with {error}. "
                f"Serve the policy so that adapters can be loaded (`VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve {self._folder} "
                f"--served-model-name {self.name} --enable-lora --max-lora-rank …`, with a rank of at least lora_rank), where this folder can be read"
            ) from None

    async def _models(self) -> dict[str, Any]:
        """What the server says of each of its models, by name."""
        try:
            answer = await self._caller.get("/models")
        except RefusedError as error:
            raise EndpointError(
                f"engine: {self._caller.address} refused to list its models with HTTP {error.status}: {error.message}. Check the address, which "
                f"ends in /v1, and the key in {self._server.api_key_env}"
            ) from None
        try:
            return {str(one["id"]): one for one in answer["data"]}
        except (KeyError, TypeError):
            raise TransientError("an unreadable list of models") from None

    async def _context(self) -> int | None:
        """The context with which the server serves the policy, in tokens; None if it does not say."""
        models = await self._models()
        if self.name not in models:
            raise ValueError(
                f"engine: expected {self._caller.address} to serve {self.name!r}, which is {self._folder} as it is now, found "
                f"{', '.join(models) or 'no model'}. Serve it (`vllm serve {self._folder} --served-model-name {self.name}`), and run again"
            )
        context = models[self.name].get("max_model_len")
        return context if isinstance(context, int) else None

    def _body(self, prompt: Sequence[int], row: int, decoding: Decoding, with_logps: bool) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": list(prompt),
            "n": 1,
            "max_tokens": self._max_new_tokens,
            "seed": request_seed(self._seed, row),
            **decoding._asdict(),
            "stop_token_ids": [self._end_id],
            "ignore_eos": True,
            "return_token_ids": True,
        }
        if with_logps:
            body["logprobs"] = 1
        if self._bias:
            body["logit_bias"] = self._bias
        return body | self._server.request

    async def _complete(self, body: Mapping[str, Any]) -> Sampled:
        """One completion; raises TransientError if another try may bring it."""
        self._calls += 1
        try:
            answer = await self._caller.post("/completions", body)
        except RefusedError as error:
            raise EndpointError(
                f"engine: {self._caller.address} refused a completion of {len(body['prompt'])} tokens by at most {self._max_new_tokens} more of "
                f"{self._model!r} with HTTP {error.status}: {error.message}. Check what it serves, and `request` in the engine's file"
            ) from None
        return self._sampled(answer, "logprobs" in body)

    def _sampled(self, answer: Any, with_logps: bool) -> Sampled:
        try:
            [choice] = answer["choices"]
            text, finish, ids = choice["text"], choice["finish_reason"], choice.get("token_ids")
        except (KeyError, TypeError, ValueError):
            raise TransientError("an answer that has not exactly one choice") from None
        if finish not in ("stop", "length") or not isinstance(text, str):
            raise TransientError(f"a completion that ended by {finish!r}", billed=True)
        if (name := answer.get("model", self._model)) != self._model:
            raise EndpointError(
                f"engine: expected a completion by {self._model!r} from {self._caller.address}, found one by {name!r}. Serve one model"
            )
        retokenised = ids is None
        if retokenised:
            ids = self._tokenised(text, with_logps)
        if not all(type(one) is int and 0 <= one < self._rows for one in ids):
            raise EndpointError(
                f"engine: expected ids below the {self._rows} of {self._folder} from {self._caller.address}, found {max(ids)}. It serves a model "
                "with another tokenizer"
            )
        if finish == "stop" and ids[-1:] != [self._end_id]:  # which some servers leave out
            ids = [*ids, self._end_id]
        if finish == "length" and not retokenised and len(ids) != self._max_new_tokens:
            raise EndpointError(
                f"engine: expected {self._caller.address} to complete by up to {self._max_new_tokens} tokens, found a completion that it cut off "
                f"after {len(ids)}. Serve the policy with a longer context, or lower max_new_tokens"
            )
        return Sampled(ids, finish == "stop", self._logps(choice, len(ids)) if with_logps else None, retokenised)

    def _tokenised(self, text: str, with_logps: bool) -> list[int]:
        """The ids of a text whose server does not say them.

        Raises:
            EndpointError: log-probabilities are asked for, which belong to the ids that were drawn.
        """
        if with_logps:
            raise EndpointError(
                f"engine: expected the token ids of each completion from {self._caller.address} (vLLM 0.10.2 and later: return_token_ids), found "
                "none. KL and importance ratios are estimated from log-probabilities of those tokens: use such a server. Or do without: in answers "
                "by evaluate.samples_at_1: 0 and a decoding other than temperature 1, in training by sampler: here"
            )
        if not self._noted:
            self._noted = True
            tqdm.write(
                f"engine: {self._caller.address} gives no token ids: texts are tokenised again, which may give other tokens than were drawn",
                file=sys.stderr,
            )
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _logps(self, choice: Mapping[str, Any], count: int) -> list[float]:
        """The log-probability of each token drawn.

        Raises:
            EndpointError: there is not one for each token.
        """
        logps = (choice.get("logprobs") or {}).get("token_logprobs") or []
        if len(logps) != count or not all(isinstance(one, int | float) and math.isfinite(one) for one in logps):
            raise EndpointError(
                f"engine: expected a log-probability of each of the {count} tokens of a completion from {self._caller.address}, found "
                f"{len(logps)}. KL and importance ratios are estimated from them: use a server that gives them. Or do without: in answers by "
                "evaluate.samples_at_1: 0 and a decoding other than temperature 1, in training by sampler: here"
            )
        return [float(one) for one in logps]
