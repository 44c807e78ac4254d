"""Feedback is never lost or torn, and becomes the rows that it states: checked, counted, and none that nobody stated."""

import errno
import fcntl
import multiprocessing
import resource
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plumbline.data.faults import Fault
from plumbline.feedback.folder import FOLDER, Entry, append, current, read
from plumbline.feedback.judgements import judgements
from plumbline.feedback.lines import BOTH_BAD, DOWN, TIE, Answer, B, Line
from plumbline.pipeline.composing import CONF, conf_values
from plumbline.pipeline.records import read_json, read_jsonl, write_jsonl
from plumbline.rows import Row, assistant
from stages.feedback import FeedbackEntry, FeedbackStage, run
from tests.saying import correction, said, save_named, save_prompts, say, thumb, vote

SETTINGS: dict[str, Any] = {
    "policy": "sft", "answers_of": [], "validation_fraction": 0.0, "too_long": "drop", "duplicates": "drop", "decontaminate": "drop",
    "personal_data": "report", "limits": {},
}  # fmt: skip


def made(kind: str, **changes: Any) -> list[Row]:
    """The rows that the stage makes for training."""
    config = FeedbackEntry(**{"kind": kind, **SETTINGS, **changes})
    run(FeedbackStage(threads=1, feedback=config), "said")
    return read_jsonl("artifacts/feedback/said/train.jsonl")


def figures() -> dict[str, int]:
    values: dict[str, int] = read_json("artifacts/figures/feedback/said.json")
    return values


@pytest.fixture
def world(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a base policy, evaluation prompts and an empty folder of feedback, as under DVC."""
    monkeypatch.setenv("DVC_STAGE", "feedback@said")
    save_named("sft")
    save_prompts("What is held out?")
    FOLDER.mkdir(parents=True)
    return project


# --- the files ------------------------------------------------------------------------------------------------------------


def test_a_line_comes_back_as_it_was_said(project: Path) -> None:
    lines = [vote("a"), thumb("b", DOWN), correction("c", "Drei, 셋.\nUnd mehr."), vote("d", about=1, source="mlflow")]
    say(*lines)
    assert [entry.content for entry in read()] == lines


def _append_many(path: Path, name: str) -> None:
    for number in range(30):
        append(path, [vote(f"{name}{number}", first="x" * 20_000)])


def test_lines_that_several_processes_append_at_once_are_all_there_and_whole(project: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(FOLDER / "chat.jsonl", name)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    lines = [entry.content for entry in read()]
    assert {line.id for line in lines if isinstance(line, Line)} == {f"{name}{n}-vote" for name in "abc" for n in range(30)}
    assert len(lines) == 90


def test_a_line_waits_for_the_one_that_is_being_written(project: Path) -> None:
    say(vote("a"))
    context = multiprocessing.get_context("fork")
    with (FOLDER / "chat.jsonl").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer = context.Process(target=say, args=(vote("b"),))
        writer.start()
        writer.join(1)
        assert len(said()) == 1
        fcntl.flock(file, fcntl.LOCK_UN)  # closing it would not do: the writer has inherited it
    writer.join(60)
    assert len(said()) == 2


def test_what_a_crash_tore_off_stays_a_line_of_its_own(project: Path) -> None:
    say(vote("a"))
    with (FOLDER / "chat.jsonl").open("a") as file:
        file.write('{"id": "half a li')
    say(vote("b"))
    first, torn, second = (entry.content for entry in read())
    assert (first, second) == (vote("a"), vote("b"))
    assert isinstance(torn, Fault)
    assert torn.reason == "invalid_json"


def _append_with_room_for(room: int, characters: int) -> None:
    """Ends with the number of the error."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))  # as a full disk: it takes what fits, then refuses
    try:
        say(vote("b", first="x" * characters))
    except OSError as error:
        sys.exit(error.errno)


@pytest.mark.parametrize(("room", "characters"), [(0, 1000), (1, 1000), (500, 1000), (10_000, 100_000)])
def test_a_disk_that_takes_a_part_of_a_line_leaves_the_file_as_it_was(room: int, characters: int, project: Path) -> None:
    say(vote("a"))
    before = (FOLDER / "chat.jsonl").read_bytes()
    context = multiprocessing.get_context("fork")
    writer = context.Process(target=_append_with_room_for, args=(len(before) + room, characters))
    writer.start()
    writer.join(60)
    assert writer.exitcode == errno.EFBIG
    assert (FOLDER / "chat.jsonl").read_bytes() == before


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_a_line_that_does_not_reach_the_disk_leaves_the_file_as_it_was(
    error: BaseException, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(vote("a"))
    before = (FOLDER / "chat.jsonl").read_bytes()

    def failing(_: int) -> None:
        raise error

    monkeypatch.setattr("plumbline.feedback.folder.os.fsync", failing)
    with pytest.raises(type(error)):
        say(vote("b"))
    assert (FOLDER / "chat.jsonl").read_bytes() == before


@pytest.mark.parametrize("line", [correction("b", "Sad \ud83d"), vote("b", messages=[{"role": "user", "content": "\ude00"}])])
def test_half_of_a_character_is_refused_and_leaves_the_file_as_it_was(line: Line, project: Path) -> None:
    say(vote("a"))
    before = (FOLDER / "chat.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"expected whole characters, found half of one \(U\+D[8E][03][0D]\)"):
        say(line)
    assert (FOLDER / "chat.jsonl").read_bytes() == before


def test_a_later_line_about_the_same_replaces_an_earlier_one(project: Path) -> None:
    say(vote("a"), thumb("b"), vote("a", TIE))
    assert [entry.content for entry in current(read())] == [thumb("b"), vote("a", TIE)]


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"kind": "opinion"}, "'kind': expected vote, thumb or correction, found 'opinion'"),
        ({"verdict": "left"}, "'verdict': expected A, B, tie, both_bad for a vote, found 'left'"),
        ({"answers": []}, "'answers': expected 2 for a vote, found 0"),
        ({"answers": ["One.", "Two."]}, "expected objects with `text`, found str"),
        ({"answers": [{"text": "One.", "polcy": "sft"}, {"text": "Two."}]}, "found ['polcy']"),
        ({"about": 2}, "'about': expected a position in `answers`, which are 2, found 2"),
        ({"messages": "What?"}, "'messages': expected a list of messages"),
        ({"verdict": None}, "'verdict' is null"),
        ({"more": 1}, "found ['more']"),
    ],
)
def test_a_line_that_does_not_keep_to_the_schema_is_a_fault_that_says_so(changes: Row, detail: str, project: Path) -> None:
    say(vote("a"))
    write_jsonl(FOLDER / "chat.jsonl", [said()[0] | changes])
    [entry] = read()
    assert isinstance(entry.content, Fault)
    assert detail in entry.content.detail


