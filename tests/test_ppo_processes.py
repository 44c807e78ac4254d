"""PPO in separate processes computes the same: killed and resumed, or with several processes at once."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("ppo_run.py")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def launch(*command: str | Path) -> int:
    return subprocess.run([str(part) for part in command], env=ENVIRONMENT, capture_output=True, check=False).returncode


def result(folder: Path, process: int = 0) -> dict[str, Any]:
    return torch.load(folder / f"result-{process}.pt")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole")
    assert launch(sys.executable, SCRIPT, folder) == 0
    return result(folder)


def test_a_run_killed_by_a_signal_resumes_to_the_same_bytes(uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    assert launch(sys.executable, SCRIPT, tmp_path, "3") == -signal.SIGKILL
    assert (tmp_path / "checkpoints/checkpoint-2").exists()
    assert launch(sys.executable, SCRIPT, tmp_path) == 0
    resumed = result(tmp_path)
    assert torch.equal(resumed["weights"], uninterrupted["weights"])
    assert resumed["history"] == uninterrupted["history"]


def test_two_processes_with_half_the_batch_each_agree_with_one(uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    """Up to rounding, because gradients are summed in another order. Each of the 24 updates moves a weight by up to 1e-3."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port", str(port))
    assert launch(*launcher, SCRIPT, tmp_path) == 0
    first, second = result(tmp_path, 0), result(tmp_path, 1)
    assert torch.equal(first["weights"], second["weights"])
    torch.testing.assert_close(first["weights"], uninterrupted["weights"], atol=1e-4, rtol=0)
    for one, two in zip(uninterrupted["history"], first["history"], strict=True):
        assert two == pytest.approx(one, abs=1e-3)
