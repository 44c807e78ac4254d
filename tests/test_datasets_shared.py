"""Real public data: every sample loads by conf/data/public_samples.yaml, with the counts that its quirks imply."""

import csv
import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from plumbline.data.overview import source_rows
from plumbline.rows import text_of
from tests.preparing import NO_SHARED_DATA, SHARED, Prepared, data_conf, prepare, sources_of

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not SHARED.is_dir(), reason=NO_SHARED_DATA)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """All samples, with no row too long."""
    folder = tmp_path_factory.mktemp("samples")
    (folder / "in").symlink_to(SHARED)
    data = data_conf("public_samples")
    return prepare(folder, sources_of(data), data.policy, validation=0.05, test=0.05)


# Source: rows in, and rows dropped by reason. PandaLM's ties are 0; TL;DR's judge gave no verdict on many rows.
COUNTS: dict[str, tuple[int, dict[str, int]]] = {
    "gsm8k_test": (400, {}),
    "mt_bench": (80, {}),
    "xstest": (306, {}),
    "advbench": (300, {}),
    "do_not_answer": (500, {}),
    "square_questions": (1500, {}),
    "alpaca_farm": (8, {}),
    "alpaca": (3000, {"empty_turn": 1}),
    "ko_alpaca": (3000, {}),
    "korean_chatbot": (3000, {"duplicate": 19}),
    "seed_tasks": (175, {}),
    "gsm8k": (3000, {}),
    "mbpp": (724, {}),
    "humaneval": (100, {}),
    "xstest_answers": (306, {}),
    "hh_helpful": (1765, {"empty_turn": 2, "identical": 2, "prompts_differ": 8, "role_order": 5}),
    "hh_harmless": (1734, {"empty_turn": 3, "prompts_differ": 4, "role_order": 3}),
    "hh_sampled": (1237, {"identical": 15}),
    "dpo_en": (300, {"bad_text": 2, "duplicate": 5}),
    "ultrafeedback": (1000, {"bad_text": 2, "empty_turn": 2, "identical": 4}),
    "tulu3": (50, {}),
    "pandalm": (600, {"duplicate": 45, "empty_turn": 27, "no_preference": 51, "wrong_type": 6}),
    "llmbar_natural": (100, {}),
    "llmbar_gptinst": (92, {}),
    "llmbar_mtbench": (120, {"duplicate": 2}),
    "alpaca_eval": (200, {}),
    "tldr_judged": (300, {"no_preference": 135}),
    "kto": (300, {"bad_text": 1, "transcript": 1}),  # an answer that goes on with a turn of <|user|>
    "gsm8k_solutions_175b": (400, {}),
    "gsm8k_solutions_6b": (400, {}),
    "square_answers": (240, {}),
    "kosbi": (1000, {}),
}


def test_every_public_sample_loads_with_the_counts_of_its_quirks(prepared: Prepared) -> None:
    counts = {}
    for row in source_rows(prepared.pools):
        dropped = dict(part.rsplit(" ", 1) for part in row["reasons"].split(", ") if part)
        counts[row["source"]] = (row["rows_in"], {reason: int(count) for reason, count in dropped.items()})
        assert row["kept"] == row["rows_in"] - sum(counts[row["source"]][1].values())
    assert counts == COUNTS


def test_safety_prompts_say_what_they_call_for(prepared: Prepared) -> None:
    """XSTest's 306 prompts here are 170 safe and 136 unsafe ones by its column `label`; GSM8K's state an answer instead."""
    with (SHARED / "safety/xstest_prompts_306.csv").open(encoding="utf-8", newline="") as file:
        labels = Counter(row["label"] for row in csv.DictReader(file))
    rows = prepared.kept("prompts")
    stated = Counter((row["source"], row.get("expects")) for row in rows)
    assert (stated["xstest", "compliance"], stated["xstest", "refusal"]) == (labels["safe"], labels["unsafe"])
    assert (stated["advbench", "refusal"], stated["do_not_answer", "refusal"], stated["gsm8k_test", None]) == (300, 500, 400)
    by_type = {row["family"]: row["expects"] for row in rows if row["source"] == "xstest"}
    assert (by_type["homonyms"], by_type["contrast_homonyms"]) == ("compliance", "refusal")


