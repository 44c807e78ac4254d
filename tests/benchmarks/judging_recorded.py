"""Recorded judges and people, read by our parsers and aggregated by our code: agreement, and every reply that cannot be read.

    python tests/benchmarks/judging_recorded.py <folder with the recorded judgements>

The files are those of tests/test_judging_recorded.py: PandaLM's test set with three annotators and GPT-3.5's verdicts, LLMBar and MT-Bench
with people's preferences, AlpacaEval's GPT-4-turbo verdicts with their raw completions, and judged TL;DR summaries.
"""

import argparse
import csv
import gzip
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from plumbline.judging.aggregation import UNPARSED, cohen_kappa, majority
from plumbline.judging.gate import Quality
from plumbline.judging.verdicts import TIE, A, B, parse_choice, win_probability


def read(path: Path) -> Any:
    return json.loads((gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode())


def agreement(name: str, judge: Sequence[str], people: Sequence[str]) -> None:
    """Prints how often a judge agrees with people: on all cases, and on those that both decide, without ties and unreadable verdicts."""
    decided = [(a, b) for a, b in zip(judge, people, strict=True) if {a, b} <= {A, B}]
    kappa = cohen_kappa(judge, people)
    same = sum(a == b for a, b in zip(judge, people, strict=True))
    print(
        f"{name}: agrees on {same} of {len(judge)} ({same / len(judge):.1%}); "
        f"both decided: {sum(a == b for a, b in decided)} of {len(decided)}; kappa {kappa if kappa is None else round(kappa, 3)}; "
        f"unparsed {Counter(judge)[UNPARSED]}"
    )


def pandalm(folder: Path) -> None:
    rows = read(folder / "pandalm_testset_600.json")
    words = {"1": A, "2": B, "Tie": TIE}
    replies = {row["idx"]: str(row["gpt_result"]) for row in read(folder / "pandalm_gpt35_judgments_600.json")}
    gpt = {index: words.get(reply, UNPARSED) for index, reply in replies.items()}
    annotators = [[{1: A, 2: B, 0: TIE}[row[f"annotator{n}"]] for row in rows] for n in (1, 2, 3)]
    people = [majority(opinions) for opinions in zip(*annotators, strict=True)]
    agreement("PandaLM, GPT-3.5 against the majority of three", [gpt[row["idx"]] for row in rows], people)
    for n, first in enumerate(annotators, 1):
        agreement(f"PandaLM, GPT-3.5 against annotator {n}", [gpt[row["idx"]] for row in rows], first)
        for m, second in enumerate(annotators[n:], n + 1):
            agreement(f"PandaLM, annotator {n} against annotator {m}", first, second)
    agreement(
        "PandaLM, a judge that prefers the longer response",
        [longer(str(r["response1"]), str(r["response2"])) for r in rows],
        people,
    )
    print(
        "  unparsed verdicts of GPT-3.5:", dict(Counter(replies[index] for index, verdict in gpt.items() if verdict == UNPARSED))
    )


def longer(first: str, second: str) -> str:
    return A if len(first) > len(second) else B if len(second) > len(first) else TIE


def preferred(folder: Path) -> None:
    """LLMBar and MT-Bench, which record no judge's verdicts: a judge that always prefers the longer output."""
    for name in ("llmbar_natural.json", "llmbar_adversarial_gptinst.json", "llmbar_mtbench_human_120.json"):
        rows = read(folder / name)
        people = [{1: A, 2: B}[row["label"]] for row in rows]
        agreement(f"{name}, a judge that prefers the longer output", [longer(r["output_1"], r["output_2"]) for r in rows], people)


def alpaca_eval(folder: Path) -> None:
    rows = read(folder / "alpaca_eval_gpt4turbo_gemma-7b-it_200.json.gz")
    outcomes, unparsed, exact, quality = Counter[str](), [], 0, Quality()
    for row in rows:
        raw = row["raw_completion"]
        outcome = parse_choice(raw["text"], {"m": A, "M": B})
        outcomes[outcome or UNPARSED] += 1
        if outcome is None:
            unparsed.append(raw["text"])
        tops = {top["token"]: top["logprob"] for top in raw["logprobs"]["content"][0]["top_logprobs"]}
        probability = win_probability(tops, "m", "M")
        exact += probability is not None and min(abs(row["preference"] - 1 - p) for p in (probability, 1 - probability)) < 1e-6
        quality.add_preference(row["output_1"], row["output_2"], 1.5 - row["preference"], where="")
    print(f"AlpacaEval, GPT-4-turbo: {len(rows)} raw completions, read {dict(outcomes)}, unparsed {unparsed}")
    print(f"  preference recomputed from token probabilities within 1e-6: {exact} of {len(rows)}; "
          f"the longer answer wins {quality.longer.count} of {quality.longer.total} ({quality.longer.fraction:.1%})")  # fmt: skip


def tldr(folder: Path) -> None:
    with (folder / "tldr_llm_judged_300.csv").open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file)]
    alone = [row["explanation"] for row in rows if parse_choice(row["explanation"]) is not None]
    empty = sum(not row["explanation"].strip() for row in rows)
    print(f"TL;DR explanations alone: {len(rows)}, read {len(alone)}, unparsed {len(rows) - len(alone)} ({empty} of them empty)")
    for row in rows:
        print(f"    unparsed: {row['explanation'][:110]!r}")
    back, unread = Counter[bool](), []
    for row in rows:
        letter = {"ours": "AB", "reference": "BA"}.get(row["preferred"], "  ")[int(row["shuffled_index"] or 0)].strip()
        reply = f"Comparison: {row['explanation']}\nPreferred: {letter}"
        outcome = parse_choice(reply)
        if outcome is None:
            unread.append(reply)
            continue
        back[("ours", "reference")[(outcome == B) != (row["shuffled_index"] == "1")] == row["preferred"]] += 1
    print(f"TL;DR replies in the judge's own form: {len(rows)}, give back the recorded preference {back[True]}, another {back[False]}, "
          f"unparsed {len(unread)}: {dict(Counter(unread))}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for show in (pandalm, preferred, alpaca_eval, tldr):
        show(folder)


if __name__ == "__main__":
    main()
