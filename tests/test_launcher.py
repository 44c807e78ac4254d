"""The launcher: what is refused before any work and in which words, what accelerate gets to start, and randomness that processes share."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from omegaconf import OmegaConf
from peft import get_peft_model
from ppo_tiny import tiny_policy, word_tokenizer

from plumbline.consistency import crowded
from plumbline.methods.online.draws import DrawnByRow, random_stream
from plumbline.models.adapters import lora_config
from plumbline.models.saving import save_policy, whole_model
from plumbline.models.training_values import Lora
from plumbline.pipeline import launcher as launching
from plumbline.pipeline import processes
from plumbline.pipeline.composing import CONF
from plumbline.pipeline.launcher import Launcher, accelerate_arguments, accelerate_config, launch
from plumbline.pipeline.params import load_params
from plumbline.pipeline.records import write_json
from stages.check import examined, main, recipe_errors

SHARED = {"ddp": 2, "ddp_cpu": 2, "ddp_machines": 16, "fsdp": 8, "deepspeed_zero3": 8}
"""The launchers of conf/launcher that start processes → how many."""


def launcher_of(name: str, **changes: Any) -> Launcher:
    values: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"launcher/{name}.yaml"))
    del values["defaults"]
    return Launcher(**values | changes)


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of four cores, two GPUs and DeepSpeed, as far as a launcher looks."""
    monkeypatch.setattr(launching, "cores", lambda: 4)
    monkeypatch.setattr(processes, "cores", lambda: 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(launching, "find_spec", lambda name: name)
    monkeypatch.setenv("MASTER_ADDR", "node1")
    monkeypatch.setenv("MASTER_PORT", "29500")


def errors_with(launcher: str, **sections: Any) -> list[str]:
    params: Any = load_params() | {"launcher": launcher}
    for section, changes in sections.items():
        for name, values in changes.items():
            params[section][name] = params[section].get(name, {}) | values if isinstance(values, dict) else values
    return recipe_errors(params)


# ---- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("project", "cores")
@pytest.mark.parametrize(
    ("launcher", "sections", "message"),
    [
        ("dpd", {}, "params.yaml: launcher: expected the name of a file of conf/launcher, found 'dpd'. Did you mean 'ddp'? There are: ddp, "
         "ddp_cpu, ddp_machines, deepspeed_zero3, fsdp, local"),
        ("ddp_cpu", {"align": {"dpo": {"batch_size": 8, "micro_batch_size": 8}}},
         "params.yaml: align.dpo.batch_size: expected a multiple of micro_batch_size times the processes of the launcher, 8 · 2, found 8. "
         "Set micro_batch_size to 4, or batch_size to 16"),
        ("ddp_cpu", {"sft": {"batch_size": 15, "micro_batch_size": 5}},
         "params.yaml: sft.batch_size: expected a multiple of micro_batch_size times the processes of the launcher, 5 · 2, found 15. "
         "Set batch_size to 20"),
        ("ddp_cpu", {"rl": {"ppo": {"batch_size": 1, "rollout_batch_size": 64}}},
         "params.yaml: rl.ppo.batch_size: expected a multiple of the 2 processes, found 1. Set it to 2, and rollout_batch_size to a multiple of "
         "that, 64"),
        ("fsdp", {},
         "params.yaml: rl.ppo.method: expected a method that can be sharded with this launcher, found ppo, whose trainer holds each model "
         "whole. Choose ddp as launcher, or method grpo or rloo"),
        ("fsdp", {},
         "conf/launcher/fsdp.yaml: processes: expected at most the 2 GPUs of this machine, found 8. Set processes to 2, or choose another launcher"),
    ],
)  # fmt: skip
def test_check_refuses_what_cannot_work_in_a_sentence(launcher: str, sections: dict[str, Any], message: str) -> None:
    assert message in errors_with(launcher, **sections)


@pytest.mark.usefixtures("project", "cores")
def test_a_recipe_whose_batches_divide_is_sound() -> None:
    assert errors_with("local") == []
    assert errors_with("ddp_cpu") == []
    assert errors_with("ddp") == []


@pytest.mark.usefixtures("project", "cores")
@pytest.mark.parametrize(
    ("launcher", "lacking", "message"),
    [
        ("ddp", "GPUs", "processes: expected at most the 0 GPUs of this machine, found 2. Choose local, or ddp_cpu for a trial"),
        ("ddp_cpu", "cores", "processes: expected at most the 1 cores of this machine, found 2. Set processes to 1, or choose another launcher"),
        ("deepspeed_zero3", "deepspeed", "accelerate: expected the library deepspeed for distributed_type DEEPSPEED, found none. Install it "
         "(`pip install deepspeed`), or choose fsdp"),
        ("ddp_machines", "MASTER_PORT",
         "machines: expected MASTER_ADDR and MASTER_PORT in the environment, where the processes of 2 machines meet, found no "
         "MASTER_PORT. Export a host that all machines reach and a free port of it"),
    ],
)  # fmt: skip
def test_what_this_machine_lacks_is_said_by_check_and_by_the_stage(
    launcher: str, lacking: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0 if lacking == "GPUs" else 8)
    monkeypatch.setattr(launching, "cores", lambda: 1)
    monkeypatch.setattr(launching, "find_spec", lambda name: None if name == lacking else name)
    monkeypatch.setenv("MASTER_ADDR", "node1")
    monkeypatch.delenv(lacking, raising=False)
    assert f"conf/launcher/{launcher}.yaml: {message}" in errors_with(launcher)
    with pytest.raises(ValueError, match="expected") as refused:
        launch(launcher_of(launcher), "stages.sft", [])
    assert f"launcher.{message}" in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"processes": 0}, "processes: expected at least 1, found 0"),
        ({"processes": 3, "machines": 2, "prefix": ["srun"]}, "processes: expected a multiple of the 2 machines, found 3"),
        ({"machines": 2}, "prefix: expected a command that starts a launcher on each of the 2 machines, such as srun, found none"),
        ({"accelerate": {}}, "accelerate: expected its distributed_type for 2 processes on 1 machines, found nothing. conf/launcher/ddp.yaml "
         "shows how"),
        ({"accelerate": {"distributed_type": "MULTI_GPU", "machine_rank": 1}}, "found machine_rank"),
    ],
)  # fmt: skip
def test_a_launcher_whose_values_do_not_fit_says_so(changes: dict[str, Any], message: str) -> None:
    [complaint] = launcher_of("ddp", **changes).problems()
    assert message in complaint


