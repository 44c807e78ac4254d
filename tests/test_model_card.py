"""A policy's card: the whole way to it, the same bytes in every run, no path of this machine, and a licence that is never guessed."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard

from plumbline.models.model_card import (
    FILE,
    Origin,
    evaluated_card,
    hub_origin,
    judged_by,
    origin_of,
    scratch_origin,
    write_card,
)
from plumbline.pipeline.provenance import Input
from plumbline.pipeline.records import write_jsonl
from plumbline.pipeline.tracking import Run

VALUES = {"method": "dpo", "beta": 0.1, "checkpoint_every": 50, "loss_weights": {}, "length_alpha": None}


class Registering(Run):
    """A run that keeps the model that is logged."""

    def log_model(self, name: str, kind: str, folder: Path, card: str) -> None:
        self.model = (name, kind, folder, card)


def made(folder: Path, node: str = "align@dpo", inputs: Any = (), origin: Any = None, **changes: Any) -> str:
    """Writes a card and returns its text."""
    work: Any = SimpleNamespace(name=node, inputs=inputs, run=Registering())
    named = {"did": "trained `sft` by `dpo`", "values": VALUES, "figures": {"validation_loss": 0.51234}, "seed": 17} | changes
    write_card(work, folder, origin=origin or scratch_origin(), **named)
    text = (folder / FILE).read_text()
    assert work.run.model == (folder.name, "policy", folder, text)
    return text


def test_a_card_continues_the_card_of_the_policy_that_training_started_from(tmp_path: Path) -> None:
    made(tmp_path / "base", "pretrain", [Input("artifacts/data/pretrain", "d1")], did="trained it from random weights")
    made(tmp_path / "sft", "sft", [Input("artifacts/policy/base", "d2")], origin_of(tmp_path / "base"))
    text = made(tmp_path / "dpo", "align@dpo", [Input("artifacts/policy/sft", "d3")], origin_of(tmp_path / "sft"))
    steps = [line.partition(":")[0] for line in text.splitlines() if line.startswith("1. ")]
    assert steps == ["1. `pretrain`", "1. `sft`", "1. `align@dpo`"]
    assert all(digest in text for digest in ("`d1`", "`d2`", "`d3`"))


def test_a_card_is_the_same_in_every_run_and_names_no_place_of_this_machine(tmp_path: Path) -> None:
    first, second = (made(tmp_path / place / "dpo") for place in ("here", "elsewhere"))
    assert first == second
    assert str(tmp_path) not in first


def test_a_card_states_seed_values_and_figures_but_no_value_that_decides_no_weight(tmp_path: Path) -> None:
    text = made(tmp_path / "dpo")
    assert "Seed 17." in text
    assert "| beta | 0.1 |" in text
    assert "| validation_loss | 0.5123 |" in text
    assert "checkpoint_every" not in text
    assert text == made(tmp_path / "dpo", values=VALUES | {"checkpoint_every": 5, "keep_steps": [2]})


def test_a_card_can_be_read_by_the_hub(tmp_path: Path) -> None:
    made(tmp_path / "dpo", origin=hub_origin("org/model", "abc"))
    data = ModelCard.load(tmp_path / "dpo" / FILE).data.to_dict()
    assert data["base_model"] == "org/model"
    assert data["license"] == "unknown"
    assert data["pipeline_tag"] == "text-generation"


def test_a_model_from_a_folder_keeps_its_licence_and_loses_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "models/tiny"
    folder.mkdir(parents=True)
    (folder / FILE).write_text("---\nlicense: mit\n---\n# tiny\n")
    text = made(tmp_path / "base", "pretrain", origin=hub_origin(str(folder), "0123"))
    assert ModelCard.load(tmp_path / "base" / FILE).data.to_dict()["license"] == "mit"
    assert str(tmp_path) not in text
    assert "`tiny`" in text


def test_a_model_without_a_stated_licence_asks_for_one(tmp_path: Path) -> None:
    assert "not known: state it before you publish" in made(tmp_path / "base", origin=hub_origin(str(tmp_path), None))


def test_licences_of_the_rows_are_named_and_those_within_texts_are_not(tmp_path: Path) -> None:
    rows = [{"prompt": 'he said {"licence": "GPL"}', "licence": "MIT"}, {"prompt": "b", "licence": "CC BY-NC 4.0"}]
    write_jsonl(tmp_path / "data/train.jsonl", rows)
    made(tmp_path / "sft", inputs=[Input(str(tmp_path / "data"), "d")])
    data = ModelCard.load(tmp_path / "sft" / FILE).data.to_dict()
    assert data["data_licences"] == ["CC BY-NC 4.0", "MIT"]
    assert origin_of(tmp_path / "sft").data_licences == ["CC BY-NC 4.0", "MIT"]


def licensed(folder: Path, *licences: str) -> list[Input]:
    """An input with a row under each licence."""
    write_jsonl(folder / "train.jsonl", [{"prompt": [], "licence": licence} for licence in licences] or [{"prompt": []}])
    return [Input(str(folder), "d")]


def stated(folder: Path) -> tuple[str, str]:
    """The licence in the head of a card and its section on it."""
    card = ModelCard.load(folder / FILE)
    return str(card.data.to_dict()["license"]), card.content.partition("## Licence\n\n")[2].partition("\n")[0]


@pytest.mark.parametrize("pretrained_on", [(), ("MIT",)])
def test_head_and_text_of_a_card_state_one_licence_and_data_decide_that_of_a_model_from_scratch(
    tmp_path: Path, pretrained_on: tuple[str, ...]
) -> None:
    made(tmp_path / "base", inputs=licensed(tmp_path / "corpus", *pretrained_on))
    assert stated(tmp_path / "base") == (
        (
            "other",
            "other: it was trained from scratch, so that its data decide. It has learnt from data under MIT: their conditions may reach further.",
        )
        if pretrained_on
        else ("apache-2.0", "apache-2.0: as the data that it was trained on.")
    )
    made(tmp_path / "sft", inputs=licensed(tmp_path / "more", "CC0"), origin=origin_of(tmp_path / "base"))
    licence, text = stated(tmp_path / "sft")
    assert licence == "other"
    assert text.startswith("other: it was trained from scratch, so that its data decide.")


@pytest.mark.parametrize("licence", ["apache-2.0", "mit", "unknown"])
def test_head_and_text_of_a_card_keep_the_licence_of_the_model_to_start_from_whatever_the_data(
    tmp_path: Path, licence: str
) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / FILE).write_text(f"---\nlicense: {licence}\n---\n# tiny\n")
    made(tmp_path / "base", inputs=licensed(tmp_path / "data", "MIT"), origin=hub_origin(str(tmp_path / "tiny"), None))
    start = "The licence of the model to start from is not known" if licence == "unknown" else f"{licence}, as the model to start"
    assert stated(tmp_path / "base")[0] == licence
    assert stated(tmp_path / "base")[1].startswith(start)


def test_data_without_a_stated_licence_are_said_to_have_none(tmp_path: Path) -> None:
    made(tmp_path / "kto", inputs=licensed(tmp_path / "feedback", "unknown", "MIT"), origin=hub_origin("org/model", None))
    assert "It has learnt from data under MIT and from data whose licence is not known:" in stated(tmp_path / "kto")[1]


@pytest.mark.parametrize(
    ("row", "text"),
    [({"judge": "simulated", "model": "simulated"}, ", judged by `simulated`"),
     ({"judge": "strict", "model": "a 7B"}, ", judged by `strict` (`a 7B`)"), ({"prompt": []}, "")],
)  # fmt: skip
def test_a_signal_says_who_judged_it(tmp_path: Path, row: dict[str, Any], text: str) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    assert judged_by(tmp_path) == text
    assert judged_by(tmp_path / "none") == ""


def test_an_evaluated_card_has_figures_with_their_intervals_before_the_licence(tmp_path: Path) -> None:
    made(tmp_path / "dpo")
    figures = {"gold": 0.86, "gold_low": 0.85, "gold_high": 0.87, "kl": 12.0, "win_rate": None}
    card = evaluated_card(tmp_path / "dpo", {"judge": "`simulated`"}, figures, ["gold", "kl", "win_rate"])
    assert "| gold | 0.860 [0.850, 0.870] |" in card
    assert "| kl | 12.000 |" in card
    assert "win_rate" not in card
    assert card.index("## Evaluation") < card.index("## Licence")
    assert ModelCard(card).data.to_dict()["license"] == "apache-2.0"


def test_a_policy_without_a_card_has_an_unknown_origin(tmp_path: Path) -> None:
    assert origin_of(tmp_path) == Origin([], None, "unknown", [])
    assert "| gold | 0.500 |" in evaluated_card(tmp_path, {}, {"gold": 0.5}, ["gold"])
