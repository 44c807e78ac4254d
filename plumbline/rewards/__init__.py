"""Rewards: models, rules, verifiers, judges and sums of them, all loaded by `plumbline.rewards.reward.load_reward`."""
