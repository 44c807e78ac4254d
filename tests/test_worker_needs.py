"""What workers need is checked before any work, and what is wrong or unwise is said in a sentence."""

from pathlib import Path
from typing import Any

import pytest
import torch

from plumbline.consistency import asked_here, crowded
from plumbline.pipeline import engine as engines
from plumbline.pipeline import processes
from plumbline.pipeline.engine import Engine, Server, engine_lacks, fitted
from plumbline.pipeline.params import load_params
from plumbline.pipeline.shard_work import by_shard, only_here
from plumbline.rewards.reward import asks_judge, describe
from stages.check import examined


@pytest.mark.usefixtures("project")
def test_check_says_that_ray_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    params: Any = load_params() | {"engine": "ray"}
    message = 'conf/engine/ray.yaml: shards: expected the library ray, found none. Install it (`pip install ".[ray]"`), or set shards to processes'
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    assert message in examined(params)[0]
    monkeypatch.setattr(engines, "find_spec", lambda name: name)
    assert message not in examined(params)[0]


def test_a_stage_without_ray_says_so_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^engine\.shards: expected the library ray, found none"):
        by_shard(tmp_path / "work", "ab", only_here(lambda *_: None), Engine(shards="ray"))
    assert not [*tmp_path.glob("work/*")]


def test_more_workers_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [*engine_lacks(Engine(shards="processes", workers=4, gpus=1))] == []
    [complaint] = engine_lacks(Engine(shards="processes", workers=3, gpus=2))
    assert complaint == "gpus: expected at most the 4 GPUs of this machine for 3 workers, found 2 for each. Lower workers"


def test_several_workers_do_not_share_the_first_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    several = Engine(shards="processes", workers=3, gpus=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert [*engine_lacks(several)] == []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [*engine_lacks(Engine(shards="processes", workers=1, gpus=0))] == []
    [complaint] = engine_lacks(several)
    assert complaint.startswith("gpus: expected at least 1 for each of 3 workers on this machine with 4 GPUs")


@pytest.mark.parametrize(
    ("gpu_count", "gpus", "computing"),
    [(0, 0, (3, 0)), (1, 0, (1, 1)), (1, 1, (1, 1)), (2, 0, (2, 1)), (4, 2, (2, 2)), (8, 1, (3, 1))],
)
def test_workers_that_ask_a_server_need_no_gpu_and_others_are_as_many_as_have_one(
    gpu_count: int, gpus: int, computing: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpu_count)
    engine = Engine(Server(base_url="http://127.0.0.1:1/v1"), shards="processes", workers=3, gpus=gpus)
    assert [*engine_lacks(engine)] == []
    asking, loading = fitted(engine, draws=True), fitted(engine, draws=False)
    assert (asking.workers, asking.gpus) == (3, 0)
    assert (loading.workers, loading.gpus, loading.server) == (*computing, None)
    assert [*engine_lacks(asking)] == [*engine_lacks(loading)] == []


def test_a_server_does_not_lend_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    [complaint] = engine_lacks(Engine(Server(base_url="http://127.0.0.1:1/v1"), shards="processes", workers=3, gpus=2))
    assert complaint == "gpus: expected at most 1, the number of GPUs of this machine, found 2 for each worker. Lower gpus"


@pytest.mark.usefixtures("project")
def test_check_notes_too_many_threads_and_judges_that_stay_in_the_stages_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "cores", lambda: 2)
    errors, configs = examined(load_params() | {"engine": "processes"})
    assert errors == []
    notes = [*filter(None, crowded(configs))]
    shared = "2 workers of 2 threads each share the 2 cores of this machine"
    assert notes == [f"{shared}, which is slower than fewer: set workers to 1, or threads to 1"]
    assert asked_here(configs).startswith("label@round1, ")
    _, configs = examined(load_params())
    assert [*filter(None, crowded(configs)), *filter(None, [asked_here(configs)])] == []


def test_a_reward_asks_a_judge_if_a_part_of_it_does(tmp_path: Path) -> None:
    describe(tmp_path / "rules", "rules", rules={})
    describe(tmp_path / "rated", "judge")
    for name, part in (("plain", "rules"), ("mixed", "rated")):
        parts = [{"reward": one, "weight": 1.0} for one in ("rules", part)]
        describe(tmp_path / name, "sum", parts=parts)
    assert [asks_judge(tmp_path / name) for name in ("rules", "rated", "plain", "mixed")] == [False, True, False, True]
