"""Values fit the model's size: what conf/size gives to each method and stage, what overrides it, and what is refused before any work."""

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from published_models import write_header, write_headers
from test_composing import stage

import stages.check
from plumbline import graph, machine_memory
from plumbline.models import training_memory
from plumbline.models.size import in_words, parameter_count, range_of, wrong_size
from plumbline.pipeline import composing
from plumbline.pipeline.composing import LEARNING, SIZED, conf_values, load_params, size_section, sizes
from plumbline.pipeline.digests import content_digest
from tests.conftest import ROOT
from tests.dag import METHODS, load_recipe

ONLINE = ("ppo", "grpo", "rloo")
SECTIONS = {*METHODS, *(name for name in SIZED if name not in LEARNING)}


def conf_of(section: str) -> dict[str, Any]:
    """The values of the conf file of a method or of a stage without methods."""
    if section in METHODS:
        return conf_values(ROOT / f"conf/method/{section}.yaml")
    return conf_values(ROOT / f"conf/{section}.yaml")[section]


def with_every_method(model: str) -> dict[str, Any]:
    """The default recipe for a model of conf/model, with an entry for every method and no values of its own."""
    recipe = load_recipe("default")
    signals = {"sft": "reject/rs", "kto": "label/round1", "merge": "policy/sft"}
    offline = {
        name: {"method": name, "init": "sft", "signal": signals.get(name, "label/ranked")}
        for name in METHODS
        if name not in ONLINE
    }
    online = {name: {"method": name, "init": "sft", "reward": "rm"} for name in ONLINE}
    evaluation = recipe["evaluate"] | {"policies": ["sft"]}
    del recipe["sample"]["round2"], recipe["label"]["round2"], recipe["overoptimisation"]
    return recipe | {
        "model": model,
        "align": {f"by_{name}": entry for name, entry in offline.items()},
        "rl": online,
        "evaluate": evaluation,
    }


def errors_of(recipe: dict[str, Any]) -> list[str]:
    return stages.check.recipe_errors(recipe)


def hub_model(own_conf: Path, path: Path, size: str) -> None:
    """conf/model/mine.yaml: a folder as it is now, with a size."""
    (own_conf / "model/mine.yaml").write_text(
        f"defaults: [hub_schema, _self_]\npath: {path}\nrevision: '{content_digest(path)[:16]}'\nsize: {size}\n"
    )


@pytest.fixture(autouse=True)
def enough_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (machine_memory, training_memory):
        monkeypatch.setattr(module, "total_memory", lambda device: 2**40)


# ---- the files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", sizes())
def test_a_size_fills_the_values_that_the_conf_files_leave_open_and_no_others(size: str) -> None:
    left_open = {section: {key for key, value in conf_of(section).items() if value == "???"} for section in SECTIONS}
    given = {section: set(size_section(size, section)) for section in SECTIONS}
    assert given == left_open
    assert set(conf_values(ROOT / f"conf/size/{size}.yaml")) == {"parameters", *(name for name in SECTIONS if left_open[name])}


def test_the_sizes_leave_no_number_of_parameters_out() -> None:
    assert set(sizes()) == {"tiny", "small", "small_lora", "large"}
    for count in (1, 10**6, 5 * 10**7, 134_515_008, 10**9, 1_543_714_304, 2 * 10**9, 8 * 10**9, 10**12):
        assert any(range_of(size).holds(count) for size in sizes()), count


def test_values_of_a_tiny_model_are_those_that_the_recipes_were_measured_with() -> None:
    rates = {section: size_section("tiny", section).get("learning_rate") for section in SECTIONS}
    assert rates == {
        "pretrain": 7e-3, "sft": 4e-4, "dpo": 3e-4, "kto": 3e-4, "orpo": 1e-3, "merge": None, "grpo": 1e-3, "rloo": 1e-3, "ppo": 1e-4,
        "reward_model": 3e-4, "sample": None,
    }  # fmt: skip


def test_values_of_the_real_recipe_are_those_that_it_was_measured_with(project: Path) -> None:
    """Its trainings are short, and so its rates are its own and not those of every small model with an adapter."""
    configs = compose_all(load_recipe("smollm2"))
    rates = {name: configs["align", name].align.learning_rate for name in ("rs", "rs2", "dpo")}
    assert rates | {"grpo": configs["rl", "grpo"].rl.learning_rate} == {"rs": 2e-3, "rs2": 2e-3, "dpo": 5e-4, "grpo": 3e-4}
    assert [configs["sample", name].sample.min_p for name in ("round1", "round2")] == [0.1, 0.1]
    assert [size_section("small_lora", name)["learning_rate"] for name in ("dpo", "grpo")] == [5e-5, 1e-5]


