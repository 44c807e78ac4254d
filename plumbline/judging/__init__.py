"""The judge: questions rendered from templates, replies parsed into verdicts, verdicts aggregated."""
