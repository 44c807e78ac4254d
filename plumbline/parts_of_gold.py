"""What gold is made of."""

WEIGHTS = {"correct": 0.5, "harmless": 0.1, "honest": 0.1, "courteous": 0.15, "concise": 0.15}
"""The parts of gold, each 1 or 0, and their weights, which add up to 1: gold is the weighted sum."""