# ---- composition --------------------------------------------------------------------------------------------------------


def compose_all(recipe: dict[str, Any]) -> dict[Any, Any]:
    """Every node's config of a sound recipe."""
    errors, configs = stages.check.compositions(recipe)
    assert errors == []
    return configs


def test_every_method_and_stage_composes_for_a_small_and_for_a_large_model(project: Path, own_conf: Path) -> None:
    configs = {}
    for size in ("small", "large"):
        tiny = (own_conf / "model/tiny.yaml").read_text()
        (own_conf / f"model/{size}.yaml").write_text(tiny.replace("size: tiny", f"size: {size}"))
        configs[size] = compose_all(with_every_method(size))
    dpo = {size: configs[size]["align", "by_dpo"].align for size in configs}
    assert [(dpo[size].learning_rate, dpo[size].beta, dpo[size].lora_rank, dpo[size].bf16) for size in dpo] == [
        (1e-6, 0.5, 0, True),
        (5e-6, 0.1, 16, True),
    ]
    assert dpo["small"].batch_size == 32  # what does not depend on the size stands in conf/method
    assert configs["small"]["rl", "ppo"].rl.value_learning_rate == 3e-6
    assert configs["small"]["sft", None].sft.learning_rate == 5e-5
    assert configs["small"]["reward_model", "rm"].reward_model.learning_rate == 1e-5
    assert configs["small"]["sample", "round1"].sample.max_new_tokens == 512
    assert [configs[size]["sample", "round1"].sample.min_p for size in configs] == [0.1, 0.0]
    assert configs["large"]["rl", "grpo"].rl.max_new_tokens == 1024
    assert configs["large"]["pretrain", None].pretrain.learning_rate == 3e-4


def test_an_entry_overrides_the_size_and_the_command_line_overrides_both(project: Path) -> None:
    recipe = (ROOT / "conf/recipe/default.yaml").read_text().replace("model: tiny", "model: hub")
    (project / "params.yaml").write_text(recipe)
    done = stage("stages.align", "align=dpo", "align.learning_rate=2e-6", "--cfg", "job", cwd=project)
    assert done.returncode == 0, done.stderr
    shown = OmegaConf.create(done.stdout).align
    assert (shown.learning_rate, shown.beta, shown.micro_batch_size) == (
        2e-6,
        0.1,
        2,
    )  # command line, params.yaml, conf/size/small.yaml
    by_hand = stage("stages.sft", "sft.micro_batch_size=8", "--cfg", "job", cwd=project)
    shown = OmegaConf.create(by_hand.stdout).sft
    assert (shown.learning_rate, shown.micro_batch_size, shown.batch_size) == (5e-5, 8, 32)


def test_a_value_that_both_a_method_and_the_size_give_is_refused(project: Path, own_conf: Path) -> None:
    """The size would overrule an edit of the method's file without a word."""
    method = own_conf / "method/dpo.yaml"
    method.write_text(method.read_text().replace("\nlearning_rate: ???", "\nlearning_rate: 9.0e-5"))
    composing.conf_values.cache_clear()
    assert stages.check.given_twice("small") == [
        "conf/method/dpo.yaml: learning_rate: expected ???, because conf/size/small.yaml gives the value, found another value. Give it in one of "
        "the two files"
    ]
    assert stages.check.given_twice("tiny") == errors_of(load_recipe("default"))


# ---- what is refused ----------------------------------------------------------------------------------------------------


def test_a_mistake_in_a_size_file_is_named_with_the_file_and_the_key(project: Path, own_conf: Path) -> None:
    tiny = own_conf / "size/tiny.yaml"
    text = (
        tiny.read_text()
        .replace("beta: 0.1", "btea: 0.1")
        .replace("\nkto:", "\nkot:")
        .replace("learning_rate: 4.0e-4", "learning_rate: fast")
    )
    tiny.write_text(text.replace("parameters: {least", "parameters: {leats"))
    errors = errors_of(load_params())
    expected = [
        "conf/size/tiny.yaml: parameters: unknown key 'leats'. Did you mean 'least'?",
        "conf/size/tiny.yaml: sft.learning_rate: expected a number, found 'fast'",
        "conf/size/tiny.yaml: dpo: unknown key 'btea'. Did you mean 'beta'?",
        "conf/size/tiny.yaml: unknown method or stage 'kot'. Did you mean 'kto'? Known: dpo, ",
    ]
    assert len(errors) == len(expected), errors
    for message in expected:
        assert any(error.startswith(message) for error in errors), errors


