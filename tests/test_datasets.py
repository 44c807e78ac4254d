"""What `prepare` does with sound rows: policies, splits, decontamination, duplicates, mixtures, personal data, lengths."""

import operator
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plumbline.data import parallel
from plumbline.data.decontamination import index_prompts, overlapping
from plumbline.data.duplicates import first_of_near, signatures
from plumbline.data.faults import REASONS
from plumbline.data.parallel import map_chunks
from plumbline.data.personal_data import scan
from plumbline.data.schema import DEFAULT_LIMITS, Policy
from plumbline.data.scripts import SCRIPTS, language, scripts_by_text
from plumbline.data.texts import contents
from plumbline.models.chat import completion_ids, prompt_ids
from plumbline.rows import assistant, last_turn, text_of
from tests.preparing import Prepared, lenient, prepare, small_tokenizer, source, write_rows

USER, REPLY = {"role": "user", "content": "a?"}, {"role": "assistant", "content": "b."}
SYSTEM = {"role": "system", "content": "s"}

# ------------------------------------------------------------------------------------------- splits and decontamination


def test_a_prompt_is_in_the_same_split_whatever_role_and_order(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {i}?", "response": f"Answer {i}."} for i in range(400)]
    write_rows(tmp_path / "in/a.jsonl", rows)
    write_rows(tmp_path / "in/b.jsonl", rows[::-1])
    sources = {"sft": [source("a.jsonl")], "prompts": [source("b.jsonl")]}
    prepared = prepare(tmp_path, sources, lenient(), validation=0.1, test=0.2)
    prompts, sft = (
        {split: {last_turn(row["prompt"]) for row in rows} for split, rows in prepared.rows[role].items()}
        for role in ("prompts", "sft")
    )
    assert sft == {split: prompts[split] for split in ("train", "validation")}
    assert prepared.dropped("sft") == {"evaluation_overlap": len(prompts["test"])}
    assert 50 < len(prompts["test"]) < 110
    assert 20 < len(prompts["validation"]) < 60


LONG = "A train leaves the old station at nine and arrives in the far city at noon exactly. How long does it take?"


@pytest.mark.parametrize(
    ("role", "row", "dropped"),
    [
        ("sft", {"prompt": LONG, "response": "Three hours."}, True),
        ("sft", {"prompt": "Solve. " + LONG.upper().replace(".", " !"), "response": "Three."}, True),
        ("sft", {"prompt": "Hello?", "response": f"You once asked: {LONG}"}, True),
        ("sft", {"prompt": "A train leaves the old station at nine and is late.", "response": "No."}, False),
        ("sft", {"prompt": "What is  3 plus 4", "response": "7"}, True),
        ("sft", {"prompt": "What is 3 plus 5?", "response": "8"}, False),
        ("pretrain", {"text": f"Once upon a time. {LONG} The end."}, True),
        ("preferences", {"prompt": "Which?", "chosen": LONG, "rejected": "None."}, True),
        ("unpaired", {"prompt": LONG, "completion": "Three hours.", "label": True}, True),
    ],
)
def test_a_training_row_that_contains_an_evaluation_prompt_is_removed(role: str, row: Any, dropped: bool, tmp_path: Path) -> None:
    write_rows(tmp_path / "in/rows.jsonl", [row])
    write_rows(tmp_path / "in/test.jsonl", [{"prompt": LONG}, {"prompt": "What is 3 plus 4?"}])
    prepared = prepare(tmp_path, {role: [source("rows.jsonl")], "prompts": [source("test.jsonl", into="test")]}, lenient())
    assert prepared.dropped(role) == ({"evaluation_overlap": 1} if dropped else {})
    assert len(prepared.kept("prompts")) == 2


def test_rollout_prompts_that_contain_an_evaluation_prompt_are_removed(tmp_path: Path) -> None:
    write_rows(tmp_path / "in/train.jsonl", [{"prompt": f"Please answer. {LONG}"}, {"prompt": "Another thing?"}])
    write_rows(tmp_path / "in/test.jsonl", [{"prompt": LONG}])
    prepared = prepare(tmp_path, {"prompts": [source("train.jsonl", into="train"), source("test.jsonl", into="test")]}, lenient())
    assert [last_turn(row["prompt"]) for row in prepared.rows["prompts"]["train"]] == ["Another thing?"]
    assert prepared.examples("prompts") == {("train.jsonl", 1, "evaluation_overlap")}


def test_prompts_without_words_overlap_nothing(tmp_path: Path) -> None:
    write_rows(tmp_path / "in/rows.jsonl", [{"prompt": "!!!", "response": "What?"}])
    write_rows(tmp_path / "in/test.jsonl", [{"prompt": prompt} for prompt in ("? ! …", "🙂", LONG, "Why?")])
    prepared = prepare(tmp_path, {"sft": [source("rows.jsonl")], "prompts": [source("test.jsonl", into="test")]}, lenient())
    assert len(prepared.kept("sft")) == 1


def test_korean_written_in_jamo_is_the_same_korean(tmp_path: Path) -> None:
    prompt = "오늘 서울의 날씨가 어떤지 그리고 내일은 비가 오는지 자세히 알려 주세요"
    jamo = unicodedata.normalize("NFD", prompt)
    write_rows(tmp_path / "in/rows.jsonl", [{"prompt": jamo, "response": "맑아요."}, {"prompt": "다른 질문", "response": "네."}])
    write_rows(tmp_path / "in/test.jsonl", [{"prompt": prompt}])
    prepared = prepare(tmp_path, {"sft": [source("rows.jsonl")], "prompts": [source("test.jsonl", into="test")]}, lenient())
    assert prepared.examples("sft") == {("rows.jsonl", 1, "evaluation_overlap")}
    assert (signatures([prompt]) == signatures([jamo])).all()


def test_a_short_prompt_is_found_however_it_is_spaced(tmp_path: Path) -> None:
    write_rows(tmp_path / "in/rows.jsonl", [{"prompt": "What  is \n\n  3    plus  4 ?", "response": "7"}])
    write_rows(tmp_path / "in/test.jsonl", [{"prompt": "What is 3 plus 4?"}])
    prepared = prepare(tmp_path, {"sft": [source("rows.jsonl")], "prompts": [source("test.jsonl", into="test")]}, lenient())
    assert prepared.dropped("sft") == {"evaluation_overlap": 1}


def test_a_system_prompt_that_rows_share_is_not_an_overlap(tmp_path: Path) -> None:
    system = {"role": "system", "content": " ".join(f"rule{i}" for i in range(60))}

    def dialogue(question: str, *answer: dict[str, str]) -> dict[str, Any]:
        return {"messages": [system, {"role": "user", "content": question}, *answer]}

    answer = {"role": "assistant", "content": "Yes."}
    write_rows(
        tmp_path / "in/rows.jsonl", [dialogue("What about rabbits?", answer), dialogue(LONG, answer), dialogue("Why?", answer)]
    )
    write_rows(tmp_path / "in/test.jsonl", [dialogue(LONG), dialogue("Why?")])
    prepared = prepare(tmp_path, {"sft": [source("rows.jsonl")], "prompts": [source("test.jsonl", into="test")]}, lenient())
    assert prepared.examples("sft") == {("rows.jsonl", 2, "evaluation_overlap"), ("rows.jsonl", 3, "evaluation_overlap")}


def test_overlap_counts_the_share_of_one_prompts_ngrams() -> None:
    prompt = " ".join(f"w{i}" for i in range(15))  # eight 8-grams
    index = index_prompts([prompt], words=8, fraction=0.5)
    texts = ["x " + " ".join(f"w{i}" for i in range(length)) for length in (10, 11)]  # three and four of them
    assert overlapping(index, texts, ["", ""]).tolist() == [False, True]


# ---------------------------------------------------------------------------------------------- duplicates and mixtures


def _near(tmp_path: Path, policy: Policy) -> Prepared:
    story = "The quick brown fox jumps over the lazy dog while the old farmer watches from his porch and laughs. " * 2
    rows = [{"text": story}, {"text": story}, {"text": story.replace("laughs", "smiles")}, {"text": "Something else entirely."}]
    write_rows(tmp_path / "in/a.jsonl", rows)
    return prepare(tmp_path, {"pretrain": [source("a.jsonl")]}, policy)


def test_duplicates_are_dropped_and_near_ones_reported_with_what_they_repeat(tmp_path: Path) -> None:
    prepared = _near(tmp_path, Policy())
    assert prepared.dropped("pretrain") == {"duplicate": 1}
    tally = prepared.pools["pretrain"].tally
    assert tally.noted[("a.jsonl", "near_duplicate")] == 1
    assert [(drop.row, drop.detail) for drops in tally.examples.values() for drop in drops] == [
        (2, "of a.jsonl:1"),
        (3, "of a.jsonl:1"),
    ]


def test_near_duplicates_are_dropped_by_policy(tmp_path: Path) -> None:
    prepared = _near(tmp_path, Policy(near_duplicates="drop"))
    assert prepared.dropped("pretrain") == {"duplicate": 1, "near_duplicate": 1}
    assert [row["row"] for row in prepared.kept("pretrain")] == [1, 4]


def test_duplicates_stay_if_they_are_not_looked_for(tmp_path: Path) -> None:
    prepared = _near(tmp_path, Policy(duplicates="off", near_duplicates="off"))
    assert len(prepared.kept("pretrain")) == 4


def _shingles(text: str) -> set[str]:
    plain = " ".join(text.lower().split()) + " "
    return {plain[i : i + 5] for i in range(len(plain))}


def test_minhash_estimates_the_jaccard_similarity_of_shingles() -> None:
    rng = np.random.default_rng(3)
    vocabulary = ["".join(rng.choice(list("abcdefgh가나다라마"), 5)) for _ in range(500)]
    base = [list(rng.choice(vocabulary, 60)) for _ in range(40)]
    texts = [" ".join(words) for words in base]
    changed = [" ".join(["zzzzz"] * number + words[number:]) for number, words in enumerate(base)]
    estimates = (signatures(texts) == signatures(changed)).mean(axis=1)
    truth = [len(_shingles(a) & _shingles(b)) / len(_shingles(a) | _shingles(b)) for a, b in zip(texts, changed, strict=True)]
    assert np.abs(estimates - truth).max() < 0.15
    assert np.abs(estimates - truth).mean() < 0.04


def test_signatures_do_not_depend_on_the_batch() -> None:
    texts = ["abc", "a", "가나다라마바사", "the same text again and again"]
    one_by_one = np.concatenate([signatures([text]) for text in texts])
    assert (signatures(texts) == one_by_one).all()


def test_the_earliest_similar_row_is_found_among_many() -> None:
    rng = np.random.default_rng(5)
    texts = [" ".join(map(str, rng.integers(0, 10**6, 40))) for _ in range(3000)]
    texts += [text + " 7" for text in texts[:100]]
    first = first_of_near(signatures(texts), 0.8)
    assert (first[:3000] == np.arange(3000)).all()
    assert (first[3000:] == np.arange(100)).mean() >= 0.99


def test_rows_that_differ_only_in_label_or_speaker_are_not_duplicates(tmp_path: Path) -> None:
    rows = [{"prompt": "a?", "completion": "b.", "label": label} for label in (True, False, True)]
    write_rows(tmp_path / "in/a.jsonl", rows)
    write_rows(tmp_path / "in/b.jsonl", [{"messages": [SYSTEM, USER, REPLY]}, {"prompt": "s\na?", "response": "b."}])
    prepared = prepare(tmp_path, {"unpaired": [source("a.jsonl")], "pretrain": [source("b.jsonl", format="messages")]}, lenient())
    assert [row["label"] for row in prepared.kept("unpaired")] == [True, False]
    assert prepared.examples("unpaired") >= {("a.jsonl", 3, "duplicate")}


def test_a_mixture_is_as_large_as_its_proportions_allow(tmp_path: Path) -> None:
    for name, count in (("a", 40), ("b", 100), ("c", 90)):
        write_rows(tmp_path / f"in/{name}.jsonl", [{"text": f"{name} number {i}"} for i in range(count)])
    sources = [source("a.jsonl", weight=1.0), source("b.jsonl", weight=2.0), source("c.jsonl", weight=0.5)]
    prepared = prepare(tmp_path, {"pretrain": sources}, Policy(near_duplicates="off"))
    assert Counter(row["source"] for row in prepared.kept("pretrain")) == {"a.jsonl": 40, "b.jsonl": 80, "c.jsonl": 20}
    assert prepared.dropped("pretrain") == {"mixture": 90}


# --------------------------------------------------------------------------------------------- personal data and scripts


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Write to kim.cs+1@mail.example.co.kr today.", "Write to [EMAIL] today."),
        ("전화 010-1234-5678 주세요", "전화 [PHONE] 주세요"),
        ("02-123-4567 or 031 123 4567", "[PHONE] or [PHONE]"),
        ("call +82 10 1234 5678, (415) 555-1234, 415-555-1234", "call [PHONE], [PHONE], [PHONE]"),
        ("주민번호는 900101-1234567.", "주민번호는 [RESIDENT NUMBER]."),
        ("9001011234567", "[RESIDENT NUMBER]"),
        ("901301-1234567", "901301-1234567"),  # month 13
        ("In 2024-05-17 at 10:30 it cost 1,234,567 or 3.14159265", "In 2024-05-17 at 10:30 it cost 1,234,567 or 3.14159265"),
        ("12345678901234567890", "12345678901234567890"),
        ("@home a@b", "@home a@b"),
    ],
)
def test_personal_data_is_found_and_nothing_else(text: str, masked: str) -> None:
    assert scan(text).masked == masked


