"""Claims about the report's numbers, sentences and charts, each from plain values."""

import re
from typing import Any

import pytest

from plumbline.report import tables
from plumbline.report.charts import Share, calibration_chart
from plumbline.report.pictures import curve_panels
from plumbline.report.sentences import cut_off_sentence, language_sentence, reading, unsafe_languages

SHARES = [Share(0.55, 0.5, 0.4, 0.6, 100), Share(0.7, 0.6, 0.5, 0.7, 101), Share(0.95, 0.9, 0.83, 0.95, 101)]


# ---- numbers and sentences ------------------------------------------------------------------------------------------


def test_numbers_are_shown_as_people_write_them() -> None:
    for value, style, text in (
        (0.1234, "number", "0.12"),
        (-0.001, "gain", "0.00"),
        (-0.12, "gain", "−0.12"),
        (0.12, "gain", "+0.12"),
        (0.634, "percent", "63 %"),
        (0.0123, "percent", "1.2 %"),
        (0.0, "percent", "0 %"),
        (0.0436, "points", "+4.4"),
        (-0.0004, "points", "0.0"),
        (None, "number", "–"),
    ):
        assert tables.show(value, style).replace("\N{NARROW NO-BREAK SPACE}", " ") == text


def test_a_gain_is_read_by_its_interval() -> None:
    for gain, low, high, sentence in (
        (0.12, 0.10, 0.14, "dpo beats sft by 0.12 gold [0.10, 0.14] (0.50 → 0.62)."),
        (-0.12, -0.14, -0.10, "dpo is worse than sft by 0.12 gold [0.10, 0.14] (0.50 → 0.38)."),
        (0.01, -0.01, 0.03, "dpo and sft cannot be told apart by gold: the difference is +0.01 [−0.01, 0.03]."),
    ):
        of_dpo = {"gold": 0.5 + gain, "gold_gain": gain, "gold_gain_low": low, "gold_gain_high": high}
        first = reading("dpo", {"sft": {"gold": 0.5}, "dpo": of_dpo}, "sft")[0]
        assert first.replace("\N{NO-BREAK SPACE}", " ") == sentence


def changed(**figures: tuple[float, float, float, float]) -> dict[str, Any]:
    """A figure's level, and its gain with its bounds, for each name."""
    keys = ("{}", "{}_gain", "{}_gain_low", "{}_gain_high")
    return {key.format(name): value for name, values in figures.items() for key, value in zip(keys, values, strict=True)}


def test_what_the_gain_consists_of_is_said_in_units_of_gold_with_the_largest_part_first() -> None:
    base = {"gold": 0.7}
    parts = {"gold": 0.8} | changed(
        correct=(0.74, 0.05, 0.03, 0.07), courteous=(0.98, 0.54, 0.5, 0.58), concise=(0.996, -0.004, -0.006, -0.003)
    )
    parts |= changed(harmless=(0.91, 0.01, -0.01, 0.03))
    gain = {"gold_gain": 0.1, "gold_gain_low": 0.09, "gold_gain_high": 0.11}
    [sentence] = [text for text in reading("dpo", {"sft": base, "dpo": parts | gain}, "sft") if text.startswith("Of this")]
    # courteous weighs 0.15 and correct 0.5: 0.15 · 0.54 = 0.081 and 0.5 · 0.05 = 0.025; concise changed gold by 0.0006
    assert (
        tables.plain(sentence)
        == "Of this, +0.08 for being courteous (98.0% of its answers are) and +0.03 for being correct (74% of its answers are)."
    )
    assert "Of this" not in " ".join(reading("dpo", {"sft": {}, "dpo": parts}, "sft"))
    still = {part: changed(**{part: (0.9, 0.0, -0.1, 0.1)}) for part in ("correct", "courteous")}
    assert "Of this" not in " ".join(
        reading("dpo", {"sft": base, "dpo": base | still["correct"] | still["courteous"] | gain}, "sft")
    )


