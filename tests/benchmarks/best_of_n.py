"""Gold of a reward's choice among n answers, compared with an oracle's and a random choice, as n grows (Llama 2, arXiv:2307.09288, Fig. 7).

After `dvc repro` of a recipe with a reward model, from the project's folder:

    python tests/benchmarks/best_of_n.py --policy artifacts/policy/sft --reward artifacts/reward/rm --out scratch/best_of_n

Samples answers to the validation prompts, on which nothing trains, and scores and verifies each. The mean over all subsets of n of a prompt's
answers is computed in closed form; intervals are bootstrapped over prompts. Writes `best_of_n.csv` and `best_of_n.png`.
"""

import argparse
import sys
from math import comb
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

CHOOSERS = {"reward": "the reward model", "gold": "the oracle (gold)", "random": "chance"}


def expected_gold(golds: list[float], keys: list[float], n: int) -> float:
    """Mean gold of the answer with the highest key among n answers, over all subsets of size n; the later answer wins a tie.

    The answer of rank k (from 0, by key) is the highest in C(k, n − 1) of C(N, n) subsets.
    """
    ranked = [gold for _, _, gold in sorted((key, row, gold) for row, (key, gold) in enumerate(zip(keys, golds, strict=True)))]
    return sum(comb(rank, n - 1) * gold for rank, gold in enumerate(ranked)) / comb(len(golds), n)


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Mean gold with bounds, a row for each chooser and n."""
    from plumbline.evaluation.statistics import bootstrap_mean
    from plumbline.models.completions import Completer, Draws
    from plumbline.models.determinism import make_deterministic
    from plumbline.pipeline.records import read_jsonl
    from plumbline.rewards.reward import load_reward
    from plumbline.rows import text_of
    from plumbline.world.verify import verify

    make_deterministic(arguments.seed, arguments.threads)
    prompts = read_jsonl(Path("artifacts/data/prompts/validation.jsonl"))
    completer = Completer(
        Path(arguments.policy), prompts, [Draws(arguments.answers)], max_new_tokens=48, batch_size=512, seed=arguments.seed,
        title="best of n",
    )  # fmt: skip
    [answers] = completer.complete(prompts)
    texts = [text_of(answer["completion"]) for answer in answers]
    rewards = load_reward(Path(arguments.reward))([answer["prompt"] for answer in answers], texts)
    golds = [verify(answer["prompt"], text).gold for answer, text in zip(answers, texts, strict=True)]
    groups: dict[str, list[int]] = {}
    for row, answer in enumerate(answers):
        groups.setdefault(answer["id"], []).append(row)
    table = []
    for n in (2**power for power in range(arguments.answers.bit_length())):
        for chooser in CHOOSERS:
            values = []
            for rows in groups.values():
                group_golds = [golds[row] for row in rows]
                keys = {"reward": [rewards[row] for row in rows], "gold": group_golds}.get(chooser)
                values.append(expected_gold(group_golds, keys, n) if keys else sum(group_golds) / len(group_golds))
            mean = bootstrap_mean(values, [*groups], seed=arguments.seed)
            assert mean is not None, "there are validation prompts"
            table.append({"chooser": chooser, "n": n, "gold": mean.value, "low": mean.low, "high": mean.high})
            print(f"n {n:2} {chooser:7} gold {mean.value:.4f} [{mean.low:.4f}, {mean.high:.4f}]", flush=True)
    return table


def draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """Plots gold against n, with a line and a band for each chooser."""
    import matplotlib

    matplotlib.use("Agg")
    import pandas
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5.2, 3.6), layout="constrained")
    for chooser, part in pandas.DataFrame(rows).groupby("chooser", sort=False):
        axis.plot(part["n"], part["gold"], marker="o", markersize=3, label=CHOOSERS[str(chooser)])
        axis.fill_between(part["n"], part["low"], part["high"], alpha=0.15)
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted({row["n"] for row in rows}), labels=[str(n) for n in sorted({row["n"] for row in rows})])
    axis.set_xlabel("answers to choose from")
    axis.set_title("Gold of the chosen answer", loc="left", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="artifacts/policy/sft")
    parser.add_argument("--reward", default="artifacts/reward/rm")
    parser.add_argument("--answers", type=int, default=16, help="answers to each prompt, a power of 2")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default="scratch/best_of_n")
    arguments = parser.parse_args()
    import pandas

    folder = Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    rows = measure(arguments)
    pandas.DataFrame(rows).to_csv(folder / "best_of_n.csv", index=False)
    draw(folder / "best_of_n.png", rows)


if __name__ == "__main__":
    main()
