"""Prints the reward of one response: `make score REWARD=rm PROMPT="What is 2 + 3?" RESPONSE="It is 5."`."""

import argparse
import sys
from pathlib import Path

from plumbline.rewards.reward import finishing, load_reward
from plumbline.rewards.rules import RulesReward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reward", help="an entry of one of params.yaml's reward sections, such as reward_model")
    parser.add_argument("prompt")
    parser.add_argument("response")
    arguments = parser.parse_args()
    if not arguments.prompt:
        sys.exit('score: expected a prompt, found none: make score REWARD=rm PROMPT="What is 2 + 3?" RESPONSE="It is 5."')
    prompt = [{"role": "user", "content": arguments.prompt}]
    try:
        reward = load_reward(Path("artifacts/reward") / arguments.reward, "score")
        with finishing(reward):
            print(f"{reward([prompt], [arguments.response])[0]:.4f}")
    except (ValueError, OSError) as error:  # OSError: a judge without its key or its model
        sys.exit(f"score: {error}")
    if isinstance(reward, RulesReward):
        for name, value in reward.explain(prompt, arguments.response).items():
            print(f"  {value:.2f} × {reward.rules[name].weight:g}  {name}")


if __name__ == "__main__":
    main()
