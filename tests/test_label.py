"""Claims about labels: what is written, what is left out, and that a judge outside its limits labels nothing."""

import dataclasses
import json
import random
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from plumbline.judging.gate import GateError, Quality
from plumbline.judging.gold import VerifierJudge
from plumbline.judging.judge import Comparison
from plumbline.judging.judges import GateLimits, GoldJudge, HumanJudge, JudgeConfig, NoJudge, SimulatedJudge
from plumbline.judging.sheets import export, item_code
from plumbline.labelling.entry import LabelEntry
from plumbline.pipeline.records import read_json, read_jsonl, write_jsonl
from plumbline.pipeline.shard_files import read_table, write_table
from plumbline.rows import Preference, Row, assistant, text_of
from plumbline.world.annotate import AnnotatorConfig
from plumbline.world.answers import Style, write_answer
from plumbline.world.families.catalog import FAMILIES, understand
from plumbline.world.verify import verify
from stages.label import LabelStage, run
from tests.interrupting import require_resuming, require_surviving_a_kill

PROMPTS, EACH = 40, 4
STYLES = (
    Style("wrong", "rude", False),
    Style("wrong", "kind", True),
    Style("right", "kind", True),
    Style("right", "plain", False),
)
PRINCIPLES = {name: {"judge": {"en": text, "ko": text}} for name, text in (("kind", "Be polite."), ("short", "Be brief."))}


