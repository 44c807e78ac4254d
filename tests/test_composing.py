"""params.yaml and Hydra: what is composed, and what is refused before any work."""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf
from published_models import save_model

import stages.check
from plumbline import consistency
from plumbline.data.schema import FilesData, Role, Source
from plumbline.models.architecture import HubModel
from plumbline.models.bfloat16 import slowdown
from plumbline.models.decoding_values import Decoding
from plumbline.pipeline.composing import load_params, problems, require_sound
from plumbline.pipeline.digests import content_digest
from plumbline.pipeline.records import read_json
from tests.conftest import ROOT


def stage(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "MLFLOW_TRACKING_URI": "off", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=cwd, capture_output=True, text=True, env=environment, check=False
    )


def check(project: Path, *replacements: tuple[str, str]) -> str:
    """What `check` says of the default recipe after these replacements, each of which must apply."""
    recipe = (ROOT / "conf/recipe/default.yaml").read_text()
    for old, new in replacements:
        assert old in recipe, old
        recipe = recipe.replace(old, new, 1)
    (project / "params.yaml").write_text(recipe)
    done = stage("stages.check", cwd=project)
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


def expect(error: str, *messages: str) -> None:
    """Each message is on a line of its own and nothing else is complained of."""
    lines = [line for line in error.splitlines() if line.startswith("- ")]
    missing = [message for message in messages if not any(message in line for line in lines)]
    assert not missing, error
    assert len(lines) == len(messages), error


def test_the_default_recipe_is_sound(project: Path) -> None:
    done = stage("stages.check", cwd=project)
    assert done.returncode == 0, done.stderr
    assert (project / "artifacts/none").is_dir()
    assert (project / "artifacts/reward/none").is_dir()


