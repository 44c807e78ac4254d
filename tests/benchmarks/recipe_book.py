"""Runs recipes one after another and keeps what came of them: the README's table of recipes, generated.

From a project folder whose params.yaml is a recipe unedited (they are copied over it), on a machine that does nothing else:

    python tests/benchmarks/recipe_book.py run zephyr spin       # `dvc repro` of each; figures into recipe_book.json beside this file
    python tests/benchmarks/recipe_book.py run                   # of all but `smoke`
    python tests/benchmarks/recipe_book.py seeds zephyr 18 19    # its last policy aligned again, from the same init and signal
    python tests/benchmarks/recipe_book.py table                 # rewrites the table in README.md

Minutes are the seconds of all of a recipe's nodes but the trunk's (`TRUNK`), as each last ran, here or for an earlier recipe; memory is
the largest resident set among them.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from stages.evaluation.recipe import learns_from_gold, recipe_nodes  # noqa: E402
from stages.evaluation.tables import show, show_bounds  # noqa: E402
from stages.pipeline.records import read_json, read_jsonl, write_json  # noqa: E402
from stages.tools.recipe import choose, recipes  # noqa: E402

BOOK = Path(__file__).with_suffix(".json")
README = ROOT / "README.md"
BEGIN, END = "<!-- recipes: begin (python tests/benchmarks/recipe_book.py table) -->", "<!-- recipes: end -->"
TRUNK = ("check", "prepare", "pretrain", "sft", "answer@sft")
KEPT = (
    "gold", "gold_gain", "win_rate", "harmful_fraction", "over_refusal_fraction", "accuracy", "kl_to_sft", "reward", "correct",
    "accuracy_arithmetic", "accuracy_python", "accuracy_gain_arithmetic", "accuracy_gain_python", "length_tokens",
)  # fmt: skip
SHOWN = (
    ("gold", "number"), ("gold_gain", "gain"), ("win_rate", "percent"), ("harmful_fraction", "percent"), ("over_refusal_fraction", "percent"),
    ("accuracy", "percent"), ("kl_to_sft", "number"),
)  # fmt: skip
"""The table's figures, all with their bounds, and the style of each."""


def nodes(params: dict[str, Any]) -> list[str]:
    """Every node of a recipe's DAG, as DVC names them."""
    declared = [node.name.replace("/", "@") for node in recipe_nodes(params)]
    scored = [f"{stage}@{policy}" for stage in ("answer", "evaluate") for policy in params["evaluate"]["policies"]]
    return ["check", "prepare", *declared, *scored, "report"]


def own_nodes(params: dict[str, Any]) -> list[str]:
    """The nodes that recipes do not share: all but the trunk, whose policy `sft` is evaluated once for all that compare with it."""
    shared = {*TRUNK, *(["evaluate@sft"] if params["evaluate"]["against"] == "sft" else [])}
    return [node for node in nodes(params) if node not in shared]


def digest(name: str) -> str:
    """Of a recipe's values, whatever its comments say: figures with another digest are of another recipe."""
    values = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/recipe" / f"{name}.yaml"))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def load_book() -> dict[str, Any]:
    return read_json(BOOK) if BOOK.is_file() else {}


def last_timing(node: str) -> dict[str, float]:
    """Seconds and peak MiB of a node's last execution."""
    found: dict[str, float] = {}
    for row in read_jsonl(Path(".timings") / f"{node}.jsonl"):
        if "stage_seconds" in row:
            found = row
    return found


def run(name: str) -> dict[str, Any]:
    """Makes `name` the recipe, runs it to its report and returns its figures."""
    print(choose(name, force=False), flush=True)
    before = load_book().get(name, {}).get("timings", {})
    counts = {file.stem: file.read_text().count("\n") for file in Path(".timings").glob("*.jsonl")}
    subprocess.run(["dvc", "repro", "--quiet"], check=True)
    from stages.pipeline.composing import load_params

    params = load_params()
    timings = {}
    for node in own_nodes(params):
        ran = (Path(".timings") / f"{node}.jsonl").read_text().count("\n") > counts.get(node, 0)
        timings[node] = before[node] if node in before and not ran else last_timing(node)
    metrics = {policy: read_json(Path("metrics") / f"{policy}.json") for policy in params["evaluate"]["policies"]}
    bounded = [f"{key}{end}" for key in KEPT for end in ("", "_low", "_high")]
    return {
        "recipe": digest(name),
        "nodes": len(nodes(params)),
        "seed": params["seed"],
        "minutes": sum(row["stage_seconds"] for row in timings.values()) / 60,
        "peak_mib": max(row["peak_rss_mib"] for row in timings.values()),
        "timings": timings,
        "policies": {policy: {key: of.get(key) for key in bounded} for policy, of in metrics.items()},
    }


