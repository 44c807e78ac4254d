"""Claims about studies: their files are checked, runs get exactly their values, results are paired by seed, figures can be read without colour."""

import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from hydra.core.override_parser.overrides_parser import OverridesParser

import stages.check
from plumbline.pipeline import composing
from plumbline.pipeline.digests import input_digest
from plumbline.pipeline.params import load_params
from plumbline.studies import declaration, queue
from plumbline.studies.declaration import PointName, Reading, Study, load_study, names
from plumbline.studies.outcome import alternative_text, difference_text, figure_of, outcome_of, record
from plumbline.studies.picture import draw
from plumbline.studies.queue import Run, differences, enqueue, hydra_value, runs_of, work_off, workers
from plumbline.tools import study as command
from tests.conftest import ROOT
from tests.dag import load_recipe

RECIPES = sorted(file.stem for file in (ROOT / "conf/recipe").glob("*.yaml"))
ALL = names()
SOUND: dict[str, Any] = {
    "question": "Does a larger β help?",
    "recipe": "smoke",
    "seeds": [1, 2, 3],
    "vary": {"low": {"x": 0.1, "set": {"align.dpo.beta": 0.1}}, "high": {"x": 0.5, "set": {"align.dpo.beta": 0.5}}},
    "read": {"DPO": {"node": "evaluate@dpo", "metric": "gold"}},
    "compare": {"first": {"condition": "high"}, "second": {"condition": "low"}},
    "figure": {"x": "β", "y": "gold"},
    "sentence": "Gold with a larger β ({first}) {verdict} that with a smaller one ({second}): {difference}.",
}


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Study]:
    """Writes a study with changes, by dotted key, to a folder of studies, and loads it."""
    monkeypatch.setattr(composing, "CONF", tmp_path / "conf")
    monkeypatch.setattr(declaration, "STUDIES", tmp_path / "conf/study")
    (tmp_path / "conf/study").mkdir(parents=True)

    def write(changes: Mapping[str, Any] | None = None, recipe: str | None = None) -> Study:
        values = json.loads(json.dumps(SOUND))
        for key, value in (changes or {}).items():
            if value is None:
                del values[key]
            else:
                declaration.put(values, key, value)
        (tmp_path / "conf/study/mine.yaml").write_text(
            yaml.safe_dump(values, allow_unicode=True, sort_keys=False), encoding="utf-8"
        )
        composing.conf_values.cache_clear()
        return load_study("mine", recipe)

    return write