def test_an_entry_composes_with_its_methods_values_and_the_command_line_wins(project: Path) -> None:
    done = stage("stages.align", "align=dpo", "align.beta=0.3", "--cfg", "job", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "beta: 0.3" in done.stdout
    assert "label_smoothing: 0.0" in done.stdout  # from conf/method/dpo.yaml
    assert "seed: 17" in done.stdout  # from params.yaml
    assert not (project / "artifacts").exists()


def test_all_mistakes_in_a_recipe_are_named_at_once_each_with_its_key(project: Path) -> None:
    error = check(
        project,
        ("beta: 0.1", "btea: 0.1"),
        ("beta: 0.1", "beta: strong"),
        ("signal: reject/rs", "signal: reject/rz"),
        ("    reward: rm\n\nalign:", "    reward: rm\n    strategy: statistical\n\nalign:"),
        ("    epochs: 1", "    kind: modle\n    epochs: 1"),
        ("    pairs: all_pairs", "    way: agreement\n    pairs: all_pairs"),
        ("  reward: rm\n  split: test", "  reward: rmm\n  split: tset"),
        ("  - ppo\n", "  - pppo\n"),
    )
    expect(
        error,
        "params.yaml: align.dpo: unknown key 'btea'. Did you mean 'beta'?",
        "params.yaml: rl.ppo.beta: expected a number, found 'strong'",
        "params.yaml: align.rs.signal: there is no 'reject/rz'. Did you mean 'reject/rs'?",
        "params.yaml: reject.rs.beta: ",
        "params.yaml: reward_model.rm.kind: expected one of preference, cost, found 'modle'",
        "params.yaml: label.ranked.min_margin: ",
        "params.yaml: label.ranked.judge: ",
        "params.yaml: evaluate.reward: there is no 'rmm'. Did you mean 'rm'?",
        "params.yaml: evaluate.split: expected one of test, validation, found 'tset'",
        "params.yaml: evaluate.policies: there is no policy 'pppo'",
    )


def test_a_key_that_dvc_needs_is_asked_for_and_one_output_made_twice_is_refused(project: Path) -> None:
    error = check(project, ("    policy: sft\n", ""), ("  ppo:  ", "  dpo:  "))
    assert "params.yaml: sample.round1.policy: missing; DVC needs it" in error
    assert "artifacts/policy/dpo made by align@dpo and rl@dpo" in error


def test_a_method_under_the_wrong_stage_is_sent_to_the_right_one(project: Path) -> None:
    error = check(
        project,
        (
            "    method: dpo\n    init: dpo1\n    signal: label/round2\n    beta: 0.1",
            "    method: grpo\n    init: dpo1\n    signal: label/round2",
        ),
    )
    expect(error, "params.yaml: align.dpo.method: expected a method that learns from rows, found grpo: move the entry to `rl`")


def test_rows_of_the_wrong_kind_and_values_out_of_range_are_refused_before_training(project: Path) -> None:
    error = check(project, ("signal: label/round2", "signal: data/sft"), ("signal: label/ranked", "signal: data/unpaired"))
    expect(
        error,
        "params.yaml: align.dpo.signal: expected preferences, found data/sft, which holds demonstrations",
        "params.yaml: reward_model.rm.signal: expected preferences, found data/unpaired, which holds unpaired",
    )
    error = check(project, ("beta: 0.1\n", "beta: -1\n    learning_rate: 0\n"), ("n: 8", "n: 0"))
    expect(error, "sample.round1.n: ", "align.dpo.learning_rate: ", "align.dpo.beta: ")


def test_a_section_that_nothing_reads_or_that_is_not_a_mapping_is_named(project: Path) -> None:
    error = check(project, ("\nalign:", "\nalgin:"), ("\nreject:", "\nreject: [a]\nlabels:"))
    assert "found 'algin'. Did you mean 'align'?" in error
    assert "params.yaml: reject: expected a mapping" in error
    assert "expected a section 'evaluate'" in check(project, ("\nevaluate:", "\nevaluation:"))
    assert "params.yaml" in check(project, ("seed: 17", "seed: 17\n  x: ["))


def test_what_knows_the_closed_world_alone_is_refused_on_other_data(project: Path) -> None:
    error = check(project, ("data: closed_world", "data: gsm8k"))
    assert "params.yaml: label.round1: judge: simulated: expected data: closed_world" in error
    assert "params.yaml: evaluate: judge: simulated" in error


def test_a_cycle_is_shown_as_the_nodes_on_it(project: Path) -> None:
    error = check(project, ("policy: sft\n", "policy: rs\n"))
    assert "a cycle" in error
    assert "align@rs" in error
    assert "sample@round1" in error


def test_a_conf_file_that_does_not_exist_is_named_with_those_that_do(project: Path) -> None:
    error = check(project, ("judge: simulated              #", "judge: simulatd #"))
    assert "simulatd" in error
    assert "simulated" in error.replace("simulatd", "")


def test_an_interpolation_is_refused_because_dvc_cannot_see_it(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("seed: 1\nsft:\n  epochs: ${seed}\n")
    with pytest.raises(ValueError, match=r"sft\.epochs"):
        load_params(path)


def test_scientific_notation_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("sft:\n  learning_rate: 1e-4\n")
    assert load_params(path)["sft"]["learning_rate"] == 1e-4


def test_a_stage_by_hand_without_its_inputs_says_which_stage_makes_them(project: Path) -> None:
    done = stage("stages.align", "align=dpo1", cwd=project)
    assert done.returncode == 1
    assert "artifacts/policy/sft is missing" in done.stderr
    assert "dvc repro" in done.stderr
    assert "Traceback" not in done.stderr


def test_leftovers_of_removed_entries_do_not_reach_the_report(project: Path) -> None:
    folders = ("metrics", "artifacts/curves", "artifacts/figures")
    gone = (
        "metrics/gone.json",
        "artifacts/figures/align/gone.json",
        "artifacts/figures/answer/gone.json",
        "artifacts/curves/rl/gone.csv",
        "artifacts/figures/reward_model/gone.calibration.csv",
    )
    kept = (
        "metrics/dpo.json",
        "artifacts/figures/align/dpo.json",
        "artifacts/figures/answer/dpo.json",
        "artifacts/figures/reward_model/rm.calibration.csv",
    )
    for name in (*gone, *kept):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("{}")
    assert stage("stages.check", cwd=project).returncode == 0
    left = {path.relative_to(project).as_posix() for folder in folders for path in (project / folder).rglob("*.*")}
    assert left == {*kept}


def test_the_decoding_that_answers_depend_on_is_written_by_check_whether_params_yaml_says_it_or_not(project: Path) -> None:
    """DVC can depend on no value that params.yaml leaves out."""
    written = project / "artifacts/decoding.json"
    assert stage("stages.check", cwd=project).returncode == 0
    before = read_json(written)
    assert before == Decoding(0.7)._asdict()
    with (project / "params.yaml").open("a") as file:  # `evaluate` is its last section
        file.write("  top_p: 0.9\n  min_p: null\n")
    assert stage("stages.check", cwd=project).returncode == 0
    assert read_json(written) == before | {"top_p": 0.9, "min_p": None}


def test_what_an_engine_decides_is_written_by_check_and_nothing_else_of_it(
    project: Path, own_conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that neither another number of workers nor another address makes `sample` and `answer` run again."""
    monkeypatch.setenv("ENGINE_BASE_URL", "http://127.0.0.1:8000/v1")
    monkeypatch.setattr(stages.check, "tracking_values", lambda: None)
    params, file = project / "params.yaml", own_conf / "engine/vllm.yaml"
    recipe, values = params.read_text(), file.read_text()

    def written(engine: str, **changes: str) -> Any:
        params.write_text(recipe.replace("engine: here", f"engine: {engine}"))
        lines = [line for line in values.splitlines() if line.strip().partition(":")[0] not in changes]
        start = next(number for number, line in enumerate(lines, 1) if line.startswith("server:"))
        file.write_text("\n".join([*lines[:start], *(f"  {key}: {value}" for key, value in changes.items()), *lines[start:]]))
        stages.check.main()
        return read_json(project / "artifacts/engine.json")

    assert written("here") == written("processes") == {"server": None}
    served = {"model": "{policy}-{digest}", "request": {}}
    assert written("vllm", concurrency="8", retries="0", timeout_seconds="5") == {"server": served}
    assert written("vllm", request="{repeat_penalty: 1.1}") == {"server": served | {"request": {"repeat_penalty": 1.1}}}


def test_what_draws_for_an_entry_of_rl_is_written_by_check_and_is_the_engine_only_if_the_entry_says_so(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that another engine trains only those entries again that draw by it."""
    monkeypatch.setenv("ENGINE_BASE_URL", "http://127.0.0.1:8000/v1")
    recipe: Any = OmegaConf.to_container(OmegaConf.load(project / "params.yaml"))
    entry = {"method": "grpo", **{key: recipe["rl"]["ppo"][key] for key in ("init", "reward")}}
    recipe["rl"] |= {"asks": entry | {"sampler": "server", "lora_rank": 2}, "draws": entry}

    def written(engine: str) -> dict[str, Any]:
        OmegaConf.save(recipe | {"engine": engine}, project / "params.yaml")
        stages.check.main()
        return {file.stem: read_json(file) for file in (project / "artifacts/samplers").iterdir()}

    served = {"server": {"model": "{policy}-{digest}", "request": {}}}
    assert written("vllm") == {"ppo": {"server": None}, "draws": {"server": None}, "asks": served}
    with pytest.raises(
        SystemExit, match=r"params\.yaml: rl\.asks\.sampler: expected here with an engine without a server, found server\. Set"
    ):
        written("here")
    del recipe["rl"]["asks"]
    assert written("here") == {"ppo": {"server": None}, "draws": {"server": None}}


def test_problems_are_collected_from_every_schema_within_a_config() -> None:
    @dataclass
    class Rule:
        weight: float

        def problems(self) -> list[str]:
            return [] if self.weight > 0 else [f"weight: expected above 0, found {self.weight}"]

    @dataclass
    class Section:
        first: Rule
        rules: dict[str, Rule]

        def problems(self) -> list[str]:
            return ["first: expected another"]

    config = Section(Rule(0), {"good": Rule(1), "bad": Rule(-1)})
    assert problems(config) == [
        "first.weight: expected above 0, found 0",
        "rules.bad.weight: expected above 0, found -1",
        "first: expected another",
    ]
    with pytest.raises(ValueError, match=r"(?s)first\.weight.*rules\.bad\.weight"):
        require_sound(config)


READ_DIFFERENTLY = {
    "017": 'DVC (YAML 1.2) reads as the number 17 and the stages (YAML 1.1) as the number 15. Write 17 or 15',
    "0o17": 'as the number 15 and the stages (YAML 1.1) as the text "0o17". Write 15 or "0o17"',
    "-017": "Write -17 or -15",
    "08": 'Write 8 or "08"',
    "12:30": 'Write "12:30" or 750',
    "1:30:00.5": 'Write "1:30:00.5" or 5400.5',
    "no": 'Write "no" or false',
    "On": 'Write "On" or true',
    "[1, off]": 'align.dpo.beta.1: expected a value with one meaning',
    "+.5": 'Write 0.5 or "+.5"',
    "{on: 1}": 'align.dpo.beta.on: expected a key with one meaning',
    "{<<: {a: yes}}": 'align.dpo.beta.a: expected a value with one meaning',
    "2026-11-26": 'found the date 2026-11-26. To use it as a text, write "2026-11-26"',
    "2026-11-26T10:00:00Z": "found the date",
    "!!set {a}": "found set",
    "!!omap [a: 1]": "found ordereddict",
    "!!binary aGk=": "found bytes",
    "{1: a}": 'align.dpo.beta.1: expected a text as key, found the number 1. To use it as a text, write "1"',
    "{true: a}": 'To use it as a text, write "true"',
    "{~: a}": "expected a text as key, found null",
    "{a: 1, a: 1}": 'found duplicate key "a"',
    "!number 5": "could not determine a constructor for the tag '!number'",
    "${seed}": "expected a plain value, found '${seed}'",
}  # fmt: skip
"""What DVC and the stages read differently, or cannot both use, and what is said of it."""


@pytest.mark.parametrize("value", READ_DIFFERENTLY)
def test_a_value_that_dvc_and_the_stages_read_differently_is_refused_with_both_readings(value: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(f"align:\n  dpo:\n    beta: {value}\n")
    with pytest.raises(ValueError, match=re.escape(READ_DIFFERENTLY[value])) as raised:
        load_params(path)
    assert "params.yaml: " in str(raised.value)


@pytest.mark.parametrize(
    "value",
    ["1e3", "1e-4", ".5", "1_000", "0x1F", "~", "true", ".inf", '"017"', "'no'", "!!str 5", "{<<: {a: 1}, b: 2}", "[]", "y"],
)
def test_a_value_that_both_read_alike_is_what_dvc_reads(value: str, tmp_path: Path) -> None:
    from dvc.utils.serialize import load_yaml

    path = tmp_path / "params.yaml"
    path.write_text(f"align:\n  dpo:\n    beta: {value}\n")
    assert load_params(path) == load_yaml(str(path))


def test_params_yaml_can_be_read_after_dvc_has_written_it(tmp_path: Path) -> None:
    """`dvc exp run -S` drops quotes. The parser of ruamel-yaml-clib would be four times as fast, but takes no such text in brackets."""
    from dvc.utils.serialize import load_yaml, modify_yaml

    path = tmp_path / "params.yaml"
    path.write_text('seed: 17\nwords: ["a:b", "http://a:80"]\n')
    with modify_yaml(str(path)) as values:
        values["seed"] = 18
    assert path.read_text() == "seed: 18\nwords: [a:b, http://a:80]\n"
    assert load_params(path) == load_yaml(str(path)) == {"seed": 18, "words": ["a:b", "http://a:80"]}


def test_a_stage_refuses_what_dvc_reads_differently_as_check_does(project: Path) -> None:
    error = check(project, ("seed: 17", "seed: 017"))
    assert "params.yaml: seed: expected a value with one meaning" in error
    by_hand = stage("stages.align", "align=dpo", cwd=project).stderr
    assert "params.yaml: seed: expected a value with one meaning" in by_hand


def test_an_entry_has_a_name_that_dvc_hydra_and_the_shell_read_alike() -> None:
    for name in ("a.b", "a b", "a@b", "a:b", "a/b", "-a", "", "123", "1e5", "null", "nan", "é", "a,b", "a" * 200):
        (error,) = stages.check.wrong_names({"align": {name: {}}})
        assert error.startswith(f"params.yaml: align: expected a name of letters, digits, `_` and `-`, found {name!r}: ")
    assert stages.check.wrong_names({"align": {key: {} for key in ("dpo", "3rounds", "a-b", "_a", "B2", "no")}}) == []


def test_a_reward_cannot_have_the_name_that_stands_for_none(project: Path) -> None:
    assert "found 'none': `none` stands for none of its kind" in check(project, ("\n  rm:", "\n  none:"))


def test_an_unknown_key_lists_the_known_ones_however_deep_it_is(project: Path) -> None:
    rules = "\nreward_rules:\n  polite:\n    rules:\n      short: {kind: length, most: 20, pattern: a}\n\nreject:"
    error = check(project, ("\nreject:", rules))
    expect(
        error,
        "params.yaml: reward_rules.polite.rules.short: unknown key 'pattern'. Known: kind, weight, least, most, unit, phrases, expression",
    )


def test_values_of_another_type_are_refused_also_where_omegaconf_converts_them_or_does_not_look(project: Path) -> None:
    error = check(
        project,
        ("    beta: 0.1", "    beta: 0.1\n    bf16: 8\n    loss_weights: {hinge: [1]}"),
        ("    n: 8", "    n: [8]"),
        ("    epochs: 1", "    epochs: null"),
    )
    expect(
        error,
        "params.yaml: sample.round1.n: expected a whole number, found [8]",
        "params.yaml: reward_model.rm.epochs: expected a number, found null",
        "params.yaml: align.dpo.bf16: expected true or false, found 8",
        "params.yaml: align.dpo.loss_weights.hinge: expected a number, found [1]",
    )


def test_values_that_cannot_work_together_are_refused_although_each_could(project: Path) -> None:
    error = check(
        project,
        ("    n: 8", "    n: 8\n    max_new_tokens: 256"),
        ("    episodes: 4096", "    episodes: 4000\n    families: [sums]"),
        ("seed: 17", "seed: -1"),
        ("inputs: data/raw", "inputs: data/rwa"),
    )
    expect(
        error,
        "params.yaml: seed: expected a whole number from 0 to 4294967295, found -1",
        "params.yaml: inputs: expected a folder, found none at data/rwa",
        "params.yaml: sample.round1.max_new_tokens: expected fewer than the model's context_tokens, 256, found 256",
        "params.yaml: rl.ppo.episodes: expected a multiple of rollout_batch_size 256, found 4000",
        "params.yaml: rl.ppo.families: expected families of the closed world",
    )
    pairs = "    pairs: strong_vs_weak\n    strong: dpo\n    weak: sft"
    error = check(project, ("    pairs: best_vs_worst", pairs))
    expect(
        error, "params.yaml: label.round1.strong: expected a policy whose completions sample 'round1' holds (sft), found 'dpo'"
    )
    error = check(
        project, ("    judge: simulated\n    pairs: all_pairs", "    judge: simulated\n    known: data/annotations/gone.csv")
    )
    expect(error, "params.yaml: label.ranked.known: expected a file or folder, found none at data/annotations/gone.csv")


def test_a_mistake_in_a_file_of_conf_is_reported_under_that_file(project: Path, own_conf: Path) -> None:
    (own_conf / "data/mine.yaml").write_text(
        "defaults: [files_schema, _self_]\nsft:\n  sources:\n    - {files: [gone.jsonl], licnce: MIT}\npolicy: {limits: {default: many}}\n"
    )
    (own_conf / "judge/mine.yaml").write_text("defaults: [judge_openai, _self_]\nsampling: {temprature: 0.5}\n")
    (own_conf / "judge/both.yaml").write_text(
        "defaults: [judge_panel, _self_]\nmembers:\n  a: {backend: simulated, sampels: 2}\n"
    )
    (own_conf / "judge/bare.yaml").write_text("backend: openai\n")
    recipe = load_params()
    recipe["data"] = "mine"
    recipe["label"]["round1"]["judge"], recipe["label"]["ranked"]["judge"] = "mine", "both"
    recipe["evaluate"]["judge"] = "bare"
    errors = stages.check.recipe_errors(recipe)
    for message in (
        "conf/data/mine.yaml: sft.sources.0: unknown key 'licnce'. Did you mean 'licence'?",
        "conf/data/mine.yaml: policy.limits.default: expected a number, found 'many'",
        "conf/judge/mine.yaml: sampling: unknown key 'temprature'. Did you mean 'temperature'?",
        "conf/judge/both.yaml: members.a: unknown key 'sampels'. Did you mean 'samples'?",
        "conf/judge/bare.yaml: expected the name of a schema first in `defaults` (judge_simulated, ",
    ):
        assert any(error.startswith(message) for error in errors), errors


@pytest.mark.parametrize("defaults", ["[hub, _self_]", "[hub_schema, hub, _self_]", "[{/model: hub}, _self_]", "[mine]", "hub"])
def test_a_file_of_conf_that_builds_on_another_is_refused_because_dvc_would_not_see_an_edit_of_that(
    project: Path, own_conf: Path, defaults: str
) -> None:
    (own_conf / "model/mine.yaml").write_text(f"defaults: {defaults}\nsize: tiny\npath: somewhere\n")
    (own_conf / "judge/mine.yaml").write_text("defaults: [simulated, _self_]\nsamples: 3\n")
    recipe = load_params() | {"model": "mine"}
    recipe["evaluate"]["judge"] = "mine"
    base = {"[{/model: hub}, _self_]": "/model/hub", "[mine]": "mine"}.get(defaults, "hub")
    remedy = "whose edits DVC would not see. Copy its values here, and name its schema instead"
    model, judge = stages.check.recipe_errors(recipe)
    assert (
        model
        == f"conf/model/mine.yaml: defaults: expected a schema (scratch_schema, hub_schema) and _self_, found {base}, {remedy}"
    )
    assert judge.startswith("conf/judge/mine.yaml: defaults: expected a schema (judge_simulated, ")
    assert judge.endswith(f") and _self_, found simulated, {remedy}")


def test_a_model_of_the_hub_needs_the_commit_that_pins_it(project: Path, own_conf: Path) -> None:
    hub = own_conf / "model/hub.yaml"
    hub.write_text(hub.read_text().replace("path: ???", "path: someone/model"))
    recipe = load_params() | {"model": "hub"}
    del recipe["rl"]["ppo"]["learning_rate"]  # which is for a tiny model
    errors = stages.check.recipe_errors(recipe)
    assert [error.partition(":")[0] for error in errors] == ["conf/model/hub.yaml"] * len(errors)
    assert "path: expected a folder at someone/model, or a hub id with its commit as revision; found neither." in errors[0]


def test_the_digest_of_a_model_folder_is_asked_for_once_for_the_base_model_and_for_each_judge(
    project: Path, own_conf: Path
) -> None:
    for seed, folder in enumerate(("base", "critic", "artifacts/policy/sft")):
        save_model(project / folder, seed=seed, max_position_embeddings=4096)
    base, critic = (content_digest(project / folder)[:16] for folder in ("base", "critic"))
    recipe = load_params() | {"model": "pinned"}
    del recipe["rl"]["ppo"]["learning_rate"]  # which is for a tiny model
    recipe["label"]["round1"]["judge"] = recipe["label"]["ranked"]["judge"] = "local"
    recipe["evaluate"]["judge"] = "both"

    def errors(**revisions: str) -> list[str]:
        (own_conf / "model/pinned.yaml").write_text(
            f"defaults: [hub_schema, _self_]\nsize: tiny\npath: base\nrevision: {revisions['base']}\n"
        )
        (own_conf / "judge/local.yaml").write_text(
            f"defaults: [judge_transformers, _self_]\nmodel: critic\nrevision: '{revisions['critic']}'\n"
        )
        (own_conf / "judge/both.yaml").write_text(
            "defaults: [judge_panel, _self_]\nmembers:\n  made_here: {backend: transformers, model: artifacts/policy/sft}\n"
            f"  other: {{backend: transformers, model: critic, revision: '{revisions['critic']}'}}\n"
        )
        return stages.check.recipe_errors(recipe)

    assert [error.partition(" as it is now")[0] for error in errors(base="null", critic="0123456789abcdef")] == [
        f"conf/model/pinned.yaml: revision: expected '{base}', the digest of the folder base",
        f"conf/judge/local.yaml: revision: expected '{critic}', the digest of the folder critic",
        f"conf/judge/both.yaml: members.other.revision: expected '{critic}', the digest of the folder critic",
    ]
    assert errors(base=f"'{base}'", critic=critic) == []


def test_a_source_that_names_no_file_and_a_split_without_prompts_are_named_before_any_work(project: Path) -> None:
    recipe = load_params() | {"data": "gsm8k"}
    recipe["label"] |= {name: entry | {"judge": "openai"} for name, entry in recipe["label"].items()}
    recipe["evaluate"] |= {"judge": "none", "split": "validation"}
    del recipe["reward_verifier"], recipe["overoptimisation"]  # the closed world's
    errors = stages.check.recipe_errors(recipe)
    assert errors[0].startswith(
        "conf/data/gsm8k.yaml: prompts: expected a file at 'data/raw/math/gsm8k_train_3000.jsonl', found none"
    )
    for name in ("gsm8k_train_3000", "gsm8k_test_400"):
        (project / "data/raw/math").mkdir(exist_ok=True)
        (project / f"data/raw/math/{name}.jsonl").write_text("{}\n")
    errors = stages.check.recipe_errors(recipe)
    assert [error.partition(", found")[0] for error in errors] == [
        "params.yaml: evaluate.split: expected a split of the prompts in conf/data/gsm8k.yaml (test, train)"
    ]


def test_a_project_outside_a_git_repository_says_so_before_any_work(project: Path) -> None:
    (project / ".dvc").mkdir()
    (project / ".dvc/config").write_text("[core]\n    analytics = false\n")
    error = stage("stages.check", cwd=project).stderr
    assert (
        "expected a Git repository, which DVC works in, found none. Run `git init && git add . && git commit -m start`" in error
    )
    (project / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    assert stage("stages.check", cwd=project).returncode == 0


def test_a_recipe_whose_prompts_have_instructions_names_the_extra_that_checks_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def errors(kind: str = "math", **settings: Any) -> list[str]:
        source = Source(name="rules", files=["rules.jsonl"], licence="MIT", **settings)
        prepare = SimpleNamespace(data=FilesData(prompts=Role([source])))
        verifier = SimpleNamespace(reward_verifier=SimpleNamespace(kind=kind))
        params = {"data": "mine", "evaluate": {"split": "test"}}
        return [*consistency.without_checkers({("prepare", None): prepare, ("reward_verifier", "rules"): verifier}, params)]

    sentences = [{"id": "length_constraints:number_sentences", "num_sentences": 2, "relation": "at least"}]
    fields = {"prompt": "question", "instructions": "rules"}
    monkeypatch.setattr("plumbline.checking.following.find_spec", lambda name: None)
    assert errors() == errors(instructions=sentences, into="train") == errors(instructions=[{"id": "unknown"}]) == []
    for settings in ({"instructions": sentences}, {"fields": fields}, {"format": "ifeval"}):
        (error,) = errors(**settings)
        assert error.startswith("conf/data/mine.yaml: prompts: source 'rules': instructions: expected the libraries"), settings
    assert [error.partition(": instr")[0] for error in errors("instructions")] == ["params.yaml: reward_verifier.rules.kind"]
    (both,) = errors("instructions", fields=fields)  # what is missing is said once
    assert both.startswith(
        "params.yaml: reward_verifier.rules.kind and conf/data/mine.yaml: prompts: source 'rules': instructions: "
    )
    monkeypatch.setattr("plumbline.checking.following.find_spec", lambda name: name)
    monkeypatch.setattr("plumbline.checking.following._has_punkt", lambda: False)
    assert errors("instructions", fields=fields) == []
    assert all("punkt_tab" in error for error in errors("instructions", instructions=sentences))
    (both,) = errors("instructions", instructions=sentences)
    assert both.startswith(
        "params.yaml: reward_verifier.rules.kind and conf/data/mine.yaml: prompts: source 'rules': instructions: "
    )


def test_programs_are_checked_in_a_sandbox_that_this_machine_has(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(project))
    config = SimpleNamespace(reward_verifier=SimpleNamespace(kind="code", isolation="bubblewrap"))
    (error,) = consistency.without_sandbox({("reward_verifier", "tests"): config})
    assert error.startswith(
        "params.yaml: reward_verifier.tests: isolation: bubblewrap: expected the command `bwrap`, found none."
    )
    config.reward_verifier.kind = "math"
    assert [*consistency.without_sandbox({("reward_verifier", "sums"): config})] == []


def test_computing_in_bfloat16_on_a_cpu_that_emulates_it_is_noted_and_not_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(consistency, "slowdown", lambda: 8.2)
    params = project / "params.yaml"
    text = (
        params.read_text().replace("sft: {}", "sft: {bf16: true}").replace("    beta: 0.1\n", "    beta: 0.1\n    bf16: true\n")
    )
    params.write_text(text)
    stages.check.main()
    assert capsys.readouterr().out == (
        "The recipe is sound.\nNote: this machine has no GPU, and its CPU takes about 8 times as long for a matrix product in bfloat16 as in "
        "float32: set bf16: false for sft, align.dpo, rl.ppo in params.yaml.\n"
    )


def test_a_model_saved_in_bfloat16_is_noted_too_because_all_that_is_only_read_stays_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consistency, "slowdown", lambda: 8.2)
    (tmp_path / "config.json").write_text('{"dtype": "bfloat16"}')

    def note(**values: str) -> str:
        prepare = SimpleNamespace(prepare=SimpleNamespace(), model=HubModel(**({"path": str(tmp_path)} | values)))
        return consistency.slow_precision({("prepare", None): prepare}, {"model": "mine"})

    assert note().endswith("set dtype: float32 in conf/model/mine.yaml")
    assert note(dtype="float32") == note(path=str(tmp_path / "other")) == note(path="some/model", revision="0" * 40) == ""
    (tmp_path / "config.json").write_text('{"torch_dtype": "float32"}')
    assert note() == ""
    assert note(dtype="bfloat16") != ""
    (tmp_path / "config.json").write_text("not JSON")
    assert note() == ""
    monkeypatch.setattr(consistency, "slowdown", lambda: 0.6)
    assert note(dtype="bfloat16") == ""


def test_a_machine_with_a_gpu_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < slowdown() != 1.0  # a machine with AMX is ten times as fast in bfloat16
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.nn.functional.linear", None)
    assert slowdown() == 1.0
