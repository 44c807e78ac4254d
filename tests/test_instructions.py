"""Instructions that a program can check: how data state them, how answers are checked, and what is said without the library that checks them."""

from pathlib import Path
from typing import Any

import pytest

from plumbline.checking import following
from plumbline.checking.following import InstructionReward, follows, require_checkers, require_library
from plumbline.checking.instructions import ARGUMENTS, read_instructions
from plumbline.checking.references import References
from plumbline.data.schema import source_problems
from tests.preparing import prepare_rows, source

SHORT = {"id": "length_constraints:number_words", "relation": "less than", "num_words": 4}
NO_COMMA: dict[str, Any] = {"id": "punctuation:no_comma"}
SENTENCES = {"id": "length_constraints:number_sentences", "relation": "at least", "num_sentences": 2}
HASHES = {"id": "keywords:letter_frequency", "letter": "#", "let_frequency": 2, "let_relation": "at least"}
SPANISH = {"id": "language:response_language", "language": "es"}
PROMPT = [{"role": "user", "content": "Say it in less than four words, without commas."}]


# ---- how data state them --------------------------------------------------------------------------------------------


def test_ifevals_own_rows_become_prompts_with_instructions(tmp_path: Path) -> None:
    nulls = dict.fromkeys(["keywords", "num_words", "relation", "letter"])
    rows = [
        {
            "key": 1000 + number,
            "prompt": f"Question {number}?",
            "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
            "kwargs": [nulls, {**nulls, "num_words": 300.0, "relation": "at least"}],
        }
        for number in range(2)
    ]
    kept = prepare_rows(tmp_path, "prompts", rows).kept("prompts")
    assert [row["instructions"] for row in kept] == [
        [NO_COMMA, {"id": "length_constraints:number_words", "num_words": 300, "relation": "at least"}]
    ] * 2


def test_a_source_states_instructions_for_all_its_prompts_and_a_row_its_own(tmp_path: Path) -> None:
    rows = [{"question": "Why?"}, {"question": "How?", "rules": [NO_COMMA]}, {"question": "When?", "rules": f"{[NO_COMMA]}"}]
    stated = prepare_rows(tmp_path / "all", "prompts", [{"prompt": "Why?"}], instructions=[SHORT]).kept("prompts")
    assert [row["instructions"] for row in stated] == [[SHORT]]
    fields = {"prompt": "question", "instructions": "rules"}
    kept = prepare_rows(tmp_path / "own", "prompts", [{"rules": None} | row for row in rows], fields=fields).kept("prompts")
    assert [row.get("instructions") for row in kept] == [None, [NO_COMMA], [NO_COMMA]]


@pytest.mark.parametrize(
    ("instruction", "complaint"),
    [
        ("less than 50 words", "expected an object with an `id`"),
        ({"id": "number_words"}, "found 'number_words'. Did you mean 'length_constraints:number_words'?"),
        ({"id": "punctuation:no_commas"}, "Did you mean 'punctuation:no_comma'?"),
        ({**SHORT, "num_word": 3}, "expected the arguments num_words, relation, found 'num_word'. Did you mean 'num_words'?"),
        ({**NO_COMMA, "count": 3}, "expected no arguments, found 'count'"),
        ({"id": SHORT["id"], "num_words": 3}, "expected relation, less than or at least, found none"),
        ({**SHORT, "num_words": -1}, "expected num_words to be a whole number from 0, found '-1'"),
        ({**SHORT, "num_words": True}, "expected num_words to be a whole number from 0, found 'True'"),
        ({**SHORT, "relation": "at most"}, "expected relation to be less than or at least, found 'at most'"),
        ({"id": "keywords:existence", "keywords": ["(a"]}, "expected keywords to be a list of regular expressions"),
        ({**HASHES, "letter": "ab"}, "expected letter to be one character, found 'ab'"),
        ({**SPANISH, "language": "Spanish"}, "expected language to be one of en es"),
        (
            {"id": "length_constraints:nth_paragraph_first_word", "num_paragraphs": 2, "nth_paragraph": 3, "first_word": "a"},
            "expected nth_paragraph from 1 to num_paragraphs, 2, found 3",
        ),
    ],
)
def test_an_instruction_that_cannot_be_checked_is_refused_wherever_it_is_stated(
    tmp_path: Path, instruction: Any, complaint: str
) -> None:
    with pytest.raises(ValueError, match="instructions: ") as error:
        read_instructions([instruction])
    assert complaint in str(error.value)
    row = {"prompt": [{"role": "user", "content": "Why?"}], "instructions": [instruction]}
    prepared = prepare_rows(tmp_path, "prompts", [row])
    assert (prepared.kept("prompts"), prepared.dropped("prompts")) == ([], {"bad_instruction": 1})
    assert complaint in " ".join(source_problems("prompts", [source("rows.jsonl", instructions=[instruction])]))


