"""Bytes and processor time of a completion, a preference, a verdict: what docs/plan-at-scale.md multiplies.

    python tests/benchmarks/bytes_at_scale.py texts.jsonl artifacts/policy/sft     # real text, and a folder with a tokenizer

texts.jsonl holds rows with `completion` and, where there is one, `prompt`, both texts. All completions are joined and cut into pieces of 256 to 512
tokens, 8 for each prompt, so a prompt's pieces are not alike, as real completions are, and compress less. What is printed is per row: bytes, or
microseconds of this process's processor time. They are those of the second run where a first one only warms up.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "tests/judging_server.py"
sys.path.insert(0, str(ROOT))
os.environ.update(MLFLOW_TRACKING_URI="off", HF_HUB_OFFLINE="1")

EACH, SHORTEST, LONGEST = 8, 256, 512
REPLY = (
    "The answer addresses the question and names the main points, but it leaves out one condition that the user asked about and repeats itself "
    "near the end. It is clear and harmless.\n\nRating: {}"
)
"""A judge's reply, with reasons."""

MODEL = "meta-llama/Llama-3.3-70B-Instruct"

Rows = list[dict[str, Any]]


class ConstantReply:
    """A judge that says the same of every completion, with a rating drawn at random."""

    def __init__(self) -> None:
        self.rng = random.Random(2)

    def rate(self, prompts: Sequence[Any], completions: Sequence[str]) -> list[Any]:
        from plumbline.judging.judge import Rating, Verdict
        from plumbline.judging.templates import template_digest

        digest, ratings = template_digest("rating"), []
        for _ in completions:
            value = float(self.rng.randint(1, 10))
            ratings.append(Rating(value, [Verdict("openai", MODEL, digest, "", value, REPLY.format(round(value)), 1, 744, 48)]))
        return ratings


def report(what: str, value: float) -> None:
    print(f"{what:<58}{value:>12,.1f}", flush=True)


def timed(what: str, count: int, work: Callable[[], Any]) -> Any:
    """Reports the microseconds of processor time that the work takes for each of so many rows, and returns what it made."""
    work()
    started = time.process_time()
    made = work()
    report(f"{what}, µs", 1e6 * (time.process_time() - started) / count)
    return made


def completions(tokenizer: Any, texts: Path) -> Iterator[dict[str, Any]]:
    """Rows as `sample` writes them, of real text."""
    from plumbline.rows import assistant

    rows = [json.loads(line) for line in texts.read_text(encoding="utf-8").splitlines()]
    prompts = [row["prompt"] for row in rows if row.get("prompt")]
    ids = tokenizer("\n\n".join(row["completion"] for row in rows), add_special_tokens=False).input_ids
    rng, position = random.Random(1), 0
    for number, prompt in enumerate(prompts):
        for index in range(EACH):
            piece = ids[position : (position := position + rng.randint(SHORTEST, LONGEST))]
            if position > len(ids):
                return
            yield {
                "id": hashlib.blake2b(str(number).encode(), digest_size=8).hexdigest(),
                "prompt": [{"role": "user", "content": prompt}],
                "family": None, "language": "en", "source": "texts", "file": "raw/texts.jsonl", "row": number, "index": index,
                "completion": assistant(tokenizer.decode(piece)), "finished": True, "tokens": len(piece), "ids": piece, "policy": "sft",
            }  # fmt: skip


def sample_bytes(rows: Rows, folder: Path) -> None:
    """A shard of completions: with and without what may be left out, column by column, and as JSON Lines."""
    from pyarrow import parquet

    from plumbline.pipeline.records import write_jsonl
    from plumbline.pipeline.shard_files import read_shard, write_shard

    count, file = len(rows), folder / "completions.parquet"
    for what, written in (
        ("with logp", [row | {"logp": -187.654321 - number / 7} for number, row in enumerate(rows)]),
        ("without ids", [{name: value for name, value in row.items() if name != "ids"} for row in rows]),
        ("as it is", rows),
    ):
        write_shard(file, written)
        report(f"completion, Parquet, {what}", file.stat().st_size / count)
    metadata = parquet.read_metadata(file)
    for column in range(metadata.num_columns):
        groups = [metadata.row_group(group).column(column) for group in range(metadata.num_row_groups)]
        report(f"  {groups[0].path_in_schema}", sum(group.total_compressed_size for group in groups) / count)
    write_jsonl(folder / "completions.jsonl", rows)
    report("completion, JSON Lines", (folder / "completions.jsonl").stat().st_size / count)
    timed("completion, written", count, lambda: write_shard(file, rows))
    timed("completion, read", count, lambda: read_shard(file))


