"""Makes preferences of a judge's verdicts on completions."""
