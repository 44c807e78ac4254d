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


COMMIT = "01cead01398926d81f7c52bdb790ee8cf77ebba7"


def from_(source: str, file: str, text: str = "a") -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": text}], "source": source, "file": file, "row": 3, "licence": "MIT"}


def test_a_card_names_the_data_that_its_rows_come_from_and_those_of_the_policies_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    of_hub, of_file = from_("advbench", f"owner/harm.ful@{COMMIT}"), from_("mine", 'a "b".jsonl', 'says "source": "x"')
    write_jsonl("data/sft/train.jsonl", [of_file, of_hub, of_hub])
    write_jsonl("data/sft/validation.jsonl", [of_file])
    write_jsonl("label/round1/train.jsonl", [{"prompt": [], "chosen": [], "rejected": []}])
    made(tmp_path / "sft", "sft", [Input("data/sft", "d")])
    text = made(tmp_path / "dpo", "align@dpo", [Input("label/round1", "d"), Input("data/sft", "d")], origin_of(tmp_path / "sft"))
    assert [line for line in text.splitlines() if line.startswith("- `")] == [
        '- `mine`: 1 row of `a "b".jsonl`, licence MIT, in `data/sft/train.jsonl`',
        f"- `advbench`: 2 rows of `owner/harm.ful@{COMMIT}`, licence MIT, in `data/sft/train.jsonl`",
        '- `mine`: 1 row of `a "b".jsonl`, licence MIT, in `data/sft/validation.jsonl`',
    ]
    assert ModelCard(text).data.to_dict()["datasets"] == ["owner/harm.ful"]
    assert "datasets" not in ModelCard(made(tmp_path / "base")).data.to_dict()


def test_data_that_name_no_source_are_said_to_name_none(tmp_path: Path) -> None:
    assert "## Data\n\nThe rows that were read name no source" in made(tmp_path / "base")


def test_a_value_at_the_last_step_is_no_figure(tmp_path: Path) -> None:
    text = made(tmp_path / "dpo", figures={"beta": 0.05, "loss": 0.25})
    assert "| loss | 0.25 |" in text
    assert "0.05" not in text
    assert "## Figures" not in made(tmp_path / "dpo", figures={"beta": 0.05})


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
    figures = {
        "gold": 0.86,
        "gold_low": 0.85,
        "gold_high": 0.87,
        "kl": 12.0,
        "win_rate": None,
        "harmful_fraction": 0.5,
        "harmful_n": 7,
    }
    card = evaluated_card(tmp_path / "dpo", {"judge": "`simulated`"}, figures, ["gold", "kl", "win_rate", "harmful_fraction"])
    assert "| gold | 0.860 [0.850, 0.870] |  |" in card
    assert "| kl | 12.000 |  |" in card
    assert "| harmful_fraction | 0.500 | 7 |" in card
    assert "win_rate" not in card
    assert card.index("## Evaluation") < card.index("## Licence")
    assert ModelCard(card).data.to_dict()["license"] == "apache-2.0"


@pytest.mark.parametrize(("finished", "stated"), [(1.0, ""), (0.995, ""), (0.8, "20 % of the answers")])
def test_answers_that_were_cut_off_are_a_limit(tmp_path: Path, finished: float, stated: str) -> None:
    made(tmp_path / "dpo")
    card = evaluated_card(tmp_path / "dpo", {}, {"gold": 0.5, "finished_fraction": finished}, ["gold"])
    limits = card.partition("## Limits")[2]
    assert ("cut off at the token limit" in limits) == bool(stated)
    assert stated in limits
    assert f"| answers cut off at the token limit | {100 * (1 - finished):.1f} % |" in card


def test_a_policy_without_a_card_has_an_unknown_origin(tmp_path: Path) -> None:
    assert origin_of(tmp_path) == Origin([], None, "unknown", [])
    assert "| gold | 0.500 |  |" in evaluated_card(tmp_path, {}, {"gold": 0.5}, ["gold"])
