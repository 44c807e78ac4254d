"""The launcher: in how many processes a stage trains, and how they are started. accelerate starts them; this module tells it what to start.

`launcher: <name>` in params.yaml names a file of conf/launcher/. With `local` a stage trains in its own process. With any other, the process that
DVC runs is accelerate's launcher, and `python -m stages.<stage>` runs again in each process that it starts (`processes.py`). Hosts, ports and ranks
are never values: they come from the environment.
"""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plumbline.pipeline.digests import content_digest
from plumbline.pipeline.mlflow_calls import project_root
from plumbline.pipeline.processes import LAUNCHED, ProcessEnded, cores
from plumbline.pipeline.ranges import COUNT, outside
from plumbline.pipeline.records import write_json
from plumbline.pipeline.tied_command import end_with_parent, run_tied
from plumbline.pipeline.warm_process import SWITCH, end_as

FROM_ELSEWHERE = (
    "num_processes",
    "num_machines",
    "machine_rank",
    "main_process_ip",
    "main_process_port",
    "rdzv_backend",
    "mixed_precision",
)
"""Keys of accelerate's config that `accelerate` may not hold: they follow from the other values, the environment, or the method's `bf16`."""

SHARDING = ("FSDP", "DEEPSPEED")
"""Kinds of accelerate's `distributed_type` in which each process holds a part of the model."""

RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT")
"""Variables that say where the processes of several machines meet."""

MACHINE = ("SLURM_NODEID", "NODE_RANK")
"""Variables that number the machines."""


@dataclass
class Launcher:
    """In how many processes a stage trains; by default in its own. Values and their meaning: conf/launcher/*.yaml."""

    processes: int = 1
    machines: int = 1
    prefix: list[str] = field(default_factory=list)
    accelerate: dict[str, Any] = field(default_factory=dict)

    @property
    def is_local(self) -> bool:
        """Whether a stage trains in its own process, without accelerate's launcher."""
        return not self.accelerate

    @property
    def shards(self) -> bool:
        """Whether each process holds a part of the model only."""
        return self.accelerate.get("distributed_type") in SHARDING

    @property
    def on_cpu(self) -> bool:
        """Whether the processes do without GPUs."""
        return self.is_local or bool(self.accelerate.get("use_cpu"))

    def problems(self) -> list[str]:
        """What is wrong with the values; empty if nothing is."""
        if complaints := outside(self, processes=COUNT, machines=COUNT):
            return complaints
        if self.processes % self.machines:
            complaints.append(f"processes: expected a multiple of the {self.machines} machines, found {self.processes}")
        if self.is_local and (self.processes, self.machines) != (1, 1):
            complaints.append(
                f"accelerate: expected its distributed_type for {self.processes} processes on {self.machines} machines, found nothing. "
                "conf/launcher/ddp.yaml shows how"
            )
        if self.machines > 1 and not self.prefix:
            complaints.append(
                f"prefix: expected a command that starts a launcher on each of the {self.machines} machines, such as srun, found none"
            )
        if given := [key for key in FROM_ELSEWHERE if key in self.accelerate]:
            complaints.append(
                f"accelerate: expected none of {', '.join(FROM_ELSEWHERE)}, which follow from processes, machines, bf16 and the environment, "
                f"found {', '.join(given)}"
            )
        return complaints


SCHEMAS = {"launcher_schema": Launcher}


def batch_problems(config: Any) -> list[str]:
    """What the launcher of a stage's config demands of the values that it trains with; empty if they fit."""
    launcher = getattr(config, "launcher", None)
    if launcher is None or launcher.is_local or launcher.problems() or not trains(config):
        return []
    return [
        f"{name}.{complaint}"
        for name, values in vars(config).items()
        if hasattr(values, "launcher_problems")
        for complaint in values.launcher_problems(launcher)
    ]


def trains(config: Any) -> bool:
    """Whether a stage's config asks for training, which several processes can share; merging, copying and loading are done in one."""
    settings = [values for values in vars(config).values() if hasattr(values, "launcher_problems")]
    loads = getattr(getattr(config, "model", None), "kind", "") == "hub"
    return bool(settings) and not loads and not any(getattr(values, "untrained", False) for values in settings)


# ---- what the machine offers --------------------------------------------------------------------------------------------


def machine_problems(launcher: Launcher) -> Iterator[str]:
    """What a launcher needs that this machine or its environment lacks; also whatever accelerate objects to in its config."""
    if launcher.is_local:
        return
    if launcher.accelerate.get("distributed_type") == "DEEPSPEED" and find_spec("deepspeed") is None:
        yield (
            "accelerate: expected the library deepspeed for distributed_type DEEPSPEED, found none. Install it (`pip install deepspeed`), or "
            "choose fsdp"
        )
    if launcher.machines > 1:
        if missing := [name for name in RENDEZVOUS if not os.environ.get(name)]:
            yield (
                f"machines: expected {' and '.join(RENDEZVOUS)} in the environment, where the processes of {launcher.machines} machines meet, "
                f"found no {' and no '.join(missing)}. Export a host that all machines reach and a free port of it"
            )
    elif complaint := _too_many(launcher):
        yield complaint
    yield from _objections(launcher)


