"""The engine: what generates completions, and where the shards of a stage are computed.

`engine: <name>` in params.yaml names a file of conf/engine/. With `here` the stage's own process does both. With a `server`, completions are drawn by
one with OpenAI's completions API, such as vLLM (plumbline/models/served.py). `shards` and `workers` say who computes shards, and so who asks the
server.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from plumbline.pipeline.digests import content_digest
from plumbline.pipeline.endpoints import Endpoint
from plumbline.pipeline.ranges import COUNT, NOT_NEGATIVE, outside

SHARDS = ("here", "processes", "ray")

DRAWING = ("sample", "answer", "rl")
"""The stages that the engine draws completions for. The others only have it compute shards."""

STATED = (
    "model", "prompt", "n", "max_tokens", "seed", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop_token_ids", "ignore_eos",
    "return_token_ids", "logprobs", "logit_bias",
)  # fmt: skip
"""Fields of a request whose values follow from the stage (plumbline/models/served.py), so that `request` cannot hold them."""

NAME_DIGITS = 8
"""Of the digest in a served policy's name."""


@dataclass
class Server(Endpoint):
    """A server that generates. Values and their meaning: conf/engine/vllm.yaml."""

    section: ClassVar[str] = "engine.server"
    address_env: ClassVar[str] = "ENGINE_BASE_URL"

    model: str = "{policy}-{digest}"
    """The name by which the server serves a policy; `{policy}` is the node, `{digest}` begins the digest of its folder."""
    request: dict[str, Any] = field(default_factory=dict)
    """Further fields of each request, for a server that has other names than vLLM."""
    api_key_env: str = "ENGINE_API_KEY"
    needs_key: bool = False

    def problems(self) -> list[str]:
        """What is wrong with the values; empty if nothing is."""
        complaints = []
        try:
            self.model.format(policy="", digest="")
        except (KeyError, IndexError, ValueError):
            complaints.append(f"model: expected a name in which braces hold policy or digest, found {self.model!r}")
        if stated := [name for name in STATED if name in self.request]:
            complaints.append(
                f"request: expected fields that the stage does not set itself, found {', '.join(stated)}. Set the decoding, the seed and the "
                "number of completions in the stage's section, and the model's name in `model`"
            )
        return [*complaints, *self.endpoint_problems()]


@dataclass
class Engine:
    """What generates, and where shards are computed; by default both here. Values and their meaning: conf/engine/*.yaml."""

    server: Server | None = None
    """What generates; without a server this project's own sampler, in the process that computes the shard."""
    shards: str = "here"
    """Where shards are computed: here, one after the other | processes: in `workers` processes of this machine | ray."""
    workers: int = 1
    """How many shards are computed at the same time."""
    gpus: int = 0
    """GPUs that each worker has for itself. 0: a worker on Ray has none; here a single worker sees all, and several are refused if there are any."""
    node_wait_seconds: float = 0.0
    """shards: ray only: how long a stage waits for the cluster to start a node that can hold a worker, if none can."""

    def problems(self) -> list[str]:
        """What is wrong with the values; empty if nothing is. `server` says itself what is wrong with it."""
        complaints = outside(self, workers=COUNT, gpus=NOT_NEGATIVE, node_wait_seconds=NOT_NEGATIVE)
        if self.shards not in SHARDS:
            complaints.append(f"shards: expected one of {', '.join(SHARDS)}, found {self.shards!r}")
        if self.shards == "here":
            complaints += [
                f"{key}: expected {value} with shards: here, where the stage's own process computes one shard after the other, found "
                f"{getattr(self, key)}. Set it to {value}, or shards to processes"
                for key, value in (("workers", 1), ("gpus", 0))
                if getattr(self, key) > value
            ]
        if self.shards != "ray" and self.node_wait_seconds > 0:
            complaints.append(
                f"node_wait_seconds: expected 0 with shards: {self.shards}, which waits for no node, found {self.node_wait_seconds:g}. Set it to 0, "
                "or shards to ray"
            )
        return complaints


SCHEMAS = {"engine_schema": Engine}


