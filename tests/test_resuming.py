"""Resuming: the last whole checkpoint is used, whatever has become of later ones, and a line says what was wrong with them."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aligning import Crashed, crash_after, outputs, recorded_steps, run_align, write_inputs
from transformers import Trainer

from plumbline.models import training
from plumbline.models.training import _complaint, seal_checkpoints
from plumbline.pipeline import processes
from plumbline.pipeline.records import read_json, write_json
from plumbline.pipeline.resuming import SEAL, damage, last_checkpoint, numbered, seal

FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
"""What a trainer reads when it resumes."""


def write(folder: Path, step: int, sealed: bool = True, files: tuple[str, ...] = FILES, best: int | None = None) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    for name in files:
        (checkpoint / name).write_bytes(b"0123456789")
    state = {"best_model_checkpoint": None if best is None else f"/elsewhere/checkpoint-{best}"}
    write_json(checkpoint / "trainer_state.json", state)
    if sealed:
        seal(checkpoint)
    return checkpoint


def raising(error: type[Exception]) -> Callable[[Path], None]:
    def fail(_: Path) -> None:
        raise error

    return fail


def halve(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


# ---- which checkpoint it is ---------------------------------------------------------------------------------------------


def test_there_may_be_no_checkpoint(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    assert last_checkpoint(tmp_path / "none") is None


def test_steps_are_numbers_not_names(tmp_path: Path) -> None:
    for step in (8, 10, 2):
        write(tmp_path, step)
    assert [folder.name for folder in numbered(tmp_path)] == ["checkpoint-2", "checkpoint-8", "checkpoint-10"]
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / SEAL).unlink(), "expected files.json, which is written last, found none"),
        (lambda folder: halve(folder / SEAL), "expected a list of files in files.json, found one that was cut short"),
        (lambda folder: os.truncate(folder / SEAL, 0), "expected a list of files in files.json, found one that was cut short"),
        (lambda folder: (folder / "optimizer.pt").unlink(), "expected a file optimizer.pt, found none"),
        (lambda folder: halve(folder / "optimizer.pt"), "expected optimizer.pt of 10 bytes, found 5"),
        (lambda folder: shutil.rmtree(folder / "global_step4"), "expected a file global_step4/rank_1.pt, found none"),
    ],
)
def test_a_broken_checkpoint_is_deleted_with_a_line_and_the_one_before_it_is_used(
    harm: Callable[[Path], None], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, 2)
    broken = write(tmp_path, 4, sealed=False)
    (broken / "global_step4").mkdir()  # as DeepSpeed writes
    (broken / "global_step4/rank_1.pt").write_bytes(b"0123456789")
    seal(broken)
    assert damage(broken) == ""
    harm(broken)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert not broken.exists()
    assert capsys.readouterr().out.splitlines() == [
        f"{broken} cannot be used and is deleted: {message}",
        f"Training resumes from {tmp_path / 'checkpoint-2'}",
    ]


def test_without_a_whole_checkpoint_training_starts_again(tmp_path: Path) -> None:
    write(tmp_path, 2, sealed=False)
    assert last_checkpoint(tmp_path) is None
    assert numbered(tmp_path) == []


def test_a_checkpoint_needs_the_random_state_of_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lacks some if processes on other machines do not write to the same disk."""
    one, two = write(tmp_path, 2), write(tmp_path, 4, files=("rng_state_0.pth", "rng_state_1.pth"))
    assert _complaint(one, keeps_best=False) == ""
    assert _complaint(two, keeps_best=False) == "expected a file rng_state.pth, found none"
    monkeypatch.setattr(processes, "count", lambda: 2)
    assert _complaint(two, keeps_best=False) == ""
    monkeypatch.setattr(processes, "count", lambda: 3)
    assert _complaint(two, keeps_best=False) == "expected a file rng_state_2.pth, found none"


def test_a_checkpoint_needs_the_best_one_so_far_where_that_is_kept(tmp_path: Path) -> None:
    """Without it, the trainer would keep the last weights instead. Its folder counts, not the path: the project may have moved."""
    best, last = write(tmp_path, 2), write(tmp_path, 4, best=2)
    assert _complaint(last, keeps_best=True) == ""
    halve(best / "model.safetensors")
    message = "its best checkpoint so far is checkpoint-2: expected model.safetensors of 10 bytes, found 5"
    assert _complaint(last, keeps_best=True) == message
    assert _complaint(last, keeps_best=False) == ""


class Killed(Exception):
    """Stands for SIGKILL."""


def saved(folder: Path, best: int | None) -> None:
    """What happens when a trainer has written the third checkpoint."""
    state = SimpleNamespace(global_step=3, best_model_checkpoint=best and str(folder / f"checkpoint-{best}"))
    seal_checkpoints().on_save(SimpleNamespace(output_dir=str(folder)), state, None)


@pytest.mark.parametrize(("best", "stay"), [(None, [2, 3]), (1, [1, 3]), (2, [2, 3]), (3, [2, 3])])
def test_two_checkpoints_stay_the_best_among_them(tmp_path: Path, best: int | None, stay: list[int]) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step, sealed=step < 3)
    saved(tmp_path, best)
    assert numbered(tmp_path) == [tmp_path / f"checkpoint-{step}" for step in stay]
    assert damage(tmp_path / "checkpoint-3") == ""


def test_a_run_killed_while_it_writes_a_new_best_goes_on_from_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The former best, which the one before needs, is deleted after the new one is complete."""
    for step, best in ((1, 1), (2, 1), (3, 3)):
        write(tmp_path, step, sealed=step < 3, best=best)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "seal", raising(Killed))
        saved(tmp_path, 3)
    assert last_checkpoint(tmp_path, partial(_complaint, keeps_best=True)) == tmp_path / "checkpoint-2"
    assert last_checkpoint(tmp_path, partial(_complaint, keeps_best=True)) == tmp_path / "checkpoint-2"  # also when killed again


def test_a_checkpoint_is_on_the_disk_before_it_is_declared_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = write(tmp_path, 2, sealed=False)
    events: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
    monkeypatch.setattr(os, "replace", lambda _, target: events.append(target.name))
    seal(checkpoint)
    assert {*FILES} <= {*events[: events.index(checkpoint.name)]}
    assert events[-1] == SEAL


# ---- a trainer's checkpoints --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of six steps, and the checkpoints of one that crashed after the fifth."""
    folder = write_inputs(tmp_path_factory.mktemp("crashed"))
    run_align(folder, "dpo", max_steps=6, checkpoint_every=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_maybe_log_save_evaluate", crash_after(5))
        with pytest.raises(Crashed):
            run_align(folder, "dpo", "resumed", max_steps=6, checkpoint_every=2)
    return folder


@pytest.mark.parametrize("name", [*FILES, SEAL])
def test_a_trainer_resumes_to_the_same_bytes_if_a_file_was_cut_short(
    name: str, crashed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder: Any = shutil.copytree(crashed, tmp_path / "copy")
    assert {*FILES} <= {*read_json(folder / f"checkpoints/checkpoint-4/{SEAL}")}
    halve(folder / "checkpoints/checkpoint-4" / name)
    steps = recorded_steps(monkeypatch)
    run_align(folder, "dpo", "resumed", max_steps=6, checkpoint_every=2)
    assert min(steps) == 2
    assert outputs(folder, "resumed") == outputs(crashed)


def test_what_the_trainer_reads_is_what_the_test_cuts_short(crashed: Path) -> None:
    """A trainer of a later version may write more."""
    others = {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "training_args.bin",
    }
    assert {*read_json(crashed / f"checkpoints/checkpoint-4/{SEAL}")} <= {*FILES, *others}
