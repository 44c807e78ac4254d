"""Judging through an endpoint: calls a second to one that takes 200 ms, and reading back verdicts that were bought before.

    python tests/benchmarks/judging_throughput.py              # 3 runs of 3,200 calls at concurrency 32, then 100,000 cached verdicts
    python tests/benchmarks/judging_throughput.py --runs 0     # only the cached ones

The endpoint is tests/judging_server.py, a process on the same machine. Each measurement has its own process and its own store.
`calls_per_second` counts from the first question to the last verdict, after one call that opens the client. The ideal is the concurrency over
the latency. The cached verdicts are read once by the judge alone, in chunks as `label` asks, and once by the whole stage.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ.update(MLFLOW_TRACKING_URI="off", HF_HUB_OFFLINE="1")
ROOT = Path(__file__).parents[2]
SERVER = ROOT / "tests/judging_server.py"
CHUNK = 2048  # completions that `label` asks about at once: 256 prompts of 8
WORDS = "the quick brown fox jumps over a lazy dog while seven wizards box in the quiet evening rain".split()  # noqa: SIM905


def answer(number: int) -> str:
    """A completion of 25 words that no other number has."""
    return " ".join(WORDS[(number * 7 + position * position) % len(WORDS)] for position in range(24)) + f" {number}."


def prompt(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Say something about the number {number}."}]


def judge_config(url: str, concurrency: int) -> Any:
    from plumbline.judging.judges import OpenaiJudge, SamplingConfig

    return OpenaiJudge(
        model="m", base_url=url, needs_key=False, concurrency=concurrency, reasoning=True, sampling=SamplingConfig(max_tokens=64)
    )


def memory_mib() -> float:
    """The memory that the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def buy(url: str, count: int, concurrency: int) -> dict[str, float]:
    """Rates `count` completions that are not in the store."""
    from plumbline.judging.building import load_judge

    judge = load_judge(judge_config(url, concurrency), seed=1)
    judge.rate([prompt(-1)], ["The call that opens the client."])
    prompts, answers = [prompt(number // 8) for number in range(count)], [answer(number) for number in range(count)]
    started, used = time.perf_counter(), time.process_time()
    ratings = judge.rate(prompts, answers)
    seconds, used = time.perf_counter() - started, time.process_time() - used
    judge.finish()
    assert all(rating.score is not None for rating in ratings)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"calls_per_second": count / seconds, "cpu_ms_per_call": 1000 * used / count, "peak_mib": peak}


def fill(count: int) -> None:
    """Puts the replies to `count` questions into the store, as if they had been bought."""
    from plumbline.judging.asking import Reply
    from plumbline.judging.backends.endpoint import EndpointChat
    from plumbline.judging.building import load_judge
    from plumbline.judging.panel import AskingJudge, Item

    judge = load_judge(judge_config("http://127.0.0.1:9/v1", 32), seed=1)
    assert isinstance(judge, AskingJudge)
    member = judge._members[0]
    assert isinstance(member.chat, EndpointChat)
    store = member.chat._store
    with store._transaction():
        for number in range(count):
            (request,) = judge._requests(member, "rating", Item(prompt(number // 8), (answer(number),)))
            text = f"It is accurate enough, useful in part, clear and safe.\nRating: {number * 7 % 10 + 1}"
            store.keep(member.chat._key_of(request), Reply(text, "stop", 420, 20, 0.0002))
    judge.finish()


def read_back(count: int) -> dict[str, float]:
    """Rates as `label` does: chunk by chunk, keeping scores."""
    from plumbline.judging.building import load_judge

    judge = load_judge(judge_config("http://127.0.0.1:9/v1", 32), seed=1)
    scores, memory, started = [], {}, time.perf_counter()
    for start in range(0, count, CHUNK):
        numbers = range(start, min(start + CHUNK, count))
        scores += [rating.score for rating in judge.rate([prompt(n // 8) for n in numbers], [answer(n) for n in numbers])]
        for mark in (10_000, 50_000, 100_000):
            if numbers.start < mark <= numbers.stop:
                memory[f"mib_at_{mark}"] = memory_mib()
    seconds = time.perf_counter() - started
    assert (judge.ledger.bought, judge.ledger.cached, None in scores) == (0, count, False)
    judge.finish()
    return {"seconds": seconds, **memory, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def label_stage(count: int) -> dict[str, float]:
    """The whole stage `label` over a sample of `count` completions whose verdicts are all in the store."""
    from plumbline.labelling.entry import LabelEntry
    from plumbline.pipeline.records import read_jsonl
    from plumbline.pipeline.shard_files import shard_paths, write_table
    from plumbline.rows import assistant
    from stages.label import LabelStage, run

    os.environ["DVC_STAGE"] = "label@bench"
    Path("data/annotations").mkdir(parents=True, exist_ok=True)
    rows = (
        {"id": f"p{n // 8}", "index": n % 8, "prompt": prompt(n // 8), "completion": assistant(answer(n)), "policy": "sft", "finished": True,
         "tokens": 30}
        for n in range(count)
    )  # fmt: skip
    write_table(Path("artifacts/sample/round1"), rows, 1024)
    entry = LabelEntry(
        sample="round1", judge="openai", way="rating", pairs="best_vs_worst", min_margin=1.0, keep_ties=False, pairs_per_prompt=0,
        opponents=0, prompts=0, strong=None, weak=None, known="none", validation_fraction=0.1,
    )  # fmt: skip
    before, started = memory_mib(), time.perf_counter()
    run(LabelStage(seed=1, threads=1, label=entry, judge=judge_config("http://127.0.0.1:9/v1", 32)), "bench")
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    labels = len(read_jsonl("artifacts/label/bench/train.jsonl"))
    sample_mib = sum(file.stat().st_size for file in shard_paths(Path("artifacts/sample/round1"))) / 2**20
    return {"seconds": seconds, "mib_before": before, "peak_mib": peak, "sample_file_mib": sample_mib, "labels": labels}


def in_process(folder: Path, what: str, *arguments: Any) -> dict[str, Any]:
    """Runs one measurement in another process, with `folder` as its project."""
    environment = os.environ | {"DVC_ROOT": str(folder)}
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", what, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def throughput(runs: int, calls: int, concurrency: int, latency: float) -> None:
    rates = []
    for number in range(runs):
        server = subprocess.Popen(
            [sys.executable, str(SERVER), "--latency", str(latency)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{server.stdout.readline().strip()}/v1"
            with TemporaryDirectory() as folder:
                figures = in_process(Path(folder), "buy", url, calls, concurrency)
        finally:
            server.kill()
        rates.append(figures["calls_per_second"])
        print(f"run {number + 1}:", {key: round(value, 2) for key, value in figures.items()}, "load", os.getloadavg(), flush=True)
    ideal = concurrency / latency
    print(f"median {statistics.median(rates):.1f} of {ideal:.0f} calls/s: {statistics.median(rates) / ideal:.1%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--calls", type=int, default=3200)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--cached", type=int, default=100_000)
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        what, *arguments = options.measure
        measures = {"buy": buy, "fill": fill, "read_back": read_back, "label_stage": label_stage}
        values = [value if "/" in value else int(value) for value in arguments]
        print(json.dumps(measures[what](*values)))  # type: ignore[operator]
        return
    if options.runs:
        throughput(options.runs, options.calls, options.concurrency, options.latency)
    if options.cached:
        with TemporaryDirectory() as folder:
            in_process(Path(folder), "fill", options.cached)
            print("judge:", in_process(Path(folder), "read_back", options.cached), flush=True)
            for count in (options.cached // 10, options.cached):
                print(f"label, {count}:", in_process(Path(folder), "label_stage", count), flush=True)


if __name__ == "__main__":
    main()