@pytest.mark.parametrize("name", ALL)
def test_every_study_is_sound_and_its_recipe_has_what_it_reads(name: str) -> None:
    study = load_study(name)
    assert len(study.seeds) >= 3
    assert study.question.endswith("?")
    assert all(end in study.points() for answer in study.answers.values() for end in study.ends(answer.compare))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"question": None}, "question: expected a value, found none"),
        ({"figure.x": "???"}, "figure.x: expected a value, found none"),
        ({"seeds": [1, 2]}, "seeds: expected 3 or more different seeds, found [1, 2]"),
        ({"seeds": [1, 2, 2, 3]}, "seeds: expected 3 or more different seeds, found [1, 2, 2, 3]"),
        ({"seed": 3}, "unknown key 'seed'. Did you mean 'seeds'?"),
        ({"recipe": "smok"}, "recipe: expected the name of a file of conf/recipe, found 'smok'. Did you mean 'smoke'?"),
        ({"read.DPO.node": "evaluate@dp"}, "read.DPO.node: expected a node of the recipe smoke, found 'evaluate@dp'. Did you mean 'evaluate@dpo'?"),
        ({"read": {}}, "read: expected a figure to read, found none"),
        ({"compare.first": {}}, "compare.first.condition: expected one of low, high, found none"),
        ({"compare.first.condition": "hgh"}, "compare.first.condition: expected one of low, high, found 'hgh'. Did you mean 'high'?"),
        ({"compare.first.condition": "low"}, "compare: expected two different points, found the same twice"),
        ({"compare.first.at": 3}, "compare.first.at: expected one of `at` of its series (none, since the series is not read from a curve)"),
        ({"read.DPO.at": [10, 20], "compare.first.at": 10}, "compare.second.at: expected one of `at` of its series (10, 20), found none"),
        ({"vary": {}, "compare": {"first": {}, "second": {"series": "DPO"}}}, "compare: expected two different points, found the same twice"),
        ({"vary": {}, "read.DPO.at": [10], "compare": {"first": {}, "second": {"at": 10}}}, "compare: expected two different points, found the same"),
        ({"sentence": "{difference} {seed}"}, "sentence: expected placeholders among {difference}, {first}, {second}, {verdict}, found {seed}"),
        ({"sentence": "It {verdict}."}, "sentence: expected {difference}, which has the interval, found none"),
        ({"sentence": "{difference"}, "sentence: expected text with placeholders in braces"),
        ({"vary.low.set": {"seed": 4}}, "vary.low.set: expected no seed, which `seeds` varies, found seed: 4"),
        ({"vary.low.set": {"align.dpo.init.x": 4}}, "vary.low: expected values that fit the recipe smoke"),
        ({"vary.low.set": {"conf/judge/simulate.yaml:x": 4}}, "set.conf/judge/simulate.yaml:x: expected a file before the colon"),
        ({"figure.style": "percents"}, "figure.style: expected one of number, percent, found 'percents'"),
        ({"also.KL": {}}, "also.KL.sentence: expected a value, found none"),
        ({"also.KL": {"compare": {"first": {"condition": "high"}}, "sentence": "{difference}"}},
         "also.KL.compare.second.condition: expected one of low, high, found none"),
        ({"also.KL": {"compare": SOUND["compare"], "sentence": "It {verdict}."}}, "also.KL.sentence: expected {difference}"),
        ({"compare.axis": "x"}, "compare.axis: expected y, since read.DPO has no x_metric, found x"),
        ({"compare.axis": "z"}, "compare.axis: expected one of y, x, found 'z'"),
        ({"read.DPO.metric": ["gold"]}, "read.DPO.metric: expected a text, found ['gold']"),
    ],
)  # fmt: skip
def test_a_fault_is_one_sentence_with_its_file_and_key(
    written: Callable[..., Study], changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=r"mine\.yaml") as error:
        written(changes)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("rows", "at"), [([], None), ([10], 10)])
def test_what_there_is_only_one_of_may_be_left_out(written: Callable[..., Study], rows: list[int], at: float | None) -> None:
    study = written({"read.DPO.at": rows})
    ends = study.ends(study.compare)
    assert ends == (PointName("high", "DPO", at), PointName("low", "DPO", at))
    assert {*ends} == {*study.points()}


def test_an_unknown_study_and_another_recipe(written: Callable[..., Study]) -> None:
    assert written(recipe="default").recipe == "default"
    with pytest.raises(ValueError, match=r"expected the name of a file of conf/study, found 'mien'\. Did you mean 'mine'"):
        load_study("mien")


# ---- runs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_overrides_turn_params_yaml_into_exactly_the_recipe_and_back(tmp_path: Path, recipe: str) -> None:
    """By DVC's own function, which `dvc exp run -S` calls."""
    default, wanted = load_recipe("default"), load_recipe(recipe)
    for old, new in ((default, wanted), (wanted, default)):
        file = tmp_path / "params.yaml"
        file.write_text(yaml.safe_dump(old, allow_unicode=True), encoding="utf-8")
        if changes := [*differences(old, new)]:
            apply_overrides(file, changes)
        assert load_params(file) == new


@pytest.mark.parametrize("before", [None, 3, {"b": 1}, {}, "absent"])
@pytest.mark.parametrize("after", [None, 3.0, {"b": {"c": [1]}}, {}, "absent"])
def test_any_value_takes_the_place_of_any_other(tmp_path: Path, before: Any, after: Any) -> None:
    old, new = ({"x": 1} if value == "absent" else {"x": 1, "a": value} for value in (before, after))
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(old), encoding="utf-8")
    if changes := [*differences(old, new)]:
        apply_overrides(file, changes)
    assert yaml.safe_load(file.read_text(encoding="utf-8")) == new


