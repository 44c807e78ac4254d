"""Claims about the likelihood of held-out rows: perplexity, and which side of a preference a policy has moved towards."""

import math
from pathlib import Path
from typing import Any

import pytest
from test_answer import make_policy
from transformers import AutoTokenizer

from plumbline.evaluation import held_out
from plumbline.evaluation.divergence import completion_logps
from plumbline.evaluation.held_out import chosen_rows, document_ids, held_out_figures, perplexity_figures, preference_figures
from plumbline.models.chat import encode_turns
from plumbline.models.loading import load_policy
from plumbline.pipeline.records import write_jsonl
from plumbline.rows import assistant


def question(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


PREFERENCES = [
    {"prompt": question("What is 3 plus 4?"), "chosen": assistant("It is 7."), "rejected": assistant("It is 34, I think.")},
    {"prompt": question("사과는 무슨 색인가요?"), "chosen": assistant("빨간색이에요."), "rejected": assistant("몰라요.")},
]
DEMONSTRATIONS = [
    {"prompt": question("What?"), "completion": assistant("It is 7.")},
    {"prompt": question("What is 3 plus 4?"), "completion": assistant("It is 7. " * 5)},
]


def test_perplexity_counts_every_token_once_however_the_rows_are_cut() -> None:
    """Half of 8 tokens are certain and half have probability 1/4: NLL ln 4 / 2 = ln 2 per token, perplexity 2."""
    quarter = 2 * math.log(1 / 4)
    for logps, tokens in (([0.0, 2 * quarter], [4, 4]), ([quarter, quarter], [4, 4]), ([2 * quarter, 0.0], [6, 2])):
        figures = perplexity_figures(logps, logps, tokens, seed=1)
        assert figures["perplexity"] == pytest.approx(2.0, abs=1e-6)
        assert figures["nll_per_token"] == pytest.approx(math.log(2), abs=1e-6)
        assert [figures[f"nll_change{end}"] for end in ("", "_low", "_high")] == [0.0, 0.0, 0.0]
        assert figures["perplexity_n"] == 2
        assert figures["perplexity_low"] <= figures["perplexity"] <= figures["perplexity_high"]


def test_a_constant_loss_of_likelihood_is_a_certain_change() -> None:
    """0.1 nats a token more in every row, whatever the rows' own difficulty."""
    tokens, against = [5, 10, 20], [-1.0, -30.0, -15.0]
    figures = perplexity_figures(
        [logp - 0.1 * count for logp, count in zip(against, tokens, strict=True)], against, tokens, seed=1
    )
    assert [figures[f"nll_change{end}"] for end in ("", "_low", "_high")] == pytest.approx([0.1] * 3, abs=1e-6)
    assert figures["nll_per_token_low"] < figures["nll_per_token_high"]


def test_preference_accuracy_is_the_share_of_pairs_whose_chosen_side_gained_more() -> None:
    figures = preference_figures([1.0, -1.0, 0.5, 0.0], [0.0, -2.0, 0.7, 0.0], ["a", "b", "c", "d"], seed=1)
    assert (figures["preference_accuracy"], figures["preference_accuracy_n"]) == (
        0.625,
        4,
    )  # two of four, and a tie counts one half
    swapped = preference_figures([0.0, -2.0, 0.7], [1.0, -1.0, 0.5], ["a", "b", "c"], seed=1)
    assert swapped["preference_accuracy"] == pytest.approx(1 / 3, abs=1e-6)
    doubled = preference_figures([2.0, -2.0, 1.0, 0.0], [0.0, -4.0, 1.4, 0.0], ["a", "b", "c", "d"], seed=1)
    assert doubled == figures  # β only scales both sides


def test_pairs_of_one_prompt_are_resampled_together() -> None:
    """Two prompts, each with 50 pairs that agree: with two prompts nothing is known."""
    right = [1.0] * 50 + [-1.0] * 50
    figures = preference_figures(right, [0.0] * 100, ["a"] * 50 + ["b"] * 50, seed=1)
    assert [figures[f"preference_accuracy{end}"] for end in ("", "_low", "_high")] == pytest.approx([0.5, 0.0, 1.0], abs=0.01)


def test_rows_without_the_column_are_not_chosen(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"text": "a"}, {"messages": []}, {"text": "b"}])
    assert chosen_rows(tmp_path / "rows.jsonl", 10, seed=1, column="text") == [{"text": "a"}, {"text": "b"}]


