"""How often 95 % intervals hold a truth that is known, and how often equal policies are called different.

    python tests/benchmarks/coverage.py --trials 1000

Simulates answers of policies whose true figures are known (tests/simulated.py), for three numbers of prompts, and prints the tables of
docs/comparing.md. Intervals have 1,000 resamples, a quarter of what `evaluate` draws, which changes their ends by little.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from plumbline.evaluation.comparisons import compare_pairs
from tests.simulated import by_difficulty, cases, covered
from tests.test_coverage import equal_policies

PROMPTS = (50, 200, 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument(
        "--longest", type=int, default=1000, help="the most prompts for which the length-controlled win rate is simulated"
    )
    parser.add_argument("--only", default="", help="figures whose name holds this; default: all")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(f"| figure | {' | '.join(f'{n:,} prompts' for n in PROMPTS)} |\n|---|{'---|' * len(PROMPTS)}", flush=True)
    chosen = [case for case in (*cases(), by_difficulty()) if arguments.only in case.name]
    for case in chosen:
        shown = []
        for n in PROMPTS:
            measured = n <= arguments.longest or not case.name.startswith(("length-controlled", "the same"))
            hits = covered(case, n, arguments.trials, arguments.resamples, arguments.seed) if measured else 0
            shown.append(f"{100 * hits / arguments.trials:.1f} %" if measured else "")
        print(f"| {case.name} | {' | '.join(shown)} |", flush=True)
    for policies in (2, 4):
        generator = np.random.default_rng(arguments.seed)
        for n in PROMPTS[:2]:
            different = sum(
                any(pair.differs for pair in compare_pairs(equal_policies(generator, policies, n), "gold", 1))
                for _ in range(arguments.trials)
            )
            print(
                f"{policies} equal policies, {n} prompts: called different in {different} of {arguments.trials} runs", flush=True
            )


if __name__ == "__main__":
    main()
