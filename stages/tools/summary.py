"""Prints what each evaluated policy achieved, and where to look next: the end of `make repro`."""

import sys
from pathlib import Path
from typing import Any

from stages.pipeline.composing import load_params
from stages.pipeline.records import read_json

METRICS, REPORT = Path("metrics"), Path("artifacts/report/report.html")


def summarise(section: dict[str, Any]) -> str:
    """The table of the policies that params.yaml's `evaluate` section names, and the places to look at.

    Raises:
        FileNotFoundError: a policy has no figures yet.
    """
    from stages.evaluation.tables import plain_table

    missing = [policy for policy in section["policies"] if not (METRICS / f"{policy}.json").is_file()]
    if missing:
        raise FileNotFoundError(f"no figures yet for {', '.join(missing)} in {METRICS}/: run `make repro`")
    metrics = {policy: read_json(METRICS / f"{policy}.json") for policy in section["policies"]}
    some = metrics[section["against"]]
    return "\n".join(
        [
            "",
            plain_table(metrics, section["against"]),
            "",
            f"{some['answers']:,} answers of each policy to {some['n']:,} prompts of the {section['split']} split, sampled at "
            f"temperature {section['temperature']};",
            f"gain, win rate and KL against {section['against']}; 95 % intervals in brackets, bootstrapped over prompts.",
            "",
            f"  {REPORT}   the report: open it in a browser",
            "  make ui                        every run with its curves and tables, in MLflow on 127.0.0.1",
            "  dvc exp show                   this result beside earlier ones",
        ]
    )


def main() -> None:
    try:
        print(summarise(load_params()["evaluate"]))
    except FileNotFoundError as error:
        sys.exit(f"summary: {error}")


if __name__ == "__main__":
    main()