@pytest.mark.parametrize("policy", ["off", "report", "mask", "drop"])
def test_the_policy_decides_about_personal_data(policy: str, tmp_path: Path) -> None:
    write_rows(
        tmp_path / "in/a.jsonl", [{"prompt": "Who?", "response": "me@example.org"}, {"prompt": "What?", "response": "Me."}]
    )
    prepared = prepare(tmp_path, {"sft": [source("a.jsonl")]}, lenient(personal_data=policy))
    replies = [text_of(row["completion"]) for row in prepared.kept("sft")]
    assert replies == {"mask": ["[EMAIL]", "Me."], "drop": ["Me."]}.get(policy, ["me@example.org", "Me."])
    assert prepared.pools["sft"].tally.noted[("sft", "email")] == (1 if policy in ("report", "mask") else 0)
    assert prepared.dropped("sft") == ({"personal_data": 1} if policy == "drop" else {})


def test_letters_are_counted_by_script_and_imply_the_language() -> None:
    counts = dict(zip(SCRIPTS, scripts_by_text(["안녕 hello 漢字 かな Привет 12! 3 × 4 ÷ 5"])[0].tolist(), strict=True))
    assert {name: count for name, count in counts.items() if count} == {
        "Hangul": 2,
        "Latin": 5,
        "Han": 2,
        "Kana": 2,
        "Cyrillic": 6,
    }
    both = scripts_by_text(["가", "", "나다 a"])
    assert both.sum(axis=1).tolist() == [1, 0, 3]
    assert both[:, SCRIPTS.index("Hangul")].tolist() == [1, 0, 2]
    assert [language(text) for text in ("안녕하세요 Kim", "hello", "これは漢字", "汉字", "")] == ["ko", None, "ja", "zh", None]


