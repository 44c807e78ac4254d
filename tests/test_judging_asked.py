"""Claims about what a judge was asked: it is reported for all shards of a computation, in however many attempts."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plumbline.judging import conversations
from plumbline.judging.asked import ASKED, asked, recorded
from plumbline.judging.asking import Ledger
from plumbline.judging.building import load_judge
from plumbline.judging.conversations import Conversations
from plumbline.judging.judge import Judge, Verdict
from plumbline.judging.judges import GoldJudge, SimulatedJudge
from plumbline.pipeline.tracking_values import tracking_values
from plumbline.rows import Message
from plumbline.world.annotate import AnnotatorConfig

VERDICT = Verdict("judge", "model", "template", "", 7.0, "7", input_tokens=3)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets `judge_traces`."""

    def set_to(most: int) -> None:
        values = replace(tracking_values(), judge_traces=most)
        monkeypatch.setattr(conversations, "tracking_values", lambda: values)

    return set_to


def asking(text: str) -> Message:
    return {"role": "user", "content": text}


def sample_of(*names: str) -> Conversations:
    sample = Conversations()
    for name in names:
        sample.add([asking(name)], VERDICT)
    return sample


def shown(sample: Conversations) -> list[str]:
    return [trace["messages"][0]["content"] for trace in sample.traces("label@round1")]


def test_every_conversation_of_all_shards_is_as_likely_to_be_shown_as_any_other(traced: Any) -> None:
    """3 of 12, from shards of 2, 9 and 1: each in a quarter of the samples, 500 of 2000 ± 5 standard deviations of 19."""
    traced(3)
    counted: Counter[str] = Counter()
    for number in range(2000):
        whole = Conversations()
        whole._generator.seed(number)
        for names in ("ab", "cdefghijk", "l"):
            part = Conversations()
            part._generator.seed(number)
            for name in names:
                part.add([asking(name)], VERDICT)
            whole.merge(part.state())
        assert len({*shown(whole)}) == 3
        counted.update(shown(whole))
    assert all(400 < counted[name] < 600 for name in "abcdefghijkl"), counted


def test_a_sample_that_was_smaller_once_lacks_what_it_lacks(traced: Any) -> None:
    traced(1)
    before = sample_of(*"abcd").state()
    traced(4)
    whole = sample_of("e", "f")
    whole.merge(before)
    assert len({*shown(whole)} & {*"abcd"}) <= 1
    whole.merge({"seen": 0, "kept": []})
    assert len(shown(whole)) <= 4


def judge() -> Judge:
    return load_judge(
        SimulatedJudge(annotator=AnnotatorConfig(error_rate=0.0, position_bias=0.0, length_bias=0.0, revision_skill=1.0, seed=1)),
        seed=3,
    )


def test_shards_of_several_attempts_add_up(tmp_path: Path, traced: Any) -> None:
    traced(100)
    shards = [tmp_path / name for name in ("0", "1")]
    for shard, completions in zip(shards, (["4", "5", "6"], ["7"]), strict=True):
        shard.mkdir()
        of_attempt = judge()  # a new process has a new judge
        of_attempt.rate([[asking("before the shard")]], ["x"])
        with recorded(of_attempt, shard):
            of_attempt.rate([[asking(f"What is {text} + 0?")] for text in completions], completions)
    ledger, sample = asked(shards)
    assert ledger == Ledger(calls=4)
    assert len(sample.traces("label@round1")) == 4
    assert sample.traces("label@round1")[0]["name"] == "label@round1"
    assert not any("before the shard" in str(trace) for trace in sample.traces("x"))


def test_a_shard_that_is_broken_off_leaves_no_record_and_a_judge_without_words_no_conversations(tmp_path: Path) -> None:
    with pytest.raises(KeyError), recorded(judge(), tmp_path):
        raise KeyError
    assert not (tmp_path / ASKED).exists()
    with recorded(None, tmp_path):
        pass
    assert not (tmp_path / ASKED).exists()
    with recorded(load_judge(GoldJudge(), seed=3), tmp_path):
        pass
    assert asked([tmp_path])[0] == Ledger()
    assert asked([tmp_path]).conversations.traces("x") == []
