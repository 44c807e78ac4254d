"""MLflow's own measurements of the machine while a stage runs, in a thread of their own: processor, memory, disk, network, GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def system_metrics(uri: str, run_id: str, seconds: float) -> Iterator[None]:
    """Measures every `seconds` and logs to the run under `system/`; 0: nothing. MLflow only warns of what it cannot measure or send."""
    if not seconds:
        yield
        return
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor: Any = SystemMetricsMonitor(  # type: ignore[no-untyped-call]
        run_id, sampling_interval=seconds, tracking_uri=uri
    )
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
