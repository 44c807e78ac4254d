"""A policy's card: the whole way to it, the same bytes in every run, no path of this machine, and a licence that is never guessed."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard

from plumbline.models.model_card import (
    FILE,
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
    assert text == made(tmp_path / "dpo", values=VALUES | {"checkpoint_every": 5})


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
    assert data["license"] == "other"  # a model from scratch is made of its data
    assert origin_of(tmp_path / "sft").data_licences == ["CC BY-NC 4.0", "MIT"]


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
    assert origin_of(tmp_path) == ([], None, "unknown", [])
    assert "| gold | 0.500 |" in evaluated_card(tmp_path, {}, {"gold": 0.5}, ["gold"])
