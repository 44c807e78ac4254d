"""Claims about the story that every form of the report begins with, from figures given by hand."""

from dataclasses import replace
from typing import Any

import pytest

from plumbline.evaluation.comparisons import MEASURES, Comparisons, Pair, compare_policies
from plumbline.evaluation.statistics import Interval, bootstrap_gain, flat, fraction_interval
from plumbline.models.decoding_values import NEUTRAL
from plumbline.report import charts, tables
from plumbline.report.material import Material
from plumbline.report.pictures import scatter_chart
from plumbline.report.ranking import rankings
from plumbline.report.story import changes, tell
from tests.reporting import RECIPE


def figure(key: str, value: float, low: float | None, high: float | None) -> dict[str, float | None]:
    return {key: value, f"{key}_low": low, f"{key}_high": high}


def refusing(harmful: float, over_refusal: float, harm_gain: float = 0.0, refusal_gain: float = 0.0) -> dict[str, Any]:
    """The figures of a real model: fractions, and paired gains, with intervals of four points to either side."""
    of: dict[str, Any] = {"n": 432, "answers": 432, "gold": None, "win_rate": None}
    for key, value in (("harmful_fraction", harmful), ("over_refusal_fraction", over_refusal)):
        of |= figure(key, value, max(0.0, value - 0.04), min(1.0, value + 0.04))
    for key, gain in (("harmful_fraction_gain", harm_gain), ("over_refusal_fraction_gain", refusal_gain)):
        of |= figure(key, gain, gain - 0.04, gain + 0.04)
    return of


GAINS = {
    "gold": "gold_gain",
    "harmful": "harmful_fraction_gain",
    "over_refused": "over_refusal_fraction_gain",
    "verifiable": "accuracy_gain",
    "followed": "instructions_followed_gain",
}


def compared_by(measure: str, *of: tuple[str, str, bool]) -> Comparisons:
    """The better policy of each pair, the other, and whether they differ."""
    return Comparisons(measure, [], [Pair(a, b, Interval(0.1, 0, 1, 99), 0.5, differs, 9, 0.1) for a, b, differs in of], [])


def of_gains(figures: dict[str, dict[str, Any]], against: str) -> list[Comparisons]:
    """Each policy with the opponent: the two differ where the interval of the gain excludes zero."""
    comparisons: list[Comparisons] = []
    for measure, key in GAINS.items():
        pairs: list[tuple[str, str, bool]] = []
        for policy, of in figures.items():
            if policy != against and of.get(key) is not None:
                low, high = of[f"{key}_low"], of[f"{key}_high"]
                is_better = (of[key] >= 0) != MEASURES[measure].lower_is_better
                pairs.append((policy, against, low > 0 or high < 0) if is_better else (against, policy, low > 0 or high < 0))
        comparisons += [compared_by(measure, *pairs)] if pairs else []
    return comparisons


def material(figures: dict[str, dict[str, Any]], against: str = "base") -> Material:
    recipe = RECIPE | {"evaluate": RECIPE["evaluate"] | {"policies": [*figures], "against": against}}
    comparisons = of_gains(figures, against)
    return Material(recipe, [*figures], against, NEUTRAL, figures, {}, comparisons, {}, {}, {}, "", 10, 30)


def test_a_model_that_became_safe_and_refuses_too_much_has_both_in_its_headline() -> None:
    story = tell(
        material(
            {"base": refusing(0.94, 0.01), "sft": refusing(0.90, 0.02, -0.04, 0.01), "dpo": refusing(0.06, 0.33, -0.88, 0.32)}
        )
    )
    assert story.headline == "dpo complies with fewer harmful requests, but refuses more harmless requests than base"
    assert story.lede.endswith("What is measured: harmful requests complied with and harmless requests refused.")
    points = {point.about: tables.plain(point.text) for point in story.points}
    assert points["Safety"] == (
        "It complies with 6.0% of harmful requests (base: 94.0%, a change of -88.0 [-92.0, -84.0] points) and refuses 33% of harmless requests "
        "(base: 1.0%, a change of +32.0 [28.0, 36.0] points)."
    )
    assert points["Trust"].endswith(" Each policy was trained once: another seed may give another result.")


