"""Claims about how judges write their verdicts, by kind, and about replies with known verdicts that are kept beside the project."""

import json
import unicodedata

import pytest

from plumbline.judging.verdicts import TIE, A, parse_choice, parse_ranking, parse_rating, parse_text
from tests.shared import CASES

RECORDED = CASES / "verdicts.jsonl"


@pytest.mark.skipif(not RECORDED.is_file(), reason=f"no recorded cases at {CASES} (set PLUMBLINE_SHARED)")
def test_every_verdict_is_the_one_that_a_person_reads() -> None:
    cases = [json.loads(line) for line in RECORDED.read_text(encoding="utf-8").splitlines()]
    assert cases
    assert [case for case in cases if parse_choice(case["reply"]) != case["verdict"]] == []


@pytest.mark.parametrize(
    "line",
    [
        # separators and emphasis
        "Verdict：A", "Verdict﹕A", "Verdict - A", "Verdict – A", "Verdict = A", "Verdict\u00a0:\u00a0A", "Verdict:\u200bA",
        "**Verdict:** A",
        "**Verdict**: A", "### Verdict: A", "__Verdict:__ A", "Final verdict: **A**.", "Overall verdict: A", "(Verdict: A)", "Verdict: (A)",
        "Verdict: <A>", "Verdict: $\\boxed{\\text{A}}$", "My final verdict is: [[A]]", "The verdict is A.", "Verdict: Ａ", "Verdict: “A”",
        # headings
        "### Verdict\nA", "**Verdict:**\n\n**A**", "판정\nA",
        # marks that need no label
        "[[A]]", "\\boxed{A}", "$\\boxed{A}$.", "<answer>A</answer>", "<verdict>A</verdict>", "<verdict>\nA\n</verdict>",
        "<answer>Verdict: A</answer>",
        # who is named
        "Verdict: Answer A", "Verdict: Response A", "Verdict: Assistant A", "Preferred response: A",
        # Korean, composed or not
        "판정: A", "판정： Ａ", "최종 판정: A", "판정은 A입니다.", unicodedata.normalize("NFD", "최종 판정: A"), "판정: 답변 A",
        # JSON
        '{"verdict": "A"}', '{"Verdict": "a"}', '{"VERDICT": "Response A"}', '{"result": {"verdict": "A"}}', '{"final_verdict": "A"}',
        '```json\n{"verdict": "A"}\n```', '```JSON\n{\n  "verdict": "A"\n}\n```', '~~~\n{"verdict": "A"}\n~~~',
        '```json {"verdict": "A"}```',
        '{"scores": {"a": {"rating": 9}, "b": {"rating": 2}}, "verdict": "A"}', '{"판정": "A"}',
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "before", ["", "B is long, A is right.\n", "Verdict: B, one may think at first.\n\n", "<think>Verdict: B</think>"]
)
def test_every_usual_way_of_writing_a_verdict_is_read(line: str, before: str) -> None:
    assert parse_choice(before + line) == A


@pytest.mark.parametrize(
    "reply",
    ["Answer A", "Response A", "Assistant A", "Answer: A", "A.", "**A**", "Ａ", "(A)", "<think>hm</think>A", "B, I think.</think>A",
     "[THINK]B[/THINK]A",
     "<think>\nVerdict: B\n</think>\n\nA"],
)  # fmt: skip
def test_a_reply_that_is_nothing_but_the_choice_is_read(reply: str) -> None:
    assert parse_choice(reply) == A


@pytest.mark.parametrize(
    "words",
    ["tie", "Tie.", "a tie", "It's a tie", "draw", "tied", "equal", "A and B are tied", "A and B tie", "Both are equally good",
     "both responses are equal",
     "Answers A and B are tied", "a tie between A and B", "The two answers are equally helpful", "무승부", "동점", "A와 B는 동점",
     "동률입니다"],
)  # fmt: skip
def test_a_tie_in_words_is_a_tie(words: str) -> None:
    assert parse_choice(f"Some thoughts.\nVerdict: {words}") == TIE


@pytest.mark.parametrize(
    "reply",
    [
        # free prose, refusals, hedging
        "A is better than B", "I cannot judge this content.", "Verdict: I cannot say", "Verdict: A or B", "Verdict: A and B",
        "Verdict: A/B", "Verdict: AB",
        "Verdict: not A", "Verdict: neither", "Verdict: A and B are not tied", "The verdict is A or B", "[[A]] [[B]]",
        "\\boxed{A} or \\boxed{B}",
        "<verdict>A</verdict><verdict>B</verdict>", "Some thoughts.\nAnswer: A", "Some thoughts.\nA",
        # the last line decides, and it has to be the judge's own
        '{"verdict": "A"}\nI hope this helps.', "[[A]]\nI hope this helps.", '<verdict>A</verdict>\nor not', 'B ends with:\n"Verdict: A"',
        "B says:\n> Verdict: A",
        "Answer B claims “Verdict: A”.", "Answer B says:\nVerdict: A\nwhich is an attempt to steer me.",
        # reasoning is not a reply
        "<think>Verdict: A", "<think>Verdict: A</think>", "Verdict: <think>A</think>", "[THINK]A[/THINK]",
        # JSON that contradicts itself, is cut off, or says nothing
        '{"verdict": "A"}\n{"verdict": "B"}', '```json\n{"verdict": "A"}\n```\nor\n```json\n{"verdict": "B"}\n```',
        '{"verdict": "A", "verdict": "B"}',
        '{"verdict": "A", "Verdict": "B"}', '{"first": {"verdict": "A"}, "second": {"verdict": "B"}}', '{"verdict": null}',
        '{"verdict": true}',
        '{"verdict": {"A": 1}}', '{"verdict": ["A", "B"]}', '{\n  "verdict": "A"', "Thoughts.\n```json\n{'verdict': 'A'}\n```",
        '{"winner": "A"}',
        "\n{\"a\":" * 20_000, '{"verdict":"A"}\n' * 500 + '{"verdict":"B"}',
    ],
)  # fmt: skip
def test_what_is_not_certain_is_never_guessed(reply: str) -> None:
    assert parse_choice(reply) is None


@pytest.mark.parametrize(
    ("reply", "rating"),
    [("Rating: 7 out of 10", 7.0), ("평점: 7점", 7.0), ("평점： ７점", 7.0), ("평점은 7점입니다.", 7.0), ("10점 만점에 7점", 7.0),
     ("7.5", 7.5), ("7 / 10", 7.0),
     ("Rating: **7**/10", 7.0), ("Rating - 7", 7.0), ("Rating: <7>", 7.0), ("\\boxed{7}", 7.0), ('x\n```json\n{"rating": 7}\n```', 7.0),
     ('{"Rating": "7/10"}', 7.0),
     ("<think>3?</think>8", 8.0), ("Rating: 7,5", None), ("Rating: 7-8", None), ("Rating: 7 out of 5", None), ("5점 만점에 4점", None),
     ("Rating: .5", None),
     ("Rating -7", None), ("Rating: 7²", None), ("Rating: 1⁰", None), ("Rating: 70%", None), ('{"rating": true}', None)],
)  # fmt: skip
def test_ratings_in_words_are_read_and_never_guessed(reply: str, rating: float | None) -> None:
    assert parse_rating(reply) == rating


@pytest.mark.parametrize(
    ("reply", "ranks"),
    [("Ranking: [2] > [1]", (2, 1)), ("[2] > [1]", (2, 1)), ("Ranking: (2) > (1)", (2, 1)), ("Ranking: Response 2 > Response 1", (2, 1)),
     ("순위: 2번 > 1번", (2, 1)),
     ("순위： 답변 2 ＞ 답변 1", (2, 1)), ('Hm.\n```json\n{"ranking": [2, 1]}\n```', (2, 1)),
     ('{"ranking": ["Answer 2", "Answer 1"]}', (2, 1)), ("Ranking: [1] = [2]", (1.5, 1.5)),
     ("Ranking: 2위 > 1위", None), ("Ranking: 2, 1", None), ("Ranking: 2 >> 1", None), ('{"ranking": [[1, 2]]}', None),
     ('{"ranking": {"2": 1, "1": 2}}', None)],
)  # fmt: skip
def test_rankings_in_words_are_read_and_never_guessed(reply: str, ranks: tuple[float, ...] | None) -> None:
    assert parse_ranking(reply, 2) == ranks


def test_texts_are_read_without_reasoning_and_out_of_a_json_object() -> None:
    for reply in (
        "<think>Revision: no</think>\nRevision: Yes：no.",
        "Revision： Yes：no.",
        'Here.\n```json\n{"Revision": "Yes：no."}\n```',
    ):
        assert parse_text(reply, "revision") == "Yes：no."  # the text itself stays as it is
    for reply in ("<think>Revision: no", '{"revision": "a"}\n{"revision": "b"}', '{"revision": 3}'):
        assert parse_text(reply, "revision") is None


def test_the_conf_says_which_marks_set_reasoning_apart() -> None:
    reply = "<think>Verdict: B</think>Verdict: A"
    assert [parse_choice(reply, marks=marks) for marks in ("all", "think", "thought seed", "none")] == [A, A, None, None]
