"""Claims about KTO: what it makes of pairs and labels, in which order, and the values that it refuses."""

import itertools
import random
from pathlib import Path

import pytest
from aligning import ROWS, config_of, outputs, pairs, run_align, write_inputs
from ppo_tiny import PROMPTS

from plumbline.methods.offline.kto import read_labels, unpaired
from plumbline.pipeline.records import write_jsonl
from plumbline.rows import assistant


def test_a_pair_becomes_a_good_and_a_bad_answer() -> None:
    pair, label = pairs(1)[0], {"prompt": PROMPTS[1], "completion": assistant("b"), "label": False, "score": 3.0}
    assert [*unpaired([pair, label])] == [
        {"prompt": pair["prompt"], "completion": pair["chosen"], "label": True},
        {"prompt": pair["prompt"], "completion": pair["rejected"], "label": False},
        {"prompt": PROMPTS[1], "completion": assistant("b"), "label": False},
    ]


def test_kto_trains_the_same_on_pairs_and_on_the_labels_that_they_become(tmp_path: Path) -> None:
    artifacts = write_inputs(tmp_path)
    figures = run_align(artifacts, "kto")
    assert figures["desirable_fraction"] == 0.5
    for split, count in ROWS.items():
        write_jsonl(artifacts / f"label/round1/{split}.jsonl", unpaired(pairs(count)))
    run_align(artifacts, "kto", "labels")
    assert outputs(artifacts, "labels") == outputs(artifacts)


def test_the_two_rows_of_a_pair_do_not_stay_neighbours(tmp_path: Path) -> None:
    """Otherwise a prompt's other completion would be taken for a mismatched one."""
    rows = [{**row, "prompt": [{"role": "user", "content": str(number)}]} for number, row in enumerate(pairs(50))]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    order = [row["prompt"] for row in read_labels(tmp_path / "rows.jsonl", seed=1).rows()]
    assert sum(one == other for one, other in itertools.pairwise(order)) < 5
    assert order == [row["prompt"] for row in read_labels(tmp_path / "rows.jsonl", seed=1).rows()]
    assert order != [row["prompt"] for row in read_labels(tmp_path / "rows.jsonl", seed=2).rows()]


def test_rows_on_disk_have_the_order_of_rows_that_are_shuffled_in_memory(tmp_path: Path) -> None:
    """Pairs and labels, of which a pair takes two places."""
    labels = [
        {"prompt": row["prompt"], "completion": row["chosen"], "label": number % 2 == 0} for number, row in enumerate(pairs(7))
    ]
    lines = [*pairs(5), *labels, *pairs(3)]
    write_jsonl(tmp_path / "rows.jsonl", lines)
    expected = [*unpaired(lines)]
    random.Random(3).shuffle(expected)
    read = read_labels(tmp_path / "rows.jsonl", seed=3)
    assert [*read.rows()] == expected
    assert [*read.rows(4)] == expected[:4]
    assert read.desirable_fraction == sum(row["label"] for row in expected) / len(expected)


def test_labels_of_one_kind_are_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [row for row in unpaired(pairs(3)) if row["label"]])
    with pytest.raises(ValueError, match=r"kto: expected desirable and undesirable .* found 3 and 0"):
        read_labels(tmp_path / "rows.jsonl", seed=1)


def test_kto_needs_several_rows_in_a_forward_pass_if_its_loss_has_a_reference_point() -> None:
    (problem,) = config_of("kto", micro_batch_size=1).problems()
    assert problem.startswith("micro_batch_size: expected at least 2")
    assert config_of("kto", micro_batch_size=1, loss="apo_zero_unpaired").problems() == []
    (problem,) = config_of("kto", loss="bco").problems()
    assert problem.startswith("loss: expected one of kto, apo_zero_unpaired, found 'bco'")
