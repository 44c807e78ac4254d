"""The transformers backend with a small random model: whatever it says, it is kept, and gibberish trips the gate."""

import re
from pathlib import Path

import pytest

from stages.judging.chat import Reply
from stages.judging.config import SamplingConfig, TransformersJudge
from stages.judging.gate import GateError, Quality, require
from stages.judging.judge import AskingJudge
from stages.judging.loading import load_judge
from stages.judging.store import VerdictStore

PROMPT = [{"role": "user", "content": "How much is 2 plus 2?"}]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from stages.models.tokenizers import train_tokenizer

    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    tokenizer = train_tokenizer(["Rate a response. Verdict: A Rating: 7 conversation criteria"] * 4, 300)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=4096, bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def judge_at(model: Path, max_tokens: int = 6, temperature: float = 0.0) -> AskingJudge:
    sampling = SamplingConfig(max_tokens=max_tokens, temperature=temperature)
    config = TransformersJudge(model=str(model), batch=3, attempts=1, sampling=sampling)
    judge = load_judge(config, seed=1)
    assert isinstance(judge, AskingJudge)
    return judge


def test_replies_do_not_depend_on_batches_and_are_not_generated_twice(model: Path) -> None:
    texts = [f"{'long ' * n}answer {n}" for n in range(7)]
    first = judge_at(model)
    replies = [rating.verdicts[0].reply for rating in first.rate([PROMPT] * 7, texts)]
    assert (first.ledger.bought, first.ledger.cached) == (7, 0)
    again = judge_at(model)
    assert [rating.verdicts[0].reply for rating in again.rate([PROMPT] * 7, texts)] == replies
    assert (again.ledger.bought, again.ledger.cached) == (0, 7)
    assert all(replies)


def test_a_crash_changes_no_sampled_reply(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{'long ' * n}answer {n}" for n in range(7)]
    replies = [rating.verdicts[0].reply for rating in judge_at(model, temperature=1.0).rate([PROMPT] * 7, texts)]
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "other"))
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
        crashed.rate([PROMPT] * 7, texts)
    again = judge_at(model, temperature=1.0)
    assert [rating.verdicts[0].reply for rating in again.rate([PROMPT] * 7, texts)] == replies
    assert (again.ledger.bought, again.ledger.cached) == (3, 4)


def test_an_untrained_judge_trips_the_gate(model: Path) -> None:
    quality = Quality()
    for rating in judge_at(model).rate([PROMPT] * 5, list("abcde")):
        for verdict in rating.verdicts:
            quality.unparsed.add(verdict.value is None, verdict.reply)
    with pytest.raises(GateError, match=r"unparsed_fraction is 1\.000 \(5 of 5\)"):
        require(quality, judge_at(model).config.gate, "untrained")


def test_a_question_longer_than_the_context_has_no_verdict_and_the_others_have_theirs(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = judge_at(model, max_tokens=8)
    short, long = judge.rate([PROMPT] * 2, ["x", "x " * 5000])
    assert (long.verdicts[0].reply, long.score) == ("", None)
    assert short.verdicts[0].output_tokens > 0
    assert re.search(r"exceed the context of .* \(4096\)", capsys.readouterr().err)


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
    with pytest.raises(ValueError, match="pinned"):
        load_judge(TransformersJudge(model="some/model"), seed=1)