def test_harm_is_said_of_each_language_if_there_are_several() -> None:
    both = {"gold": 0.8, "harmful_fraction": 0.01, "n_en": 9, "n_ko": 2}
    for code, value in (("en", 0.0), ("ko", 0.02)):
        both |= {f"harmful_fraction_{code}": value, f"harmful_fraction_{code}_low": 0.0, f"harmful_fraction_{code}_high": 0.04}
    said = [tables.plain(text) for text in reading("dpo", {"sft": {"harmful_fraction": 0.1}, "dpo": both}, "sft")]
    assert "It complies with 1.0% of harmful requests (English 0%, Korean 2.0%; sft: 10%)." in said


def test_a_change_of_accuracy_is_said_in_points_with_its_paired_interval() -> None:
    for values, text in (
        ((0.66, 0.04, 0.02, 0.062), "Its accuracy changed by +4.0 [2.0, 6.2] points (62% → 66%)."),
        ((0.59, -0.03, -0.05, -0.01), "Its accuracy changed by -3.0 [-5.0, -1.0] points (62% → 59%)."),
        ((0.63, 0.01, -0.01, 0.03), "Its accuracy did not change significantly: +1.0 [-1.0, 3.0] points (62% → 63%)."),
    ):
        sentences = reading("dpo", {"sft": {"accuracy": 0.62}, "dpo": changed(accuracy=values)}, "sft")
        assert text in [tables.plain(sentence) for sentence in sentences]


def test_families_are_named_whose_accuracy_changed_beyond_its_interval() -> None:
    change = {"fact": (0.1, 0.2), "list": (-0.2, -0.1), "python": (-0.1, 0.1)}
    of_dpo: dict[str, Any] = {f"accuracy_{family}": 0.5 for family in change}
    for family, (low, high) in change.items():
        gain = f"accuracy_gain_{family}"
        of_dpo |= {gain: (low + high) / 2, f"{gain}_low": low, f"{gain}_high": high}
    [sentence] = [text for text in reading("dpo", {"sft": {}, "dpo": of_dpo}, "sft") if text.startswith("Accuracy ")]
    assert re.findall(r"\d+|fact|list|python", sentence) == ["1", "3", "fact", "1", "list"]


def test_a_reward_that_rises_while_gold_falls_is_called_over_optimised() -> None:
    lost = {"gold": 0.4, "gold_gain": -0.1, "gold_gain_low": -0.2, "gold_gain_high": -0.05}
    sentences = reading("ppo", {"sft": {"gold": 0.5, "reward": 1.0}, "ppo": lost | {"reward": 3.5}}, "sft")
    assert "over-optimised" in sentences[-1]
    sentences = reading("ppo", {"sft": {"gold": 0.5, "reward": 1.0}, "ppo": lost | {"reward": 0.5}}, "sft")
    assert "over-optimised" not in " ".join(sentences)


def test_held_out_demonstrations_are_called_less_likely_only_beyond_the_interval() -> None:
    base = {"perplexity": 5.0}
    for change, low, high, how in (
        (0.1, 0.05, 0.15, "less likely than"),
        (-0.1, -0.2, -0.05, "more likely than"),
        (0.0, -0.1, 0.1, "about as likely as"),
    ):
        of_dpo = base | {"nll_change": change, "nll_change_low": low, "nll_change_high": high}
        [sentence] = [text for text in reading("dpo", {"sft": base, "dpo": of_dpo}, "sft") if "demonstrations" in text]
        assert f"held-out demonstrations {how} sft does" in sentence


def test_one_of_harm_and_over_refusal_is_said_without_the_other() -> None:
    said = {
        key: [tables.plain(text) for text in reading("dpo", {"sft": {key: 0.5}, "dpo": {key: 0.25}}, "sft")]
        for key in ("harmful_fraction", "over_refusal_fraction")
    }
    assert said == {
        "harmful_fraction": ["It complies with 25% of harmful requests (sft: 50%)."],
        "over_refusal_fraction": ["It refuses 25% of harmless requests (sft: 50%)."],
    }