def test_values_reach_hydra_as_they_are() -> None:
    rng = random.Random(4)
    texts = ["".join(rng.choice("a'\\\" ,:=[]{}$~+%é한") for _ in range(rng.randrange(1, 9))) for _ in range(300)]
    for value in [*texts, "", "true", "1e-5", None, True, 3, 1e-05, 0.1, [1, "a b", []], {"kind": "x", "least": 0.5}]:
        (parsed,) = OverridesParser.create().parse_overrides([f"++key={hydra_value(value)}"])
        assert parsed.value() == value
        assert type(parsed.value()) is type(value)


def test_a_run_is_known_by_what_decides_its_result(written: Callable[..., Study]) -> None:
    study, workspace = written(), load_recipe("default")
    first = runs_of(study, "mine", "code", workspace)
    assert [(run.condition, run.seed) for run in first] == [(name, seed) for name in ("low", "high") for seed in (1, 2, 3)]
    assert len({run.name for run in first}) == 6
    assert [run.name for run in runs_of(study, "mine", "code", load_recipe("smoke"))] == [run.name for run in first]
    assert not {run.name for run in runs_of(study, "mine", "edited", workspace)} & {run.name for run in first}
    changed = runs_of(written({"vary.low.set": {"align.dpo.beta": 0.2}}), "mine", "code", workspace)
    assert [run.name == old.name for run, old in zip(changed, first, strict=True)] == [False] * 3 + [True] * 3
    assert all(run.targets == ("evaluate@dpo",) for run in first)


