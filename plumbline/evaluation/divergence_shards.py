"""How far a policy is from another, by shards of its answers, with one model at a time in the memory of a process.

Each model passes over all shards alone, and what it says of a shard is kept in a folder (plumbline/pipeline/shard_work.py).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plumbline.evaluation.divergence import Divergence, divergence, token_logps
from plumbline.pipeline.engine import Engine
from plumbline.pipeline.records import write_json
from plumbline.pipeline.shard_files import read_shard
from plumbline.pipeline.shard_work import by_shard, only_here
from plumbline.pipeline.shard_workers import Compute

COLUMNS, LOGPS = "columns.json", "logps.npy"
"""A shard's file in a pass: columns with a value for each answer; or the log-probabilities of all tokens of its answers, one after another."""


class Surroundings(NamedTuple):
    """Where a model passes over the answers, and what determines its roundings there."""

    seed: int
    threads: int
    engine: Engine | None = None


def divergence_pass(folder: Path, answers: Sequence[Path], policy: Path, against: Path, surroundings: Surroundings) -> list[Path]:
    """The folders of the estimates of KL(π ‖ π_against), in nats, by each answer, which was sampled from π at temperature 1.

    Each holds the columns `kl_k1` and `kl_k3`, summed over the answer's tokens, including its end-of-turn if it was reached; the mean over answers is
    unbiased. All are 0 if both are the same policy. Both sides' log-probabilities are a forward pass's, so that what sampling rounds otherwise, as it
    does in bfloat16, does not count as distance.

    answers: the shards of the policy's answers. policy, against: the folders of both models.
    """
    same = policy == against
    models = [] if same else [policy, against]
    logps = [
        by_shard(folder / f"logps_{number}", answers, partial(_reading, policy, model, surroundings), surroundings.engine)
        for number, model in enumerate(models)
    ]

    def compute(number: int, file: Path, shard: Path) -> None:
        rows = read_shard(file)
        if same:
            estimates = [Divergence(0.0, 0.0)] * len(rows)
        else:
            bounds = [*pairwise(np.cumsum([0, *(len(row["ids"]) for row in rows)]))]
            ours, theirs = (np.load(of_model[number] / LOGPS) for of_model in logps)
            estimates = [divergence(ours[begin:end], theirs[begin:end]) for begin, end in bounds]
        write_json(shard / COLUMNS, {name: [getattr(one, name) for one in estimates] for name in Divergence._fields})

    return by_shard(folder / "estimates", answers, only_here(compute))


@contextmanager
def _reading(policy: Path, model: Path, surroundings: Surroundings) -> Iterator[Compute]:
    """Loads `model`, and computes shards of its log-probabilities of the tokens of answers, which `policy` has sampled."""
    from transformers import AutoTokenizer

    from plumbline.models.chat import prompt_ids
    from plumbline.models.determinism import make_deterministic
    from plumbline.models.loading import load_policy

    make_deterministic(surroundings.seed, surroundings.threads)
    tokenizer, loaded = AutoTokenizer.from_pretrained(policy), load_policy(model)

    def compute(number: int, file: Path, shard: Path) -> None:
        rows = read_shard(file)
        of_prompt = {row["id"]: prompt_ids(tokenizer, row["prompt"]) for row in rows if row["index"] == 0}
        logps = token_logps(loaded, [of_prompt[row["id"]] for row in rows], [row["ids"] for row in rows])
        np.save(shard / LOGPS, np.concatenate(logps))

    yield compute
