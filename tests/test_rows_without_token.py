"""Embedding rows without a token are never sampled and have no part in any likelihood, whatever their weights."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from aligning import GROUPS, run_align, write_inputs
from omegaconf import OmegaConf
from ppo_tiny import PROMPTS, tiny_policy, tiny_value_model, word_tokenizer
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

from plumbline.evaluation.divergence import completion_logps
from plumbline.methods.online import groups
from plumbline.methods.online.ppo.networks import CompletionLogits
from plumbline.methods.online.ppo.rollout import measure
from plumbline.models.architecture import HubModel
from plumbline.models.completions import Completer, Draws, fitting_of
from plumbline.models.loading import load_causal_lm, load_policy, mask_rows, rows_without_token, vocabulary_size
from plumbline.models.logps import per_token_logps
from plumbline.models.saving import save_policy
from plumbline.pipeline.composing import CONF, size_section
from plumbline.pipeline.records import read_json
from plumbline.rewards import reward as rewards
from plumbline.rows import text_of
from stages.pretrain import PretrainConfig, PretrainStage, run

PADDED = 5
WORDS = len(word_tokenizer())


def padded(policy: LlamaForCausalLM) -> LlamaForCausalLM:
    """The same policy with rows after its last that are likelier than any token, since they point where its states point."""
    policy.resize_token_embeddings(WORDS + PADDED)
    with torch.no_grad():
        weights = policy.get_output_embeddings().weight
        weights[WORDS:] = 3 * weights[5 : 5 + PADDED]
    return policy.eval()


def with_a_hole() -> Any:
    """The word tokenizer without the token 7, which is in the middle of its ids."""
    tokenizer = word_tokenizer()
    backend = tokenizer.backend_tokenizer.to_str().replace('"c":7,', "")
    tokenizer._tokenizer = Tokenizer.from_str(backend)
    return tokenizer


def drawn(folder: Path, count: int = 64) -> list[dict[str, Any]]:
    rows = [{"id": str(number), "prompt": prompt} for number, prompt in enumerate(PROMPTS)]
    completer = Completer(
        folder, fitting_of(folder, rows, 8, "test"), [Draws(count)], max_new_tokens=8, batch_size=64, seed=1, title="test"
    )
    [completions] = completer.complete(rows)
    return completions


def test_rows_without_a_token_are_those_beyond_the_last_id_and_those_that_are_left_out() -> None:
    assert rows_without_token(word_tokenizer(), WORDS) == []
    assert rows_without_token(word_tokenizer(), WORDS + 2) == [WORDS, WORDS + 1]
    assert rows_without_token(with_a_hole(), WORDS + 1) == [7, WORDS]
    assert (len(with_a_hole()), vocabulary_size(with_a_hole())) == (WORDS - 1, WORDS)


@pytest.mark.parametrize("tied", [True, False])
def test_a_padded_policy_samples_and_scores_as_it_does_without_padding(tied: bool, tmp_path: Path) -> None:
    plain = tiny_policy(tie_word_embeddings=tied)
    save_policy(plain, word_tokenizer(), tmp_path / "plain")
    save_policy(padded(tiny_policy(tie_word_embeddings=tied)), word_tokenizer(), tmp_path / "padded")
    bare = AutoModelForCausalLM.from_pretrained(tmp_path / "padded")
    prompt, completion = [1, 2, 9, 3], [5, 6, 8]
    assert bare(torch.tensor([prompt])).logits[0, -1].softmax(-1)[WORDS:].sum() > 0.3  # so padding would be sampled
    samples, expected = drawn(tmp_path / "padded"), drawn(tmp_path / "plain")
    assert [row["ids"] for row in samples] == [row["ids"] for row in expected]
    for row in samples:
        assert len(row["ids"]) - row["finished"] == len(text_of(row["completion"]).split()) or min(row["ids"]) < 5
    policy = load_policy(tmp_path / "padded")
    assert completion_logps(policy, [prompt], [completion]) == pytest.approx(
        completion_logps(plain, [prompt], [completion]), abs=1e-4
    )
    figures = [
        measure([prompt], [completion], policy=CompletionLogits(model, 0.7), pad_id=0,
                reference=lambda batch, model=model: CompletionLogits(model, 0.7).per_token(batch, per_token_logps),
                value_model=tiny_value_model(), micro_batch_size=1, device=torch.device("cpu"))[0]
        for model in (policy, plain)
    ]  # fmt: skip
    assert figures[0].policy_logps == pytest.approx(figures[1].policy_logps, abs=1e-4)
    assert math.isfinite(figures[0].entropy)
    assert figures[0].entropy == pytest.approx(figures[1].entropy, abs=1e-3)


@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "orpo"])
def test_methods_learn_the_same_from_a_padded_policy(method: str, lora_rank: int, tmp_path: Path) -> None:
    curves, weights = [], []
    for name, policy in (("plain", tiny_policy()), ("padded", padded(tiny_policy()))):
        folder = write_inputs(tmp_path / name)
        save_policy(policy, word_tokenizer(), folder / "policy/sft")
        run_align(folder, method, lora_rank=lora_rank, lora_alpha=4)
        rows = list(csv.DictReader((folder / "new.csv").read_text().splitlines()))
        curves.append(
            [
                float(row[key] or 0)
                for row in rows
                for key in row
                if ("loss" in key or "rewards" in key or "logps" in key)
                and "accuracies"
                not in key  # which of two rewards is higher is rounding at first, when the policy is its own reference
            ]
        )
        weights.append(load_file(folder / "policy/new/model.safetensors"))
    assert curves[0]
    assert curves[1] == pytest.approx(curves[0], rel=1e-3, abs=1e-5)
    assert weights[0].keys() == weights[1].keys()  # the mask is not saved
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name][: len(tensor)], atol=1e-4), name
    assert len(weights[1]["model.embed_tokens.weight"]) == WORDS + PADDED


@pytest.mark.parametrize("method", GROUPS)
def test_groups_never_hold_a_row_without_a_token(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []

    def recording(*_: Any) -> list[Any]:
        def lengths(completion_ids: list[list[int]], **__: Any) -> list[float]:
            seen.extend(completion_ids)
            return [float(len(ids)) for ids in completion_ids]

        return [lengths]

    monkeypatch.setattr(groups, "reward_functions", recording)
    monkeypatch.setattr(rewards, "load_reward", lambda *_: None)
    folder = write_inputs(tmp_path)
    save_policy(padded(tiny_policy()), word_tokenizer(), folder / "policy/sft")
    run_align(folder, method)
    assert len(seen) >= 16
    assert max(max(ids) for ids in seen) < WORDS


def test_an_id_that_the_tokenizer_leaves_out_is_never_sampled(tmp_path: Path) -> None:
    policy = tiny_policy(tie_word_embeddings=False)
    with torch.no_grad():
        policy.lm_head.weight[7] = 3 * policy.lm_head.weight[6]
    save_policy(policy, with_a_hole(), tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).suppress_tokens == [7]  # for programs that do not mask
    assert not any(7 in row["ids"] for row in drawn(tmp_path))
    assert any(7 in row["ids"] for row in _drawn_without_a_mask(tmp_path))
    logps = load_policy(tmp_path)(torch.tensor([[1, 9, 3]])).logits[0, -1].detach().log_softmax(-1)
    assert logps.exp()[7] == 0
    assert logps.exp().sum() == pytest.approx(1)


def _drawn_without_a_mask(folder: Path) -> list[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("plumbline.models.loading.mask_rows", lambda *_: None)
        return drawn(folder)


def test_a_policy_without_such_rows_has_no_mask(tmp_path: Path) -> None:
    save_policy(tiny_policy(), word_tokenizer(), tmp_path)
    assert load_causal_lm(tmp_path).get_output_embeddings().bias is None
    assert "suppress_tokens" not in (tmp_path / "generation_config.json").read_text()


def test_a_mask_that_soft_capping_would_undo_is_refused() -> None:
    policy = tiny_policy()
    policy.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match=r"found 1 rows without a token \(first: 7\) in LlamaForCausalLM"):
        mask_rows(policy, [7])


# ---------------------------------------------------------------------------------------------------------- pretrain


def pretrain(model: LlamaForCausalLM, tokenizer: Any, size: str = "tiny") -> Path:
    """Runs the stage on a model's folder with the tokenizer that `prepare` made of it."""
    model.save_pretrained("model")
    tokenizer.save_pretrained("artifacts/tokenizer")
    Path("artifacts/data/pretrain").mkdir(parents=True)
    values = OmegaConf.merge(PretrainConfig, OmegaConf.load(CONF / "pretrain.yaml").pretrain, size_section("tiny", "pretrain"))
    config: Any = OmegaConf.to_object(values)
    run(PretrainStage(seed=1, threads=1, model=HubModel(size=size, path="model"), pretrain=config))
    return next(Path().rglob("policy/base"))