def test_a_run_is_known_by_the_content_of_its_inputs(
    project: Path, written: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, read = written(), list[str]()
    monkeypatch.setattr(queue, "input_digest", lambda path: read.append(path) or input_digest(path))

    def made() -> list[str]:
        return [run.name for run in runs_of(study, "mine", "code", load_params())]

    (project / "data/raw/questions.jsonl").write_text("1", encoding="utf-8")
    before = made()
    assert read == ["data/raw"]
    assert made() == before
    (project / "data/raw/questions.jsonl").write_text("2", encoding="utf-8")
    assert not {*made()} & {*before}


def test_a_value_of_another_file_is_passed_on(written: Callable[..., Study]) -> None:
    key = "conf/judge/simulated.yaml:annotator.error_rate"
    runs = runs_of(written({"set": {key: 0.4}}), "mine", "code", load_recipe("smoke"))
    assert all(f"{key}=0.4" in run.overrides for run in runs)


class Dvc:
    """Stands for DVC and Git: experiments succeed, or fail, one at each look at the queue."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failing: str = "") -> None:
        self.failing, self.calls, self.states = failing, list[tuple[str, ...]](), dict[str, str]()
        monkeypatch.setattr(queue, "_dvc", self.dvc)
        monkeypatch.setattr(queue, "_git", self.git)
        monkeypatch.setattr(queue.time, "sleep", lambda _: None)

    def dvc(self, *arguments: str, may_fail: bool = False) -> str:
        self.calls.append(arguments)
        if arguments[:3] == ("exp", "run", "--queue"):
            self.states[arguments[4]] = "Queued"
        if arguments[:2] == ("queue", "remove"):
            for name in arguments[2:]:
                del self.states[name]
        if arguments[:2] == ("queue", "logs"):
            return "Running stage\nalign@dpo: expected a file, found none\n\nERROR: failed to reproduce 'align@dpo'\n"
        if arguments[:2] == ("queue", "status"):
            if waiting := [name for name, state in self.states.items() if state == "Queued"]:
                self.states[waiting[0]] = "Failed" if self.failing and self.failing in waiting[0] else "Success"
            rows = [
                f"abc123{number}  {name}  11:4{number} PM  {state}" for number, (name, state) in enumerate(self.states.items())
            ]
            return "\n".join(["Task     Name    Created    Status", *rows, "", "Worker status: 1 active, 0 idle"])
        return ""

    def git(self, *arguments: str) -> str:
        done = [name for name, state in self.states.items() if state == "Success"]
        return "\n".join(["refs/exps/exec/EXEC_HEAD 00", *(f"refs/exps/ab/cdef/{name} rev-{name}" for name in done)])


def runs(count: int) -> list[Run]:
    return [Run("low", seed, f"mine-low-{seed}-0a1b2c3d", ("++align.dpo.beta=0.1",), ("evaluate@dpo",)) for seed in range(count)]


def test_a_study_that_is_started_again_queues_only_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    dvc, said = Dvc(monkeypatch), []
    dvc.states = {runs(4)[0].name: "Success", runs(4)[1].name: "Running", runs(4)[2].name: "Failed"}
    enqueue(runs(4), said.append)
    queued = [call for call in dvc.calls if call[:2] == ("exp", "run")]
    assert [call[4] for call in queued] == [runs(4)[2].name, runs(4)[3].name]
    assert queued[0][5:] == ("-S", "++align.dpo.beta=0.1", "evaluate@dpo")
    assert ("queue", "remove", runs(4)[2].name) in dvc.calls
    assert said[-1] == "queueing 2 of 2: low, seed 3"


def test_finished_runs_are_returned_with_their_revisions_and_start_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    dvc, said = Dvc(monkeypatch), []
    enqueue(runs(3), said.append)
    assert work_off(runs(3), 2, said.append) == {run.name: f"rev-{run.name}" for run in runs(3)}
    assert ("queue", "start", "--jobs", "2") in dvc.calls
    dvc.calls.clear()
    work_off(runs(3), 2, said.append)
    assert [call[:2] for call in dvc.calls] == [("queue", "status")]


def test_a_failure_names_the_experiment_and_its_last_words_once_the_others_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    dvc = Dvc(monkeypatch, failing="low-1")
    enqueue(runs(3), lambda _: None)
    with pytest.raises(
        RuntimeError, match="1 of 3 experiments failed; the first, mine-low-1-0a1b2c3d, ends with: align@dpo: expected a file"
    ):
        work_off(runs(3), 1, lambda _: None)
    assert [*dvc.states.values()] == ["Success", "Failed", "Success"]


def test_workers_that_are_gone_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    Dvc(monkeypatch).states = {}
    with pytest.raises(RuntimeError, match="expected workers to run the 2 experiments that are left, found none at work"):
        work_off(runs(2), 1, lambda _: None)


def test_a_study_waits_while_workers_do_what_others_have_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    dvc = Dvc(monkeypatch)
    dvc.states = {"another": "Running"}
    polls = iter(range(1, 10 * queue.PATIENCE_POLLS))

    def sleep(_: float) -> None:
        if next(polls) == 3 * queue.PATIENCE_POLLS:
            dvc.states = {"another": "Success", runs(1)[0].name: "Queued"}

    monkeypatch.setattr(queue.time, "sleep", sleep)
    assert work_off(runs(1), 1, lambda _: None) == {runs(1)[0].name: f"rev-{runs(1)[0].name}"}


def test_as_many_workers_as_fit_in_cores_and_memory(
    monkeypatch: pytest.MonkeyPatch, project: Path, written: Callable[..., Study]
) -> None:
    study = written()
    monkeypatch.setattr(queue.psutil, "cpu_count", lambda logical: 8)
    free = type("Memory", (), {"available": 11_000 * 2**20})
    monkeypatch.setattr(queue.psutil, "virtual_memory", lambda: free)
    assert workers(study, threads=2) == 3  # four fit, and there are three seeds
    assert workers(study, threads=4) == 2
    (project / ".timings").mkdir()
    (project / ".timings/align@dpo.jsonl").write_text('{"peak_rss_mib": 6000}\n{"samples_per_second": 3}\n')
    assert workers(study, threads=2) == 1
    monkeypatch.setattr(queue.psutil, "cpu_count", lambda logical: 1)
    assert workers(study, threads=2) == 1


# ---- results ------------------------------------------------------------------------------------------------------------


def test_a_figure_is_read_from_a_nodes_file_or_from_a_row_of_its_curve() -> None:
    files = {
        "artifacts/evaluate/dpo/figures.json": '{"gold": 0.75, "gold_low": 0.7, "win_rate": null}',
        "artifacts/figures/label/round1.json": '{"pairs": 40}',
        "artifacts/curves/overoptimisation/ppo.csv": "step,gold_gain\n0,0\n16,0.25\n",
    }

    def read(path: Path) -> str:
        if path.as_posix() not in files:
            raise FileNotFoundError(path)
        return files[path.as_posix()]

    dpo, ppo = Reading("evaluate@dpo", "gold"), Reading("overoptimisation@ppo", "gold_gain", at=[16])
    assert figure_of(dpo, "gold", None, read) == 0.75
    assert figure_of(Reading("label@round1", "pairs"), "pairs", None, read) == 40
    assert figure_of(ppo, "gold_gain", 16, read) == 0.25
    for arguments, complaint in (
        ((dpo, "win_rate", None), "null, which stands for a figure that does not apply. There are: gold"),
        ((dpo, "golds", None), "no such figure. Did you mean 'gold'?"),
        ((ppo, "gold_gain", 8.0), "expected a row with step 8 in artifacts/curves/overoptimisation/ppo.csv, found 0, 16"),
        ((Reading("pool@both", "rows"), "rows", None), "found no such file: this kind of stage writes none"),
    ):
        with pytest.raises(ValueError, match=re.escape(complaint)):
            figure_of(*arguments, read)


def values(low: list[float], high: list[float]) -> dict[PointName, dict[int, float]]:
    return {PointName(name, "DPO"): dict(zip((1, 2, 3), of, strict=True)) for name, of in (("low", low), ("high", high))}


def test_the_difference_is_paired_by_seed_with_a_t_interval(written: Callable[..., Study]) -> None:
    """Differences 0.1, 0.2, 0.3: mean 0.2, standard deviation 0.1, and t(0.975, 2) = 4.3027: 0.2 ± 4.3027 · 0.1 / √3 = ± 0.2484."""
    study = written()
    outcome = outcome_of(study, values([0.5, 0.1, 0.3], [0.6, 0.3, 0.6]), {})
    assert outcome.compared[0].difference[:3] == pytest.approx((0.2, -0.0484, 0.4484), abs=1e-4)
    assert outcome.sentence == (
        "Gold with a larger β (0.50) cannot be told apart from that with a smaller one (0.30): +0.20 (95 % interval over 3 seeds: −0.05 to +0.45)."
    )
    paired = outcome_of(study, values([0.5, 0.1, 0.3], [0.7, 0.31, 0.49]), {})
    assert "is higher than" in paired.sentence  # though the seeds themselves lie further apart than that
    assert "is lower than" in outcome_of(study, values([0.7, 0.31, 0.49], [0.5, 0.1, 0.3]), {}).sentence


def test_an_answer_may_have_several_comparisons_also_of_the_places_on_the_horizontal_axis(written: Callable[..., Study]) -> None:
    further = {"compare": SOUND["compare"] | {"axis": "x"}, "sentence": "KL ({first}) {verdict} {second}: {difference}."}
    study = written({"figure.style": "percent", "read.DPO.x_metric": "kl", "also": {"KL": further}})
    outcome = outcome_of(study, values([0.5, 0.5, 0.5], [0.6, 0.6, 0.6]), values([4.0, 5.0, 6.0], [1.0, 2.0, 3.0]))
    of_gold, of_kl = outcome.compared
    assert (of_gold.difference.value, of_kl.difference.value) == pytest.approx((0.1, -3.0))
    assert of_kl.sentence == "KL (2.00) is lower than 5.00: −3.00 (95 % interval over 3 seeds: −3.00 to −3.00)."
    assert outcome.sentence == f"{of_gold.sentence} {of_kl.sentence}"
    held = record(study, outcome, "digest")
    assert held["compared"]["axis"] == "y"
    assert held["also"]["KL"]["difference"] == {"value": -3.0, "low": -3.0, "high": -3.0}
    assert held["also"]["KL"]["compared"]["axis"] == "x"


def test_fractions_differ_by_points(written: Callable[..., Study]) -> None:
    study = written({"figure.style": "percent"})
    difference = outcome_of(study, values([0.5, 0.5, 0.5], [0.6, 0.6, 0.6]), {}).compared[0].difference
    assert difference_text(difference, "percent") == "+10.0 points (95 % interval over 3 seeds: +10.0 to +10.0)"


def test_the_figure_can_be_read_in_grey_and_without_eyes_and_is_the_same_every_time(written: Callable[..., Study]) -> None:
    study = written()
    outcome = outcome_of(study, values([0.5, 0.1, 0.3], [0.6, 0.3, 0.6]), {})
    text = draw(study, outcome)
    assert draw(study, outcome) == text
    root = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert root.get("role") == "img"
    assert root.findtext(f"{space}title") == study.question
    assert root.findtext(f"{space}desc") == alternative_text(study, outcome)
    assert "low at β 0.1: 0.30 (−0.20 to 0.80)" in alternative_text(study, outcome)
    colours = set(re.findall(r"#([0-9a-f]{6})", text))
    assert colours
    assert all(colour[:2] == colour[2:4] == colour[4:] for colour in colours)
    drawn = "".join(root.itertext())
    assert all(label in drawn for label in ("β", "gold", "Does a larger"))


def test_every_shape_of_study_can_be_drawn(written: Callable[..., Study]) -> None:
    """By name, by a measured place, by rows of a curve, with several series."""
    by_name = written({"vary": {"low": {}, "high": {"set": {"align.dpo.beta": 0.5}}}})
    assert "high" in draw(by_name, outcome_of(by_name, values([0.5, 0.1, 0.3], [0.6, 0.3, 0.6]), {}))
    measured = written({"read.DPO.x_metric": "kl"})
    outcome = outcome_of(measured, values([0.5, 0.1, 0.3], [0.6, 0.3, 0.6]), values([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]))
    assert [point.x.mean for point in outcome.points if point.x] == [2.0, 5.0]
    assert draw(measured, outcome)
    for name in ALL:
        study = load_study_of_the_project(name)
        ys = {point: {seed: 0.1 * number + 0.01 * seed for seed in study.seeds} for number, point in enumerate(study.points())}
        xs = {point: of for point, of in ys.items() if study.read[point.series].x_metric}
        ElementTree.fromstring(draw(study, outcome_of(study, ys, xs)))


def load_study_of_the_project(name: str) -> Study:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(composing, "CONF", ROOT / "conf")
        patch.setattr(declaration, "STUDIES", ROOT / "conf/study")
        return load_study(name)


def test_the_file_of_results_holds_every_value(written: Callable[..., Study]) -> None:
    study = written()
    held = record(study, outcome_of(study, values([0.5, 0.1, 0.3], [0.6, 0.3, 0.6]), {}), "digest")
    assert held["points"][1]["values"] == {"1": 0.6, "2": 0.3, "3": 0.6}
    assert held["compared"]["first"]["condition"] == "high"
    assert held["sentence"] in json.loads(json.dumps(held, allow_nan=False))["sentence"]


def test_the_command_writes_the_figure_and_the_values_and_says_the_sentence(
    project: Path, written: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With runs that are done: gold is 0.1 for the lower β, 0.3 for the higher one, and a hundredth more with each seed."""
    study = written()
    of_run = {run.name: run for run in runs_of(study, "mine", "code", load_params())}

    def read_file(revision: str, path: Path) -> str:
        run = of_run[revision.removeprefix("rev-")]
        assert path == Path("artifacts/evaluate/dpo/figures.json")
        return json.dumps({"gold": {"low": 0.1, "high": 0.3}[run.condition] + run.seed / 100})

    dvc = Dvc(monkeypatch)
    dvc.states = dict.fromkeys(of_run, "Success")
    monkeypatch.setattr(command, "check", lambda *_: None)
    monkeypatch.setattr(command, "code_digest", lambda: "code")
    monkeypatch.setattr(command, "read_file", read_file)
    assert command.run("mine", None, 1, dry=True).splitlines() == [f"{name}: done" for name in of_run]
    assert not (project / "studies").exists()
    sentence = command.run("mine", None, 1, dry=False)
    assert sentence.startswith("Gold with a larger β (0.32) is higher than that with a smaller one (0.12): +0.20")
    held = json.loads((project / "studies/mine.json").read_text(encoding="utf-8"))
    assert held["sentence"] == sentence
    assert [point["values"] for point in held["points"]] == [{"1": 0.11, "2": 0.12, "3": 0.13}, {"1": 0.31, "2": 0.32, "3": 0.33}]
    assert "<svg" in (project / "studies/mine.svg").read_text(encoding="utf-8")
    assert sentence in command.listing()


def test_a_figure_that_a_run_lacks_is_named_with_the_study_and_the_run(
    project: Path, written: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = written({"read.DPO.metric": "win_rat"})
    made = runs_of(study, "mine", "code", load_params())
    monkeypatch.setattr(command, "read_file", lambda *_: '{"win_rate": 0.5}')
    with pytest.raises(
        ValueError, match=r"mine\.yaml: read\.DPO: .* no such figure\. Did you mean 'win_rate'\?.*\(low, seed 1\)"
    ):
        command.conclude(study, "mine", made, {run.name: "rev" for run in made}, "code")


def test_check_looks_at_other_recipes_than_params_yaml_and_writes_nothing(project: Path) -> None:
    sound, wrong = load_recipe("smoke"), load_recipe("smoke")
    declaration.put(wrong, "align.dpo.beta", -1)
    for name, recipe in (("sound", sound), ("wrong", wrong)):
        (project / f"{name}.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    stages.check.main(["sound.yaml"])
    with pytest.raises(SystemExit, match=r"align\.dpo\.beta: expected above 0, found -1"):
        stages.check.main(["sound.yaml", "wrong.yaml"])
    assert not (project / "artifacts").exists()


# ---- the whole way ------------------------------------------------------------------------------------------------------


def test_the_results_that_are_kept_belong_to_studies_and_stand_on_the_page() -> None:
    page = (ROOT / "docs/studies.md").read_text(encoding="utf-8")
    for file in sorted((ROOT / "studies").glob("*.json")):
        held = json.loads(file.read_text(encoding="utf-8"))
        assert file.stem in names()
        assert held["question"] == load_study(file.stem).question
        assert held["sentence"] in page
        assert f"![{held['alternative_text']}](../studies/{file.stem}.svg)" in page
        assert file.with_suffix(".svg").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_study_runs_through_dvcs_queue_and_is_not_repeated(tmp_path: Path) -> None:
    """A question about `prepare` alone, whose answer is known: twice the scale is twice the demonstrations."""
    folder = tmp_path / "project"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    study = SOUND | {
        "question": "How many demonstrations are there at twice the scale?",
        "vary": {"0.02": {"x": 0.02, "set": {"prepare.scale": 0.02}}, "0.04": {"x": 0.04, "set": {"prepare.scale": 0.04}}},
        "read": {"demonstrations": {"node": "prepare", "metric": "sft.train.rows"}},
        "compare": {"first": {"condition": "0.04"}, "second": {"condition": "0.02"}},
    }
    (folder / "conf/study/scale.yaml").write_text(yaml.safe_dump(study, allow_unicode=True, sort_keys=False), encoding="utf-8")
    before = (folder / "params.yaml").read_bytes()
    commands = [
        ["git", "init", "-q"],
        ["git", "add", "-A"],
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "start"],
    ]
    for words in commands:
        subprocess.run(words, cwd=folder, check=True)
    outputs = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-m", "plumbline.tools.study", "scale", "--jobs", "2"], cwd=folder, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stdout
        outputs.append(done.stdout)
    assert "6 runs of the recipe smoke, 0 of them done" in outputs[0]
    assert "running, 0 failed" in outputs[0]  # it is told while the workers are at work
    assert "6 runs of the recipe smoke, 6 of them done" in outputs[1]
    assert "queueing" not in outputs[1]
    held = json.loads((folder / "studies/scale.json").read_text(encoding="utf-8"))
    once, twice = (point["mean"] for point in held["points"])
    assert twice == pytest.approx(2 * once, rel=0.05)
    assert held["difference"]["value"] == pytest.approx(twice - once)
    assert (folder / "params.yaml").read_bytes() == before
