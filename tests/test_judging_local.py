"""The transformers backend with models whose replies are known in advance."""

import json
import re
from pathlib import Path

import pytest
import torch
from judging_model import CONTEXT_TOKENS, LIKED, save_speaker
from transformers import LlamaForCausalLM

from plumbline.judging.asking import Reply
from plumbline.judging.building import load_judge
from plumbline.judging.gate import GateError, Quality, require
from plumbline.judging.judges import SamplingConfig, TransformersJudge
from plumbline.judging.panel import AskingJudge
from plumbline.judging.store import VerdictStore

PROMPT = [{"role": "user", "content": "How much is 2 plus 2?"}]
TEXTS = [f"{'long ' * n}answer {n}{f' {LIKED}' * (n % 2)}" for n in range(7)]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that rates 3, or 8 if it reads the word LIKED."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return save_speaker(tmp_path / "model", "Rating: 3", "Rating: 8")


def judge_at(model: Path, temperature: float = 0.0) -> AskingJudge:
    sampling = SamplingConfig(max_tokens=6, temperature=temperature)
    judge = load_judge(TransformersJudge(model=str(model), batch=3, attempts=1, sampling=sampling), seed=1)
    assert isinstance(judge, AskingJudge)
    return judge


def test_each_question_gets_its_own_reply_whatever_the_batch_and_none_is_generated_twice(model: Path) -> None:
    first = judge_at(model)
    ratings = first.rate([PROMPT] * 7, TEXTS)
    assert [rating.score for rating in ratings] == [3, 8, 3, 8, 3, 8, 3]
    assert {(rating.verdicts[0].reply, rating.verdicts[0].output_tokens) for rating in ratings} == {
        ("Rating: 3", 1),
        ("Rating: 8", 1),
    }
    assert (first.ledger.bought, first.ledger.cached) == (7, 0)
    again = judge_at(model)
    assert again.rate([PROMPT] * 7, TEXTS) == ratings
    assert (again.ledger.bought, again.ledger.cached) == (0, 7)


def test_a_crash_changes_no_sampled_reply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_speaker(tmp_path / "model")  # all tokens are equally likely, so that the seeds alone decide
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "calm"))
    replies = [rating.verdicts[0].reply for rating in judge_at(model, temperature=1.0).rate([PROMPT] * 7, TEXTS)]
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "crashed"))
    crashed, kept = judge_at(model, temperature=1.0), []

    class Killed(Exception):
        pass

    keep = VerdictStore.keep

    def keep_four(store: VerdictStore, key: str, reply: Reply) -> None:
        if len(kept) == 4:  # in the middle of the second batch
            raise Killed
        kept.append(reply)
        keep(store, key, reply)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(VerdictStore, "keep", keep_four)
        crashed.rate([PROMPT] * 7, TEXTS)
    again = judge_at(model, temperature=1.0)
    assert [rating.verdicts[0].reply for rating in again.rate([PROMPT] * 7, TEXTS)] == replies
    assert (again.ledger.bought, again.ledger.cached) == (3, 4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_replies_do_not_depend_on_the_models_generation_config(
    tmp_path: Path, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_speaker(tmp_path / "model")
    speaker = LlamaForCausalLM.from_pretrained(model)
    torch.manual_seed(1)
    speaker.lm_head.weight.data.normal_()  # some tokens are likelier than others, whatever was asked
    speaker.save_pretrained(model)
    file = model / "generation_config.json"
    plain = json.loads(file.read_text())
    replies = []
    for values in ({}, {"top_k": 1}, {"min_p": 0.9}, {"repetition_penalty": 9.0}):
        file.write_text(json.dumps(plain | values))
        monkeypatch.setenv("DVC_ROOT", str(tmp_path / f"store {values}"))
        ratings = judge_at(model, temperature).rate([PROMPT] * 7, TEXTS)
        replies.append([(rating.verdicts[0].reply, rating.verdicts[0].output_tokens) for rating in ratings])
    assert replies[1:] == replies[:1] * 3


def test_a_model_that_gives_no_verdict_trips_the_gate(model: Path) -> None:
    judge = judge_at(save_speaker(model, "I would rather not say."))
    quality = Quality()
    for rating in judge.rate([PROMPT] * 5, list("abcde")):
        for verdict in rating.verdicts:
            quality.unparsed.add(verdict.value is None, verdict.reply)
    with pytest.raises(GateError, match=r"unparsed_fraction is 1\.000 \(5 of 5\).*\n +I would rather not say\."):
        require(quality, judge.config.gate, "silent")


def test_a_question_longer_than_the_context_has_no_verdict_and_the_others_have_theirs(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short, long = judge_at(model).rate([PROMPT] * 2, ["x", "x " * (CONTEXT_TOKENS + 1)])
    assert (long.verdicts[0].reply, long.score) == ("", None)
    assert short.score == 3
    assert re.search(rf"exceed the context of .* \({CONTEXT_TOKENS}\)", capsys.readouterr().err)


def test_under_dvc_a_folder_is_pinned_by_its_content(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "label@round1")
    with pytest.raises(ValueError, match=r"judge\.revision: expected '([0-9a-f]{16})'.* found None") as caught:
        load_judge(TransformersJudge(model=str(model)), seed=1)
    digest = str(caught.value).split("'")[1]
    load_judge(TransformersJudge(model=str(model), revision=digest), seed=1)
    (model / "chat_template.jinja").write_text("changed")
    with pytest.raises(ValueError, match=f"found '{digest}'"):
        load_judge(TransformersJudge(model=str(model), revision=digest), seed=1)


def test_a_hub_id_needs_a_pinned_revision() -> None:
    with pytest.raises(ValueError, match=r"judge\.model: expected a folder at some/model, or a hub id with its commit"):
        load_judge(TransformersJudge(model="some/model"), seed=1)
