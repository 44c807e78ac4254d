"""The engine: what generates completions, and where the shards of a stage are computed.

`engine: <name>` in params.yaml names a file of conf/engine/. With `here` the stage's own process does both. With `generator: server` completions are
drawn by a server with OpenAI's completions API, such as vLLM (plumbline/models/served.py). `shards` and `workers` say where shards are computed.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from plumbline.pipeline.endpoints import Endpoint
from plumbline.pipeline.ranges import COUNT, outside

GENERATORS = ("transformers", "server")
SHARDS = ("here", "processes", "ray")

ADDRESS = "ENGINE_BASE_URL"
"""The environment variable with the server's address, if the file gives none."""


@dataclass
class Engine(Endpoint):
    """What generates, and where shards are computed; by default both here. Values and their meaning: conf/engine/*.yaml."""

    section: ClassVar[str] = "engine"

    generator: str = "transformers"
    """transformers: this project's own sampler, in the process that computes the shard | server."""
    model: str = "{policy}-{digest}"
    """generator: server only: the name by which the server serves a policy; `{policy}` is the node, `{digest}` begins the digest of its folder."""
    shards: str = "here"
    """Where shards are computed: here, one after the other | processes: in `workers` processes of this machine | ray."""
    workers: int = 1
    """How many shards are computed at the same time."""
    api_key_env: str = "ENGINE_API_KEY"
    needs_key: bool = False

    @property
    def is_served(self) -> bool:
        """Whether a server generates."""
        return self.generator == "server"

    def problems(self) -> list[str]:
        """What is wrong with the values; empty if nothing is."""
        complaints = [
            f"{key}: expected one of {', '.join(options)}, found {value!r}"
            for key, value, options in (("generator", self.generator, GENERATORS), ("shards", self.shards, SHARDS))
            if value not in options
        ]
        complaints += outside(self, workers=COUNT)
        if self.shards == "here" and self.workers > 1:
            complaints.append(
                f"workers: expected 1 with shards: here, where one shard is computed after the other, found {self.workers}. Set it to 1, or "
                "shards to processes"
            )
        return [*complaints, *self.endpoint_problems()]


SCHEMAS = {"engine_schema": Engine}


def decisive(params: dict[str, Any]) -> dict[str, Any]:
    """A stage's values without those of its engine that change no result: a killed run goes on with another number of workers or calls."""
    engine = params.get("engine")
    return params if engine is None else params | {"engine": {"generator": engine["generator"]}}
