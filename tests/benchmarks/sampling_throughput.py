"""How fast is sampling, compared with transformers' `generate` in batches?

`python tests/benchmarks/sampling_throughput.py artifacts/policy/sft artifacts/data/prompts/test.jsonl` takes turns, so that other work on the machine
affects both, and prints medians. `generate` gets the same prompts, sorted by length, in batches of the same size.
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


def ours(policy: Any, tokenizer: Any, prompts: list[list[int]], max_new_tokens: int, batch_size: int) -> int:
    """Samples with plumbline.models.sampling; returns the number of tokens."""
    from plumbline.models.sampling import sample

    return sum(len(one.ids) for one in sample(policy, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size))


@torch.inference_mode()
def peer(policy: Any, tokenizer: Any, prompts: list[list[int]], max_new_tokens: int, batch_size: int) -> int:
    """Samples with `generate` from the whole distribution; returns the number of tokens up to the end of turn."""
    from plumbline.models.chat import end_of_turn_id

    end, tokens = end_of_turn_id(tokenizer), 0
    for start in range(0, len(prompts), batch_size):
        rows = prompts[start : start + batch_size]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=policy.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=policy.device)
        new = policy.generate(
            ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, min_p=None,
            repetition_penalty=1.0, eos_token_id=end, pad_token_id=0,
        )[:, width:]  # fmt: skip
        before = (new == end).cumsum(-1) - (new == end).long()  # ends of turn before each token
        tokens += int((before == 0).sum())
    return tokens


def main() -> None:
    from transformers import AutoTokenizer

    from plumbline.models.chat import prompt_ids
    from plumbline.models.loading import load_policy
    from plumbline.pipeline.records import read_jsonl

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policy", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--count", type=int, default=1024)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokenizer, policy = AutoTokenizer.from_pretrained(arguments.policy), load_policy(arguments.policy)
    rows = read_jsonl(arguments.prompts)[: arguments.count]
    prompts = sorted((prompt_ids(tokenizer, row["prompt"]) for row in rows), key=len)
    rates: dict[str, list[float]] = {"ours": [], "generate": []}
    for run in range(arguments.runs + 1):
        for name, contestant in (("ours", ours), ("generate", peer)):
            started = time.perf_counter()
            tokens = contestant(policy, tokenizer, prompts, arguments.max_new_tokens, arguments.batch_size)
            if run:  # the first warms up
                rates[name].append(tokens / (time.perf_counter() - started))
    medians = {name: round(statistics.median(values)) for name, values in rates.items()}
    times = statistics.median(one / other for one, other in zip(rates["ours"], rates["generate"], strict=True))
    print(json.dumps({"tokens_per_second": medians, "times_generate": round(times, 2)}))


if __name__ == "__main__":
    main()
