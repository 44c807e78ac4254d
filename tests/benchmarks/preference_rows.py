"""How much memory does `align` with DPO take, by the number of preferences?

`python tests/benchmarks/preference_rows.py 10000 1000000` writes so many preferences of a few words, trains a model of a few thousand parameters on
them for 50 steps, each number of rows in a process of its own, and prints the seconds and the peak of the resident memory.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.update(MLFLOW_TRACKING_URI="off", HF_HUB_OFFLINE="1")
STEPS = 50


def write_preferences(file: Path, count: int) -> None:
    """Writes preferences for answers of the words `a` and `b` over answers of `c` and `d`."""
    rng = random.Random(0)

    def said(words: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": " ".join(rng.choices(words, k=20))}]

    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as rows:
        for _ in range(count):
            prompt = [{"role": "user", "content": " ".join(rng.choices("qr", k=20))}]
            rows.write(json.dumps({"prompt": prompt, "chosen": said("ab"), "rejected": said("cd")}) + "\n")


def train(folder: Path) -> None:
    """Trains on the preferences in a folder, and prints what that took."""
    from aligning import run_align, write_inputs

    write_inputs(folder)
    for file in (folder / "preferences").iterdir():
        file.replace(folder / "label/round1" / file.name)
    started = time.perf_counter()
    run_align(folder, "dpo", max_steps=STEPS, batch_size=32, micro_batch_size=8, evaluate_every=STEPS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"{time.perf_counter() - started:.0f} s, at most {peak:,.0f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", type=int, default=[10_000, 1_000_000])
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(options.train)
        return
    for count in options.rows:
        with TemporaryDirectory() as folder:
            write_preferences(Path(folder) / "preferences/train.jsonl", count)
            write_preferences(Path(folder) / "preferences/validation.jsonl", 64)
            print(f"{count:,} preferences: ", end="", flush=True)
            subprocess.run([sys.executable, __file__, "--train", folder], check=True)


if __name__ == "__main__":
    main()
