"""How far a policy is from another, by shards of its answers, with one model in memory at a time.

Each model passes over all shards alone, and what it says of a shard is kept in a folder (plumbline/pipeline/shard_work.py).
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from plumbline.evaluation.divergence import Divergence, divergence, token_logps
from plumbline.pipeline.records import write_json
from plumbline.pipeline.shard_files import read_shard
from plumbline.pipeline.shard_work import by_shard

COLUMNS, LOGPS = "columns.json", "logps.npy"
"""A shard's file in a pass: columns with a value for each answer; or the log-probabilities of all tokens of its answers, one after another."""


def divergence_pass(folder: Path, answers: Sequence[Path], policy: Path, against: Path) -> list[Path]:
    """The folders of the estimates of KL(π ‖ π_against), in nats, by each answer, which was sampled from π at temperature 1.

    Each holds the columns `kl_k1` and `kl_k3`, summed over the answer's tokens, including its end-of-turn if it was reached; the mean over answers is
    unbiased. All are 0 if both are the same policy. Both sides' log-probabilities are a forward pass's, so that what sampling rounds otherwise, as it
    does in bfloat16, does not count as distance.

    answers: the shards of the policy's answers. policy, against: the folders of both models.
    """
    same = policy == against
    models = [] if same else [policy, against]
    logps = [_logps_pass(folder / f"logps_{number}", answers, policy, model) for number, model in enumerate(models)]

    def compute(number: int, file: Path, shard: Path) -> None:
        rows = read_shard(file)
        if same:
            estimates = [Divergence(0.0, 0.0)] * len(rows)
        else:
            bounds = [*pairwise(np.cumsum([0, *(len(row["ids"]) for row in rows)]))]
            ours, theirs = (np.load(of_model[number] / LOGPS) for of_model in logps)
            estimates = [divergence(ours[begin:end], theirs[begin:end]) for begin, end in bounds]
        write_json(shard / COLUMNS, {name: [getattr(one, name) for one in estimates] for name in Divergence._fields})

    return by_shard(folder / "estimates", answers, compute)


def _logps_pass(folder: Path, answers: Sequence[Path], policy: Path, model: Path) -> list[Path]:
    """The log-probabilities under `model` of the tokens of each shard's answers, which `policy` has sampled."""
    from transformers import AutoTokenizer

    from plumbline.models.chat import prompt_ids
    from plumbline.models.loading import load_policy

    tokenizer, loaded = AutoTokenizer.from_pretrained(policy), load_policy(model)

    def compute(number: int, file: Path, shard: Path) -> None:
        rows = read_shard(file)
        of_prompt = {row["id"]: prompt_ids(tokenizer, row["prompt"]) for row in rows if row["index"] == 0}
        logps = token_logps(loaded, [of_prompt[row["id"]] for row in rows], [row["ids"] for row in rows])
        np.save(shard / LOGPS, np.concatenate(logps))

    return by_shard(folder, answers, compute)
