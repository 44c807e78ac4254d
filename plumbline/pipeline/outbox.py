"""What a stage logs, on its way to MLflow: after the work has begun, nothing that MLflow does may end the stage.

What MLflow refuses for good (a run that was deleted, a value that it does not take) is left out. What could not be sent because the server,
its database or its disk failed is tried again later: in the same stage a minute after the failure or at its end, and then by the next stage
that reaches the same server. Until then it is kept in a file under `<project>/.mlflow-unsent`. Each is said in one line.
"""

import hashlib
import json
import logging
import posixpath
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plumbline.pipeline.mlflow_calls import REGISTERED, STORED, Record, deliver
from plumbline.pipeline.mlflow_fault import MlflowFault
from plumbline.pipeline.records import read_jsonl, write_jsonl

WAIT_SECONDS = 60.0  # from a failure to the next try: a server that hangs takes 20 s of the stage's time at each
LONGEST_NAME, LONGEST_VALUE = 250, 6000  # characters that MLflow takes

logger = logging.getLogger(__name__)


class Outbox:
    """The records of one run that were not sent yet, in order."""

    def __init__(self, uri: str, run_id: str, records: Sequence[Record] = ()) -> None:
        self.records = list(records)
        self._uri = uri
        self._run_id = run_id
        self._failed_at: float | None = None
        self._announced: set[str] = set()

    def add(self, record: Record) -> None:
        """Sends a record, or keeps it if MLflow failed less than a minute ago or fails now."""
        self.records.append(record)
        if self._failed_at is None or time.monotonic() - self._failed_at > WAIT_SECONDS:
            self.send()

    def send(self) -> None:
        """Tries all records; keeps those that could not be sent.

        A failing store of artifacts holds up nothing but tables and texts, and a failing registry nothing but what is registered.
        """
        kept: list[Record] = []
        self._failed_at, failing = None, set[str]()
        for record in self.records:
            target = "artifacts" if record.keys() & {*STORED} else "registry" if record.keys() & {*REGISTERED} else "server"
            if failing & {"server", target}:
                kept.append(record)
                continue
            try:
                deliver(self._uri, self._run_id, record)
            except MlflowFault as fault:
                if fault.final:
                    self._announce("refused", f"MLflow refused {', '.join(record)}: {fault.reason}. This is left out.")
                    continue
                self._announce(
                    target, f"MLflow failed: {fault.reason}. The stage goes on; what could not be sent is tried again."
                )
                failing.add(target)
                self._failed_at = time.monotonic()
                kept.append(record)
        self.records = kept

    def keep(self, file: Path) -> None:
        """Writes what could not be sent to a file; removes the file if everything was sent."""
        try:
            if not self.records:
                file.unlink(missing_ok=True)
                return
            write_jsonl(file, json.loads(json.dumps(self.records, default=str)))
            kept = f"is kept in {file}, and the next stage sends it"
        except (OSError, ValueError) as error:
            kept = f"is lost, because it could not be kept either: {error}"
        logger.warning("MLflow: what could not be sent of run %s %s.", self._run_id, kept)

    def _announce(self, kind: str, message: str) -> None:
        if kind not in self._announced:
            logger.warning(message)
        self._announced.add(kind)


def unsent_file(folder: Path, uri: str, run_id: str) -> Path:
    """Where a run's unsent records are kept; a digest names the server, for its address may hold a password."""
    return folder / f"{hashlib.sha256(uri.encode()).hexdigest()[:12]}-{run_id}.jsonl"


def send_kept(folder: Path, uri: str) -> None:
    """Sends what earlier stages could not send to this server."""
    for file in sorted(folder.glob(unsent_file(folder, uri, "*").name)):
        try:
            outbox = Outbox(uri, file.stem.partition("-")[2], read_jsonl(file))
        except (OSError, ValueError) as error:
            logger.warning("MLflow: what an earlier stage kept cannot be read: %s. Remove the file.", error)
            continue
        outbox.send()
        outbox.keep(file)


class SafeNames:
    """Names as MLflow takes them; two different names of a run never become one."""

    def __init__(self) -> None:
        self._originals: dict[str, str] = {}

    def __call__(self, name: str, plain: str | None = None) -> str:
        """The name itself, or `plain` instead, if MLflow takes it and it stands for no other; else one that ends in a digest of the name."""
        plain = name if plain is None else plain
        if _valid(plain) and self._originals.setdefault(plain, name) == name:
            return plain
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        cleaned = posixpath.normpath("/" + re.sub(r"[^/\w.\- :]", "_", plain)).lstrip("/")
        return f"{cleaned[: LONGEST_NAME - 9]}-{digest}"


def _valid(name: str) -> bool:
    """Whether MLflow takes it as the name of a metric or parameter: letters and a few marks, and a path that means nothing else."""
    path = posixpath.normpath(name) == name and not name.startswith(("/", "..")) and name != "."
    return path and len(name) <= LONGEST_NAME and bool(re.fullmatch(r"[/\w.\- :]+", name))


def safe_value(value: Any) -> str:
    """A parameter's value as text that MLflow takes; a longer one ends in `…`."""
    text = str(value).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"