def deciding_values(engine: Mapping[str, Any]) -> dict[str, Any]:
    """The values of an engine that decide what is drawn. All others say where, how fast, and how patiently, and change no byte of an output."""
    server = engine["server"]
    return {"server": server and {key: server[key] for key in ("model", "request")}}


def decisive(stage: str, params: dict[str, Any]) -> dict[str, Any]:
    """A stage's values without those of its engine that change no result: a killed run goes on with another number of workers or calls.

    Of a stage for which the engine draws nothing, those are all: it also goes on with another server.
    """
    engine = params.get("engine")
    return params if engine is None else params | {"engine": deciding_values(engine) if stage in DRAWING else None}


def fitted(engine: Engine, *, draws: bool) -> Engine:
    """What a stage needs of an engine with a server; an engine without one stays as it is.

    draws: whether the workers ask the server. They need no GPU then. Others do not need the server, and load models: if this machine has GPUs,
    each worker has one at least, and no more work at the same time than that allows.
    """
    if engine.server is None:
        return engine
    if draws:
        return replace(engine, gpus=0)
    gpu_count = _gpu_count() if engine.shards == "processes" else 0
    if not gpu_count:
        return replace(engine, server=None)
    gpus = max(1, engine.gpus)
    return replace(engine, server=None, gpus=gpus, workers=max(1, min(engine.workers, gpu_count // gpus)))


def address_of(server: Server) -> str:
    """The server's address.

    Raises:
        ValueError: neither the engine's file nor the environment says it.
    """
    if complaints := [*_server_lacks(server)]:
        raise ValueError(f"{server.section}.{complaints[0]}")
    return server.base_url or os.environ[server.address_env]


def engine_lacks(engine: Engine) -> Iterator[str]:
    """What the engine needs and the environment does not offer; on a Ray cluster, each worker takes a server's address and key from its node's."""
    if engine.server and engine.shards != "ray":
        yield from (f"server.{complaint}" for complaint in _server_lacks(engine.server))
    yield from _workers_lack(engine)


def _server_lacks(server: Server) -> Iterator[str]:
    if not (server.base_url or os.environ.get(server.address_env)):
        yield (
            f"base_url: expected the server's address here or in the environment variable {server.address_env}, such as http://127.0.0.1:8000/v1, "
            "found none"
        )
    if server.needs_key and not os.environ.get(server.api_key_env):
        yield f"needs_key: expected the server's key in the environment variable {server.api_key_env}, found none"


def _workers_lack(engine: Engine) -> Iterator[str]:
    if engine.shards == "ray" and find_spec("ray") is None:
        yield 'shards: expected the library ray, found none. Install it (`pip install ".[ray]"`), or set shards to processes'
    if engine.shards == "processes" and (engine.gpus or engine.workers > 1):
        gpu_count = _gpu_count()
        if engine.gpus > gpu_count:
            yield f"gpus: expected at most {gpu_count}, the number of GPUs of this machine, found {engine.gpus} for each worker. Lower gpus"
        elif engine.workers * engine.gpus > gpu_count and not engine.server:  # with one, `fitted` lowers workers
            yield (
                f"gpus: expected at most the {gpu_count} GPUs of this machine for {engine.workers} workers, found {engine.gpus} for each. Lower "
                "workers"
            )
        if gpu_count and not engine.gpus and not engine.server:
            yield (
                f"gpus: expected at least 1 for each of {engine.workers} workers on this machine with {gpu_count} GPUs, the first of which all would "
                "use, found 0. Set gpus to 1, or hide the GPUs (CUDA_VISIBLE_DEVICES=-1)"
            )


def _gpu_count() -> int:
    import torch

    return torch.cuda.device_count()


def served_name(server: Server, folder: Path) -> str:
    """The name by which a server is expected to serve the policy in a folder, such as `dpo-3f2a91bc`.

    With the digest in it, a server that still has the weights of an earlier training serves another name.
    """
    return server.model.format(policy=folder.name, digest=content_digest(folder)[:NAME_DIGITS])