def test_rows_that_pad_the_vocabulary_of_a_loaded_model_are_dropped(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = pretrain(padded(tiny_policy()), word_tokenizer())
    assert "have 16 rows and the tokenizer 11 ids" in capsys.readouterr().out
    assert read_json(base / "config.json")["vocab_size"] == WORDS
    kept = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(kept, load_file("model/model.safetensors")["model.embed_tokens.weight"][:WORDS])


def test_a_model_with_a_row_for_each_id_is_saved_as_it_is(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = pretrain(tiny_policy(), with_a_hole())
    assert "rows" not in capsys.readouterr().out
    assert (base / "model.safetensors").read_bytes() == Path("model/model.safetensors").read_bytes()


def test_a_padding_token_that_prepare_added_gets_a_row(project: Path) -> None:
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<|new|>"})
    base = pretrain(tiny_policy(), tokenizer)
    assert read_json(base / "config.json")["vocab_size"] == WORDS + 1


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused(project: Path) -> None:
    tokenizer = word_tokenizer((*("a", "b", "c", "d", "q", "r"), "e", "f"))
    with pytest.raises(
        ValueError, match=r"expected an embedding for each token, found 11 rows in the model and ids up to 12 .*'e' is the first"
    ):
        pretrain(tiny_policy(), tokenizer)
    assert not list(Path().rglob("policy/base/*"))
    assert AutoTokenizer.from_pretrained("artifacts/tokenizer")


def test_a_model_that_is_not_of_the_size_that_its_file_names_is_refused(project: Path) -> None:
    with pytest.raises(
        ValueError, match=r"size: expected tiny for a model of [\d,]+ parameters, found small, .* 50 million to 2 billion"
    ):
        pretrain(tiny_policy(), word_tokenizer(), size="small")
    assert not list(Path().rglob("policy/base/*"))
