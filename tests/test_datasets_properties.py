"""Properties of `prepare` on random rows: nothing is lost, nothing unsound is kept, nothing is changed unless the policy says so."""

import json
import unicodedata
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plumbline.data.personal_data import scan
from plumbline.models.chat import completion_ids, prompt_ids
from tests.preparing import lenient, prepare, small_tokenizer, source

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
# Sound texts must come through unchanged: white space at the ends, personal data, other scripts. Unsound ones must not come through.
sound = st.sampled_from(
    ["a", " a", "b \n", "\tc?\r\n", "가 나", "é", "Write to me@example.org.", "010-1234-5678", "<|user", "</s>"]
)
unsound = st.sampled_from(["", " ", "<|end|>", "a<|end|>b", "\ud800", "\0", "\x1b[0m", "a\u0085"])
words = sound | unsound | st.text(st.characters(blacklist_categories=["Cs"]), max_size=12)
turn = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": words | anything})
junk = st.dictionaries(st.text(max_size=5), anything, max_size=3)
demonstration = st.fixed_dictionaries({"prompt": words, "response": words})
broken = st.fixed_dictionaries({"prompt": words | anything | st.lists(turn, max_size=4), "response": words | anything})
good_demonstration = st.fixed_dictionaries({"prompt": sound, "response": sound})


def among(good: st.SearchStrategy[Any], others: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """Rows of which at least two are good, so that no property holds because nothing is kept."""
    rows = st.tuples(st.lists(good, min_size=2, max_size=4), st.lists(others, max_size=8))
    return rows.flatmap(lambda parts: st.permutations([*parts[0], *parts[1]]))


def check_fed(prompt: list[dict[str, str]], reply: list[dict[str, str]]) -> None:
    """The model is fed the texts and the template's marks, nothing else; each turn ends once; no text has a control character."""
    tokenizer = small_tokenizer()
    prompt_tokens, completion_tokens = prompt_ids(tokenizer, prompt), completion_ids(tokenizer, prompt, reply)
    conversation = "".join(f"<|{turn['role']}|>{turn['content']}<|end|>" for turn in prompt + reply)
    assert tokenizer.decode(prompt_tokens + completion_tokens) == conversation
    assert prompt_tokens.count(tokenizer.eos_token_id) == len(prompt)
    assert completion_tokens.index(tokenizer.eos_token_id) == len(completion_tokens) - 1
    for turn in prompt + reply:
        assert turn["content"].strip()
        assert not any(unicodedata.category(sign) in ("Cc", "Cs") and sign not in "\n\r\t" for sign in turn["content"])


PROPERTY = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}


@settings(max_examples=100, **PROPERTY)
@given(rows=among(good_demonstration, demonstration | broken | junk))
def test_rows_in_are_rows_kept_plus_rows_dropped_and_kept_rows_are_valid_and_unchanged(rows: list[Any], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir(exist_ok=True)
    (tmp_path / "in/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared = prepare(tmp_path, {"sft": [source("rows.jsonl", format="prompt_response")]}, lenient(personal_data="off"))
    kept = prepared.kept("sft")
    assert len(rows) == len(kept) + sum(prepared.dropped("sft").values())
    assert prepared.pools["sft"].keep.sum() == len(kept) > 0
    for row in kept:
        original = rows[row["row"] - 1]
        if isinstance(original["prompt"], str):
            assert row["prompt"] == [{"role": "user", "content": original["prompt"]}]
        if isinstance(original["response"], str):
            assert row["completion"] == [{"role": "assistant", "content": original["response"]}]
        check_fed(row["prompt"], row["completion"])


chat_turns = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": words}), max_size=4)
pair_of_strings = st.fixed_dictionaries({"prompt": words, "chosen": words, "rejected": words})
pair_of_turns = st.fixed_dictionaries({"chosen": chat_turns, "rejected": chat_turns})
good_strings = st.fixed_dictionaries({"prompt": sound, "chosen": sound, "rejected": sound})
good_turns = st.builds(
    lambda system, prompt, chosen, rejected: {
        side: [
            *([{"role": "system", "content": system}] if system else []),
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": reply},
        ]
        for side, reply in (("chosen", chosen), ("rejected", rejected))
    },
    *(st.none() | sound, sound, sound, sound),
)


@settings(max_examples=100, **PROPERTY)
@given(
    rows=among(good_strings | good_turns, pair_of_strings | pair_of_turns | junk),
    personal=st.sampled_from(["off", "report", "mask", "drop"]),
)
def test_pairs_in_are_pairs_kept_plus_dropped_and_only_the_stated_policy_changes_them(
    rows: list[Any], personal: str, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir(exist_ok=True)
    (tmp_path / "in/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    policy = lenient(personal_data=personal)
    prepared = prepare(tmp_path, {"preferences": [source("rows.jsonl", format="preference")]}, policy)
    kept = prepared.kept("preferences")
    assert len(rows) == len(kept) + sum(prepared.dropped("preferences").values())
    for row in kept:
        assert row["chosen"] != row["rejected"]
        original = rows[row["row"] - 1]
        for side in ("chosen", "rejected"):
            turns = original[side]
            if isinstance(turns, str):
                turns = [{"role": "user", "content": original["prompt"]}, {"role": "assistant", "content": turns}]
            if personal == "mask":
                turns = [{**turn, "content": scan(turn["content"]).masked} for turn in turns]
            assert [*row["prompt"], *row[side]] == turns
            assert personal != "drop" or not any(scan(turn["content"]).counts for turn in turns)
            check_fed(row["prompt"], row[side])
