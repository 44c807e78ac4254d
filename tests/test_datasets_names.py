"""Names: of files and columns in composed or decomposed Unicode, of fields in templates with braces, and the ids of equal prompts."""

import json
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest

from plumbline.data.faults import DataError
from plumbline.data.schema import Policy
from plumbline.rows import last_turn, text_of
from tests.preparing import lenient, prepare, prepare_rows, source, write_rows

FORMS = [("NFC", "NFD"), ("NFD", "NFC")]


@pytest.mark.parametrize(("on_disk", "in_conf"), FORMS)
@pytest.mark.parametrize("pattern", ["한글 폴더/질문é.jsonl", "한글 폴더", "한글 폴더/질*.jsonl", "**/질문é.jsonl"])
def test_a_file_is_found_whatever_the_unicode_form_of_its_name(pattern: str, on_disk: str, in_conf: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "in" / normalize(on_disk, "한글 폴더/질문é.jsonl"), [{"prompt": "a?", "response": "b."}])
    (kept,) = prepare(tmp_path, {"sft": [source(normalize(in_conf, pattern), name="a")]}).kept("sft")
    assert kept["file"] == normalize("NFC", "한글 폴더/질문é.jsonl")  # the same on every machine


def test_a_folder_and_its_file_may_be_named_in_different_forms(tmp_path: Path) -> None:
    write_rows(tmp_path / "in" / normalize("NFC", "폴더") / normalize("NFD", "질문.jsonl"), [{"prompt": "a?", "response": "b."}])
    assert len(prepare(tmp_path, {"sft": [source("폴더/질문.jsonl", name="a")]}).kept("sft")) == 1


@pytest.mark.parametrize(("in_file", "in_conf"), FORMS)
@pytest.mark.parametrize("container", ["csv", "jsonl", "parquet"])
def test_a_column_is_found_whatever_the_unicode_form_of_its_name(
    container: str, in_file: str, in_conf: str, tmp_path: Path
) -> None:
    row = {
        normalize(in_file, "질문"): "a?",
        normalize(in_file, "답"): "b.",
        normalize(in_file, "평가"): normalize(in_file, "좋음"),
    }
    path = tmp_path / f"in/a.{container}"
    write_rows(path, [row])
    if container == "csv":
        path.write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
    elif container == "parquet":
        import pandas

        pandas.DataFrame([row]).to_parquet(path)
    fields = {
        "prompt": f"{{{normalize(in_conf, '질문')}}}",
        "completion": normalize(in_conf, "답"),
        "label": normalize(in_conf, "평가"),
    }
    good = [normalize(in_conf, "좋음")]
    (kept,) = prepare(tmp_path, {"unpaired": [source(path.name, fields=fields, positive=good)]}).kept("unpaired")
    assert (last_turn(kept["prompt"]), text_of(kept["completion"]), kept["label"]) == ("a?", "b.", True)


def test_a_nested_field_is_found_whatever_the_unicode_form_of_its_name(tmp_path: Path) -> None:
    row = {"data": {normalize("NFD", "질문"): "a?"}, "b": "b."}
    (kept,) = prepare_rows(tmp_path, "sft", [row], fields={"prompt": normalize("NFC", "data.질문"), "completion": "b"}).kept(
        "sft"
    )
    assert last_turn(kept["prompt"]) == "a?"


def test_two_columns_of_one_name_in_two_forms_are_refused(tmp_path: Path) -> None:
    composed, decomposed = normalize("NFC", "질문"), normalize("NFD", "질문")
    prepared = prepare_rows(tmp_path, "sft", [{"Q": "a?", "A": "b."}] * 9 + [{"Q": "a?", "A": "b.", composed: 1, decomposed: 2}])
    assert prepared.examples("sft") == {("rows.jsonl", 10, "duplicate_key")}
    (tmp_path / "in/a.csv").write_text(f"{composed},{decomposed}\n1,2\n")
    with pytest.raises(DataError, match="expected each column once"):
        prepare(tmp_path, {"sft": [source("a.csv")]})