# Files without anything that `prepare` makes: verdicts without the texts, answers without the questions, a judge's prompts.
NOT_DATA = {
    "SOURCES.md",
    "judge/pandalm_gpt35_judgments_600.json",
    "judge/mt_bench_reference_gpt-4.jsonl",
    "judge/mt_bench_judge_prompts.jsonl",
}


def test_every_file_of_data_is_named_by_the_conf() -> None:
    named = {name for sources in sources_of(data_conf("public_samples")).values() for source in sources for name in source.files}
    present = {path.relative_to(SHARED).as_posix() for path in SHARED.rglob("*") if path.is_file()}
    assert present - NOT_DATA == named


def test_the_standard_library_counts_the_same_quirks_in_the_files() -> None:
    for name, tranche in (
        ("hh_helpful", "helpful-base"),
        ("hh_harmless", "harmless-base"),
        ("hh_sampled", "helpful-rejection-sampled"),
    ):
        with gzip.open(SHARED / f"hh-rlhf/{tranche}.shared.jsonl.gz", "rt", encoding="utf-8") as file:
            pairs = [json.loads(line) for line in file]
        prompts = [[pair[side][: pair[side].rindex("\n\nAssistant:")] for side in ("chosen", "rejected")] for pair in pairs]
        assert COUNTS[name][1].get("identical", 0) == sum(pair["chosen"] == pair["rejected"] for pair in pairs)
        assert COUNTS[name][1].get("prompts_differ", 0) == sum(chosen != rejected for chosen, rejected in prompts)
    with (SHARED / "judge/tldr_llm_judged_300.csv").open(encoding="utf-8") as file:
        assert COUNTS["tldr_judged"][1]["no_preference"] == sum(not row["preferred"] for row in csv.DictReader(file))
    pandalm = json.loads((SHARED / "judge/pandalm_testset_600.json").read_text())
    assert COUNTS["pandalm"][1]["wrong_type"] == sum(
        any(not isinstance(row[side], str) for side in ("response1", "response2")) for row in pandalm
    )


def test_the_judged_summary_that_is_chosen_is_the_one_preferred(prepared: Prepared) -> None:
    kept = [row for row in prepared.kept("preferences") if row["source"] == "tldr_judged"]
    with (SHARED / "judge/tldr_llm_judged_300.csv").open(encoding="utf-8") as file:
        preferred = {row["postprocessed_response"]: row["preferred"] for row in csv.DictReader(file)}
    verdicts = {preferred[text_of(row["chosen"])] for row in kept if text_of(row["chosen"]) in preferred}
    assert verdicts == {"ours"}


def test_no_gsm8k_answer_keeps_commas_or_calculator_marks(prepared: Prepared) -> None:
    kept = [row for row in prepared.kept("sft") if row["source"] == "gsm8k"]
    assert all(text_of(row["completion"]).endswith(f"#### {row['answer']}") for row in kept)
    assert not any("," in row["answer"] or "<<" in text_of(row["completion"]) for row in kept)
    with (SHARED / "math/gsm8k_train_3000.jsonl").open(encoding="utf-8") as file:
        answers = [json.loads(line)["answer"].rpartition("####")[2].strip() for line in file]
    assert sum("," in answer for answer in answers) == 33
    assert {row["row"]: row["answer"] for row in kept} == {row: answer.replace(",", "") for row, answer in enumerate(answers, 1)}


def test_the_trial_on_public_data_keeps_most_rows_in_a_small_context(tmp_path: Path) -> None:
    (tmp_path / "in").symlink_to(SHARED)
    data = data_conf("alpaca_hh")
    sources = sources_of(data)
    for source in (source for role in sources.values() for source in role):
        source.limit = 400
    prepared = prepare(tmp_path, sources, data.policy, context_tokens=1024, validation=0.05, test=0.05)  # nearly a token a byte
    for role in ("sft", "preferences"):
        assert len(prepared.kept(role)) > sum(prepared.pools[role].tally.rows_in.values()) / 2
