"""Talking to policies: blind, reproducible, on one thread, and what is said of it becomes lines."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from plumbline.feedback.lines import TIE, A, B
from plumbline.feedback.talk import Draft, Speaker, Talk, Turn, answer, load_speaker, weights_of
from plumbline.models.chat import prompt_ids
from plumbline.models.decoding_values import Decoding
from plumbline.models.loading import load_policy
from plumbline.models.sampling import sample
from plumbline.pipeline.records import read_json, write_json
from tests.saying import EVALUATE, save_named


def speaker(name: str) -> Speaker:
    """A policy of which only the name is looked at."""
    nothing: Any = None
    return Speaker(name, "0" * 16, nothing, nothing, Decoding(), 8)


def answered(talk: Talk, question: str = "What?", texts: tuple[str, ...] = ("One.", "Two.")) -> Turn:
    turn = talk.ask(question, 7)
    turn.drafts = [Draft(text, 3, True) for text, _ in zip(texts, talk.speakers, strict=False)]
    return turn


def test_an_answer_can_be_made_again_from_its_line(project: Path) -> None:
    """By the project's own sampler, from the conversation, the seed and the decoding that the line holds."""
    save_named("sft")
    turn = Talk((load_speaker("sft", EVALUATE),)).ask("What is one and one?", 5)
    [*_, turn.drafts[0]] = answer(turn.speakers[0], turn.messages, turn.seed)
    said = turn.thumbed(0, "up").answers[0]
    assert said.weights == weights_of(Path("artifacts/policy/sft"))
    assert said.decoding is not None
    folder = Path("artifacts/policy") / str(said.policy)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    [again] = sample(
        load_policy(folder), tokenizer, [prompt_ids(tokenizer, turn.messages)],
        max_new_tokens=said.max_new_tokens or 0, decoding=Decoding(**said.decoding), seed=said.seed or 0,
    )  # fmt: skip
    assert tokenizer.decode(again.ids, skip_special_tokens=True) == said.text
    assert again.finished == said.finished


def test_each_draft_is_one_token_longer(project: Path) -> None:
    save_named("sft")
    drafts = [*answer(load_speaker("sft", {**EVALUATE, "temperature": 1.0}), [{"role": "user", "content": "What?"}], 3)]
    assert [draft.tokens for draft in drafts] == [*range(1, len(drafts) + 1)]
    assert not any(draft.finished for draft in drafts[:-1])


def test_sides_are_shuffled_and_a_vote_is_about_the_side() -> None:
    talk = Talk((speaker("dpo"), speaker("sft")))
    orders = set()
    for _ in range(60):  # one side only would come of chance once in 2^59
        turn = answered(talk)
        orders.add(tuple(one.name for one in turn.speakers))
        line = turn.voted(B)
        assert line.answers[1].text == "Two."
        assert line.answers[1].policy == turn.speakers[1].name
    assert orders == {("dpo", "sft"), ("sft", "dpo")}


def test_the_conversation_goes_on_with_the_better_answer() -> None:
    talk = Talk((speaker("dpo"), speaker("sft")))
    answered(talk).voted(B)
    assert [turn["content"] for turn in answered(talk, "And then?").messages] == ["What?", "Two.", "And then?"]
    talk.turns[-1].voted(TIE)
    talk.turns[-1].corrected(1, "Three.")
    assert [turn["content"] for turn in talk.history()] == ["What?", "Two.", "And then?", "Three."]


def test_it_goes_on_with_the_last_correction_whichever_was_corrected_first() -> None:
    turn = answered(Talk((speaker("dpo"), speaker("sft"))))
    for about, text in ((0, "Three."), (1, "Four."), (0, "Five.")):
        turn.corrected(about, text)
    assert turn.reply() == "Five."


def test_two_policies_have_to_be_voted_on_before_the_next_question_and_one_has_not() -> None:
    talk = Talk((speaker("dpo"), speaker("sft")))
    answered(talk)
    with pytest.raises(ValueError, match="expected a vote on the last answers, found none"):
        talk.ask("And then?", 8)
    alone = Talk((speaker("dpo"),))
    answered(alone)
    assert len(alone.ask("And then?", 8).messages) == 3


def test_lines_about_different_things_differ_in_their_id_and_those_about_the_same_do_not() -> None:
    turn = answered(Talk((speaker("dpo"), speaker("sft"))))
    ids = [turn.voted(A).id, turn.thumbed(0, "up").id, turn.thumbed(1, "up").id, turn.corrected(0, "Three.").id]
    assert len(set(ids)) == 4
    assert turn.thumbed(0, "down").id == ids[1]


@pytest.mark.parametrize(("question", "seed"), [(" ", 1), ("What?", -1), ("What?", 2**31)])
def test_a_question_without_words_and_a_seed_out_of_range_are_refused(question: str, seed: int) -> None:
    with pytest.raises(ValueError, match=r"expected a (question|seed)"):
        Talk((speaker("dpo"),)).ask(question, seed)


def test_a_question_with_half_of_a_character_is_refused_and_asks_nothing() -> None:
    talk = Talk((speaker("dpo"),))
    with pytest.raises(ValueError, match=r"found half of one \(U\+D83D\)"):
        talk.ask("Why \ud83d?", 1)
    assert talk.turns == []


@pytest.mark.parametrize("text", ["", "  ", "One.", " One. "])
def test_a_correction_that_corrects_nothing_is_refused(text: str) -> None:
    turn = answered(Talk((speaker("dpo"),)))
    with pytest.raises(ValueError, match="expected a better answer"):
        turn.corrected(0, text)
    assert turn.corrections == {}


def test_a_conversation_without_room_for_an_answer_says_so(project: Path) -> None:
    save_named("sft")
    long = [{"role": "user", "content": "What is it? " * 100}]
    with pytest.raises(ValueError, match=r"at most \d+ tokens, .* found \d+\. Start a new conversation"):
        next(answer(load_speaker("sft", EVALUATE), long, 1))


def test_a_policy_without_a_chat_template_says_what_to_set(project: Path) -> None:
    save_named("sft")
    Path("artifacts/policy/sft/chat_template.jinja").unlink()
    with pytest.raises(
        ValueError,
        match=r"expected a chat template .* in artifacts/policy/sft, found none .* Set chat_template in the model's file",
    ):
        load_speaker("sft", EVALUATE)


def test_null_is_the_policys_own_decoding(project: Path) -> None:
    save_named("sft")
    file = Path("artifacts/policy/sft/generation_config.json")
    write_json(file, read_json(file) | {"temperature": 0.25})
    assert load_speaker("sft", {**EVALUATE, "temperature": None}).decoding.temperature == 0.25
    with pytest.raises(ValueError, match=r"params\.yaml: evaluate\.temperature"):
        load_speaker("sft", {**EVALUATE, "temperature": -1.0})