@pytest.mark.usefixtures("cores")
def test_what_accelerate_does_not_know_is_said_in_its_words() -> None:
    unknown = launcher_of("ddp", accelerate={"distributed_type": "MULTI_GPU", "fsdp": {}})
    assert [*launching.machine_problems(unknown)] == [
        "accelerate: expected keys of accelerate's config file, found fsdp. `accelerate config` writes such a file"
    ]
    other = launcher_of("ddp", accelerate={"distributed_type": "MULTI_GPUS"})
    assert [*launching.machine_problems(other)] == ["accelerate: 'MULTI_GPUS' is not a valid DistributedType"]


def test_an_older_params_yaml_is_told_which_line_to_add(project: Path) -> None:
    params = load_params()
    del params["launcher"]
    assert recipe_errors(params) == [
        "params.yaml: expected a section 'launcher', found none. Add the line `launcher: local`: each stage then trains in one process, as before"
    ]


@pytest.mark.usefixtures("cores")
def test_check_notes_more_threads_than_cores(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(
        recipe.replace("launcher: local", "launcher: ddp_cpu").replace("threads: 2", "threads: 3")
    )
    main()
    assert "Note: 2 processes of 3 threads each share the 4 cores of this machine" in capsys.readouterr().out
    noted = "each share the 4 cores of this machine, which is slower than fewer: set processes to 1, or threads to 2"
    assert processes.oversubscription("processes", 2, 3) == f"2 processes of 3 threads {noted}"
    assert processes.oversubscription("processes", 2, 2) == processes.oversubscription("processes", 1, 8) == ""


@pytest.mark.usefixtures("cores")
def test_threads_of_processes_on_other_machines_are_not_noted(project: Path) -> None:
    recipe: Any = load_params() | {"threads": 8}
    _, configs = examined(recipe | {"launcher": "ddp_machines"})
    assert [*filter(None, crowded(configs))] == []
    _, configs = examined(recipe | {"launcher": "ddp_cpu"})
    assert [note.partition(" threads")[0] for note in crowded(configs) if note] == ["2 processes of 8"]


# ---- what is started ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize("name", [*SHARED])
def test_accelerate_reads_the_config_that_is_composed_for_it(name: str, tmp_path: Path) -> None:
    """By its own parser and its own rules, as `accelerate launch` does before it starts anything."""
    written = tmp_path / "config.json"
    write_json(written, accelerate_config(launcher_of(name)))
    arguments = accelerate_arguments(launcher_of(name), written, "stages.align", ["align=dpo", "align.beta=0.2"])
    parsed, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    assert (parsed.num_processes, parsed.module, parsed.training_script) == (SHARED[name], True, "stages.align")
    assert parsed.training_script_args == ["align=dpo", "align.beta=0.2"]
    assert (parsed.use_fsdp, parsed.use_deepspeed, parsed.multi_gpu) == (
        name == "fsdp",
        name == "deepspeed_zero3",
        name.startswith("ddp"),
    )
    assert bool(parsed.use_cpu) == (name == "ddp_cpu")
    if name == "fsdp":
        assert (parsed.fsdp_version, parsed.fsdp_state_dict_type) == (2, "FULL_STATE_DICT")
    if name == "deepspeed_zero3":
        assert (parsed.zero_stage, parsed.zero3_save_16bit_model) == (3, True)
    if name == "ddp_machines":
        meeting = (
            parsed.num_machines,
            parsed.main_process_ip,
            parsed.main_process_port,
            parsed.rdzv_backend,
            parsed.same_network,
        )
        assert meeting == (2, "node1", 29500, "c10d", False)
    else:
        assert (parsed.num_machines, parsed.main_process_port) == (1, 0)


@pytest.mark.usefixtures("cores", "project")
def test_a_prefix_starts_the_same_launcher_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str]) -> int:
        commands.append(command)
        assert (os.environ[processes.LAUNCHED], os.environ["WARM_PROCESS"]) == ("1", "off")
        return 3

    monkeypatch.setattr(launching, "run_tied", run)
    with pytest.raises(SystemExit) as ended:
        launch(launcher_of("ddp_machines"), "stages.sft", ["seed=2"])
    assert ended.value.code == 3
    [command] = commands
    assert command[:3] == ["srun", "--nodes=2", "--ntasks-per-node=1"]
    assert command[4:6] == ["-m", "plumbline.pipeline.launcher"]
    assert command[-3:] == ["--module", "stages.sft", "seed=2"]
    assert not processes.is_launched()  # the launcher is none of the processes that it starts