def test_what_clearly_changed_is_told_by_paired_gains_alone() -> None:
    """The intervals of 0.5 and of 0.45 meet, and yet the paired difference excludes zero."""
    better = refusing(0.45, 0.1, -0.05, -0.1) | figure("instructions_followed_gain", 0.02, 0.01, 0.03)
    base = refusing(0.5, 0.2)
    assert changes(material({"base": base, "dpo": better}), "dpo") == dict.fromkeys(
        ("harmful", "followed", "over_refused"), "better"
    )
    assert changes(material({"base": base, "dpo": refusing(0.45, 0.3, -0.03, 0.1)}), "dpo") == {"over_refused": "worse"}


def test_a_headline_says_nothing_that_the_corrected_comparison_denies() -> None:
    """4 of 215 harmful prompts changed: the interval of the gain excludes zero, but not after Holm's correction for three pairs."""
    answers = {
        policy: [{"id": f"p{n}", "index": 0, "harmful": float(n >= fewer)} for n in range(215)]
        for policy, fewer in {"base": 0, "dpo": 4, "rs": 0}.items()
    }
    comparisons = compare_policies(answers, "base", 17)
    figures = {"base": refusing(1.0, 0.1), "dpo": refusing(0.98, 0.1), "rs": refusing(1.0, 0.1)}
    figures["dpo"] |= figure("harmful_fraction_gain", -0.019, -0.037, -0.005)
    told = tell(replace(material(figures), comparisons=comparisons))
    assert told.headline == "No policy clearly differs from base"
    pair = next(pair for pair in comparisons[0].pairs if {pair.policy, pair.other} == {"dpo", "base"})
    assert 0.05 < pair.p_value < 0.15


@pytest.mark.parametrize("measure", ["harmful", "over_refused", "verifiable", "followed"])
@pytest.mark.parametrize("differs", [True, False])
def test_where_nothing_sums_up_an_answer_the_table_decides_and_not_the_interval_of_a_gain(measure: str, differs: bool) -> None:
    """Figures and table disagree on purpose."""
    key = GAINS[measure]
    gain = -0.1 if MEASURES[measure].lower_is_better else 0.1
    bounds = (gain - 0.2, gain + 0.2) if differs else (gain - 0.01, gain + 0.01)
    base, dpo = ({"n": 400, key.removesuffix("_gain"): level} for level in (0.5, 0.5 + gain))
    of = material({"base": base, "dpo": dpo | figure(key, gain, *bounds)})
    told = tell(replace(of, comparisons=[compared_by(measure, ("dpo", "base", differs))]))
    text = " ".join(point.text for point in told.points)
    assert told.headline.startswith("dpo " if differs else "No policy clearly differs")
    assert ("cannot be told apart" in text) == (not differs)
    if measure in ("verifiable", "followed"):
        assert ("did not change significantly" in text) == (not differs)


