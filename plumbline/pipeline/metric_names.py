"""The names of metrics in MLflow, and which of a stage's figures become metrics.

- `gold`: a headline figure of the stage. The others stand in the run's table `figures`, each with its bounds;
- `train/…`, `eval/…`: a step of training, and the validation at a step, by the same names whatever the trainer;
- `system/…`: seconds, rates, memory and calls, which MLflow shows on a page of their own with its measurements of the machine.
"""

from collections.abc import Mapping

EVAL = "eval_"
COSTS = ("_seconds", "_per_second", "_mib")
LOW, HIGH = "_low", "_high"
SAME = {
    "policy_loss": "loss",
    "policy_gradient_norm": "grad_norm",
    "gradient_norm": "grad_norm",
    "num_tokens": "tokens",
    "mean_token_accuracy": "token_accuracy",
}
"""What one trainer calls differently from the others → the common name."""


def step_metric(name: str) -> str:
    """The name of a metric of a training step: `eval_rewards/chosen` becomes `eval/implicit_rewards_chosen`."""
    if name.endswith(COSTS):
        return cost_metric(name)
    group, plain = ("eval", name.removeprefix(EVAL)) if name.startswith(EVAL) else ("train", name)
    if plain.startswith("rewards/"):  # TRL's name for β·log-ratio of DPO and its kin
        plain = f"implicit_{plain}"
    plain = plain.replace("/", "_")
    return f"{group}/{SAME.get(plain, plain)}"


def cost_metric(name: str) -> str:
    """The name of what a stage cost."""
    return f"system/{name}"


def figure_rows(figures: Mapping[str, float]) -> list[dict[str, float | str | None]]:
    """All figures as rows of a table: `gold`, `gold_low` and `gold_high` are one."""
    bounds = {f"{name}{end}" for name in figures for end in (LOW, HIGH)}
    return [
        {"figure": name, "value": value, "low": figures.get(name + LOW), "high": figures.get(name + HIGH)}
        for name, value in figures.items()
        if name not in bounds
    ]
