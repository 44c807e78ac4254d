"""Runs recipes one after another and keeps their figures: the table in docs/results.md is generated from them.

Run it in a project folder whose params.yaml is an unedited recipe (recipes are copied over it), on a machine that does nothing else:

    python tests/benchmarks/recipe_book.py run zephyr spin       # `dvc repro` of each; figures go to recipe_book.json
    python tests/benchmarks/recipe_book.py run                   # all recipes except `smoke`
    python tests/benchmarks/recipe_book.py seeds zephyr 18 19    # trains its last policy again from the same inputs
    python tests/benchmarks/recipe_book.py table                 # rewrites the table in docs/results.md

Minutes are the seconds of all of a recipe's nodes except the trunk's (`TRUNK`), as each last ran, for this recipe or an earlier one.
Memory is the largest resident set among them.
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

from plumbline import graph  # noqa: E402
from plumbline.pipeline.records import read_json, read_jsonl, write_json  # noqa: E402
from plumbline.report.tables import show, show_bounds  # noqa: E402
from plumbline.tools.recipe import choose, recipes  # noqa: E402

BOOK = Path(__file__).with_suffix(".json")
RESULTS = ROOT / "docs/results.md"
BEGIN, END = "<!-- recipes: begin (python tests/benchmarks/recipe_book.py table) -->", "<!-- recipes: end -->"
TRUNK = ("check", "prepare", "pretrain", "sft", "answer@sft")
KEPT = (
    "gold", "gold_gain", "win_rate", "harmful_fraction", "over_refusal_fraction", "accuracy", "kl", "reward", "correct",
    "accuracy_arithmetic", "accuracy_python", "accuracy_gain_arithmetic", "accuracy_gain_python", "length_tokens",
)  # fmt: skip
SHOWN = (
    ("gold", "number"), ("gold_gain", "gain"), ("win_rate", "percent"), ("harmful_fraction", "percent"), ("over_refusal_fraction", "percent"),
    ("accuracy", "percent"), ("kl", "number"),
)  # fmt: skip
"""The figures of the table and the style of each; all are shown with their bounds."""


def nodes(params: dict[str, Any]) -> list[str]:
    """Every node of a recipe, as DVC names them."""
    return ["check", *(node.name for node in graph.nodes(params)), "report"]


def own_nodes(params: dict[str, Any]) -> list[str]:
    """The nodes whose time counts as the recipe's: all except the trunk. Recipes that compare with `sft` also share its evaluation."""
    shared = {*TRUNK, *(["evaluate@sft"] if params["evaluate"]["against"] == "sft" else [])}
    return [node for node in nodes(params) if node not in shared]


def digest(name: str) -> str:
    """The digest of a recipe's values without its comments: figures with another digest belong to another recipe."""
    values = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/recipe" / f"{name}.yaml"))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def load_book() -> dict[str, Any]:
    return read_json(BOOK) if BOOK.is_file() else {}


def last_timing(node: str) -> dict[str, float]:
    """Seconds and peak MiB of a node's last execution."""
    rows = [row for row in read_jsonl(Path(".timings") / f"{node}.jsonl") if "stage_seconds" in row]
    return rows[-1] if rows else {}


def run(name: str) -> dict[str, Any]:
    """Makes `name` the recipe, runs it to its report and returns its entry of the book."""
    print(choose(name, force=False), flush=True)
    before = load_book().get(name, {}).get("timings", {})
    counts = {file.stem: file.read_text().count("\n") for file in Path(".timings").glob("*.jsonl")}
    subprocess.run(["dvc", "repro", "--quiet"], check=True)
    from plumbline.pipeline.composing import load_params
    from plumbline.report.material import learns_from_gold
    from stages.report import FIGURES, SCORED, read_stage_figures

    params = load_params()
    policies = params["evaluate"]["policies"]
    recipe_nodes = graph.nodes(params)
    stage_figures = read_stage_figures(FIGURES, recipe_nodes)
    by_policy = {policy: read_json(SCORED / policy / "figures.json") for policy in policies}
    timings = {}
    for node in own_nodes(params):
        ran = (Path(".timings") / f"{node}.jsonl").read_text().count("\n") > counts.get(node, 0)
        timings[node] = before[node] if node in before and not ran else last_timing(node)
    bounded = [f"{key}{end}" for key in KEPT for end in ("", "_low", "_high")]
    return {
        "recipe": digest(name),
        "nodes": len(nodes(params)),
        "seed": params["seed"],
        "minutes": sum(row["stage_seconds"] for row in timings.values()) / 60,
        "peak_mib": max(row["peak_rss_mib"] for row in timings.values()),
        "timings": timings,
        "learned_from_gold": [policy for policy in policies if learns_from_gold(stage_figures, recipe_nodes, policy)],
        "policies": {policy: {key: values.get(key) for key in bounded} for policy, values in by_policy.items()},
    }