def test_a_value_that_no_file_gives_is_asked_for_in_the_size_file(project: Path, own_conf: Path) -> None:
    tiny = own_conf / "size/tiny.yaml"
    tiny.write_text(tiny.read_text().replace("  beta: 0.1", "  #"))
    assert errors_of(load_params()) == [
        "params.yaml: align.dpo1.beta: expected a value, found none (or change the default in conf/size/tiny.yaml)"
    ]


def test_a_value_out_of_range_in_a_size_file_is_reported_with_that_file(project: Path, own_conf: Path) -> None:
    tiny = own_conf / "size/tiny.yaml"
    tiny.write_text(
        tiny.read_text().replace("learning_rate: 4.0e-4\n  micro_batch_size: 16", "learning_rate: 4.0e-4\n  micro_batch_size: 0")
    )
    (error,) = [error for error in errors_of(load_params()) if "align.rs" in error]
    assert error.endswith("(or change the default in conf/size/tiny.yaml)") or "batch_size, micro_batch_size" in error


def test_a_size_that_does_not_exist_or_is_not_named_is_refused_once(project: Path, own_conf: Path) -> None:
    hub_model(own_conf, write_headers(project / "model", {"weight": [135, 10**6]}), "samll")
    (error,) = errors_of(load_params() | {"model": "mine"})
    assert error == (
        "conf/model/mine.yaml: size: expected the name of a file of conf/size, found 'samll'. Did you mean 'small'? There are: "
        "large, small, small_lora, tiny"
    )
    tiny = own_conf / "model/tiny.yaml"
    tiny.write_text(tiny.read_text().replace("size: tiny", "#"))
    errors = errors_of(load_params())
    assert any(
        error.startswith("conf/model/tiny.yaml: size: expected the name of a file of conf/size, found None") for error in errors
    )


def test_a_size_file_that_is_not_valid_yaml_is_named(project: Path, own_conf: Path) -> None:
    (own_conf / "size/tiny.yaml").write_text("sft: [")
    errors = errors_of(load_params())
    assert errors
    assert all(error.startswith("conf/size/tiny.yaml: ") for error in errors), errors


def test_a_model_of_another_size_is_refused_by_the_headers_of_its_files_alone(project: Path, own_conf: Path) -> None:
    """134,515,008 parameters are SmolLM2-135M's: small, and refused as tiny and as large."""
    folder = write_headers(project / "model", {"embeddings": [49152, 576], "layers": [106_203_456]})
    assert parameter_count(str(folder), None) == 134_515_008
    recipe = load_params() | {"model": "mine"}
    del recipe["rl"]["ppo"]["learning_rate"]
    hub_model(own_conf, folder, "small")
    assert errors_of(recipe) == []
    for size, range_ in (("tiny", "up to 50 million"), ("large", "1 billion or more")):
        hub_model(own_conf, folder, size)
        composing.conf_values.cache_clear()
        assert errors_of(recipe) == [
            f"conf/model/mine.yaml: size: expected small or small_lora for a model of 135 million parameters, found {size}, whose learning rates "
            f"are for {range_}. "
            "Set size: small"
        ]


