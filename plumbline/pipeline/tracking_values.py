"""What conf/tracking.yaml says. No stage depends on it: it decides what MLflow shows and nothing else."""

from dataclasses import dataclass
from functools import cache

from plumbline.pipeline.composing import CONF, conf_values
from plumbline.pipeline.misfits import misfits
from plumbline.pipeline.ranges import COUNT, FRACTION, NOT_NEGATIVE, Range, outside

FILE = "conf/tracking.yaml"


@dataclass(frozen=True)
class TrackingValues:
    """Values and their meaning: conf/tracking.yaml."""

    sample_prompts: int
    sample_tokens: int
    sample_times: int
    sample_cost_fraction: float
    judge_traces: int
    system_metrics_seconds: float

    def problems(self) -> list[str]:
        """What is wrong with the values; empty if nothing is."""
        return outside(
            self,
            sample_prompts=NOT_NEGATIVE,
            sample_tokens=COUNT,
            sample_times=Range("at least 2, the first and the last step", lambda value: value >= 2),
            sample_cost_fraction=FRACTION,
            judge_traces=NOT_NEGATIVE,
            system_metrics_seconds=NOT_NEGATIVE,
        )


@cache
def tracking_values() -> TrackingValues:
    """Reads conf/tracking.yaml.

    Raises:
        ValueError: a value is missing, unknown, of another type or out of range; the message has all such complaints.
    """
    values = conf_values(CONF / "tracking.yaml")
    complaints = [*misfits(values, TrackingValues, FILE)]
    complaints += [f"{FILE}: no value for {name}" for name in TrackingValues.__dataclass_fields__ if name not in values]
    if not complaints:
        read = TrackingValues(**values)
        complaints = [f"{FILE}: {complaint}" for complaint in read.problems()]
    if complaints:
        raise ValueError("\n- ".join(complaints))
    return read
