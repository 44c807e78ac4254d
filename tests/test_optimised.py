"""Claims about the report's section on over-optimisation: it says what the figures say, and is left out where nothing was measured."""

from pathlib import Path
from typing import Any

from test_report import RECIPE, Page, material

from plumbline.report.optimised import optimisations, reading
from plumbline.report.page import render
from stages.report import read_optimisations

ENTRIES = {
    "ppo": {"init": "sft", "steps": "rs", "proxy": "rm", "gold": "correct"},
    "best": {"init": "sft", "steps": "none", "proxy": "rm", "gold": "correct"},
}
POINTS = [
    {"step": step, "sqrt_kl": step / 8, "proxy_gain": step / 10, "gold_gain": step * (16 - step) / 100} for step in (0, 4, 8, 16)
]


def figures(**changes: Any) -> dict[str, Any]:
    values = {name: {"": 0.5, "_low": 0.4, "_high": 0.6} for name in ("proxy_gain", "gold_gain", "gold_lost")}
    flat: dict[str, Any] = {f"{name}{end}": value for name, of in values.items() for end, value in of.items()}
    return flat | {"gold_highest_at": 8, "gold_alpha": None, "gold_explained": 0.31} | changes


def test_a_loss_whose_interval_excludes_0_is_called_over_optimisation() -> None:
    text = " ".join(reading(ENTRIES["ppo"], figures()))
    assert "the proxy has gained +0.50 [0.40, 0.60] and gold +0.50 [0.40, 0.60]" in text.replace("\N{NO-BREAK SPACE}", " ")
    assert "Gold was highest at step 8, and has lost 0.50 [0.40, 0.60] since" in text.replace("\N{NO-BREAK SPACE}", " ")
    fallen = " ".join(reading(ENTRIES["best"], figures(gold_lost_low=-0.1)))
    assert "Gold has not fallen from its highest point by more than chance explains." in fallen
    assert "over-optimised" not in fallen


def test_a_form_is_given_with_its_interval_or_left_out_with_the_reason() -> None:
    assert "form d·(α − β·log d) is not fitted to gold: it explains 31" in " ".join(reading(ENTRIES["ppo"], figures()))
    assert "not fitted to gold: there are too few points" in " ".join(reading(ENTRIES["ppo"], figures(gold_explained=None)))
    bounds = {f"gold_{key}{end}": 0.3 for key in ("alpha", "beta") for end in ("", "_low", "_high")}
    assert "Gold follows d·(α − β·d) with α = 0.30 [0.30, " in " ".join(reading(ENTRIES["best"], figures(**bounds))).replace(
        "\N{NO-BREAK SPACE}", " "
    )


def test_the_page_has_a_panel_for_each_entry_and_no_section_without_any() -> None:
    measured = material(
        recipe=RECIPE | {"overoptimisation": ENTRIES},
        stage_figures={f"overoptimisation@{name}": figures() for name in ENTRIES},
        optimisations=dict.fromkeys(ENTRIES, POINTS),
    )
    panels = optimisations(measured)
    assert [panel["title"] for panel in panels] == [
        "rs, from sft: the proxy is rm, gold is correct",
        "best of n of sft: the proxy is rm, gold is correct",
    ]
    assert "ppo, rs, from sft: the proxy is rm, gold is correct: proxy 0 at √KL 0.00, 1.6 at √KL 2.00;" in panels[0]["picture"]
    page = Page(render(measured))
    assert [dict(attributes).get("id") for tag, attributes in page.tags if tag == "section"].count("overoptimisation") == 1
    assert page.text.count("the proxy is over-optimised") == 2
    assert "its upper bound, log n − (n − 1)/n (arXiv:2401.01879)" in page.text  # Beirami et al. show that it is a bound
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    assert "Over-optimisation" not in Page(render(material())).text


def test_points_are_those_of_declared_entries(tmp_path: Path) -> None:
    (tmp_path / "overoptimisation").mkdir()
    for name in ("ppo", "gone"):
        (tmp_path / f"overoptimisation/{name}.csv").write_text("step,sqrt_kl,gold_gain,gold_gain_low\n0,0,0,\n8,1.5,0.25,0.2\n")
    (points,) = read_optimisations(tmp_path, ["ppo"]).values()
    assert [point["sqrt_kl"] for point in points] == [0, 1.5]
