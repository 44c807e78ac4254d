"""Times `prepare` on many rows, and a plain `datasets.map` that does the same work row by row.

`python tests/benchmarks/prepare_rows.py --rows 1000000`: rows of about 200 tokens (of a vocabulary of 1,536), of which 2 % are repeated
and 3 % are repeated with one word changed, and 500 evaluation prompts, some of which occur in the rows. Run it on an idle machine. The map
converts, checks, signs (MinHash), renders and tokenises each row; it neither looks for duplicates nor removes anything.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ.update(MLFLOW_TRACKING_URI="off", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
WORDS = 96  # of a row: 25 in the prompt, the rest in the answer


def write_rows(path: Path, count: int) -> None:
    """Writes rows of words drawn by Zipf's law from 30,000 invented ones."""
    rng = np.random.default_rng(0)
    vocabulary = np.array(["".join(rng.choice(list("etaoinshrdlucmfwypvbgk"), rng.integers(2, 10))) for _ in range(30_000)])
    chances = 1 / np.arange(1, len(vocabulary) + 1)
    earlier: list[list[str]] = []
    with path.open("w") as file:
        for number in range(count):
            if number % 5000 == 0:
                block = rng.choice(vocabulary, size=(5000, WORDS), p=chances / chances.sum())
            words, chance = block[number % 5000].tolist(), rng.random()
            if chance < 0.05 and earlier:
                words = list(earlier[rng.integers(len(earlier))])
            if 0.02 <= chance < 0.05:
                words[int(rng.integers(WORDS))] = "changed"
            if len(earlier) < 2000:
                earlier.append(words)
            row = {"instruction": " ".join(words[:25]) + "?", "input": "", "output": " ".join(words[25:]).capitalize() + "."}
            file.write(json.dumps(row) + "\n")


def write_prompts(path: Path, rows: Path) -> None:
    """Writes 500 evaluation prompts: every twentieth is the beginning of a row, the others are shuffled rows."""
    rng = np.random.default_rng(1)
    with rows.open() as file, path.open("w") as out:
        for number, line in zip(range(500), file, strict=False):
            words = json.loads(line)["instruction"].split()
            prompt = words[:20] if number % 20 == 0 else rng.permutation(words).tolist()
            out.write(json.dumps({"prompt": " ".join(prompt)}) + "\n")


@contextmanager
def measured(name: str, rows: int) -> Iterator[None]:
    """Prints seconds, rows per second and the peak memory of this process and its children, with shared pages counted once."""
    peak, done, process = [0], threading.Event(), psutil.Process()

    def watch() -> None:
        while not done.wait(0.5):
            family = [process, *process.children(recursive=True)]
            peak[0] = max(peak[0], sum(_memory(member) for member in family))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    started = time.perf_counter()
    yield
    seconds = time.perf_counter() - started
    done.set()
    print(f"{name}: {seconds:.1f} s, {rows / seconds:,.0f} rows/s, at most {peak[0] / 2**30:.2f} GiB", flush=True)


def _memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


def stage(processes: int) -> Callable[[], None]:
    """The stage itself, on in/rows.jsonl."""
    from plumbline.data.schema import FilesData, Policy, Role, Source
    from plumbline.models.architecture import ScratchModel
    from stages.prepare import PrepareSection, PrepareStage, run

    data = FilesData(
        sft=Role([Source(files=["rows.jsonl"], licence="none")]),
        prompts=Role([Source(files=["prompts.jsonl"], into="test", licence="none")]),
        policy=Policy(near_duplicates="drop", limits={"default": 1.0}),
    )
    model = ScratchModel(vocabulary_size=1536, context_tokens=512, hidden_size=8, layers=1, heads=1, intermediate_size=8)
    config = PrepareStage(seed=1, threads=processes, inputs="in", model=model, data=data, prepare=PrepareSection(1.0))
    return lambda: run(config)


def plain_map(processes: int) -> Callable[[], None]:
    """`datasets.map` over the same rows, with the tokenizer that the stage made."""
    from transformers import AutoTokenizer

    from plumbline.data.gathering import work_chunk
    from plumbline.data.plans import RolePlan
    from plumbline.data.reading import Item
    from plumbline.data.rendering import Fitted, Fitting, fit_rows
    from plumbline.data.schema import Policy, Source

    tokenizer = AutoTokenizer.from_pretrained("scratch/prepare/artifacts/tokenizer")
    source = Source(name="rows", files=["rows.jsonl"], licence="none")
    plan = RolePlan("sft", [source], ["alpaca"], [[]], Policy(), 0.05, 0.05, None)
    fitting = Fitting(512, "drop", 64)

    def prepare_row(row: dict[str, Any], number: int) -> dict[str, Any]:
        chunk = work_chunk(plan, [(0, Item("rows.jsonl", number, row))])
        fitted = fit_rows(tokenizer, "sft", [json.loads(chunk.lines[0])], fitting)[0]
        tokens = fitted.prompt_tokens if isinstance(fitted, Fitted) else 0
        return {"line": chunk.lines[0].decode(), "signature": chunk.signatures[0], "tokens": tokens}

    def run() -> None:
        from datasets import load_dataset

        rows = load_dataset("json", data_files="in/rows.jsonl", split="train", cache_dir="cache")
        mapped = rows.map(prepare_row, with_indices=True, num_proc=processes, remove_columns=rows.column_names)
        mapped.remove_columns("signature").to_json("mapped.jsonl")

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--without-map", action="store_true")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("in").mkdir()
        write_rows(Path("in/rows.jsonl"), options.rows)
        write_prompts(Path("in/prompts.jsonl"), Path("in/rows.jsonl"))
        with measured("prepare", options.rows):
            stage(options.processes)()
        figures = json.loads(Path("scratch/prepare/artifacts/figures/prepare/prepare.json").read_text())
        tokens = figures["sft.train.prompt_tokens_sum"] + figures["sft.train.completion_tokens_sum"]
        print(f"  {tokens / figures['sft.train.rows']:.0f} tokens a row")
        for name in sorted(figures):
            if name in ("sft.rows_in", "sft.kept") or name.startswith("sft.dropped."):
                print(f"  {name}: {figures[name]:,}")
        if not options.without_map:
            with measured("datasets.map", options.rows):
                plain_map(options.processes)()


if __name__ == "__main__":
    main()
