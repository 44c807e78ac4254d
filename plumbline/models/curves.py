"""Training curves: a trainer's log history as rows, and the rows as the CSV file that DVC and the report read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plumbline.pipeline.tracking import Run


def curve_rows(history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """A trainer's log history as one row per step, without values that differ from run to run.

    These are times, rates, and TRL's count of tokens, which starts again when a run resumes. Values of None are left out as well.
    """
    rows: dict[int, dict[str, float]] = {}
    for record in history:
        step = int(record["step"])
        numbers = {
            name: float(value)
            for name, value in record.items()
            if name not in ("step", "epoch", "total_flos", "train_loss")
            and not name.endswith(("_runtime", "_per_second", "step_time", "num_tokens"))
            and value is not None
        }
        if numbers:
            rows.setdefault(step, {"step": step}).update(numbers)
    return [rows[step] for step in sorted(rows)]


def write_curve(path: Path, rows: Sequence[Mapping[str, float]], run: "Run | None" = None) -> None:
    """Writes a training curve as CSV (`step`, then a column per metric) and logs it step by step to `run`."""
    import pandas

    columns = ["step", *sorted({name for row in rows for name in row} - {"step"})]
    path.parent.mkdir(parents=True, exist_ok=True)
    pandas.DataFrame(rows, columns=columns).to_csv(path, index=False, lineterminator="\n")
    if run:
        for row in rows:
            run.log_metrics({name: value for name, value in row.items() if name != "step"}, step=int(row["step"]))
