"""Workers on a Ray cluster that is running already: actors, which Ray places on any node with room for them.

Actors, and not Ray's tasks, because a worker keeps its model, and on a GPU its memory, from shard to shard. Ray ends them with the stage's process.
Every node needs the project's folder under the same path and the same environment. The cluster's address is that in RAY_ADDRESS, or else of the
cluster that runs on this machine.
"""

import os
import sys
import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from plumbline.pipeline.shard_workers import Prepare, ShardRunner, WorkerDied, for_workers, pickled, reraise, stage_threads

WATCH_SECONDS = 60.0
"""How often the nodes of the cluster are looked at while no shard is completed."""

PASSED_ON = ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM")
"""Variables of the stage's environment that decide how a worker computes; all others are those of its node. A key never goes through Ray."""


class RayPool:
    """Starts workers on the cluster, each on as many cores as the stage has threads and on `gpus` GPUs.

    If no node can hold one, the cluster may take `node_wait_seconds` to start such a node.
    """

    def __init__(self, prepare: Prepare, gpus: int, node_wait_seconds: float) -> None:
        self.prepare = pickled(prepare)
        self.gpus = gpus
        self.node_wait_seconds = node_wait_seconds
        self.complaint = ""

    def __enter__(self) -> "RayPool":
        import ray

        folders = [os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
        passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        variables = {"PYTHONPATH": os.pathsep.join(folders), **passed_on, **for_workers()}
        try:
            ray.init("auto", runtime_env={"env_vars": variables}, log_to_driver=False, configure_logging=False)
        except (ConnectionError, RuntimeError) as error:  # none, or one of another version of Ray or Python
            raise ValueError(
                "engine.shards: expected a running Ray cluster with this environment's versions of Ray and Python, found none "
                f"({' '.join(str(error).split())[:400]}). Start one by `ray start --head` in this environment, or name one in RAY_ADDRESS"
            ) from error
        complaint = _no_room(ray.nodes(), stage_threads(), self.gpus)
        if complaint and not self._grows():
            ray.shutdown()
            raise ValueError(
                f"{complaint}. Lower threads or gpus, or add such a node. If the cluster starts nodes when they are needed, set node_wait_seconds"
            )
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()

    def _grows(self) -> bool:
        """Whether the cluster starts a node that can hold a worker in time. It learns of the need by a task that only such a node can run."""
        if not self.node_wait_seconds:
            return False
        import ray

        print(
            f"engine: no node of the Ray cluster can hold a worker yet; waiting up to {self.node_wait_seconds:g} s for one with "
            f"{stage_threads()} cores and {self.gpus} GPUs",
            file=sys.stderr,
            flush=True,
        )
        needed: Any = ray.remote(_nothing)
        started, _ = ray.wait(
            [needed.options(num_cpus=stage_threads(), num_gpus=self.gpus).remote()], timeout=self.node_wait_seconds
        )
        return bool(started)

    def start(self) -> "RayWorker":
        import ray

        actor: Any = ray.remote(RemoteRunner)
        options = {"num_cpus": stage_threads(), "num_gpus": self.gpus, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        return RayWorker(actor.options(**options).remote(self.prepare, os.getcwd()))

    def ready(self, busy: Collection["RayWorker"]) -> "list[RayWorker]":
        import ray

        while True:
            ended, _ = ray.wait([worker.error for worker in busy], timeout=WATCH_SECONDS)
            if ended:
                return [worker for worker in busy if worker.error in ended]
            self._watch(ray.nodes())

    def _watch(self, nodes: Iterable[Mapping[str, Any]]) -> None:
        """Notes, once, that the last node that could hold a worker is lost: Ray waits for such a node without an end and without a word."""
        from tqdm import tqdm

        before, self.complaint = self.complaint, _no_room(nodes, stage_threads(), self.gpus)
        if self.complaint and not before:
            tqdm.write(f"{self.complaint}. The stage waits until such a node joins", file=sys.stderr)


def _nothing() -> None:
    """Runs where a worker could."""


def _no_room(nodes: Iterable[Mapping[str, Any]], cores: int, gpus: int) -> str:
    """What is wrong if none of these nodes can hold a worker, even when it has nothing else to do; empty if one can."""
    sizes = [(int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0))) for node in nodes if node["Alive"]]
    if any(cores <= size[0] and gpus <= size[1] for size in sizes):
        return ""
    found = ", ".join(f"{size[0]} and {size[1]}" for size in sorted({*sizes}, reverse=True))
    return (
        f"engine.gpus: expected a node of the Ray cluster with {cores} cores (`threads`) and {gpus} GPUs for each worker, found nodes with "
        f"{found or 'none'}"
    )


class RemoteRunner(ShardRunner):
    """A worker's side in a process that Ray has started, which is not yet in the project's folder."""

    def __init__(self, prepare: bytes, folder: str) -> None:
        os.chdir(folder)
        sys.path.insert(0, folder)
        super().__init__(prepare)


class RayWorker:
    """An actor that computes shards."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.error: Any = None

    def submit(self, task: bytes) -> None:
        self.error = self.actor.run.remote(task)

    def result(self) -> None:
        import ray

        try:
            error = ray.get(self.error)
        except ray.exceptions.RayError as death:
            if getattr(death, "actor_init_failed", False):
                raise ValueError(
                    f"engine.shards: expected every node of the Ray cluster to have the project in {os.getcwd()}, and the same environment, found "
                    f"one where no worker can start: {str(death).strip().splitlines()[-1]}. Mount the project's folder there, and install its "
                    "libraries"
                ) from None
            self._until_known()
            raise WorkerDied(f"on the cluster: {' '.join(str(death).split())[:400]}") from None
        reraise(error)

    def _until_known(self) -> None:
        """Waits until the cluster knows what became of the actor: a node is lost for seconds before it knows, and would get the next one too."""
        import ray

        while True:
            try:
                ray.get(self.actor.__ray_ready__.remote())
            except ray.exceptions.ActorUnavailableError:
                time.sleep(1.0)
            except ray.exceptions.RayError:
                return
            else:
                return

    def kill(self) -> None:
        import ray

        ray.kill(self.actor)