def test_what_trains_nothing_runs_in_one_process() -> None:
    from plumbline.methods.offline.merge import MergeConfig
    from plumbline.methods.offline.sft import SftConfig
    from plumbline.models.architecture import HubModel, ScratchModel
    from stages.align import AlignStage
    from stages.pretrain import PretrainStage

    assert launching.trains(AlignStage(align=SftConfig(epochs=1, max_steps=-1)))
    assert not launching.trains(AlignStage(align=SftConfig(epochs=0, max_steps=-1)))
    assert not launching.trains(AlignStage(align=MergeConfig()))
    scratch = PretrainStage(model=ScratchModel())
    scratch.pretrain.epochs, scratch.pretrain.max_steps = 1, -1
    assert launching.trains(scratch)
    scratch.model = HubModel()
    assert not launching.trains(scratch)


def test_batches_of_what_trains_nothing_need_not_divide() -> None:
    from plumbline.methods.offline.sft import SftConfig
    from stages.align import AlignStage

    def problems(epochs: float) -> list[str]:
        settings = SftConfig(epochs=epochs, max_steps=-1, batch_size=3, micro_batch_size=1)
        return launching.batch_problems(AlignStage(launcher=launcher_of("ddp_cpu"), align=settings))

    assert problems(epochs=0) == []
    assert len(problems(epochs=1)) == 1