def test_instructions_of_other_roles_or_stated_twice_are_refused() -> None:
    [wrong] = source_problems("sft", [source("rows.jsonl", instructions=[SHORT])])
    assert "instructions: expected only in `prompts`" in wrong
    twice = source("rows.jsonl", instructions=[SHORT], fields={"prompt": "p", "instructions": "rules"})
    assert "found both" in " ".join(source_problems("prompts", [twice]))
    assert source_problems("prompts", [source("rows.jsonl", instructions=[SHORT, NO_COMMA])]) == []


# ---- without the library --------------------------------------------------------------------------------------------


def test_without_the_library_one_sentence_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "find_spec", lambda name: None)
    require_checkers([])
    for require in (require_library, lambda: require_checkers([NO_COMMA])):
        with pytest.raises(ValueError, match=r"instructions: .* found no if_verifiable, .*: run `pip install \"\.\[ifeval\]\"`"):
            require()
    with pytest.raises(ValueError, match="ifeval"):
        InstructionReward(References([{"prompt": PROMPT, "instructions": [NO_COMMA]}], "instructions"))


def test_instructions_that_need_nltks_data_are_refused_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "find_spec", lambda name: name)
    monkeypatch.setattr(following, "_has_punkt", lambda: False)
    require_checkers([SHORT, NO_COMMA])
    with pytest.raises(ValueError, match=r"number_sentences cannot be checked.*`python -m nltk.downloader punkt_tab`"):
        require_checkers([NO_COMMA, SENTENCES])


# ---- with the library -----------------------------------------------------------------------------------------------


@pytest.fixture
def _library() -> None:
    pytest.importorskip("if_verifiable", reason='pip install ".[ifeval]"')


@pytest.mark.usefixtures("_library")
def test_the_table_of_arguments_is_the_librarys() -> None:
    import inspect

    of_library = {
        name: [*inspect.signature(checker("").build_description).parameters] for name, checker in following._checkers().items()
    }
    assert {name: sorted(of_library[name]) for name in of_library} == {name: sorted(ARGUMENTS[name]) for name in ARGUMENTS}


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize(
    ("instruction", "followed", "not_followed"),
    [
        (SHORT, "one two three", "one two three four"),
        (NO_COMMA, "No.", "No, sir."),
        (HASHES, "#a and #b", "#a and b"),
        ({**HASHES, "let_relation": "less than"}, "#a", "## aaa"),
        ({**HASHES, "letter": "A"}, "a A", "a b"),
        (SPANISH, "El perro come la comida en la casa", "The dog eats the food in the house"),
        ({"id": "startend:end_checker", "end_phrase": "Bye."}, "Well. Bye.", "Bye. Well."),
        ({"id": "detectable_format:json_format"}, '{"a": 1}', "[" * 100_000),
        ({"id": "combination:two_responses"}, "a ****** b", "a"),
    ],
)
def test_answers_are_checked_by_ifevals_programs(instruction: dict[str, Any], followed: str, not_followed: str) -> None:
    assert [follows([instruction], answer) for answer in (followed, not_followed, " ")] == [[True], [False], [False]]


@pytest.mark.usefixtures("_library")
def test_a_language_is_detected_alike_every_time() -> None:
    unclear = "bon am der sera und"  # without a seed, German in one of three tries, else Danish or Swedish
    codes = ("de", "en")
    assert len({tuple(follows([{**SPANISH, "language": code} for code in codes], unclear)) for _ in range(30)}) == 1


@pytest.mark.usefixtures("_library")
def test_sentences_are_counted_with_nltks_data_and_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(ValueError, match="punkt_tab"):
        require_checkers([SENTENCES])
    folder = tmp_path / "tokenizers/punkt_tab/english"
    folder.mkdir(parents=True)
    for name in ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab"):
        (folder / name).touch()
    require_checkers([SENTENCES])
    assert follows([SENTENCES, SENTENCES], "One. Two.") == [True, True]
    capitals = {"id": "change_case:capital_word_frequency", "capital_frequency": 2, "capital_relation": "at least"}
    assert follows([SENTENCES, capitals], "ONE TWO") == [False, True]


@pytest.mark.usefixtures("_library")
def test_the_reward_is_1_if_all_instructions_are_followed_by_what_follows_the_reasoning() -> None:
    reward = InstructionReward(References([{"prompt": PROMPT, "instructions": [SHORT, NO_COMMA]}], "instructions"))
    texts = ["Here it is.", "Here, now.", "Here it is, my dear friend.", "<think>Well, let me see.</think>Here it is.", ""]
    assert reward([PROMPT] * 5, texts) == [1.0, 0.0, 0.0, 1.0, 0.0]
    assert reward.outcomes == {"followed": 2, "not_followed": 3}
    reward.reasoning = "none"
    assert reward([PROMPT], [texts[3]]) == [0.0]
    with pytest.raises(ValueError, match="expected a reference for every prompt"):
        reward([[{"role": "user", "content": "Another?"}]], ["x"])