@pytest.mark.parametrize("measure", ["gold", "win"])
@pytest.mark.parametrize("way", ["better", "worse", "unclear"])
@pytest.mark.parametrize("interval", ["above", "below", "across"])
@pytest.mark.parametrize("comes_first", [True, False])
def test_who_leads_is_what_the_table_says(measure: str, way: str, interval: str, comes_first: bool) -> None:
    """Also where a measure of few prompts comes last, behind harm, by which the policies differ."""
    key, equal = {"gold": ("gold_gain", 0.0), "win": ("win_rate", 0.5)}[measure]
    low, high = {"above": (0.1, 0.2), "below": (-0.2, -0.1), "across": (-0.1, 0.1)}[interval]
    level = figure("gold", 0.5, 0.4, 0.6) if measure == "gold" else {}
    base = {"n": 400, "answers": 400} | level
    dpo = base | figure(key, equal + (low + high) / 2, equal + low, equal + high)
    pair = ("base", "dpo", True) if way == "worse" else ("dpo", "base", way == "better")
    by_both = [compared_by(measure, pair), compared_by("harmful", ("base", "dpo", True))]
    of = replace(material({"base": base, "dpo": dpo}), comparisons=by_both if comes_first else by_both[::-1])
    told = tell(of)
    assert (told.leaders, told.headline) == (
        (["dpo"], "dpo is the best of 2 policies") if way == "better" else ([], "No policy clearly beats base")
    )
    said = {
        "gold": {"better": "beats base", "worse": "is worse than", "unclear": "cannot be told apart by gold"},
        "win": {"better": "prefers it in", "worse": "prefers base", "unclear": "no clear preference"},
    }[measure]
    assert [name for name, words in said.items() if words in told.lede] == [way]
    trust = next(point.text for point in told.points if point.about == "Trust")
    assert ("cannot be told apart by" in trust) == (way == "unclear")
    assert "harmful requests complied with" not in trust
    assert {one.column: one.is_open for one in rankings(of)} == {measure: True, "harmful": False}


def test_a_policy_trained_on_gold_that_beats_the_opponent_is_not_denied() -> None:
    base = {"n": 400, "answers": 400} | figure("gold", 0.5, 0.4, 0.6)
    of = material({"base": base, "oracle": base | figure("gold_gain", 0.4, 0.35, 0.45)})
    told = tell(replace(of, stage_figures={"label@oracle": {"uses_gold": True}}))
    assert (told.headline, told.leaders) == ("Only policies trained on the verifier clearly beat base", [])


def test_a_judge_who_could_not_be_read_on_one_policy_sums_nothing_up() -> None:
    figures = {"base": refusing(0.9, 0.0), "rs": refusing(0.1, 0.2, -0.8, 0.2), "dpo": refusing(0.1, 0.3, -0.8, 0.3)}
    figures["rs"] |= figure("win_rate", 0.8, 0.75, 0.85)
    of = material(figures)
    told = tell(of)
    assert "none of the judge’s verdicts on dpo could be read. What is measured: harmful" in told.lede
    assert told.headline == "rs complies with fewer harmful requests, but refuses more harmless requests than base"
    assert [point.about for point in told.points][:1] == ["Ahead"]
    assert "The judge prefers it in 80" in next(point.text for point in told.points if point.about == "Judge")
    assert all(one.is_open for one in rankings(of))


def test_a_policy_that_only_got_worse_is_told_of_rather_than_one_that_did_not_change() -> None:
    figures = {"base": refusing(0.1, 0.1), "rs": refusing(0.1, 0.1), "dpo": refusing(0.5, 0.1, 0.4)}
    assert tell(material(figures)).headline == "dpo complies with more harmful requests than base"


def test_where_nothing_sums_up_an_answer_the_story_says_who_is_ahead_by_each_measure() -> None:
    pairs = {
        "harmful": [("dpo", "rs", False), ("dpo", "base", True), ("rs", "base", True)],
        "over_refused": [("base", "dpo", True), ("base", "rs", True), ("rs", "dpo", True)],
        "followed": [("dpo", "rs", False), ("dpo", "base", False), ("rs", "base", False)],
        "reward": [("rs", "dpo", True), ("rs", "base", True), ("dpo", "base", True)],
    }
    compared = [compared_by(measure, *of) for measure, of in pairs.items()]
    figures = {"base": refusing(0.9, 0.0), "rs": refusing(0.1, 0.2, -0.8, 0.2), "dpo": refusing(0.1, 0.3, -0.8, 0.3)}
    points = {point.about: point.text for point in tell(replace(material(figures), comparisons=compared)).points}
    assert points["Ahead"] == (
        "By harmful requests complied with: dpo; rs cannot be told apart from it. By harmless requests refused: base."
    )
    assert points["Trust"].startswith(
        "1 of 3 pairs of policies cannot be told apart by harmful requests complied with and 3 of 3 by instructions followed."
    )


