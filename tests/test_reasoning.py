"""What stands between marks of reasoning is never the answer, wherever an answer is asked for."""

import pytest

from plumbline.reasoning import MARKS, answer_block, mark_problems, without_reasoning
from plumbline.rewards.rules import Rule, RulesReward
from plumbline.rewards.verified import VerifierReward
from plumbline.world.verify import verify

ANSWERS = {
    "It is 71.": "It is 71.",
    " It is 71.\n": " It is 71.\n",  # without marks nothing changes, spaces neither
    "<think>72</think> It is 71.": "It is 71.",
    "<THINK>72</Think>It is 71.": "It is 71.",
    "72</think>It is 71.": "It is 71.",  # the prompt ended with the opening mark
    "<think>72": "",  # cut off
    "It is 71. <think>72": "It is 71.",
    "<think>a<think>b</think>c</think>71": "71",
    "<think>a</think>7<think>b</think>1": "71",
    "<think></think>": "",
    "1 < 2 and think > 3": "1 < 2 and think > 3",
}


def test_reasoning_is_cut_out_whether_or_not_it_is_opened_and_closed() -> None:
    assert {text: without_reasoning(text) for text in ANSWERS} == ANSWERS


def test_every_pair_of_marks_is_read_and_only_those_that_are_chosen() -> None:
    for name, (opening, closing) in MARKS.items():
        text = f"{opening}72{closing}71"
        assert without_reasoning(text) == without_reasoning(text, name) == "71", name
        others = " ".join(other for other in MARKS if other != name)
        assert without_reasoning(text, "none") == without_reasoning(text, others) == text, name


def test_an_answer_block_is_the_answer_and_the_last_one_counts() -> None:
    assert answer_block("So: <answer>71</answer> (see above)") == "71"
    assert answer_block("<answer>70</answer> No: <ANSWER>71") == "71"
    assert answer_block(without_reasoning("<think><answer>72</answer></think>71")) is None


@pytest.mark.parametrize("marks", ["", "thnik", "think, thought", "all none", "all think"])
def test_marks_that_do_not_exist_are_refused(marks: str) -> None:
    assert mark_problems(marks) == [
        f"thinking_marks: expected all, none, or one or more of {' '.join(MARKS)}, separated by spaces, found {marks!r}"
    ]


def test_rules_and_the_closed_worlds_verifier_see_the_answer_alone() -> None:
    prompt = [{"role": "user", "content": "How much is 2 + 3?"}]
    thinking, answer = "<think>Perhaps 6? Damn. Please wait, 1 2 3.</think>", "It is 5."
    rules = RulesReward({
        "short": Rule("length", most=3),
        "clean": Rule("forbidden", phrases={"en": ["damn"]}),
        "kind": Rule("courtesy", weight=10),
        "figures": Rule("digits", least=2, weight=10),
    })  # fmt: skip
    assert rules([prompt] * 2, [thinking + answer, answer]) == [2.0, 2.0]
    assert rules([prompt], [thinking]) == [2.0]
    assert verify(prompt, answer).gold != verify(prompt, thinking + answer).gold
    assert VerifierReward("gold")([prompt], [thinking + answer]) == [verify(prompt, answer).gold]
    assert VerifierReward("gold", "none")([prompt], [thinking + answer]) == [verify(prompt, thinking + answer).gold]