@pytest.fixture
def sampled(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a small sample of the closed world, as under DVC."""
    monkeypatch.setenv("DVC_STAGE", "label@round1")
    rng, rows = random.Random(5), []
    for number in range(PROMPTS):
        family = FAMILIES[sorted(FAMILIES)[number % len(FAMILIES)]]
        prompt = family.ask(rng.choice(family.intents()), "ko" if number % 4 == 0 else "en", rng)
        task = understand(prompt)
        assert task is not None
        for index in range(EACH):
            text = write_answer(task, STYLES[index], rng)
            rows.append({"id": f"p{number}", "index": index, "prompt": prompt, "policy": "sft" if index < 2 else "base",
                         "completion": assistant(text), "finished": True, "tokens": 5})  # fmt: skip
    write_table(project / "artifacts/sample/round1", rows, 15)
    (project / "data/annotations").mkdir(parents=True)
    return project


def annotator(error: float = 0.1, position: float = 0.0, length: float = 0.0) -> AnnotatorConfig:
    return AnnotatorConfig(error_rate=error, position_bias=position, length_bias=length, revision_skill=0.7, seed=1)


def label(judge: JudgeConfig | None = None, **changes: Any) -> dict[str, Any]:
    """Runs the stage and returns its metrics."""
    judge = judge or SimulatedJudge(annotator=annotator())
    settings = LabelEntry(
        sample="round1", judge=judge.backend, way="rating", pairs="best_vs_worst", min_margin=1.0, keep_ties=False, pairs_per_prompt=0, opponents=0,
        prompts=0, strong=None, weak=None, known="none", validation_fraction=0.25,
    )  # fmt: skip
    run(LabelStage(seed=17, threads=1, label=dataclasses.replace(settings, **changes), judge=judge), "round1")
    metrics: dict[str, Any] = read_json("artifacts/figures/label/round1.json")
    return metrics


def labels(split: str = "train") -> list[Row]:
    return read_jsonl(f"artifacts/label/round1/{split}.jsonl")


def texts(row: Row, *columns: str) -> tuple[str, ...]:
    return tuple(text_of(row[column]) for column in columns)


def gold(row: Row, column: str) -> float:
    return verify(row["prompt"], text_of(row[column])).gold


def test_a_perfect_judge_prefers_what_the_verifier_prefers(sampled: Path) -> None:
    metrics = label(GoldJudge(), min_margin=0.1, known="gold")
    assert metrics["known_agreement"] == 1.0
    rows = labels() + labels("validation")
    assert len(rows) > PROMPTS / 2
    assert all(gold(row, "chosen") > gold(row, "rejected") for row in rows)


def test_every_preference_says_where_it_comes_from_and_every_reply_is_kept(sampled: Path) -> None:
    label()
    verdicts = read_jsonl("artifacts/verdicts/round1.jsonl")
    assert len(verdicts) == PROMPTS * EACH
    replies = {(row["id"], row["indexes"][0]): row["reply"] for row in verdicts}
    for row in labels():
        assert (row["judge"], row["way"]) == ("simulated", "rating")
        assert row["margin"] == row["score_chosen"] - row["score_rejected"] >= 1.0
        assert row["verdicts_chosen"] == [f"simulated: {replies[row['id'], row['index_chosen']].splitlines()[-1]}"]
        assert row["cost"] == 0.0
        assert [m["role"] for m in row["chosen"] + row["rejected"]] == ["assistant", "assistant"]


def test_splits_are_disjoint_by_prompt_and_reproducible_to_the_byte(sampled: Path) -> None:
    label(pairs="all_pairs")
    files = sorted(Path("artifacts/label/round1").iterdir())
    before = [file.read_bytes() for file in files]
    assert not {row["id"] for row in labels()} & {row["id"] for row in labels("validation")}
    assert len(labels("validation")) > 0
    label(pairs="all_pairs")
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize(
    ("way", "pairs"),
    [("rating", "best_vs_random"), ("pairwise", "compared"), ("pairwise", "best_vs_worst"), ("ranking", "all_pairs")],
)
def test_every_way_of_judging_gives_mostly_right_preferences(sampled: Path, way: str, pairs: str) -> None:
    metrics = label(way=way, pairs=pairs, min_margin=0.1, known="gold")
    rows = labels()
    assert len(rows) > 10
    assert metrics["known_agreement"] > 0.8
    right = Counter(gold(row, "chosen") >= gold(row, "rejected") for row in rows)
    assert right[True] > 0.8 * len(rows)
    assert set(Counter(row["id"] for row in rows).values()) <= set(range(1, 7))
    ids = [row["id"] for row in rows]
    assert ids == sorted(ids, key=ids.index)  # a prompt's pairs are adjacent


def test_a_completions_pairwise_score_is_its_mean_win(sampled: Path) -> None:
    label(GoldJudge(), way="pairwise", pairs="all_pairs", min_margin=0.01)
    sample = {(row["id"], row["index"]): row for row in read_table(Path("artifacts/sample/round1"))}
    worth = {key: gold(row, "completion") for key, row in sample.items()}
    for row in labels():
        chosen = worth[row["id"], row["index_chosen"]]
        others = [worth[row["id"], index] for index in range(EACH) if index != row["index_chosen"]]
        assert row["score_chosen"] == sum((chosen > other) + (chosen == other) / 2 for other in others) / len(others)


def test_a_compared_pair_carries_the_verdicts_of_both_orders(sampled: Path) -> None:
    label(SimulatedJudge(annotator=annotator(), principles=PRINCIPLES), way="pairwise", pairs="compared", min_margin=0.5)
    verdicts = read_jsonl("artifacts/verdicts/round1.jsonl")
    replies = {(row["id"], *row["indexes"], row["order"]): row["reply"].splitlines()[-1] for row in verdicts}
    for row in labels():
        first, second = sorted((row["index_chosen"], row["index_rejected"]))
        asked = [f"simulated [{order}]: {replies[row['id'], first, second, order]}" for order in ("ab", "ba")]
        assert row["verdicts_chosen"] == row["verdicts_rejected"] == asked
        winner = "A" if row["index_chosen"] == first else "B"
        assert asked[0].endswith(f"Verdict: {winner}")
    assert {row["principle"] for row in labels()} == set(PRINCIPLES)


def test_token_probabilities_are_the_scores_where_a_judge_gives_them(sampled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Sure(VerifierJudge):
        """The verifier's verdicts, with a probability of 0.8 for the winner and 0.5 for a tie."""

        def compare(self, *arguments: Any, **more: Any) -> list[Comparison]:
            return [c._replace(probability={"a": 0.8, "b": 0.2}.get(c.outcome, 0.5)) for c in super().compare(*arguments, **more)]

    monkeypatch.setattr("plumbline.judging.building.load_judge", lambda *_, **__: Sure())
    label(GoldJudge(), way="pairwise", pairs="compared", min_margin=0.5)
    assert {row["margin"] for row in labels()} == {0.6}  # 0.8 - 0.2
    assert max(row["score_chosen"] for row in labels()) == pytest.approx(0.8)  # the mean of probabilities, not of wins
    assert all(gold(row, "chosen") > gold(row, "rejected") for row in labels())
    with pytest.raises(ValueError, match="expected preferences, found none"):
        label(GoldJudge(), way="pairwise", pairs="compared", min_margin=0.7)


def test_kto_rows_are_unpaired(sampled: Path) -> None:
    label(pairs="unpaired", min_margin=2.0)
    rows = labels()
    assert {type(row["label"]) for row in rows} == {bool}
    assert {row["label"] for row in rows} == {True, False}
    assert all("chosen" not in row and row["completion"][0]["role"] == "assistant" for row in rows)


def test_a_stronger_policys_answers_are_chosen_without_a_judge(sampled: Path) -> None:
    metrics = label(NoJudge(), pairs="strong_vs_weak", strong="sft", weak="base")
    assert {(row["policy_chosen"], row["policy_rejected"]) for row in labels()} == {("sft", "base")}
    assert metrics["verdicts"] == 0


def test_principles_are_checked_one_by_one_and_the_share_kept_is_the_score(sampled: Path) -> None:
    label(SimulatedJudge(annotator=annotator(), principles=PRINCIPLES), way="principle", min_margin=0.5)
    assert len(read_jsonl("artifacts/verdicts/round1.jsonl")) == 2 * PROMPTS * EACH
    assert {row["score_chosen"] for row in labels()} <= {0.5, 1.0}


def answers(rows: dict[str, list[str]], cut: tuple[str, ...] = ()) -> None:
    """Writes a sample with these completions of each prompt; those in `cut` were cut off."""
    shutil.rmtree("artifacts/sample/round1")
    write_table(Path("artifacts/sample/round1"), [
        {"id": name, "index": index, "prompt": [{"role": "user", "content": name}], "policy": "sft", "tokens": 5, "finished": text not in cut,
         "completion": assistant(text)} for name, completions in rows.items() for index, text in enumerate(completions)
    ], 1)  # fmt: skip


def agreement_labels(**changes: Any) -> dict[str, Any]:
    return label(NoJudge(), **{"way": "agreement", "min_margin": 0.2, "validation_fraction": 0.0} | changes)


def test_what_most_completions_agree_on_is_chosen_without_a_judge(sampled: Path) -> None:
    answers({"2 + 3": ["It is 6.", "It is 5.", "5", "So 5!"], "Capital?": ["Lyon", "It is Paris", "Paris", "Paris it is"]})
    metrics = agreement_labels()
    sums, capital = labels()
    assert texts(sums, "chosen", "rejected") == ("It is 5.", "It is 6.")
    assert (sums["score_chosen"], sums["score_rejected"], sums["margin"]) == (2 / 3, 0.0, 0.666667)
    # "Lyon" shares no word with the others. "It is Paris" agrees with "Paris" by 1/2 and with "Paris it is" by 1.
    assert texts(capital, "chosen", "rejected") == ("It is Paris", "Lyon")
    assert (capital["score_chosen"], capital["score_rejected"]) == (1 / 2, 0.0)
    assert {(row["judge"], row["way"], row["cost"]) for row in labels()} == {("none", "agreement", 0.0)}
    assert capital["verdicts_chosen"] == ["agreement: 0.5"]
    assert (metrics["verdicts"], metrics["unparsed_fraction"], metrics["cost"]) == (0, None, 0.0)  # nobody was asked
    kept = read_jsonl("artifacts/verdicts/round1.jsonl")
    assert [(row["id"], row["indexes"], row["value"]) for row in kept[:2]] == [("2 + 3", [0], 0.0), ("2 + 3", [1], 2 / 3)]
    assert len(kept) == 8


@pytest.mark.parametrize(
    ("pairs", "min_margin", "expected"),
    [
        ("best_vs_worst", 0.1, {("b", "c c")}),
        ("best_vs_random", 0.1, {("b", "a b"), ("b", "c c")}),  # one of the two
        ("all_pairs", 0.1, {("b", "a b"), ("a b", "c c"), ("b", "c c")}),
        ("all_pairs", 0.4, {("a b", "c c"), ("b", "c c")}),
    ],
)
def test_pairs_and_margins_work_on_agreement(
    sampled: Path, pairs: str, min_margin: float, expected: set[tuple[str, str]]
) -> None:
    """`a b` agrees by 2/3 with each `b` and by 0 with `c c`: 4/9. `b` agrees by 1 with `b`, 2/3 with `a b`, 0 with `c c`: 5/9."""
    answers({"q": ["a b", "b", "b", "c c"]})
    agreement_labels(pairs=pairs, min_margin=min_margin)
    preferred = [texts(row, "chosen", "rejected") for row in labels()]
    assert set(preferred) <= expected
    assert len(preferred) == (1 if pairs.startswith("best") else len(expected))


def test_a_margin_is_compared_as_it_is_written(sampled: Path) -> None:
    """Among six, `5` agrees with three of the five others and `7` with one; in floats, 0.6 − 0.2 is below 0.4."""
    answers({"q": ["5", "It is 5", "5.", "5!", "7", "It is 7"]})
    assert agreement_labels(min_margin=0.4)["train"] == 1


CUT = ("It is 7 and", "So 7 then", "Then 7 or")


def test_what_was_cut_off_neither_scores_others_nor_is_chosen(sampled: Path) -> None:
    """Among the finished, `5` agrees with one of two others and `7` with none. Those that were cut off agree with one of three."""
    answers({"q": ["It is 5", "5", "7", *CUT]}, CUT)
    agreement_labels(pairs="all_pairs", min_margin=0.1)
    margins = {"7": 0.5} | dict.fromkeys(CUT, 0.166667)
    preferred = {(*texts(row, "chosen", "rejected"), row["margin"]) for row in labels()}
    assert preferred == {(five, other, margin) for five in ("It is 5", "5") for other, margin in margins.items()}


@pytest.mark.parametrize(
    ("judge", "way", "min_margin", "bad"), [(NoJudge(), "agreement", 0.1, ["7", "5"]), (GoldJudge(), "rating", 1.0, ["5"])]
)
def test_what_was_cut_off_is_not_a_good_example_for_kto_either(
    sampled: Path, judge: JudgeConfig, way: str, min_margin: float, bad: list[str]
) -> None:
    best = ("Of course! It is 7", "Of course! It is 7.")  # the verifier's best, and the only ones that a finished one agrees with
    answers({"What is 2 + 5?": ["7", "5", *best]}, best)
    metrics = label(judge, way=way, pairs="unpaired", min_margin=min_margin, validation_fraction=0.0)
    assert [(*texts(row, "completion"), row["label"]) for row in labels()] == [(text, False) for text in bad]
    assert metrics["dropped_unfinished"] == 2


def test_agreement_is_compared_with_what_is_known(sampled: Path) -> None:
    metrics = agreement_labels(known="gold", min_margin=0.1)
    assert 0 < metrics["known_agreement"] < 1
    assert metrics["pairs_compared"] > PROMPTS
    assert all(0 <= row["score_rejected"] < row["score_chosen"] <= 1 for row in labels())


@pytest.mark.parametrize(
    ("judge", "changes", "message"),
    [
        (None, {}, r"label\.judge: expected none .* found one of backend simulated"),
        (NoJudge(), {"way": "rating"}, r"label\.judge: expected a judge .* found none"),
        (NoJudge(), {"min_margin": 1.0}, r"label\.min_margin: expected less than 1 .* found 1\.0"),
        (NoJudge(), {"pairs": "compared"}, r"label\.way: expected pairwise .* found agreement"),
        (
            NoJudge(),
            {"pairs": "strong_vs_weak", "strong": "sft", "weak": "base"},
            r"label\.way: expected a way other than agreement",
        ),
    ],
)
def test_agreement_takes_no_judge_and_no_margin_that_it_cannot_reach(
    sampled: Path, judge: JudgeConfig | None, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        label(judge, **{"way": "agreement", "min_margin": 0.2} | changes)


def test_a_judge_outside_its_limits_writes_no_labels(sampled: Path) -> None:
    strict = SimulatedJudge(annotator=annotator(position=0.9), gate=GateLimits(inconsistent_fraction=0.3))
    with pytest.raises(GateError, match=r"inconsistent_fraction is 0\.\d+ \(\d+ of \d+\), expected at most 0.3"):
        label(strict, way="pairwise", pairs="compared")
    assert Path("artifacts/verdicts/round1.jsonl").is_file()
    assert not Path("artifacts/label/round1").exists()
    assert not Path("artifacts/figures/label/round1.json").exists()


def test_the_gate_shows_the_verdicts_that_changed_with_the_order(sampled: Path) -> None:
    strict = SimulatedJudge(annotator=annotator(position=0.5), gate=GateLimits(inconsistent_fraction=0.1))
    with pytest.raises(GateError) as caught:
        label(strict, way="pairwise", pairs="compared")
    examples = [line for line in str(caught.value).splitlines() if "against" in line]
    assert len(examples) == 3
    for line in examples:
        replies = re.findall(r"simulated \[(ab|ba)\]: Verdict: (\w+)", line)
        assert [order for order, _ in replies] == ["ab", "ba"]
        assert [letter for _, letter in replies] not in (["A", "B"], ["B", "A"], ["tie", "tie"])  # these agree


def test_pairs_that_are_left_out_are_counted(sampled: Path) -> None:
    metrics = label(GoldJudge(), pairs="all_pairs", min_margin=3.0)
    pairs = metrics["train"] + metrics["validation"] + metrics["dropped_ties"] + metrics["dropped_margin"]
    distinct: dict[str, set[str]] = {}
    for row in read_table(Path("artifacts/sample/round1")):
        distinct.setdefault(row["id"], set()).add(text_of(row["completion"]))
    assert pairs == sum(len(completions) * (len(completions) - 1) / 2 for completions in distinct.values())
    assert metrics["dropped_margin"] > 0
    with_ties = label(GoldJudge(), pairs="all_pairs", min_margin=3.0, keep_ties=True)
    assert with_ties["dropped_ties"] == 0
    assert sum(row["tie"] for row in labels() + labels("validation")) == metrics["dropped_ties"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"way": "guess"}, r"label\.way: expected one of rating"),
        ({"pairs": "compared"}, r"label\.way: expected pairwise"),
        ({"pairs": "strong_vs_weak"}, r"label\.strong, weak: expected two policies"),
        ({"way": "principle"}, r"label\.judge: expected a judge with principles"),
        ({"validation_fraction": 1.0}, r"label\.validation_fraction: expected .* less than 1"),
        ({"min_margin": 99.0}, "expected preferences, found none"),
    ],
)
def test_values_that_do_not_fit_are_named(sampled: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label(**changes)


def test_the_judge_is_compared_with_a_file_of_human_preferences(sampled: Path) -> None:
    label(GoldJudge(), min_margin=0.1)
    write_jsonl("data/annotations/people.jsonl", [Preference.of(row).swapped().row() for row in labels()])
    assert label(GoldJudge(), min_margin=0.1, known="data/annotations/people.jsonl")["known_agreement"] == 0.0


@pytest.mark.parametrize("way", ["ranking", "rating", "pairwise"])
def test_a_sheet_that_people_fill_becomes_labels_and_an_ai_judge_is_compared_with_it(sampled: Path, way: str) -> None:
    rows = read_table(Path("artifacts/sample/round1"))
    export(rows, Path("blank"), way, seed=17)
    filled = []
    for row in read_jsonl("blank.jsonl"):
        if way == "pairwise":
            worth = {letter: verify_text(rows, row[item]) for letter, item in (("A", "item_a"), ("B", "item_b"))}
            verdict = "tie" if worth["A"] == worth["B"] else max(worth, key=lambda letter: worth[letter])
        else:
            score = verify_text(rows, row["item"])
            verdict = str(round(1 + 9 * score)) if way == "rating" else str(round(1000 * (1 - score)))
        filled += [{**row, "annotator": annotator, "verdict": verdict} for annotator in ("ann", "bo")]
    write_jsonl("data/annotations/filled.jsonl", filled)
    people = HumanJudge(annotations="data/annotations/filled.jsonl")
    metrics = label(people, way=way, pairs="best_vs_worst", min_margin=0.1, known="gold")
    assert metrics["kappa"] == 1.0  # between the two, who agree
    assert metrics["known_agreement"] == 1.0
    assert len(labels()) > 10
    assert all(gold(row, "chosen") > gold(row, "rejected") for row in labels())
    against = label(SimulatedJudge(annotator=annotator(error=0.2)), min_margin=1.0, known="data/annotations/filled.jsonl")
    assert 0.6 < against["known_agreement"] < 1.0


def verify_text(rows: list[Row], code: str) -> float:
    """The gold score of the completion with this code."""
    row = next(row for row in rows if item_code(row["prompt"], text_of(row["completion"])) == code)
    return gold(row, "completion")


@pytest.mark.parametrize("where", ["people.jsonl", "data/annotations/../people.jsonl", "/tmp/people.jsonl"])
def test_filled_sheets_have_to_lie_where_dvc_sees_them_change(sampled: Path, where: str) -> None:
    with pytest.raises(ValueError, match=r"label\.known: expected a path in data/annotations"):
        label(known=where)
    with pytest.raises(ValueError, match=r"judge\.annotations: expected a path in data/annotations"):
        label(HumanJudge(annotations=where))


def test_pairs_that_are_not_drawn_are_counted(sampled: Path) -> None:
    everything = label(pairs="all_pairs", min_margin=0.0)
    some = label(pairs="all_pairs", min_margin=0.0, pairs_per_prompt=2)
    assert everything["not_drawn"] == 0
    assert some["not_drawn"] == everything["train"] + everything["validation"] - some["train"] - some["validation"] > 0
    assert max(Counter(row["id"] for row in labels()).values()) == 2


@pytest.mark.parametrize("way", ["rating", "pairwise"])
def test_an_interrupted_run_goes_on_from_its_shards(sampled: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    outputs = ["artifacts/label/round1", "artifacts/verdicts/round1.jsonl", "artifacts/figures/label/round1.json"]
    settings: dict[str, Any] = {"way": way, "pairs": "all_pairs", "min_margin": 0.1, "known": "gold"}
    require_resuming(monkeypatch, lambda: label(**settings), outputs, done=2)


def test_a_run_that_was_killed_loses_one_shard_and_ends_in_the_same_bytes(sampled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = ["artifacts/label/round1", "artifacts/verdicts/round1.jsonl", "artifacts/figures/label/round1.json"]
    require_surviving_a_kill(monkeypatch, label, "from test_label import label; label()", outputs, done=1)


def test_people_are_asked_about_all_shards_in_one_run(sampled: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Else the verdicts on shards of an interrupted run would be reported as those that nobody asked for."""
    rows = read_table(Path("artifacts/sample/round1"))
    export(rows, Path("blank"), "rating", seed=17)
    filled = [{**row, "annotator": "ann", "verdict": str(5 + number % 3)} for number, row in enumerate(read_jsonl("blank.jsonl"))]
    write_jsonl("data/annotations/filled.jsonl", filled)
    people = HumanJudge(annotations="data/annotations/filled.jsonl")
    outputs = ["artifacts/label/round1", "artifacts/figures/label/round1.json"]
    require_resuming(monkeypatch, lambda: label(people), outputs, done=1, afresh=True)
    assert "not among those to label" not in capsys.readouterr().err


def test_the_first_prompts_are_labelled_across_shards(sampled: Path) -> None:
    assert label(prompts=20)["prompts"] == 20
    assert {row["id"] for row in labels() + labels("validation")} <= {f"p{number}" for number in range(20)}


def test_what_shards_say_of_a_judge_adds_up_to_what_the_whole_says(sampled: Path) -> None:
    rng, parts = random.Random(2), [Quality() for _ in range(3)]
    whole, joined = Quality(), Quality()
    for number in range(60):
        opinions = {name: float(rng.randrange(3)) for name in ("ann", "bo", "cy") if rng.random() < 0.8}
        for quality in (whole, parts[number // 20]):
            quality.add_opinions(opinions)
            quality.unparsed.add(number % 7 == 0, f"case {number}")
            quality.add_preference("a", "bb", float(number % 3 - 1), where=str(number))
    for part in parts:
        joined.merge(Quality.of(json.loads(json.dumps(part.state()))))
    assert joined.metrics() == whole.metrics()
    assert 0 < abs(whole.metrics()["kappa"] or 0) < 1
    assert joined.state() == whole.state()
