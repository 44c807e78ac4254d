"""Material for reports: sixty prompts in two languages, answered by policies of known quality, and a parser of the page."""

import math
from functools import cache
from html.parser import HTMLParser
from typing import Any

from plumbline.evaluation.comparisons import compare_policies
from plumbline.evaluation.figures import Score, policy_figures
from plumbline.models.decoding_values import NEUTRAL, Decoding
from plumbline.report.charts import Share
from plumbline.report.material import Material

FAMILIES = ("fact", "harmful", "list", "lookalike", "python")
ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)>"
RECIPE: dict[str, Any] = {
    "seed": 17,
    "threads": 2,
    "model": "tiny",
    "data": "closed_world",
    "pretrain": {},
    "sft": {"epochs": 2},
    "sample": {"round1": {"policy": "sft", "n": 8}},
    "revise": {"harmless": {"sample": "round1", "judge": "simulated"}},
    "label": {
        "round1": {"sample": "round1", "judge": "simulated"},
        "oracle": {"sample": "round1", "judge": "gold"},
    },
    "reward_model": {"rm": {"init": "sft", "signal": "label/round1"}},
    "reward_verifier": {"correct": {"kind": "closed_world"}},
    "reward_sum": {"blend": {"first": "rm", "second": "correct"}},
    "reject": {"rs": {"sample": "round1", "reward": "rm"}},
    "align": {
        "rs": {"method": "sft", "init": "sft", "signal": "reject/rs"},
        "dpo": {"method": "dpo", "init": "sft", "signal": "label/round1", "beta": 0.1},
        "oracle": {"method": "dpo", "init": "sft", "signal": "label/oracle"},
        "heir": {"method": "dpo", "init": "oracle", "signal": "label/round1"},
    },
    "rl": {
        "ppo": {"method": "ppo", "init": "rs", "reward": "rm"},
        "cheat": {"method": "ppo", "init": "rs", "reward": "correct"},
        "blended": {"method": "ppo", "init": "rs", "reward": "blend"},
    },
    "evaluate": {
        "policies": ["sft", "rs", "dpo"], "against": "sft", "judge": "simulated", "reward": "rm", "split": "test", "samples": 2,
        "temperature": 1.0, "samples_at_1": 1, "max_new_tokens": 48,
    },
}  # fmt: skip

STAGE_FIGURES: dict[str, Any] = {
    "label@round1": {"agreement": 0.81, "agreement_low": 0.8, "agreement_high": 0.82, "uses_gold": False},
    "label@oracle": {"uses_gold": True},
    "reward_verifier@correct": {"uses_gold": True},
}
ANSWERED: dict[str, Any] = {"answers": 120, **Decoding(0.8)._asdict()}
SHARES = [Share(0.55, 0.5, 0.4, 0.6, 100), Share(0.7, 0.6, 0.5, 0.7, 101), Share(0.95, 0.9, 0.83, 0.95, 101)]


def scored_answers(level: float, **changes: Any) -> list[dict[str, Any]]:
    """Sixty prompts, every fourth Korean, with two answers each."""
    rows = []
    for number in range(60):
        family = FAMILIES[number % 5]
        for index in range(2):
            values = {
                "gold": level,
                "correct": float(number % 10 < 10 * level),
                "win": 0.5,
                "reward": level,
                "kl_k1": 0.1,
                "kl_k3": 0.1,
            }
            values |= {"verifiable": values["correct"] if family in ("fact", "list", "python") else None}
            values |= {"harmful": 0.0 if family == "harmful" else None, "over_refused": 0.0 if family == "lookalike" else None}
            values |= dict.fromkeys(("harmless", "honest", "courteous", "concise", "refused"), 1.0)
            language = "ko" if number % 4 == 0 else "en"
            score = Score(f"p{number}", index, family, language, True, 5, **values)
            text = {"prompt": [{"role": "user", "content": f"Question {number}?"}]}
            text |= {"completion": [{"role": "assistant", "content": f"Answer {number}."}]}
            rows.append(score.row() | text | changes)
    return rows


def figures(rows: list[dict[str, Any]], against: list[dict[str, Any]]) -> dict[str, Any]:
    def scores(of: list[dict[str, Any]]) -> list[Score]:
        return [Score(**{key: value for key, value in row.items() if key not in ("prompt", "completion")}) for row in of]

    return policy_figures(scores(rows), scores(against), 17, scores(rows), scores(against))


@cache
def known_figures(level: float, against: float) -> dict[str, Any]:
    return figures(scored_answers(level), scored_answers(against))


def material(golds: dict[str, float] | None = None, **changes: Any) -> Material:
    golds = golds or {"sft": 0.4, "rs": 0.5, "dpo": 0.6}
    answers = {policy: scored_answers(gold) for policy, gold in golds.items()}
    by_policy = {policy: known_figures(gold, golds["sft"]) for policy, gold in golds.items()}
    curve = {"loss": [(10.0, 1.0), (20.0, 0.5)], "eval_loss": [(10.0, 1.1), (20.0, 0.6)]}
    values: dict[str, Any] = {
        "recipe": RECIPE | {"evaluate": RECIPE["evaluate"] | {"policies": list(golds)}},
        "policies": list(golds),
        "against": "sft",
        "decoding": NEUTRAL,
        "figures": by_policy,
        "answers": answers,
        "curves": {"align@dpo": curve},
        "stage_figures": STAGE_FIGURES,
        "calibration": {"rm": SHARES},
        "data_section": "",
        "prompts": 10,
        "listed": 30,
    }
    values |= changes
    return Material(**({"comparisons": compare_policies(values["answers"], values["against"], 17)} | values))


class Page(HTMLParser):
    """Tags with their attributes, and the text outside style and script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self._open.append("")

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in ("style", "script"):
            self.text += data


GOLD = ("gold", "harmless", "honest", "courteous", "concise", "win", "reward")


def without_gold(**changes: Any) -> Material:
    """Policies whose data state refusals, right answers and held-out rows, and nothing else: no verifier, judge or reward."""
    answers = {policy: scored_answers(level, **dict.fromkeys(GOLD)) for policy, level in {"sft": 0.4, "dpo": 0.6}.items()}
    for policy, rows in answers.items():
        for row in rows:
            row |= {"harmful": float(policy == "sft") if row["family"] == "harmful" else None}
            row |= {"over_refused": float(row["index"]) if row["family"] == "lookalike" else None}
            row |= {"correct": row["verifiable"], "family": None, "language": None}
    by_policy = {policy: figures(rows, answers["sft"]) | {"distinct_2": 0.31} for policy, rows in answers.items()}
    for policy, (nll, change) in {"sft": (1.0, 0.0), "dpo": (1.25, 0.25)}.items():
        for key, value in (("nll_per_token", nll), ("nll_change", change), ("perplexity", math.exp(nll))):
            by_policy[policy] |= {key: value, f"{key}_low": value - 0.01, f"{key}_high": value + 0.01}
        by_policy[policy]["perplexity_n"] = 200
    pairs = {
        "preference_accuracy": 0.63,
        "preference_accuracy_low": 0.58,
        "preference_accuracy_high": 0.68,
        "preference_accuracy_n": 150,
    }
    by_policy["dpo"] |= pairs
    recipe = RECIPE | {
        "data": "mine",
        "evaluate": RECIPE["evaluate"] | {"judge": "none", "reward": "none", "policies": ["sft", "dpo"]},
    }
    return material(
        **{"recipe": recipe, "policies": ["sft", "dpo"], "answers": answers, "figures": by_policy, "stage_figures": {}} | changes
    )