# ------------------------------------------------------------------------------------------------------------- lengths


def _long(tmp_path: Path, policy: Policy, context: int) -> Prepared:
    turns = [{"role": "user", "content": "old " * 30}, {"role": "assistant", "content": "yes " * 10}]
    rows = [
        {"messages": [SYSTEM, *turns, {"role": "user", "content": "new?"}, {"role": "assistant", "content": "Answer."}]},
        {
            "messages": [
                {"role": "user", "content": "start " + "word " * 60 + "end?"},
                {"role": "assistant", "content": "Answer."},
            ]
        },
        {"messages": [{"role": "user", "content": "short?"}, {"role": "assistant", "content": "long " * 60}]},
        {"messages": [{"role": "user", "content": "short?"}, {"role": "assistant", "content": "short."}]},
    ]
    write_rows(tmp_path / "in/a.jsonl", rows)
    return prepare(tmp_path, {"sft": [source("a.jsonl")]}, policy, context_tokens=context)


def test_rows_over_the_context_are_dropped_and_counted(tmp_path: Path) -> None:
    prepared = _long(tmp_path, lenient(), 100)
    assert prepared.dropped("sft") == {"too_long": 3}
    assert [row["row"] for row in prepared.kept("sft")] == [4]


def test_rows_over_the_context_fail_if_the_policy_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"3 of 4 rows .* dropped as too_long: .* raise context_tokens, or set policy.too_long"):
        _long(tmp_path, lenient(too_long="fail"), 100)