# --- what they say --------------------------------------------------------------------------------------------------------


def entries(*lines: Line) -> list[Entry]:
    return [Entry("f", number, line) for number, line in enumerate(lines)]


def stated(kind: str, *lines: Line) -> list[Any]:
    """(chosen, rejected), (completion, label) or completion of each row that the lines state."""
    texts = []
    for _, _, row in judgements(entries(*lines), kind):
        assert isinstance(row, dict)
        columns = ("chosen", "rejected") if kind == "preferences" else ("completion",)
        words = [row[column][0]["content"] for column in columns]
        texts.append((*words, row["label"]) if "label" in row else tuple(words))
    return texts


def test_votes_thumbs_and_corrections_become_what_they_state() -> None:
    lines = [vote("a"), vote("b", B), vote("c", TIE), vote("d", BOTH_BAD), thumb("e"), thumb("f", DOWN), correction("g")]
    assert stated("preferences", *lines) == [("One.", "Two."), ("Two.", "One."), ("Three.", "One.")]
    assert stated("unpaired", *lines) == [
        ("One.", True), ("Two.", False), ("Two.", True), ("One.", False), ("Two.", False), ("One.", False), ("One.", True), ("One.", False),
        ("Three.", True), ("One.", False),
    ]  # fmt: skip
    assert stated("demonstrations", *lines) == [("Three.",)]


def test_a_vote_does_not_contradict_a_thumb_on_the_same_answer() -> None:
    """Both are good, and one is better."""
    both = vote("a")
    thumbs = [replace(both, id=f"t{about}", kind="thumb", verdict="up", about=about) for about in (0, 1)]
    assert stated("unpaired", both, *thumbs) == [("One.", True), ("Two.", True)]


def test_an_answer_that_was_cut_off_is_never_the_better_one() -> None:
    cut = [Answer("One, and", finished=False), Answer("Two.")]
    better, worse = vote("a", answers=cut), vote("b", B, answers=cut)
    assert [row.content for row in judgements(entries(better), "preferences")] == [Fault("unfinished", "…One, and")]
    assert stated("preferences", worse) == [("Two.", "One, and")]
    assert next(row.content for row in judgements(entries(better), "unpaired")) == Fault("unfinished", "…One, and")


# --- the stage ------------------------------------------------------------------------------------------------------------


def test_a_vote_is_a_preference_with_the_policies_and_its_place(world: Path) -> None:
    say(vote("a"), vote("b", TIE))
    [row] = made("preferences")
    assert (row["chosen"], row["rejected"]) == (assistant("One."), assistant("Two."))
    assert (row["policy_chosen"], row["policy_rejected"], row["feedback"]) == ("dpo", "sft", "vote")
    assert (row["file"], row["row"], row["source"], row["licence"]) == ("chat.jsonl", 1, "chat.jsonl", "unknown")


