"""Gold and reward while PPO trains, with and without the KL term: over-optimisation as a plot (arXiv:2210.10760).

After `dvc repro` of the default recipe, from the project's folder:

    python tests/benchmarks/overoptimisation.py --beta 0.15 0.0 --steps 40 --out scratch/overoptimisation

Trains from `--init` on `--reward` once for each β, and verifies every completion of every step by the closed world's gold, on which nothing
trains. Writes `curves.csv` and `overoptimisation.png`. Twenty steps take a minute or two on two cores.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[2]))

if TYPE_CHECKING:
    from plumbline.methods.online.ppo.trainer import PpoTrainer

ROLLING_STEPS = 5
"""The window of the rolling means."""


def trainer_of(beta: float, arguments: argparse.Namespace) -> "PpoTrainer":
    """PPO with the values of its conf file, a constant learning rate, and this β."""
    from omegaconf import OmegaConf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from plumbline.methods.online.ppo.networks import load_value_model
    from plumbline.methods.online.ppo.settings import PpoConfig
    from plumbline.methods.online.ppo.trainer import PpoTrainer
    from plumbline.pipeline.composing import size_section
    from plumbline.pipeline.records import read_jsonl
    from plumbline.rewards.reward import load_reward

    changes = {
        "init": "rs",
        "reward": "rm",
        "beta": beta,
        "learning_rate": arguments.learning_rate,
        "value_learning_rate": arguments.learning_rate,
        "schedule": "constant",
    }
    values: Any = OmegaConf.load("conf/method/ppo.yaml")
    del values["defaults"]  # Hydra's
    by_size = size_section("tiny", "ppo")
    config: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PpoConfig), values, by_size, changes))
    config.episodes = arguments.steps * config.rollout_batch_size
    init, reward = Path(arguments.init), Path(arguments.reward)
    tokenizer = AutoTokenizer.from_pretrained(init)
    return PpoTrainer(
        policy=AutoModelForCausalLM.from_pretrained(init),
        reference=AutoModelForCausalLM.from_pretrained(init),
        value_model=load_value_model(reward, init, tokenizer),
        reward=load_reward(reward),
        tokenizer=tokenizer,
        prompts=[row["prompt"] for row in read_jsonl(Path("artifacts/data/prompts/train.jsonl"))],
        config=config,
        seed=arguments.seed,
    )


def curve(beta: float, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Means over each step's completions: reward, gold, correct answers, KL and length."""
    from plumbline.models.determinism import make_deterministic
    from plumbline.world.verify import verify

    make_deterministic(arguments.seed, arguments.threads)
    trainer = trainer_of(beta, arguments)
    rows = []
    for step in range(arguments.steps):
        episodes, metrics, _ = trainer.step(step)
        verdicts = [verify(trainer.prompts[episode.prompt], episode.text) for episode in episodes]
        rows.append(
            {
                "beta": beta,
                "step": step,
                "gold": sum(verdict.gold for verdict in verdicts) / len(verdicts),
                "correct": sum(verdict.correct for verdict in verdicts) / len(verdicts),
                **{name: metrics[name] for name in ("reward", "kl_k1", "entropy", "length_tokens")},
            }
        )
        print(" ".join(f"{name}={value:.3f}" for name, value in rows[-1].items()), flush=True)
    return rows


def draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """Plots rolling means of reward, gold and KL over the steps, with a line for each β."""
    import matplotlib

    matplotlib.use("Agg")
    import pandas
    from matplotlib import pyplot

    table = pandas.DataFrame(rows)
    titles = {"reward": "Reward model's reward", "gold": "Gold (verified)", "kl_k1": "KL to the start, nats per completion"}
    figure, axes = pyplot.subplots(1, len(titles), figsize=(11, 3.4), layout="constrained")
    for axis, (column, title) in zip(axes, titles.items(), strict=True):
        for beta, part in table.groupby("beta", sort=False):
            axis.plot(part["step"], part[column].rolling(ROLLING_STEPS, min_periods=1).mean(), label=f"β = {beta:g}")
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xlabel("PPO step")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beta", type=float, nargs="+", default=[0.15, 0.0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--init", default="artifacts/policy/rs")
    parser.add_argument("--reward", default="artifacts/reward/rm")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default="scratch/overoptimisation")
    arguments = parser.parse_args()
    folder = Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    import pandas

    rows: list[dict[str, Any]] = []
    for beta in arguments.beta:
        rows += curve(beta, arguments)
        pandas.DataFrame(rows).to_csv(folder / "curves.csv", index=False)
        draw(folder / "overoptimisation.png", rows)


if __name__ == "__main__":
    main()
