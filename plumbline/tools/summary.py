"""Prints what each evaluated policy achieved and where to look next: the end of `make repro`."""

import sys
from pathlib import Path
from typing import Any

from plumbline.models.decoding_values import NEUTRAL, read_decoding
from plumbline.pipeline.params import load_params
from plumbline.pipeline.records import read_json
from plumbline.report.sentences import cut_off_sentence, language_sentence
from plumbline.report.tables import plain, plain_table

EVALUATED, ANSWERED = Path("artifacts/evaluate"), Path("artifacts/figures/answer")
REPORT = Path("artifacts/report/report.html")


def summarise(section: dict[str, Any]) -> str:
    """The table of the policies that params.yaml's `evaluate` section names, and where to look next.

    Raises:
        FileNotFoundError: a policy has no figures yet.
    """
    files = {policy: EVALUATED / policy / "figures.json" for policy in section["policies"]}
    if missing := [policy for policy, file in files.items() if not file.is_file()]:
        raise FileNotFoundError(f"no figures for {', '.join(missing)} in {EVALUATED}/ yet: run `make repro`")
    by_policy = {policy: read_json(file) for policy, file in files.items()}
    opponent = by_policy[section["against"]]
    split, decoding = section["split"], read_decoding(ANSWERED / f"{section['against']}.json")
    cautions = [language_sentence(policy, figures) for policy, figures in by_policy.items()]
    cautions.append(cut_off_sentence(by_policy, section["max_new_tokens"]))
    warnings = "".join(f"{plain(caution)}\n" for caution in cautions if caution) + "\n" * any(cautions)
    measured = [name for name, key in (("Gold at 1", "gold_at_1"), ("KL", "kl")) if opponent.get(key) is not None]
    at_1 = f"At temperature 1: {' and '.join(measured)}. " if decoding != NEUTRAL and measured else ""
    return f"""
{plain_table(by_policy, section["against"])}

{warnings}{opponent["answers"]:,} answers of each policy to {opponent["n"]:,} prompts of the {split} split, drawn at {decoding.words}.
Gain, win rate and KL are against {section["against"]}. {at_1}Brackets hold 95 % intervals over prompts.

  {REPORT}   the report: open it in a browser
  make ui                        every run with its curves and tables, in MLflow on 127.0.0.1
  make show                      this result next to earlier ones
  make graph                     what ran, what came from the cache, and where the time went"""


def main() -> None:
    try:
        print(summarise(load_params()["evaluate"]))
    except FileNotFoundError as error:
        sys.exit(f"summary: {error}")


if __name__ == "__main__":
    main()