def _too_many(launcher: Launcher) -> str:
    """A complaint about more processes than there are GPUs, or cores where there is no GPU; empty if there are enough."""
    if launcher.on_cpu:
        available, what = cores(), "cores"
    else:
        import torch

        available, what = torch.cuda.device_count(), "GPUs"
    if launcher.processes <= available:
        return ""
    remedy = f"Set processes to {available}, or choose another launcher" if available else "Choose local, or ddp_cpu for a trial"
    return f"processes: expected at most the {available} {what} of this machine, found {launcher.processes}. {remedy}"


def _objections(launcher: Launcher) -> Iterator[str]:
    """What accelerate's own config class and parser object to."""
    from accelerate.commands.config.config_args import ClusterConfig

    if unknown := sorted(launcher.accelerate.keys() - ClusterConfig.__dataclass_fields__.keys()):
        yield f"accelerate: expected keys of accelerate's config file, found {', '.join(unknown)}. `accelerate config` writes such a file"
        return
    try:
        ClusterConfig(**ClusterConfig.process_config(accelerate_config(launcher)))
    except (TypeError, ValueError) as error:
        yield f"accelerate: {' '.join(str(error).split())}"


# ---- launching ----------------------------------------------------------------------------------------------------------


def accelerate_config(launcher: Launcher) -> dict[str, Any]:
    """The config file that accelerate's launcher reads: the `accelerate` section, and what follows from the other values and the environment."""
    meeting: dict[str, Any] = {"main_process_port": 0}  # a free one
    if launcher.machines > 1:
        address, port = (os.environ.get(name) for name in RENDEZVOUS)
        meeting = {"main_process_ip": address, "main_process_port": int(port or 0), "same_network": False}
    counts = {"num_processes": launcher.processes, "num_machines": launcher.machines, "mixed_precision": "no"}
    return {"compute_environment": "LOCAL_MACHINE", **launcher.accelerate, **counts, **meeting}


def launch(launcher: Launcher, module: str, arguments: Sequence[str]) -> None:
    """Runs a module in the processes that the launcher describes, and returns when all have ended well.

    Raises:
        ValueError: this machine lacks what the launcher needs.
        ProcessEnded: a process was killed.
        SystemExit: a process failed; it has said why itself.
    """
    if complaints := [*machine_problems(launcher)]:
        raise ValueError("\n- ".join([f"launcher.{complaint}" for complaint in complaints]))
    for_processes = {LAUNCHED: "1", SWITCH: "off"}  # each process imports the libraries itself
    if launcher.on_cpu:
        for_processes["CUDA_VISIBLE_DEVICES"] = ""
    before = dict(os.environ)
    os.environ.update(for_processes)
    try:
        _start_all(launcher, accelerate_arguments(launcher, _config_file(launcher), module, arguments))
    finally:
        os.environ.clear()
        os.environ.update(before)  # this process is none of them


def _start_all(launcher: Launcher, arguments: Sequence[str]) -> None:
    if not launcher.prefix:
        start(arguments)
        return
    status = run_tied([*launcher.prefix, sys.executable, "-m", __name__, *arguments])
    if status < 0:
        end_as(status)
    if status:
        sys.exit(status)


def accelerate_arguments(launcher: Launcher, config_file: Path, module: str, arguments: Sequence[str]) -> list[str]:
    """What `accelerate launch` is called with."""
    # c10d gives out the ranks, so that no machine has to know its own; accelerate does not read it from its config file
    rendezvous = ["--rdzv_backend", "c10d"] if launcher.machines > 1 else []
    return ["--config_file", str(config_file), *rendezvous, "--module", module, *arguments]


def _config_file(launcher: Launcher) -> Path:
    """Writes accelerate's config where all machines find it; stages with one launcher share the file."""
    folder = project_root() / ".checkpoints"
    folder.mkdir(exist_ok=True)
    written = folder / f"launcher-{os.getpid()}.json"
    write_json(written, accelerate_config(launcher))
    return written.replace(folder / f"launcher-{content_digest(written)[:12]}.json")


def machine() -> str:
    """The number of this machine, if the environment says it. PyTorch gives out the ranks; accelerate looks for a free port on machine 0 alone."""
    return next((os.environ[name] for name in MACHINE if name in os.environ), "0")


def start(arguments: Sequence[str]) -> None:
    """Is accelerate's launcher until the processes have ended.

    Raises:
        ProcessEnded: one was killed; the others are stopped.
        SystemExit: one failed; it has said why itself.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # its reports repeat what follows in forty lines
    try:
        launch_command(launch_command_parser().parse_args(["--machine_rank", machine(), *arguments]))
    except ChildFailedError as error:
        # a process that loses another fails, too, and may be seen first
        killed = {rank: failure.signal_name() for rank, failure in error.failures.items() if failure.exitcode < 0}
        if not killed:
            sys.exit(1)
        ended = ", ".join(f"process {rank} ended by {name}" for rank, name in killed.items())
        raise ProcessEnded(
            f"expected all processes to finish, found {ended}; the others were stopped. SIGKILL often means too little memory. Run again: "
            "training resumes from its last checkpoint"
        ) from error
    except SignalException as error:
        end_as(-error.sigval)


if __name__ == "__main__":
    end_with_parent()
    try:
        start(sys.argv[1:])
    except ProcessEnded as ended:
        sys.exit(str(ended))
