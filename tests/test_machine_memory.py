"""`check` refuses what needs more memory than there is, by headers alone; the numbers are derived by hand, and are what is needed at least."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from aligning import config_of
from ppo_tiny import tiny_policy, word_tokenizer
from published_models import COMMIT, PARAMS, edit_json, write_headers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    Qwen3Config,
)

from plumbline import machine_memory
from plumbline.machine_memory import least_size, memory_problems
from plumbline.methods.offline.merge import MergeConfig
from plumbline.methods.online.ppo.networks import value_model_from_policy
from plumbline.models import training_memory
from plumbline.models.architecture import HubModel
from plumbline.models.saving import save_policy
from plumbline.models.size import parameter_count
from plumbline.models.training_memory import Size, memory_needed, size_of
from plumbline.pipeline.engine import Engine, Server
from plumbline.pipeline.launcher import Launcher
from tests.benchmarks import memory_table

SHAPES = {"model.embed_tokens.weight": [100, 20], "model.layers.0.mlp.weight": [30, 20], "lm_head.weight": [100, 20]}
"""4600 parameters: 2000 of embeddings, 600 of a linear layer of widths 30 + 20, and 2000 of an output."""

LEARNING = {"sft": "sft", "align": "dpo", "rl": "grpo"}


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Bytes of each device, which a test may set. There is no GPU unless a test says so."""
    there = {"cpu": 2**40, "cuda": 2**40}
    for module in (machine_memory, training_memory):
        monkeypatch.setattr(module, "total_memory", there.__getitem__)
    monkeypatch.setattr("plumbline.models.loading.device", lambda: "cpu")
    return there


def problems(folder: Path, launcher: Launcher | None = None, engine: Engine | None = None, **nodes: Any) -> list[str]:
    """What `check` says of the memory; nodes: the values of a stage, or of an entry `stage__entry`."""
    configs: dict[Any, Any] = {("prepare", None): SimpleNamespace(model=HubModel(path=str(folder), size="tiny"))}
    configs["pretrain", None] = SimpleNamespace()
    for node, values in nodes.items():
        stage, _, entry = node.partition("__")
        key = "evaluate" if stage == "answer" else stage
        configs[stage, entry or None] = SimpleNamespace(
            **{key: values}, launcher=launcher or Launcher(), engine=engine or Engine()
        )
    return memory_problems(configs, PARAMS)


# ---- the size -----------------------------------------------------------------------------------------------------------


def test_the_size_is_that_of_the_headers(tmp_path: Path) -> None:
    folder = write_headers(tmp_path, SHAPES, tie_word_embeddings=False)
    assert least_size(str(folder), None) == Size(4600, 2, 50, 2000, 2000)
    assert least_size(str(folder), None, "float32") == Size(4600, 4, 50, 2000, 2000)


def test_an_output_that_is_saved_although_it_is_tied_is_counted_once(tmp_path: Path) -> None:
    assert least_size(str(write_headers(tmp_path, SHAPES, tie_word_embeddings=True)), None) == Size(2600, 2, 50, 2000)
    edit_json(tmp_path / "config.json", tie_word_embeddings=None)  # which it means then depends on the kind
    assert least_size(str(tmp_path), None) == Size(2600, 2, 50, 2000)


def test_a_precision_that_nothing_tells_is_taken_for_the_smallest(tmp_path: Path) -> None:
    write_headers(tmp_path, SHAPES, tie_word_embeddings=False)
    edit_json(tmp_path / "config.json", dtype=None)
    assert least_size(str(tmp_path), None) == Size(4600, 2, 50, 2000, 2000)
    edit_json(tmp_path / "config.json", torch_dtype="float32")
    assert least_size(str(tmp_path), None) == Size(4600, 4, 50, 2000, 2000)


def test_tensors_that_are_not_loaded_do_not_count(tmp_path: Path) -> None:
    """GPT-2 was published with the masks of its attention."""
    masks = {
        "h.0.attn.bias": [1, 1, 1024, 1024],
        "h.0.attn.masked_bias": [1],
        "rotary_emb.inv_freq": [32],
        "mtp.layers.0.weight": [9, 9],
    }
    write_headers(tmp_path, SHAPES | masks, tie_word_embeddings=False)
    assert least_size(str(tmp_path), None) == Size(4600, 2, 50, 2000, 2000)