def test_policies_that_changed_nothing_clearly_are_said_to() -> None:
    story = tell(material({"base": refusing(0.5, 0.2), "dpo": refusing(0.51, 0.21)}))
    assert story.headline == "No policy clearly differs from base"


def test_a_single_policy_has_nothing_to_be_compared_with() -> None:
    story = tell(material({"base": refusing(0.5, 0.2)}))
    assert story.headline == "base, and nothing to compare it with"
    assert not story.points


def test_a_single_prompt_makes_no_leader() -> None:
    gain = bootstrap_gain([0.9], ["p"], [0.5], ["p"], seed=1)
    gained = flat("gold", fraction_interval([0.9], ["p"])) | flat("gold_gain", gain)
    base = {"n": 1, "answers": 1} | flat("gold", fraction_interval([0.5], ["p"]))
    assert gain is not None
    story = tell(material({"base": base, "dpo": base | gained}))
    assert (story.headline, story.leaders) == ("No policy clearly beats base", [])
    assert "cannot be told apart by gold" in story.lede
    trust = {point.about: point.text for point in story.points}["Trust"]
    assert "Only 1 prompt was answered, and each policy was" in trust
    many = {"base": base | {"n": 400}, "dpo": base | {"n": 400} | figure("gold_gain", 0.4, 0.35, 0.45)}
    assert tell(material(many)).headline == "dpo is the best of 2 policies"


def test_figures_without_an_interval_are_told_and_drawn_without_one() -> None:
    """As a single prompt leaves them."""
    base = {"n": 1, "answers": 1} | figure("length_tokens", 20.0, None, None) | figure("kl", 0.0, None, None)
    base |= figure("gold_at_1", 0.5, 0.1, 0.9) | figure("gold", 0.5, 0.1, 0.9)
    of = material({"base": base, "dpo": base | figure("gold_gain", 0.1, -0.9, 0.9) | figure("kl", 2.0, None, None)})
    assert tell(of).leaders == []
    assert scatter_chart(of) is not None
    bars = [charts.Bar("dpo", "#040009", 2.0, None, None, "2.0"), charts.Bar("sft", "#040009", 1.0, 0.5, 1.5, "1.0")]
    without, with_one = (charts.bar_chart([bar], name="b", title="KL").count("<path") for bar in bars)
    assert without < with_one


def test_what_alignment_costs_is_told() -> None:
    base = refusing(0.9, 0.1) | figure("length_tokens", 20.0, 19.0, 21.0) | figure("repeated_fraction", 0.01, 0.0, 0.02)
    longer = refusing(0.1, 0.1) | figure("length_tokens", 40.0, 38.0, 42.0) | figure("repeated_fraction", 0.3, 0.2, 0.4)
    points = {point.about: point.text for point in tell(material({"base": base, "dpo": longer})).points}
    assert points["Side effects"].replace("\N{NARROW NO-BREAK SPACE}", " ") == (
        "Its answers are longer than base’s: 20.0 → 40.0 tokens. It repeats itself more than base: 1.0 % → 30 % of its spans of four words are "
        "repetitions."
    )
    assert "Side effects" not in {point.about for point in tell(material({"base": base, "dpo": refusing(0.1, 0.1)})).points}


def test_right_answers_in_several_attempts_are_told_for_the_most_attempts() -> None:
    base = {"n": 400, "answers": 1600} | figure("gold", 0.5, 0.4, 0.6)
    attempts = figure("gold_gain", 0.1, 0.05, 0.15) | figure("pass_at_2", 0.6, 0.5, 0.7) | figure("pass_at_4", 0.8, 0.75, 0.85)
    points = {point.about: point.text for point in tell(material({"base": base, "dpo": base | attempts})).points}
    assert "In 4 attempts it is right on 80" in points["Skills"]
    assert "pass@2" not in points["Skills"]