# ---- one of several processes -------------------------------------------------------------------------------------------


def as_process(monkeypatch: pytest.MonkeyPatch, rank: int, count: int) -> None:
    for name, value in {processes.LAUNCHED: 1, "RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}.items():
        monkeypatch.setenv(name, str(value))


def test_only_a_launcher_makes_a_process_one_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")  # as batch systems do for jobs of one process
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert (processes.count(), processes.index(), processes.is_first()) == (1, 0, True)
    as_process(monkeypatch, 3, 8)
    assert (processes.count(), processes.index(), processes.is_first()) == (8, 3, False)
    with pytest.raises(processes.OnlyTheFirst):
        processes.only_the_first_goes_on()


class Trained:
    """A trainer that has trained `model`, and saves it as transformers' does."""

    def __init__(self, model: Any, folder: Path) -> None:
        self.model, self.args = model, SimpleNamespace(output_dir=str(folder))

    def save_model(self, folder: str) -> None:
        self.model.save_pretrained(folder)
        word_tokenizer().save_pretrained(folder)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_sharded_model_is_gathered_by_its_trainer_and_loaded_whole(
    lora_rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_policy(tiny_policy(2), word_tokenizer(), tmp_path / "sft")
    adapter = lora_config(Lora(lora_rank=lora_rank, lora_alpha=4, lora_output="merged"))
    model: Any = tiny_policy(2 if adapter else 5)
    model = get_peft_model(model, adapter) if adapter else model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * parameter.requires_grad
    trainer: Any = Trained(model, tmp_path / "checkpoints")
    assert whole_model(trainer, tmp_path / "sft") is model
    monkeypatch.setattr(processes, "sharded", lambda: True)
    gathered = whole_model(trainer, tmp_path / "sft")
    assert gathered is not model
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(gathered(ids).logits, model(ids).logits)


def test_processes_draw_together_what_one_draws() -> None:
    policy = tiny_policy()
    prompts = torch.tensor([[9, 10]] * 4)
    uniforms = torch.rand(4, 5, generator=random_stream(3, 0), dtype=torch.float64)

    def drawn(rows: slice) -> torch.Tensor:
        by_rows = DrawnByRow(uniforms[rows], 0.7)
        return policy.generate(
            input_ids=prompts[rows], max_new_tokens=5, do_sample=True, temperature=0.7, logits_processor=[by_rows], pad_token_id=0
        )

    torch.manual_seed(1)
    whole = drawn(slice(0, 4))
    torch.manual_seed(2)
    assert torch.equal(whole, torch.cat([drawn(slice(0, 2)), drawn(slice(2, 4))]))
    assert len(whole.unique(dim=0)) > 1


def test_rows_are_drawn_with_their_probabilities() -> None:
    """At τ = 2 the odds of logits 0 and 2 are e to 1: 73 % and 27 %, within four standard errors of 10,000 draws."""
    uniforms = torch.rand(10_000, 1, generator=random_stream(3, 0), dtype=torch.float64)
    chosen = DrawnByRow(uniforms, 2.0)(torch.zeros(10_000, 1, dtype=torch.long), torch.tensor([[0.0, 2.0]]).repeat(10_000, 1))
    assert float((chosen[:, 1] == 0).double().mean()) == pytest.approx(0.7311, abs=4 * 0.0045)
    assert bool(((chosen == 0).sum(1) == 1).all())