def test_rows_in_are_rows_kept_and_rows_dropped_and_what_was_said_is_counted(world: Path) -> None:
    held_out = vote("x", messages=[{"role": "user", "content": "What is held out?"}])
    say(*(vote(str(number)) for number in range(20)), vote("t", TIE), vote("0", B, id="again"), held_out, vote("19", B))
    say(thumb("e"), file="other.jsonl")
    rows = made("preferences", duplicates="drop", limits={"evaluation_overlap": 1.0})
    counts = figures()
    assert counts["rows_in"] == counts["kept"] + counts["dropped.evaluation_overlap"] == 22
    assert counts["train.rows"] == len(rows) == 21
    assert (counts["lines"], counts["replaced"]) == (24, 1)
    assert (counts["vote.A"], counts["vote.B"], counts["vote.tie"], counts["thumb.up"]) == (20, 2, 1, 1)
    [drop] = read_jsonl("artifacts/feedback/said/dropped.jsonl")
    assert (drop["file"], drop["row"], drop["reason"]) == ("chat.jsonl", 23, "evaluation_overlap")


def test_a_prompt_is_in_one_split_whoever_judges_it(world: Path) -> None:
    say(*(vote(f"{number}", id=f"{number}-{again}", first=f"One {again}.") for number in range(40) for again in range(2)))
    train = made("preferences", validation_fraction=0.3)
    validation = read_jsonl("artifacts/feedback/said/validation.jsonl")
    questions = [{row["prompt"][0]["content"] for row in rows} for rows in (train, validation)]
    assert questions[0].isdisjoint(questions[1])
    assert len(train) + len(validation) == 80
    assert 5 <= len(questions[1]) <= 20


def test_a_broken_line_stops_the_stage_with_its_place_and_a_remedy(world: Path) -> None:
    say(vote("a"), vote("b"))
    with (FOLDER / "chat.jsonl").open("a") as file:
        file.write("{broken\n")
    with pytest.raises(
        ValueError, match=r"chat.jsonl:3 .*correct or delete the line; or raise feedback\.said\.limits\.invalid_json in params"
    ):
        made("preferences")
    assert len(made("preferences", limits={"invalid_json": 0.5})) == 2
    assert figures()["dropped.invalid_json"] == 1


def test_no_feedback_says_how_to_give_some(world: Path) -> None:
    with pytest.raises(
        ValueError, match=r"expected feedback in data/feedback/\*\.jsonl, found none\. Give some with `make chat POLICY=sft`"
    ):
        made("preferences")
    FOLDER.rmdir()
    with pytest.raises(ValueError, match=r"expected the folder data/feedback, found none: run `mkdir"):
        made("preferences")


def test_feedback_of_another_kind_says_what_is_missing(world: Path) -> None:
    say(thumb("a"), vote("b", TIE))
    with pytest.raises(ValueError, match="expected preferences for the split train, found none among 0 rows"):
        made("preferences")
    say(vote("c"))
    with pytest.raises(ValueError, match="expected preferences for the split validation, found none among 1 rows"):
        made("preferences", validation_fraction=1e-9)


def test_only_the_policies_that_are_named_are_learnt_from(world: Path) -> None:
    say(vote("a"), thumb("b"), thumb("c", answers=[Answer("Old.", "old", "0" * 16)]))
    assert [row["completion"][0]["content"] for row in made("unpaired", answers_of=["old"])] == ["Old."]
    assert len(made("unpaired")) == 4
    with pytest.raises(ValueError, match=r"answers_of: expected policies whose answers .* \(dpo, sft, old\), found gone"):
        made("unpaired", answers_of=["gone"])


def test_a_thumb_in_a_blind_chat_is_about_one_policy_alone_and_a_vote_about_both(world: Path) -> None:
    answers = [Answer("New.", "kto", "1" * 16), Answer("Old.", "sft", "0" * 16)]
    say(thumb("a", answers=answers, about=0), thumb("b", answers=answers, about=1), vote("c", answers=answers))
    assert [row["completion"][0]["content"] for row in made("unpaired", answers_of=["kto"])] == ["New."]


def test_a_text_with_a_mark_of_turns_is_dropped_as_from_any_source(world: Path) -> None:
    say(*(thumb(str(number)) for number in range(9)), correction("x", "Three.<|end|>"))
    with pytest.raises(ValueError, match=r"1 of 11 rows of 'chat.jsonl' dropped as transcript"):
        made("unpaired")


@pytest.mark.parametrize("answer", ["\ufffd", " ", "Two.", "One.<|end|>"])
def test_what_a_policy_may_say_is_dropped_and_stops_nothing(world: Path, answer: str) -> None:
    """Half of a character, nothing, the same as the other, a mark of turns."""
    limits = conf_values(CONF / "feedback.yaml")["feedback"]["limits"]
    say(vote("a", first=answer), vote("b"))
    assert len(made("preferences", limits=limits)) == 1
    assert figures()["rows_in"] == 2


@pytest.mark.parametrize(("key", "value"), [("kind", "votes"), ("validation_fraction", 1.0), ("decontaminate", "perhaps")])
def test_values_that_do_not_fit_are_named(world: Path, key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"feedback\.{key}: expected"):
        made(**{"kind": "preferences", key: value})
