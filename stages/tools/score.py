"""Prints the reward of one response: `make score REWARD=rm PROMPT="What is 2 + 3?" RESPONSE="It is 5."`."""

import argparse
import sys
from pathlib import Path

from stages.models.rewards import finish, load_reward
from stages.rewards.rules import RulesReward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reward", help="an entry of params.yaml's `reward`")
    parser.add_argument("prompt")
    parser.add_argument("response")
    arguments = parser.parse_args()
    if not arguments.prompt:
        sys.exit('score: expected a prompt, found none: make score REWARD=rm PROMPT="What is 2 + 3?" RESPONSE="It is 5."')
    try:
        reward = load_reward(Path("artifacts/reward") / arguments.reward, "score")
    except ValueError as error:
        sys.exit(f"score: {error}, and run `dvc repro`")
    except OSError as error:  # of a judge: no key, no model
        sys.exit(f"score: {error}")
    prompt = [{"role": "user", "content": arguments.prompt}]
    try:
        print(f"{reward([prompt], [arguments.response])[0]:.4f}")
    except (ValueError, OSError) as error:
        sys.exit(f"score: {error}")
    finish(reward)
    if isinstance(reward, RulesReward):
        for name, value in reward.explain(prompt, arguments.response).items():
            print(f"  {value:.2f} × {reward.rules[name].weight:g}  {name}")


if __name__ == "__main__":
    main()
