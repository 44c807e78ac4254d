"""Rewards that are computed, not trained: rules, answers that can be checked, programs that can be run."""