@pytest.mark.parametrize("made", ["nothing", "the base policy", "everything"])
def test_what_has_been_made_elsewhere_is_noted_and_not_refused(
    made: str, project: Path, own_conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """270 MB of weights on a machine with 260 MB, onto which the results of a larger one may have been copied."""
    folder = write_headers(project / "model", {"embeddings": [49152, 576], "layers": [106_203_456]})
    hub_model(own_conf, folder, "small")
    recipe = load_params() | {"model": "mine"}
    del recipe["rl"]["ppo"]["learning_rate"]
    monkeypatch.setattr(machine_memory, "total_memory", lambda device: 260 * 10**6)
    paths = [path for node in graph.nodes(recipe) if made == "everything" or node.stage == "pretrain" for path in node.makes]
    for path in paths if made != "nothing" else ():
        (project / "artifacts" / path).mkdir(parents=True)
    errors, configs = stages.check.examined(recipe, chosen=True)
    notes = stages.check.too_large_to_make_again(configs, recipe)
    who = {"nothing": "pretrain loads", "the base policy": "answer load", "everything": ""}[made]
    assert [who in error for error in errors] == ([True] if who else [])
    assert len(notes) == (0 if made == "nothing" else 1)
    assert all("pretrain loads" in note and "Not refused, because its outputs are there" in note for note in notes)
    assert len(errors_of(recipe)) == 1  # as a recipe of which nothing is known to be made


def test_between_small_and_large_both_fit() -> None:
    assert [wrong_size(size, 1_543_714_304) for size in ("small", "large")] == ["", ""]
    assert wrong_size("tiny", 1_543_714_304).startswith(
        "size: expected small or small_lora or large for a model of 1.54 billion parameters, found tiny"
    )
    assert [in_words(count) for count in (999, 123_456, 50_000_000, 134_515_008, 8_030_261_248)] == [
        "999",
        "123,456",
        "50 million",
        "135 million",
        "8.03 billion",
    ]


def test_the_parameters_of_a_model_in_several_files_are_added_up(tmp_path: Path) -> None:
    for number, shape in enumerate(([1000, 500], [300, 200])):
        write_header(tmp_path / f"model-{number}.safetensors", {f"weight{number}": shape})
    write_header(tmp_path / "consolidated.safetensors", {"weight": [10**6]})  # the same weights in another layout do not count
    index = {"weight_map": {f"weight{number}": f"model-{number}.safetensors" for number in (0, 1)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert parameter_count(str(tmp_path), None) == 560_000


def test_a_hub_id_is_counted_by_its_cached_files_and_one_that_is_not_there_is_not_complained_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "0" * 40
    write_headers(tmp_path / f"models--some--model/snapshots/{commit}", {"weight": [7, 11]})
    assert parameter_count("some/model", commit) == 77
    assert parameter_count("some/other", commit) is None
    assert parameter_count("not a/hub/id", commit) is None


def test_files_that_tell_nothing_are_not_complained_of(tmp_path: Path) -> None:
    assert parameter_count(str(tmp_path), None) is None
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 20)
    assert parameter_count(str(tmp_path), None) is None


def test_the_default_recipe_with_a_model_of_the_hub_is_refused_for_its_learning_rate(project: Path, own_conf: Path) -> None:
    hub_model(own_conf, write_headers(project / "model", {"weight": [135, 10**6]}), "small")
    assert errors_of(load_params() | {"model": "mine"}) == [
        "params.yaml: rl.ppo.learning_rate: expected at most 30 times 3e-06, the value for a small model, found 0.00015. Delete the key, or lower "
        "the value"
    ]
    errors = errors_of(load_params() | {"model": "hub"})  # whose path is open: that is said, too
    assert [error.split(": expected")[0] for error in errors] == [
        "conf/model/hub.yaml: path",
        "params.yaml: rl.ppo.learning_rate",
    ]


def test_a_rate_far_above_its_size_is_refused_for_every_method_and_a_rate_below_is_not(project: Path, own_conf: Path) -> None:
    hub_model(own_conf, write_headers(project / "model", {"weight": [135, 10**6]}), "small")
    for factor, refused in ((29, False), (31, True)):
        recipe = with_every_method("mine")
        rates = {
            ("align", f"by_{name}"): ("learning_rate", size_section("small", name)["learning_rate"])
            for name in METHODS
            if name not in (*ONLINE, "merge")
        }
        rates |= {("rl", name): ("learning_rate", size_section("small", name)["learning_rate"]) for name in ("grpo", "rloo")}
        rates |= {("rl", "ppo"): ("value_learning_rate", 3e-6), ("reward_model", "rm"): ("learning_rate", 1e-5)}
        for (section, name), (key, rate) in rates.items():
            recipe[section][name][key] = factor * rate
        recipe["sft"]["learning_rate"] = factor * 5e-5
        named = {f"params.yaml: {section}.{name}.{key}" for (section, name), (key, _) in rates.items()} | {
            "params.yaml: sft.learning_rate"
        }
        assert {error.split(": expected")[0] for error in errors_of(recipe)} == (named if refused else set())


def test_recipes_with_a_rate_of_their_own_keep_within_their_models_size(project: Path) -> None:
    with_rates = [file for file in (ROOT / "conf/recipe").glob("*.yaml") if "learning_rate" in file.read_text()]
    assert len(with_rates) >= 2
    for file in with_rates:
        lacking = ("found no if_verifiable", "it is not in the local cache")  # an extra, and a model
        errors = [error for error in errors_of(load_recipe(file.stem)) if not any(what in error for what in lacking)]
        assert errors == [], file.stem
