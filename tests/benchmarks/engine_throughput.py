"""How many tokens a second does a server draw at several concurrencies, compared with this project's sampler in the same machine's process?

    python tests/benchmarks/engine_throughput.py artifacts/policy/sft artifacts/data/prompts/test.jsonl --base-url http://127.0.0.1:8000/v1

The server serves the policy under the name that `python -m plumbline.tools.served_name` prints, or under `--model`. It should not keep what it has
read (vLLM: --no-enable-prefix-caching), because every contestant gets the same prompts; and both should use equally many cores. Contestants take
turns, so that other work on the machine affects all of them; printed are medians, and the median of the ratios of each turn.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from plumbline.models.completions import Completer, Draws, fitting_of
from plumbline.models.decoding_values import Decoding
from plumbline.pipeline.engine import Engine, Server
from plumbline.pipeline.records import read_jsonl

HERE = "here"


def rate(arguments: argparse.Namespace, prompts: list[dict[str, Any]], engine: Engine, seed: int) -> float:
    """Tokens a second; loading the policy is not counted."""
    completer = Completer(
        arguments.policy,
        fitting_of(arguments.policy, prompts, arguments.max_new_tokens, "engine_throughput"),
        [Draws(1, Decoding(temperature=arguments.temperature))],
        max_new_tokens=arguments.max_new_tokens,
        batch_size=arguments.batch_size,
        seed=seed,
        title="engine_throughput",
        engine=engine,
    )
    started = time.perf_counter()
    [rows] = completer.complete(prompts)
    seconds = time.perf_counter() - started
    completer.close()
    return sum(row["tokens"] for row in rows) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--base-url", required=True)
    parser.add_argument(
        "--model", default=Server.model, help="the name by which the server serves the policy, with {policy} and {digest}"
    )
    parser.add_argument("--concurrencies", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=64, help="of this project's sampler")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="of this project's sampler")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    prompts = read_jsonl(arguments.prompts)[: arguments.count]
    engines = {HERE: Engine()} | {
        str(calls): Engine(Server(base_url=arguments.base_url, model=arguments.model, concurrency=calls, timeout_seconds=600.0))
        for calls in arguments.concurrencies
    }
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for run in range(arguments.runs + 1):
        for name, engine in engines.items():
            measured = rate(arguments, prompts if run else prompts[:4], engine, seed=run)
            if run:  # the first, of four prompts, warms up
                rates[name].append(measured)
                print(run, name, round(measured, 1), file=sys.stderr, flush=True)
    medians = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    times = {
        name: round(statistics.median(one / here for one, here in zip(values, rates[HERE], strict=True)), 2)
        for name, values in rates.items()
        if name != HERE
    }
    print(json.dumps({"tokens_per_second": medians, "times_here": times}))


if __name__ == "__main__":
    main()