def harm(**languages: tuple[float, float, float]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for code, (value, low, high) in languages.items():
        key = f"harmful_fraction_{code}"
        figures |= {f"n_{code}": 100, key: value, f"{key}_low": low, f"{key}_high": high}
    return figures


def test_a_language_is_unsafe_if_its_harm_is_beyond_both_intervals_and_more_than_a_few_per_cent() -> None:
    english = (0.03, 0.01, 0.06)
    for korean, unsafe in (((0.59, 0.5, 0.7), ["ko"]), ((0.1, 0.05, 0.15), []), ((0.045, 0.061, 0.08), []), (english, [])):
        assert unsafe_languages(harm(en=english, ko=korean)) == unsafe
    assert unsafe_languages(harm(en=english)) == unsafe_languages({}) == []
    sentence = language_sentence("ppo", harm(en=english, ko=(0.2, 0.15, 0.25), de=(0.3, 0.25, 0.35), fr=(0.0, 0.0, 0.02)))
    assert tables.plain(sentence) == "ppo complies with 0% of harmful requests in fr but with 30% in de and 20% in Korean."


def test_answers_cut_off_at_the_token_limit_are_said_to_be_if_they_are_over_a_tenth() -> None:
    finished = {"base_1": 0.5, "dpo": 0.366, "rs": 0.9, "ppo": 0.899, "old": None}
    by_policy = {policy: {} if fraction is None else {"finished_fraction": fraction} for policy, fraction in finished.items()}
    assert tables.plain(cut_off_sentence(by_policy, 48)) == (
        "Many answers were cut off at 48 tokens (evaluate.max_new_tokens): 50% of base_1, 63% of dpo and 10% of ppo. Length, refusals and right "
        "answers are of what is there."
    )
    assert cut_off_sentence({"dpo": {"finished_fraction": 0.9}}, 48) == ""


# ---- charts ---------------------------------------------------------------------------------------------------------


def test_validation_is_drawn_with_its_training_metric_and_the_loss_first() -> None:
    points = [(1.0, 1.0), (2.0, 0.5)]
    panels = curve_panels(dict.fromkeys(("rewards/margins", "eval_loss", "learning_rate", "loss"), points))
    assert [title for title, _ in panels] == ["loss", "rewards/margins"]
    assert [line.is_validation for line in panels[0][1]] == [False, True]


def test_each_kind_of_training_metric_is_drawn_once() -> None:
    points = [(1.0, 1.0), (2.0, 0.5)]
    rewards = [f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")]
    panels = curve_panels(dict.fromkeys((*rewards, "value_loss", "kl_k1", "kl_k3", "clipped"), points))
    assert [title for title, _ in panels] == ["rewards/margins", "rewards/accuracies", "rewards/chosen", "kl_k1"]


def test_calibration_dots_and_intervals_lie_where_their_figures_say() -> None:
    """Pixels are affine in the figures, and the dashed line goes from one half to one, so that every dot and interval can be read back."""
    picture = calibration_chart(SHARES, name="x", title="rm")
    line = r'<path d="M ([\d.]+) ([\d.]+) \nL ([\d.]+) ([\d.]+) \n" [^>]*'
    [(x0, y0, x1, y1)] = [tuple(map(float, ends)) for ends in re.findall(line + "stroke-dasharray", picture)]
    intervals = re.findall(line + r"stroke: var\(--policy-0\)", picture)
    dots = re.findall(r'<use href="#[^"]+" x="([\d.]+)" y="([\d.]+)" style="fill: var\(--policy-0\)', picture)
    assert len(dots) == len(intervals) == len(SHARES)
    for share, (x, y), (left, low, right, high) in zip(SHARES, dots, intervals, strict=True):
        assert left == right == x
        up = [0.5 + 0.5 * (float(pixel) - y0) / (y1 - y0) for pixel in (y, low, high)]
        assert [0.5 + 0.5 * (float(x) - x0) / (x1 - x0), *up] == pytest.approx(share[:4], abs=1e-3)
