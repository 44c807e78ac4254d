"""Claims about decodings: what null means, what a policy's generation_config.json says, and who reads it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import transformers
from aligning import GROUPS, outputs, run_align, write_inputs
from omegaconf import OmegaConf
from ppo_tiny import tiny_policy, word_tokenizer
from test_ppo_align import artifacts as ppo_artifacts
from test_ppo_align import run_align as run_ppo
from transformers import AutoModelForCausalLM, GenerationConfig

from plumbline.models.architecture import HubModel
from plumbline.models.chat import end_of_turn_id
from plumbline.models.decoding_values import NEUTRAL, Decoding, DecodingFields, own_decoding
from plumbline.models.saving import save_policy
from plumbline.pipeline.composing import CONF, size_section
from stages.pretrain import PretrainConfig, PretrainStage, run

artifacts = ppo_artifacts
END = end_of_turn_id(word_tokenizer())
MAKERS: dict[str, Any] = {"temperature": 0.6, "top_k": 20, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.05}
"""The decoding of a model whose maker wanted one."""


def generation_file(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "generation_config.json").read_text())
    return values


def save_hub_model(folder: Path, **values: Any) -> Path:
    """A tiny model as its maker would publish it."""
    model = tiny_policy()
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": END} | values))
    return folder


def made_as_hub_wants(policy: Path) -> None:
    """Lets the policy in a folder decode as MAKERS says."""
    values = generation_file(policy) | MAKERS
    (policy / "generation_config.json").write_text(json.dumps(values))


# ---- values -----------------------------------------------------------------------------------------------------------------


def test_a_decoding_is_said_in_words() -> None:
    assert NEUTRAL.words == "temperature 1"
    assert Decoding(0.7, top_p=0.9).words == "temperature 0.7, top_p 0.9"
    assert Decoding(**MAKERS).words == "temperature 0.6, top_k 20, top_p 0.8, min_p 0.05, repetition_penalty 1.05"
    assert Decoding(0.0, top_p=0.9, repetition_penalty=1.1).words == "temperature 0 (greedy), repetition_penalty 1.1"


def test_the_distribution_is_whole_at_any_temperature_unless_something_narrows_it() -> None:
    assert Decoding(0.7).is_whole_distribution
    for name, value in MAKERS.items():
        assert Decoding(**{name: value}).is_whole_distribution == (name == "temperature")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, NEUTRAL),
        ({"do_sample": True}, NEUTRAL),
        ({"do_sample": True, **MAKERS}, Decoding(**MAKERS)),
        ({"temperature": 1, "top_k": 5}, Decoding(top_k=5)),
        ({"do_sample": False}, Decoding(0.0)),
        ({"do_sample": False, "repetition_penalty": 1.2}, Decoding(0.0, repetition_penalty=1.2)),
    ],
)
def test_what_a_generation_config_leaves_out_is_neutral_and_no_sampling_is_greedy(
    values: dict[str, Any], expected: Decoding
) -> None:
    assert own_decoding(GenerationConfig(**values)) == expected
    assert own_decoding(GenerationConfig(**expected.generation_values())) == expected


def test_a_generation_config_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"generation_config\.json: top_k: expected 0 or above, found -1. Correct it"):
        own_decoding(GenerationConfig(top_k=-1))


def test_null_is_the_models_own_value_and_other_values_are_the_users(tmp_path: Path) -> None:
    folder = save_hub_model(tmp_path / "hub", do_sample=True, **MAKERS)
    fields = DecodingFields(temperature=0.9, top_k=None, top_p=None, min_p=0.0, repetition_penalty=None)
    assert fields.decoding(folder) == Decoding(0.9, 20, 0.8, 0.0, 1.05)
    assert DecodingFields(*[None] * 5).decoding(save_hub_model(tmp_path / "silent")) == NEUTRAL
    assert DecodingFields().decoding(tmp_path / "nothing here") == NEUTRAL


def test_values_out_of_range_and_several_greedy_completions_are_complained_about() -> None:
    wrong = DecodingFields(temperature=math.nan, top_k=-1, top_p=1.5, min_p=-0.1, repetition_penalty=0.0)
    assert [complaint.partition(":")[0] for complaint in wrong.decoding_problems(n=2)] == [*Decoding._fields]
    assert DecodingFields(*[None] * 5).decoding_problems(n=2) == []
    assert DecodingFields(temperature=0.0).decoding_problems(n=1) == []
    [complaint] = DecodingFields(temperature=0.0).decoding_problems(samples=2)
    assert complaint.startswith(
        "samples: expected 1 at temperature 0 (greedy), where all completions of a prompt are the same, found 2"
    )


# ---- who carries it on ------------------------------------------------------------------------------------------------------


def base_of(project: Path, **values: Any) -> Path:
    """The base policy that `pretrain` makes of a hub model."""
    save_hub_model(project / "model", **values)
    word_tokenizer().save_pretrained(project / "artifacts/tokenizer")
    (project / "artifacts/data/pretrain").mkdir(parents=True)
    values = OmegaConf.load(CONF / "pretrain.yaml").pretrain
    settings: Any = OmegaConf.to_object(OmegaConf.merge(PretrainConfig, values, size_section("tiny", "pretrain")))
    run(PretrainStage(seed=1, threads=1, model=HubModel(path="model", size="tiny"), pretrain=settings))
    return project / "scratch/pretrain/artifacts/policy/base"


def test_the_base_policy_keeps_what_its_maker_wanted(project: Path) -> None:
    assert generation_file(base_of(project, do_sample=True, no_repeat_ngram_size=3, **MAKERS)) == MAKERS | {
        "do_sample": True,
        "eos_token_id": END,
        "pad_token_id": 0,
        "transformers_version": transformers.__version__,
    }


def test_a_base_policy_without_a_decoding_says_what_one_from_scratch_says(project: Path) -> None:
    from_scratch = project / "scratch_policy"
    save_policy(tiny_policy(), word_tokenizer(), from_scratch)
    assert (base_of(project) / "generation_config.json").read_bytes() == (from_scratch / "generation_config.json").read_bytes()
    values = generation_file(from_scratch)
    assert values.pop("transformers_version")
    assert values == {"do_sample": True, "eos_token_id": END, "pad_token_id": 0, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


def test_a_greedy_model_stays_greedy(project: Path) -> None:
    base = base_of(project, do_sample=False)
    assert not AutoModelForCausalLM.from_pretrained(base).generation_config.do_sample
    assert DecodingFields(*[None] * 5).decoding(base) == Decoding(0.0)


@pytest.mark.parametrize(("method", "lora_rank"), [("sft", 0), ("dpo", 0), ("dpo", 2), ("kto", 0), ("orpo", 0)])
def test_a_policy_carries_its_starts_decoding_on(tmp_path: Path, method: str, lora_rank: int) -> None:
    folder = write_inputs(tmp_path)
    made_as_hub_wants(folder / "policy/sft")
    run_align(folder, method, lora_rank=lora_rank, lora_alpha=4, max_steps=2)
    assert generation_file(folder / "policy/new") == generation_file(folder / "policy/sft")


# ---- who does not read it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", GROUPS)
def test_groups_are_sampled_from_the_whole_distribution_whatever_the_policys_generation_config_says(
    tmp_path: Path, method: str
) -> None:
    plain, narrow = (write_inputs(tmp_path / name) for name in ("plain", "narrow"))
    made_as_hub_wants(narrow / "policy/sft")
    for folder in (plain, narrow):
        run_align(folder, method)
    assert outputs(narrow) == outputs(plain)
    assert own_decoding(GenerationConfig.from_pretrained(narrow / "policy/new")) == Decoding(**MAKERS)


def test_ppo_samples_the_whole_distribution_whatever_the_policys_generation_config_says(artifacts: Path) -> None:
    written = []
    for changed in (False, True):
        if changed:
            made_as_hub_wants(artifacts / "policy/sft")
        run_ppo(artifacts)
        written.append([(artifacts / name).read_bytes() for name in ("policy/ppo/model.safetensors", "curve.csv")])
    assert written[0] == written[1]
    assert own_decoding(GenerationConfig.from_pretrained(artifacts / "policy/ppo")) == Decoding(**MAKERS)