def label_bytes(rows: Rows, folder: Path) -> Rows:
    """Verdicts and preferences of ratings, as `label` writes them; returns the preferences."""
    from plumbline.labelling.labels import pairs_of, preference_labels
    from plumbline.labelling.opinions import rate
    from plumbline.pipeline.records import write_jsonl

    judge: Any = ConstantReply()
    groups = [rows[start : start + EACH] for start in range(0, len(rows) - EACH + 1, EACH)]
    preferences, verdicts = [], []
    for group, opinion in zip(groups, rate(judge, groups), strict=True):
        verdicts += opinion.rows
        candidates = pairs_of(group, opinion.judged, "best_vs_worst", "1", None, None)
        provenance = {"judge": "openai", "model": MODEL, "way": "rating"}
        labels = preference_labels(
            group, opinion.judged, candidates, provenance, min_margin=1.0, keep_ties=False, most=0, seed="1"
        )
        preferences += labels.rows
    for name, written in (("preference", preferences), ("verdict", verdicts)):
        write_jsonl(folder / f"{name}.jsonl", written)
        report(f"{name}, JSON Lines", (folder / f"{name}.jsonl").stat().st_size / len(written))
    report("  of which the judge's reply", len(REPLY.format(7)))
    return preferences


def store_bytes(folder: Path, count: int = 20_000) -> None:
    """Replies that are bought and kept."""
    from plumbline.judging.asking import Reply
    from plumbline.judging.store import VerdictStore, content_key

    store, started = VerdictStore(folder), time.process_time()
    for number in range(count):
        key = content_key(number)
        entry = store.begin(key, content_key("run"), 0.0, None)
        assert entry is not None
        store.receive(entry, key, Reply(REPLY.format(7), "stop", 744, 48))
    report("reply, bought and kept, µs", 1e6 * (time.process_time() - started) / count)
    store.close()
    report("reply, in .verdicts", (folder / "verdicts.sqlite").stat().st_size / count)


def questions(tokenizer: Any) -> None:
    """Tokens of the templates: those before the prompt can be shared by all questions, those of one prompt share the prompt, too."""
    from plumbline.judging.judges import JudgeConfig
    from plumbline.judging.templates import question

    def tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False).input_ids)

    for template, answers in (("rating", 1), ("pairwise", 2), ("ranking", EACH)):
        criteria = JudgeConfig(backend="openai").criteria
        [message] = question(
            template,
            [{"role": "user", "content": "PROMPT"}],
            ["ANSWER"] * answers,
            criteria=criteria,
            reasoning=True,
            language="en",
        )
        before, _, after = message["content"].partition("PROMPT")
        report(f"{template}: tokens of the template before the prompt", tokens(before))
        report(f"{template}: tokens of the template after it", tokens(after) - answers * tokens("ANSWER"))


def judging(rows: Rows, folder: Path) -> None:
    """A judge behind an endpoint, on another process of this machine, that answers at once."""
    from plumbline.judging.building import load_judge
    from plumbline.judging.judges import OpenaiJudge, SamplingConfig

    os.environ["DVC_ROOT"] = str(folder)
    server = subprocess.Popen([sys.executable, str(SERVER), "--latency", "0"], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}/v1"
        config = OpenaiJudge(
            model="m",
            base_url=url,
            needs_key=False,
            concurrency=64,
            reasoning=True,
            sampling=SamplingConfig(max_tokens=64),
            timeout_seconds=600,
        )
        judge = load_judge(config, seed=1)
        judge.rate([[{"role": "user", "content": "The call that opens the client."}]], [""])
        prompts, texts = [row["prompt"] for row in rows], [row["completion"][0]["content"] for row in rows]
        for what in ("asked of an endpoint", "whose reply is in the store"):
            started = time.process_time()
            judge.rate(prompts, texts)
            report(f"rating, {what}, µs", 1e6 * (time.process_time() - started) / len(texts))
        judge.finish()
    finally:
        server.kill()


def md5_rate() -> None:
    """What DVC does to every output."""
    block, digest, started = os.urandom(1 << 20), hashlib.md5(usedforsecurity=False), time.process_time()
    for _ in range(512):
        digest.update(block)
    report("md5, MB a second", 512 * 1.048576 / (time.process_time() - started))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("tokenizer", type=Path)
    options = parser.parse_args()
    from transformers import AutoTokenizer

    from plumbline.models.chat import encode_pairs, encode_turns, prompt_ids

    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    rows = [*completions(tokenizer, options.texts)]
    report("completions", len(rows))
    report("tokens of a completion", sum(row["tokens"] for row in rows) / len(rows))
    report(
        "tokens of a prompt",
        sum(len(tokenizer(row["prompt"][0]["content"]).input_ids) for row in rows[::EACH]) / len(rows[::EACH]),
    )
    with TemporaryDirectory() as name:
        folder = Path(name)
        sample_bytes(rows, folder)
        preferences = label_bytes(rows, folder)
        store_bytes(folder / "store")
        questions(tokenizer)
        judging(rows, folder / "project")
    count = len(preferences)
    timed("prompt, tokenised", count, lambda: [prompt_ids(tokenizer, row["prompt"]) for row in preferences])
    timed(
        "completion, tokenised with its prompt",
        count,
        lambda: encode_turns(tokenizer, [(r["prompt"], r["chosen"]) for r in preferences]),
    )
    timed("preference, tokenised", count, lambda: encode_pairs(tokenizer, preferences))
    md5_rate()


if __name__ == "__main__":
    main()