# ------------------------------------------------------------------------------------------------------------- templates


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("{q} Put the answer in \\boxed{{}}.", "a? Put the answer in \\boxed{}."),
        ("\\frac{{{q}}}{{{n.0}}}", "\\frac{a?}{x}"),
        ("{{q}}", "{q}"),
        ('{q} Reply as {{"answer": …}}', 'a? Reply as {"answer": …}'),
        ("{q}", "a?"),
        ("odd{name}", "odd"),
    ],
)
def test_two_braces_in_a_template_are_one_in_the_text(template: str, prompt: str, tmp_path: Path) -> None:
    row = {"q": "a?", "n": ["x"], "odd{name}": "odd", "r": "b."}
    (kept,) = prepare_rows(tmp_path, "sft", [row], fields={"prompt": template, "completion": "r"}).kept("sft")
    assert last_turn(kept["prompt"]) == prompt


@pytest.mark.parametrize("template", ["{q} Put it in \\boxed{}.", "{q", "q}", "{q}}", "{{q}", "{a{q}}"])
def test_a_template_with_a_single_brace_is_refused_by_name(template: str, tmp_path: Path) -> None:
    complaints = source("a.jsonl", fields={"prompt": template, "completion": "r"}).problems()
    assert len(complaints) == 1
    assert complaints[0].startswith("fields.prompt: expected a field's name in braces")
    assert template.replace("\\", "\\\\") in complaints[0]


def test_a_template_with_an_unknown_field_drops_the_row(tmp_path: Path) -> None:
    rows = [{"q": "a?", "r": "b.", "s": "c"}, {"q": "a?", "r": "b."}]
    prepared = prepare_rows(tmp_path, "sft", rows, fields={"prompt": "{q} {s}", "completion": "r"})
    assert prepared.examples("sft") == {("rows.jsonl", 2, "missing_field")}


# ------------------------------------------------------------------------------------------------------------------- ids


@pytest.mark.parametrize("duplicates", ["report", "off"])
def test_equal_prompts_that_are_kept_have_different_ids_and_the_same_split(duplicates: str, tmp_path: Path) -> None:
    rows: list[Any] = [{"prompt": f"Question {number % 40}?", "topic": number} for number in range(120)]
    policy = lenient(duplicates=duplicates, near_duplicates="off", decontaminate="off")
    results = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        write_rows(folder / "in/a.jsonl", rows)
        results.append(prepare(folder, {"prompts": [source("a.jsonl")]}, policy, validation=0.3, test=0.3).rows)
    assert results[0] == results[1]
    kept = [(row["id"], last_turn(row["prompt"]), split) for split, part in results[0]["prompts"].items() for row in part]
    assert len(kept) == len({name for name, _, _ in kept}) == 120
    assert len({(prompt, split) for _, prompt, split in kept}) == 40
    assert len({split for _, _, split in kept}) == 3
    first = min(name for name, prompt, _ in kept if prompt == "Question 7?")
    assert {name for name, prompt, _ in kept if prompt == "Question 7?"} == {first, f"{first}-2", f"{first}-3"}


def test_prompts_of_one_text_in_different_turns_have_different_ids(tmp_path: Path) -> None:
    system, user = {"role": "system", "content": "s"}, {"role": "user", "content": "a?"}
    write_rows(tmp_path / "in/a.jsonl", [{"messages": [system, user]}, {"messages": [{"role": "user", "content": "s\na?"}]}])
    kept = prepare(tmp_path, {"prompts": [source("a.jsonl")]}, Policy(near_duplicates="off")).kept("prompts")
    assert len({row["id"] for row in kept}) == 2


def test_ids_that_the_data_repeat_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    rows = [{"q": "a?", "n": "7"}, {"q": "b?", "n": "7"}]
    (tmp_path / "in/a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"expected a different id for each, found \['7'\] more than once in the data"):
        prepare(tmp_path, {"prompts": [source("a.jsonl", fields={"prompt": "q", "id": "n"})]}, lenient(duplicates="off"))