def test_texts_lose_likelihood_by_token_and_their_first_token_is_given(policies: tuple[Path, Path]) -> None:
    policy, against = policies
    texts = ["What is 3 plus 4? It is 7.", "사과는 빨간색이에요.", "a"]
    figures = held_out_figures(policy, against, [], [], seed=1, texts=texts)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    ids = [of for of in tokenizer(texts, add_special_tokens=False)["input_ids"] if len(of) > 1]
    ours, theirs = (
        sum(completion_logps(load_policy(folder), [of[:1] for of in ids], [of[1:] for of in ids])) for folder in (policy, against)
    )
    tokens = sum(len(of) - 1 for of in ids)
    assert figures["text_nll_per_token"] == pytest.approx(-ours / tokens, rel=1e-4)
    assert figures["text_nll_change"] == pytest.approx((theirs - ours) / tokens, abs=1e-4)
    assert figures["text_n"] == len(ids)
    assert not [key for key in figures if "perplexity" in key]


def test_texts_end_where_the_policy_can_read_no_further() -> None:
    assert document_ids([[1, 2, 3, 4], [5], [6, 7]], 3) == [[1, 2, 3], [6, 7]]
    assert document_ids([[1, 2, 3, 4]], None) == [[1, 2, 3, 4]]


@pytest.fixture
def policies(tmp_path: Path) -> tuple[Path, Path]:
    for seed, name in enumerate(("sft", "dpo")):
        make_policy(tmp_path / name, seed, context_tokens=128)
    return tmp_path / "dpo", tmp_path / "sft"


def logps(folder: Path, column: str, rows: list[dict[str, Any]]) -> list[float]:
    turns = encode_turns(AutoTokenizer.from_pretrained(folder), [(row["prompt"], row[column]) for row in rows])
    return completion_logps(load_policy(folder), [turn.prompt for turn in turns], [turn.completion for turn in turns])


def test_the_figures_are_those_of_each_kind_of_rows_alone(policies: tuple[Path, Path]) -> None:
    policy, against = policies
    figures = held_out_figures(policy, against, PREFERENCES, DEMONSTRATIONS, seed=1)
    ratios = {
        side: [a - b for a, b in zip(logps(policy, side, PREFERENCES), logps(against, side, PREFERENCES), strict=True)]
        for side in ("chosen", "rejected")
    }
    right = [a > b for a, b in zip(ratios["chosen"], ratios["rejected"], strict=True)]
    assert figures["preference_accuracy"] == sum(right) / 2
    ends = encode_turns(AutoTokenizer.from_pretrained(policy), [(row["prompt"], row["completion"]) for row in DEMONSTRATIONS])
    nll = -sum(logps(policy, "completion", DEMONSTRATIONS)) / sum(len(turn.completion) for turn in ends)
    assert figures["perplexity"] == pytest.approx(math.exp(nll), rel=1e-4)
    assert not [key for key in held_out_figures(policy, against, PREFERENCES, [], seed=1) if "perplexity" in key]


def test_equal_prompts_of_preferences_count_once_in_the_interval(policies: tuple[Path, Path]) -> None:
    """Forty pairs of two prompts: [0, 1] if one of the two is right, else Clopper and Pearson for 2, 1 − 0.025 ** (1 / 2) = 0.842 wide."""
    figures = held_out_figures(*policies, PREFERENCES * 20, [], seed=1)
    assert figures["preference_accuracy_high"] - figures["preference_accuracy_low"] >= 0.84


def test_the_opponent_itself_has_a_perplexity_and_no_preference(
    policies: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, against = policies
    calls: list[int] = []
    monkeypatch.setattr(held_out, "completion_logps", lambda *arguments: calls.append(1) or completion_logps(*arguments))
    figures = held_out_figures(against, against, PREFERENCES, DEMONSTRATIONS, seed=1)
    assert "preference_accuracy" not in figures
    assert (figures["nll_change"], len(calls)) == (0.0, 1)


def test_without_rows_there_are_no_figures_and_no_model_is_loaded(tmp_path: Path) -> None:
    assert held_out_figures(tmp_path / "none", tmp_path / "none either", [], [], seed=1) == {}


def test_the_same_rows_are_chosen_for_every_policy(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"id": number} for number in range(100)])
    chosen = [row["id"] for row in chosen_rows(tmp_path / "rows.jsonl", 10, seed=3, column="id")]
    assert chosen == [row["id"] for row in chosen_rows(tmp_path / "rows.jsonl", 10, seed=3, column="id")] == sorted(chosen)
    assert len({*chosen}) == 10
    assert chosen != [row["id"] for row in chosen_rows(tmp_path / "rows.jsonl", 10, seed=4, column="id")]
    assert len(chosen_rows(tmp_path / "rows.jsonl", 1000, seed=3, column="id")) == 100


def test_a_policy_that_has_not_moved_prefers_neither_side() -> None:
    """Equal log-ratios are ties, which count one half: not 0 % right."""
    figures = preference_figures([1.0] * 50, [1.0] * 50, [str(number) for number in range(50)], seed=1)
    assert figures["preference_accuracy"] == 0.5
    assert preference_figures([1.0, 0.0, 2.0], [0.0, 1.0, 2.0], ["a", "b", "c"], seed=1)["preference_accuracy"] == 0.5