def test_headers_that_cannot_be_read_say_nothing(tmp_path: Path) -> None:
    assert least_size(str(tmp_path), None) is None
    assert least_size("nobody/nothing-here", COMMIT) is None


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["Llama-3.1-8B", "GPT-2"])
def test_the_size_of_published_models_is_that_of_the_loaded_ones(kind: str, tied: bool, tmp_path: Path) -> None:
    config: Any = GPT2Config(tie_word_embeddings=tied) if kind == "GPT-2" else LlamaConfig(
        vocab_size=128256, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, intermediate_size=14336,
        tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.device("meta"):
        model: Any = GPT2LMHeadModel(config) if kind == "GPT-2" else AutoModelForCausalLM.from_config(config)
    shapes = {name: [*one.shape] for name, one in model.named_parameters()}
    write_headers(tmp_path, shapes, tie_word_embeddings=tied)
    size = least_size(str(tmp_path), None)
    assert size is not None
    assert size.parameters == model.num_parameters()
    assert size.output == (0 if tied else model.lm_head.weight.numel())
    if kind == "Llama-3.1-8B" and not tied:
        assert size == memory_table.SIZES["8B"]._replace(output=525_336_576)


PUBLISHED: dict[str, tuple[Any, dict[str, list[int]]]] = {
    "Qwen3-1.7B, whose output is tied and saved": (
        Qwen3Config(
            vocab_size=151936, hidden_size=2048, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
            intermediate_size=6144, tie_word_embeddings=True,
        ),
        {"lm_head.weight": [151936, 2048]},
    ),
    "Pythia-31M, with its masks": (
        GPTNeoXConfig(
            vocab_size=50304, hidden_size=256, num_hidden_layers=6, num_attention_heads=8, intermediate_size=1024, tie_word_embeddings=False
        ),
        {
            f"gpt_neox.layers.{layer}.attention.{name}": shape
            for layer in range(6)
            for name, shape in {"bias": [1, 1, 2048, 2048], "masked_bias": [1], "rotary_emb.inv_freq": [4]}.items()
        },
    ),
    "GPT-Neo, with its masks": (
        GPTNeoConfig(vocab_size=99, hidden_size=8, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]]),
        {f"transformer.h.0.attn.attention.{name}": [1, 1, 2048, 2048] for name in ("bias", "masked_bias")},
    ),
}  # fmt: skip
"""Models as they were published: their config, and the tensors in their files that are not loaded."""


@pytest.mark.parametrize("kind", [*PUBLISHED])
def test_the_size_and_the_memory_count_the_parameters_that_are_loaded(kind: str, tmp_path: Path) -> None:
    config, left_out = PUBLISHED[kind]
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    shapes = {name: [*one.shape] for name, one in model.named_parameters()}
    write_headers(tmp_path, shapes | left_out, tie_word_embeddings=config.tie_word_embeddings)
    size = least_size(str(tmp_path), None)
    assert size is not None
    assert parameter_count(str(tmp_path), None) == size.parameters == model.num_parameters()


# ---- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [*LEARNING])
def test_training_is_refused_from_one_byte_below_what_it_needs(stage: str, tmp_path: Path, memory: dict[str, int]) -> None:
    """16 bytes for each of 4600 parameters; GRPO's reference takes 2 more."""
    folder = write_headers(tmp_path, SHAPES, tie_word_embeddings=False)
    config = config_of(LEARNING[stage])
    memory["cpu"] = 4600 * (18 if stage == "rl" else 16)
    assert problems(folder, **{stage: config}) == []
    memory["cpu"] -= 1
    (complaint,) = problems(folder, **{f"{stage}__mine": config})
    assert complaint.startswith(f"params.yaml: {stage}.mine: expected weights and optimiser of at most 0.0 GiB")
    assert "found at least 0.0 GiB for 4,600 parameters" in complaint


def test_saving_an_adapter_is_refused_from_one_byte_below_what_it_needs(tmp_path: Path, memory: dict[str, int]) -> None:
    """The merged copy takes 4 bytes for each of 4600 parameters, beside 8 for the moments of each of an adapter's 200 of rank 4.

    The base and the adapter's weights become the copy.
    """
    folder = write_headers(tmp_path, SHAPES, tie_word_embeddings=False)
    memory["cpu"] = 4 * 4600 + 8 * 200
    assert problems(folder, align__dpo=config_of("dpo", lora_rank=4)) == []
    memory["cpu"] -= 1
    (complaint,) = problems(folder, align__dpo=config_of("dpo", lora_rank=4))
    assert complaint.startswith("params.yaml: align.dpo: expected at most 0.0 GiB while a policy is saved")


def test_what_cannot_even_be_loaded_is_said_once_and_with_its_file(tmp_path: Path, memory: dict[str, int]) -> None:
    folder = write_headers(tmp_path, SHAPES, tie_word_embeddings=False)
    memory["cpu"] = 9200
    assert problems(folder, sample__round1=SimpleNamespace()) == []
    memory["cpu"] -= 1
    (complaint,) = problems(folder, sample__round1=SimpleNamespace(), sft=config_of("sft"))
    assert complaint == (
        "conf/model/mine.yaml: path: expected weights of at most 0.0 GiB, the memory of this machine, into which pretrain loads them, found at "
        "least 0.0 GiB. To load them, take a smaller model, or a machine with more memory"
    )
    edit_json(folder / "config.json", dtype="float32")
    assert "To load them, set dtype to bfloat16, take a smaller model" in problems(folder)[0]


