"""Claims about people as judges: blank sheets, filled sheets, and what follows from them."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from plumbline.evaluation.winrate import compare
from plumbline.judging.building import load_judge
from plumbline.judging.gate import Quality
from plumbline.judging.human import AnnotatorsJudge
from plumbline.judging.judge import Judge
from plumbline.judging.judges import HumanJudge
from plumbline.judging.sheets import export, item_code, read_sheet
from plumbline.judging.verdicts import TIE, B
from plumbline.pipeline.records import write_jsonl
from plumbline.rows import Row, assistant

PROMPT = [{"role": "user", "content": "How much is 2 plus 2?"}]


def rows(texts: Sequence[str]) -> list[Row]:
    return [
        {"id": "p", "index": index, "prompt": PROMPT, "policy": f"policy{index}", "completion": assistant(text)}
        for index, text in enumerate(texts)
    ]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_sheets_are_shuffled_blind_and_come_back_as_rankings(tmp_path: Path, suffix: str) -> None:
    texts = [f'답 {n}, <b>with</b> "quotes"\nand lines' for n in range(8)]
    export(rows(texts), tmp_path / "sheet", "ranking", seed=17)
    path = tmp_path / f"sheet{suffix}"
    assert "policy" not in path.read_text(encoding="utf-8")
    if suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            blank = list(csv.DictReader(file))
    else:
        blank = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row["answer"] for row in blank] != texts
    assert sorted(row["answer"] for row in blank) == texts
    filled = [{**row, "annotator": name, "verdict": str(texts.index(row["answer"]))} for name in ("ann", "bo") for row in blank]
    with path.open("w", encoding="utf-8", newline="") as file:
        if suffix == ".csv":
            writer = csv.DictWriter(file, filled[0].keys())
            writer.writeheader()
            writer.writerows(filled)
        else:
            file.writelines(json.dumps(row) + "\n" for row in filled)
    judge = judge_of(path)
    assert judge.rank([PROMPT], [texts])[0].scores == pytest.approx([1 - n / 7 for n in range(8)])
    assert compare(judge, [PROMPT], [texts[0]], [texts[5]]) == [1.0]
    assert compare(judge, [PROMPT], [texts[0]], ["an answer that nobody saw"]) == [None]


def sheet_of(path: Path, lines: Sequence[tuple[str, str, str, str]]) -> Path:
    """Writes a filled sheet: way, item (or two items with a space between), annotator, verdict."""
    columns = {"pairwise": ("item_a", "item_b")}
    write_jsonl(path, [
        {"way": way, "annotator": name, "verdict": verdict} | dict(zip(columns.get(way, ("item",)), item.split(), strict=True))
        for way, item, name, verdict in lines
    ])  # fmt: skip
    return path


def judge_of(path: Path) -> Judge:
    return load_judge(HumanJudge(annotations=str(path)), seed=1)


def test_a_rating_sheet_prefers_the_higher_and_a_ranking_sheet_the_lower_number(tmp_path: Path) -> None:
    x, y = item_code(PROMPT, "x"), item_code(PROMPT, "y")
    for way, won in (("rating", 1.0), ("ranking", 0.0)):
        judge = judge_of(sheet_of(tmp_path / "a.jsonl", [(way, x, "ann", "9"), (way, y, "ann", "2")]))
        assert compare(judge, [PROMPT], ["x"], ["y"]) == [won]
        assert judge.rank([PROMPT], [["x", "y"]])[0].scores == [won, 1 - won]
    with pytest.raises(ValueError, match="found one of way ranking"):
        judge.rate([PROMPT], ["x"])


def test_agreement_is_between_the_same_two_people_whoever_judged_which_pair(tmp_path: Path) -> None:
    # Ann and Bo agree on every pair that both judged. Cy, who always differs from Ann, comes first on the others.
    texts = [(f"x{n}", f"y{n}") for n in range(12)]
    lines = []
    for n, (x, y) in enumerate(texts):
        items = f"{item_code(PROMPT, x)} {item_code(PROMPT, y)}"
        verdict, opposite = ("A", "B") if n % 2 else ("B", "A")
        opinions = (("cy", opposite), ("ann", verdict)) if n < 4 else (("ann", verdict), ("bo", verdict))
        lines += [("pairwise", items, *opinion) for opinion in opinions]
    judge = judge_of(sheet_of(tmp_path / "a.jsonl", lines))
    quality = Quality()
    for comparison in judge.compare([PROMPT] * 12, [x for x, _ in texts], [y for _, y in texts]):
        quality.add_opinions(dict(comparison.opinions))
    assert set(quality.raters) == {"ann", "bo", "cy"}
    assert quality.metrics()["kappa"] == pytest.approx((1.0 - 1.0) / 2)  # Ann and Bo 1, Ann and Cy -1, Bo and Cy have no case


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([("ranking", "x", "ann", "first")], "line 1: expected a rank .*'first'"),
        ([("rating", "x", "ann", "11")], "line 1: expected a rating from 1 to 10, found '11'"),
        ([("pairwise", "x y", "ann", "left")], "line 1: expected A, B or tie, found 'left'"),
        ([("rating", "x", "", "7")], "line 1: a verdict needs annotator"),
        (
            [("rating", "x", "ann", "7"), ("rating", "x", "ann", "3")],
            "line 2: expected one verdict of 'ann' .* found '3' after '7' in .*line 1",
        ),
        ([("", "x", "ann", "7")], "line 1: expected one of the ways"),
        ([("rating", "x", "ann", "")], "found none"),
    ],
)
def test_a_row_of_a_sheet_that_cannot_be_read_is_named(tmp_path: Path, lines: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_sheet(sheet_of(tmp_path / "a.jsonl", lines))


def test_judged_items_that_are_not_in_the_sample_are_counted_in_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [("rating", item_code(PROMPT, text), "ann", "7") for text in ("x", "y", "z")]
    judge = judge_of(sheet_of(tmp_path / "a.jsonl", lines))
    judge.rate([PROMPT], ["x"])
    judge.finish()
    assert "2 of 3 judged completions are not among those to label" in capsys.readouterr().err


def test_a_code_does_not_look_like_a_number_and_a_zero_is_a_verdict(tmp_path: Path) -> None:
    assert all(not item_code(PROMPT, str(n))[0].isdigit() for n in range(200))
    write_jsonl(tmp_path / "a.jsonl", [{"way": "ranking", "item": "c1", "annotator": "ann", "verdict": 0}])
    assert [row["verdict"] for row in read_sheet(tmp_path / "a.jsonl")] == ["0"]


def test_a_folder_of_sheets_is_read_whole_and_semicolons_are_understood(tmp_path: Path) -> None:
    (tmp_path / "ann.csv").write_text("way;annotator;verdict;item\nrating;ann;7;x\nrating;ann;;y\n", encoding="utf-8-sig")
    sheet_of(tmp_path / "bo.jsonl", [("rating", "x", "bo", "5")])
    (tmp_path / "README.md").write_text("not a sheet")
    assert [(row["annotator"], row["verdict"]) for row in read_sheet(tmp_path)] == [("ann", "7"), ("bo", "5")]


def test_the_majority_of_people_is_the_same_in_either_order() -> None:
    x, y = item_code(PROMPT, "x"), item_code(PROMPT, "y")
    opinions = [("ann", x, y, "A"), ("bo", x, y, "tie"), ("cy", y, x, "B")]
    judge = AnnotatorsJudge(
        [{"annotator": name, "item_a": a, "item_b": b, "verdict": verdict} for name, a, b, verdict in opinions]
    )
    (comparison,), (reverse,) = judge.compare([PROMPT], ["x"], ["y"]), judge.compare([PROMPT], ["y"], ["x"])
    assert (comparison.win, reverse.win) == (1.0, 0.0)
    assert comparison.swapped().opinions == reverse.opinions == {"ann": B, "bo": TIE, "cy": B}


def test_somebody_who_saw_both_orders_and_contradicts_themselves_is_inconsistent() -> None:
    x, y = item_code(PROMPT, "x"), item_code(PROMPT, "y")
    judge = AnnotatorsJudge([{"annotator": "ann", "item_a": a, "item_b": b, "verdict": "A"} for a, b in ((x, y), (y, x))])
    assert judge.compare([PROMPT], ["x"], ["y"])[0].opinions == {"ann": "inconsistent"}


def test_a_missing_sheet_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m plumbline\.judging\.human"):
        judge_of(tmp_path / "none.csv")
