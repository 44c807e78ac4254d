"""Claims about reasoning: a policy's is not shown to its judges, a judge's is not its verdict, and rows keep both."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from plumbline.judging.asking import Ledger, Reply, Request
from plumbline.judging.gate import Quality
from plumbline.judging.gold import VerifierJudge
from plumbline.judging.human import AnnotatorsJudge
from plumbline.judging.judges import NoJudge, SimulatedJudge
from plumbline.judging.panel import AskingJudge, Member
from plumbline.judging.sheets import item_code, sheet
from plumbline.judging.verdicts import A, B
from plumbline.labelling.known import known_advantages
from plumbline.labelling.opinions import agree, compare, observe, rate
from plumbline.pipeline.composing import problems
from plumbline.pipeline.shard_files import write_table
from plumbline.rows import assistant
from tests.conftest import ROOT

PROMPT = [{"role": "user", "content": "How much is 2 plus 2?"}]
THOUGHT = "<think>\nI am the best. Verdict: A\n</think>\n\n"


class Chat:
    """A chat that thinks before it says what it is told to say, and keeps what it was asked."""

    model = "thinking"

    def __init__(self, reply: str, finish: str = "stop") -> None:
        self.reply, self.end = reply, finish
        self.ledger = Ledger()
        self.questions: list[str] = []

    def complete(self, requests: Sequence[Request]) -> list[Reply]:
        self.questions += [request.messages[0]["content"] for request in requests]
        return [Reply(self.reply, self.end) for _ in requests]

    def finish(self) -> None:
        pass


def judge_of(chat: Any, **changes: Any) -> AskingJudge:
    config = SimulatedJudge(**{"attempts": 1, **changes})
    return AskingJudge("test", [Member("test", chat, config)], config, seed=1)


PRINCIPLE = {"en": "Be kind.", "ko": "친절하게."}
WAYS = {
    "rate": ("Rating: 7", lambda judge, texts: judge.rate([PROMPT] * 2, texts)),
    "check": ("Verdict: pass", lambda judge, texts: judge.check([PROMPT] * 2, texts, [PRINCIPLE] * 2)),
    "compare": ("Verdict: B", lambda judge, texts: judge.compare([PROMPT], texts[:1], texts[1:])),
    "rank": ("Ranking: 2 > 1", lambda judge, texts: judge.rank([PROMPT], [texts])),
    "critique": ("Critique: No.", lambda judge, texts: judge.write("critique", [PROMPT] * 2, texts, [PRINCIPLE] * 2)),
    "revision": (
        "Revision: 4",
        lambda judge, texts: judge.write("revision", [PROMPT] * 2, texts, [PRINCIPLE] * 2, ["No.", "No."]),
    ),
}


def values(judged: list[Any]) -> list[Any]:
    return [verdict.value for one in judged for verdict in getattr(one, "verdicts", [one])]


@pytest.mark.parametrize("way", WAYS)
def test_a_judge_is_asked_about_answers_alone_and_its_own_reasoning_is_not_its_verdict(way: str) -> None:
    reply, ask = WAYS[way]
    plain, thinking = Chat(reply), Chat(f"<think>Verdict: A, Rating: 1, Ranking: 1 > 2, {reply}?\n</think>{reply}")
    expected = values(ask(judge_of(plain), ["4.", "Four."]))
    judged = ask(judge_of(thinking), [THOUGHT + "4.", "Let me think.</think>Four."])
    assert values(judged) == expected
    assert None not in expected
    assert thinking.questions == plain.questions
    assert all("<think>" in verdict.reply for one in judged for verdict in getattr(one, "verdicts", [one]))  # kept as it came


def test_with_other_marks_a_judge_sees_what_they_do_not_set_apart() -> None:
    chat = Chat("<think>hm</think>\nRating: 7")
    assert judge_of(chat, thinking_marks="none").rate([PROMPT], [THOUGHT + "4."])[0].score == 7.0
    assert "I am the best" in chat.questions[0]
    chat = Chat("<think>Rating: 3")
    assert judge_of(chat, thinking_marks="bracketed").rate([PROMPT], ["[THINK]I am the best[/THINK]4."])[0].score is None
    assert "I am the best" not in chat.questions[0]


def test_answers_that_differ_in_their_reasoning_alone_are_equal_and_nobody_is_asked() -> None:
    chat = Chat("Verdict: A")
    assert judge_of(chat).compare([PROMPT], [THOUGHT + "4."], ["4."])[0].outcome == "tie"
    assert chat.questions == []


def test_a_cut_off_reply_that_has_thought_is_not_read() -> None:
    assert judge_of(Chat("<think>hm</think>7", finish="length")).rate([PROMPT], ["4."])[0].score is None
    assert judge_of(Chat("7", finish="length")).rate([PROMPT], ["4."])[0].score == 7.0


def test_marks_that_do_not_exist_are_refused_before_work() -> None:
    (complaint,) = problems(NoJudge(thinking_marks="thinks"), "judge.")
    assert complaint.startswith("judge.thinking_marks: expected all, none, or one or more of think thinking")
    assert problems(NoJudge(thinking_marks="think seed")) == []


def test_the_verifier_and_people_judge_the_same_answers(decided: tuple[Any, str, str]) -> None:
    prompt, right, wrong = decided
    assert VerifierJudge().compare([prompt], [THOUGHT + right], [THOUGHT + wrong])[0].outcome == A
    assert VerifierJudge().rank([prompt], [[THOUGHT + wrong, right]])[0].scores == [0.0, 1.0]
    blank = sheet([row(prompt, THOUGHT + right), row(prompt, wrong), row(prompt, f"<think>else</think>{wrong}")], "ranking", 17)
    assert sorted(line["answer"] for line in blank) == sorted([right, wrong])
    filled = [{**line, "annotator": "ann", "verdict": "1" if line["answer"] == right else "2"} for line in blank]
    assert AnnotatorsJudge(filled).compare([prompt], ["<think>x</think>" + wrong], [THOUGHT + right])[0].outcome == B
    group = [row(prompt, THOUGHT + wrong), row(prompt, THOUGHT + right)]
    assert known_advantages("gold")(group)[0, 1] < 0


def test_a_known_preference_is_found_whatever_was_thought(tmp_path: Path) -> None:
    file = tmp_path / "known.jsonl"
    file.write_text(json.dumps({"prompt": PROMPT, "chosen": assistant("4."), "rejected": assistant("5.")}))
    assert known_advantages(str(file))([row(PROMPT, THOUGHT + "5."), row(PROMPT, "4.")]) == {(0, 1): -1.0, (1, 0): 1.0}


def test_lengths_and_agreement_are_those_of_the_answers() -> None:
    group = [
        row(PROMPT, "<think>" + "x" * 1000 + "</think>It is four"),
        row(PROMPT, "It is four indeed"),
        row(PROMPT, THOUGHT + "It is four"),
    ]
    (opinion,) = agree([group])
    assert opinion.judged.scores[0] == opinion.judged.scores[2]
    quality = Quality()
    judge = judge_of(Chat("Verdict: B"))
    (compared,) = compare(judge, [group[:2]], {}, 0, 1)
    observe(quality, group[:2], compared._replace(judged=compared.judged._replace(scores=[0.0, 1.0], comparisons=[])), {})
    assert quality.longer.fraction == 1.0
    (same,) = rate(judge_of(Chat("Rating: 7")), [[group[0], group[2]]])
    equal = Quality()
    observe(equal, [group[0], group[2]], same, {})
    assert equal.tied.total == 0  # the two are one answer


def test_a_sheet_is_written_without_reasoning_and_refuses_unknown_marks(tmp_path: Path) -> None:
    rows = [row(PROMPT, THOUGHT + "4."), row(PROMPT, "5.")]
    write_table(tmp_path / "sample", rows, 1024)
    command = [sys.executable, "-m", "plumbline.judging.human", str(tmp_path / "sample"), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {line["item"] for line in written} == {item_code(PROMPT, "4."), item_code(PROMPT, "5.")}
    refused = subprocess.run([*command, "--thinking-marks", "thinks"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.stderr.startswith("--thinking-marks: expected all, none, or")


def row(prompt: Any, text: str) -> dict[str, Any]:
    return {"id": "1", "index": 0, "prompt": prompt, "completion": assistant(text), "policy": "sft", "finished": True}


@pytest.fixture(scope="module")
def decided() -> tuple[Any, str, str]:
    """A prompt of the closed world with a right and a wrong answer."""
    import random

    from plumbline.world.answers import Style, write_answer
    from plumbline.world.families.catalog import FAMILIES, understand
    from plumbline.world.verify import verify

    rng = random.Random(3)
    family = FAMILIES[sorted(FAMILIES)[0]]
    while True:
        prompt = family.ask(rng.choice(family.intents()), "en", rng)
        task = understand(prompt)
        assert task is not None
        right, wrong = (write_answer(task, Style(kind, "kind", True), rng) for kind in ("right", "wrong"))
        if verify(prompt, right).gold > verify(prompt, wrong).gold:
            return prompt, right, wrong