def test_a_gpu_is_asked_for_what_answers_on_it(tmp_path: Path, memory: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plumbline.models.loading.device", lambda: "cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    folder = write_headers(tmp_path, SHAPES, tie_word_embeddings=False)
    memory["cuda"] = 9199
    nodes = {"sample__round1": SimpleNamespace(), "answer__dpo": SimpleNamespace()}
    (complaint,) = problems(folder, **nodes)
    assert "the memory of this GPU, into which sample.round1, answer.dpo load them, found at least" in complaint
    served = Engine(server=Server(base_url="http://127.0.0.1:8000/v1"))
    assert problems(folder, engine=served, **nodes) == []
    assert problems(folder, engine=Engine(shards="ray"), **nodes) == []
    assert problems(folder) == []


def test_several_processes_merging_and_no_epochs_are_not_judged(tmp_path: Path, memory: dict[str, int]) -> None:
    folder = write_headers(tmp_path, SHAPES, tie_word_embeddings=False)
    memory["cpu"] = 9200
    sharded = Launcher(processes=2, accelerate={"distributed_type": "FSDP"})
    assert problems(folder, launcher=sharded, align__dpo=config_of("dpo")) == []
    assert problems(folder, align__soup=MergeConfig(weight=0.5), sft=config_of("sft", epochs=0, max_steps=-1)) == []
    assert problems(folder, align__dpo=config_of("dpo")) != []


def test_moments_that_may_leave_the_gpu_are_not_counted(
    tmp_path: Path, memory: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 bytes for a weight and 4 for its gradient remain."""
    folder = write_headers(tmp_path, SHAPES, tie_word_embeddings=False)
    config = config_of("dpo")
    config.optimiser = "paged_adamw_8bit"
    memory["cpu"] = 4600 * 8
    assert problems(folder, align__dpo=config) == []
    memory["cpu"] -= 1
    assert len(problems(folder, align__dpo=config)) == 1


def test_a_judge_that_does_not_fit_is_named(tmp_path: Path, memory: dict[str, int]) -> None:
    base, critic = (write_headers(tmp_path / name, SHAPES, tie_word_embeddings=False) for name in ("base", "critic"))
    edit_json(critic / "config.json", dtype="float32")
    configs: dict[Any, Any] = {("prepare", None): SimpleNamespace(model=HubModel(path=str(base), size="tiny"))}
    judge = SimpleNamespace(backend="transformers", model=str(critic), revision=None, device="cpu")
    configs["evaluate", None] = SimpleNamespace(judge=judge, evaluate=SimpleNamespace())
    params = PARAMS | {"evaluate": {"judge": "local"}}
    memory["cpu"] = 4 * 4600
    assert memory_problems(configs, params) == []
    memory["cpu"] -= 1
    (complaint,) = memory_problems(configs, params)
    assert complaint.startswith("conf/judge/local.yaml: model: expected weights of at most 0.0 GiB")
    judge.device = "cuda:1"
    assert memory_problems(configs, params) == []  # which this machine does not have: the judge says so


@pytest.mark.parametrize(("saved_as", "weight_bytes"), [("F32", 2), ("BF16", 2), ("F8_E4M3", 1), ("U8", 1)])
def test_a_quantised_judge_takes_what_its_weights_take_in_the_file(
    saved_as: str, weight_bytes: int, tmp_path: Path, memory: dict[str, int]
) -> None:
    """Its config says bfloat16 in each case: that of the 4600 weights, or of what is computed with them."""
    base = write_headers(tmp_path / "base", SHAPES, tie_word_embeddings=False)
    critic = write_headers(tmp_path / "critic", SHAPES, saved_as, tie_word_embeddings=False)
    judge = SimpleNamespace(backend="transformers", model=str(critic), revision=None, device="cpu")
    configs: dict[Any, Any] = {("evaluate", None): SimpleNamespace(judge=judge, evaluate=SimpleNamespace())}
    configs["prepare", None] = SimpleNamespace(model=HubModel(path=str(base), size="tiny"))
    memory["cpu"] = weight_bytes * 4600 - 1
    complaints = memory_problems(configs, PARAMS | {"evaluate": {"judge": "local"}})
    assert any(complaint.startswith("conf/judge/local.yaml: model: expected weights of at most") for complaint in complaints)
    memory["cpu"] += 1
    complaints = memory_problems(configs, PARAMS | {"evaluate": {"judge": "local"}})
    assert not any("conf/judge" in complaint for complaint in complaints)


# ---- models with another head -------------------------------------------------------------------------------------------


def test_reward_and_value_models_have_no_output_layer_of_the_policys(tmp_path: Path) -> None:
    """They hold what the arithmetic says, but for the 16 weights, and the bias, of their own heads."""
    save_policy(tiny_policy(tie_word_embeddings=False), word_tokenizer(), tmp_path)
    size = size_of(tmp_path)
    assert size.output == 11 * 16
    reward_model = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1)
    assert memory_needed(size, "reward_model").weights == 4 * (reward_model.num_parameters() - 16)
    value_model = value_model_from_policy(tmp_path)
    trained = 16 * (sum(one.numel() for one in value_model.parameters()) - 17)
    assert memory_needed(size, "ppo").value_model == trained
    assert memory_needed(size, "ppo", lora_rank=2).value_model == 4 * (size.parameters - size.output) + 16 * 2 * size.widths