def test_truncation_cuts_the_oldest_turns_then_the_prompts_start_and_never_the_answer(tmp_path: Path) -> None:
    prepared = _long(tmp_path, lenient(too_long="truncate"), 100)
    kept = {row["row"]: row for row in prepared.kept("sft")}
    assert prepared.dropped("sft") == {"too_long": 1}  # the third: its answer alone is too long
    assert [turn["content"] for turn in kept[1]["prompt"]] == ["s", "new?"]
    assert last_turn(kept[2]["prompt"]).endswith("word end?")
    assert ("start " + "word " * 60 + "end?").endswith(last_turn(kept[2]["prompt"]))
    assert all(text_of(row["completion"]) in ("Answer.", "short.") for row in kept.values())
    tokenizer = small_tokenizer()
    sizes = [
        len(prompt_ids(tokenizer, row["prompt"]) + completion_ids(tokenizer, row["prompt"], row["completion"]))
        for row in kept.values()
    ]
    assert max(sizes) <= 100
    assert prepared.pools["sft"].tally.noted[("a.jsonl", "cut")] == 2


def test_a_prompt_leaves_room_for_its_answer(tmp_path: Path) -> None:
    write_rows(tmp_path / "in/a.jsonl", [{"prompt": "word " * 20}, {"prompt": "word?"}])
    prepared = prepare(tmp_path, {"prompts": [source("a.jsonl")]}, lenient(answer_tokens=64), context_tokens=100)
    assert prepared.examples("prompts") == {("a.jsonl", 1, "too_long")}


# ------------------------------------------------------------------------------------------- rows, reasons and processes


@pytest.mark.parametrize("processes", [1, 2])
def test_chunks_come_back_in_order_from_any_number_of_processes(processes: int) -> None:
    chunks = [[2 * number, 2 * number + 1] for number in range(60)]
    assert list(map_chunks(operator.add, [-1], chunks, processes)) == [[-1, *chunk] for chunk in chunks]


def test_contents_names_every_text_of_a_row() -> None:
    pair = {"prompt": [USER], "chosen": [REPLY], "rejected": assistant("c.")}
    assert list(contents(pair)) == [("prompt[0]", "a?"), ("chosen[0]", "b."), ("rejected[0]", "c.")]


def test_every_limit_and_every_fault_in_the_code_has_a_reason_that_is_explained() -> None:
    code = "".join(file.read_text() for file in Path(parallel.__file__).parent.glob("*.py"))
    raised = set(re.findall(r'Fault\(\s*"(\w+)"', code))
    assert len(raised) > 20
    assert raised | set(DEFAULT_LIMITS) - {"default"} <= set(REASONS)