def aligned_again(policy: str, seed: int) -> dict[str, float]:
    """The gold gain, with bounds, of a policy trained with another seed and sampled and verified as `answer` and `evaluate` do."""
    from plumbline.evaluation.statistics import bootstrap_gain
    from plumbline.models.completions import Completer, Draws, fitting_of
    from plumbline.models.decoding_values import read_decoding
    from plumbline.models.determinism import make_deterministic
    from plumbline.pipeline.composing import load_params
    from plumbline.rows import text_of
    from plumbline.world.verify import verify

    params = load_params()
    stage = (graph.maker(graph.nodes(params), f"policy/{policy}") or "").partition("@")[0]  # align or rl
    trial = Path("scratch") / stage / policy
    shutil.rmtree(trial, ignore_errors=True)
    command = [sys.executable, "-m", f"stages.{stage}", f"{stage}={policy}", f"seed={seed}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    section = params["evaluate"]
    make_deterministic(params["seed"], params["threads"])
    prompts = read_jsonl(Path("artifacts/data/prompts") / f"{section['split']}.jsonl")
    folder, title = trial / "artifacts/policy" / policy, f"answers of {policy}"
    completer = Completer(
        folder,
        fitting_of(folder, prompts, section["max_new_tokens"], title),
        [Draws(section["samples"], read_decoding(Path("artifacts/figures/answer") / f"{section['against']}.json"))],
        max_new_tokens=section["max_new_tokens"],
        batch_size=512,
        seed=params["seed"],
        title=title,
    )
    [answers] = completer.complete(prompts)
    against = read_jsonl(Path("artifacts/evaluate") / section["against"] / "answers.jsonl")
    golds = [verify(row["prompt"], text_of(row["completion"])).gold for row in answers]
    ids = [row["id"] for row in answers]
    gain = bootstrap_gain(golds, ids, [row["gold"] for row in against], [row["id"] for row in against], seed=params["seed"])
    return {"gold_gain": gain.value, "gold_gain_low": gain.low, "gold_gain_high": gain.high}


def table(book: dict[str, Any]) -> str:
    """The two tables of docs/results.md: what each recipe is, and the figures of those that were run."""
    titles = ["| recipe | what |", "|---|---|", *(f"| `{name}` | {title} |" for name, title in recipes().items())]
    return "\n".join([*titles, "", *figures(book)])


def figures(book: dict[str, Any]) -> list[str]:
    """A row for each policy of each recipe except the opponent. The last policy has the gains of other seeds; † learned from gold."""
    lines = [
        "| recipe | nodes | minutes | MiB | policy | gold | gain | win rate | harmful | over-refusal | accuracy | KL | gain with other seeds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in sorted(book):
        entry = book[name]
        head = [f"`{name}`", str(entry["nodes"]), f"{entry['minutes']:.1f}", f"{entry['peak_mib']:,.0f}"]
        against = OmegaConf.load(ROOT / "conf/recipe" / f"{name}.yaml").evaluate.against
        policies = [policy for policy in entry["policies"] if policy != against]
        for policy in policies:
            shown = [with_bounds(entry["policies"][policy], key, style) for key, style in SHOWN]
            again = entry.get("seeds", {}).values() if policy == policies[-1] else []
            seeds = ", ".join(with_bounds(gain, "gold_gain", "gain") for gain in again)
            mark = "†" if policy in entry["learned_from_gold"] else ""
            lines.append("| " + " | ".join([*head, f"`{policy}`{mark}", *shown, seeds]) + " |")
            head = ["", "", "", ""]
    return lines


def with_bounds(values: dict[str, float], key: str, style: str) -> str:
    """A figure and its interval."""
    return f"{show(values[key], style)} {show_bounds(values, key, style)}".rstrip()


def with_table(text: str, book: dict[str, Any]) -> str:
    """docs/results.md with the tables between its marks."""
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
        for name in arguments.names or [*load_book()]:
            entry = run(name)
            book = load_book()
            before = book.get(name, {})
            seeds = before["seeds"] if before.get("recipe") == entry["recipe"] else {}
            write_json(BOOK, book | {name: {**entry, "seeds": seeds}})
            gains = {policy: [values["gold"], values["gold_gain"]] for policy, values in entry["policies"].items()}
            print(json.dumps(gains), flush=True)
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
        RESULTS.write_text(with_table(RESULTS.read_text(encoding="utf-8"), load_book()), encoding="utf-8")


if __name__ == "__main__":
    main()