def aligned_again(policy: str, seed: int) -> dict[str, float]:
    """The gold gain of a policy aligned with another seed, with bounds: the node by hand, then answers as `answer` samples them, verified."""
    from stages.evaluation.statistics import bootstrap_gain
    from stages.models.completions import complete
    from stages.models.training import make_deterministic
    from stages.pipeline.composing import load_params
    from stages.world.verifier import verify

    trial = Path("scratch/align") / policy
    shutil.rmtree(trial, ignore_errors=True)
    subprocess.run(
        [sys.executable, "-m", "stages.align", f"align={policy}", f"seed={seed}"], check=True, stdout=subprocess.DEVNULL
    )
    params = load_params()
    section = params["evaluate"]
    make_deterministic(params["seed"], params["threads"])
    answers = complete(
        trial / "artifacts/policy" / policy,
        read_jsonl(Path("artifacts/data/prompts") / f"{section['split']}.jsonl"),
        n=section["samples"],
        temperature=section["temperature"],
        max_new_tokens=section["max_new_tokens"],
        batch_size=512,
        seed=params["seed"],
        title=f"answers of {policy}",
    )
    against = read_jsonl(Path("artifacts/evaluate") / section["against"] / "answers.jsonl")
    golds = [verify(row["prompt"], row["completion"][0]["content"]).gold for row in answers]
    ids = [row["id"] for row in answers]
    gain = bootstrap_gain(golds, ids, [row["gold"] for row in against], [row["id"] for row in against], seed=params["seed"])
    return {"gold_gain": gain.value, "gold_gain_low": gain.low, "gold_gain_high": gain.high}


def table(book: dict[str, Any]) -> str:
    """The README's two tables: what every recipe is, and what came of those that were run."""
    titles = ["| recipe | what |", "|---|---|", *(f"| `{name}` | {title} |" for name, title in recipes().items())]
    return "\n".join([*titles, "", *figures(book)])


def figures(book: dict[str, Any]) -> list[str]:
    """A row for each policy of each recipe but its opponent, that of a recipe's last one with its other seeds; † learnt from gold itself."""
    lines = [
        "| recipe | nodes | minutes | MiB | policy | gold | gain | win rate | harmful | over-refusal | accuracy | KL | gain with other seeds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in sorted(book):
        entry = book[name]
        head = [f"`{name}`", str(entry["nodes"]), f"{entry['minutes']:.1f}", f"{entry['peak_mib']:,.0f}"]
        recipe = OmegaConf.load(ROOT / "conf/recipe" / f"{name}.yaml")
        declared = recipe_nodes(OmegaConf.to_container(recipe))
        *others, last = [policy for policy in entry["policies"] if policy != recipe.evaluate.against]
        for policy in [*others, last]:
            of = entry["policies"][policy]
            again = entry.get("seeds", {}).values() if policy == last else []
            seeds = ", ".join(with_bounds(found, "gold_gain", "gain") for found in again)
            shown = [with_bounds(of, key, style) for key, style in SHOWN]
            lines.append(
                "| " + " | ".join([*head, f"`{policy}`{'†' if learns_from_gold(declared, policy) else ''}", *shown, seeds]) + " |"
            )
            head = ["", "", "", ""]
    return lines


def with_bounds(of: dict[str, float], key: str, style: str) -> str:
    """A figure and its interval."""
    return f"{show(of[key], style)} {show_bounds(of, key, style)}"


def with_table(text: str, book: dict[str, Any]) -> str:
    """The README with the table between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(book)}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("names", nargs="*")
    seeding = commands.add_parser("seeds")
    seeding.add_argument("name")
    seeding.add_argument("seeds", nargs="+", type=int)
    commands.add_parser("table")
    arguments = parser.parse_args()
    if arguments.command == "run":
        for name in arguments.names or [name for name in recipes() if name != "smoke"]:
            found = run(name)
            book = load_book()
            before = book.get(name, {})
            seeds = before["seeds"] if before.get("recipe") == found["recipe"] else {}
            write_json(BOOK, book | {name: {**found, "seeds": seeds}})
            print(json.dumps({policy: [of["gold"], of["gold_gain"]] for policy, of in found["policies"].items()}), flush=True)
    elif arguments.command == "seeds":
        print(choose(arguments.name, force=False))
        subprocess.run(["dvc", "repro", "--quiet"], check=True)
        policy = [*load_book()[arguments.name]["policies"]][-1]
        for seed in arguments.seeds:
            gain = aligned_again(policy, seed)
            book = load_book()
            book[arguments.name].setdefault("seeds", {})[str(seed)] = gain
            write_json(BOOK, book)
            print(f"{arguments.name}, {policy}, seed {seed}: {with_bounds(gain, 'gold_gain', 'gain')}", flush=True)
    else:
        README.write_text(with_table(README.read_text(encoding="utf-8"), load_book()), encoding="utf-8")


if __name__ == "__main__":
    main()
