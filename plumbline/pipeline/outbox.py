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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.pipeline.records import read_jsonl, write_jsonl

if TYPE_CHECKING:
    from mlflow import MlflowClient

Record = Mapping[str, Any]
"""What one call sends: {"metrics": [[name, value, milliseconds, step], …]}, {"params": [[name, value], …]}, {"table": [name, rows]},
{"inputs": [[name, digest, path], …]} or {"end": [status, milliseconds]}."""

WAIT_SECONDS = 60.0  # from a failure to the next try: a server that hangs takes 20 s of the stage's time at each
LONGEST_NAME, LONGEST_VALUE = 250, 6000  # characters that MLflow takes
LONGEST_REASON = 400  # characters; a proxy's error page is longer
MOST_TABLES = 100  # that a run's tag lists, so that it stays below MLflow's 8,000 characters

REFUSALS = ("BAD_REQUEST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST")
"""MLflow's error codes for what it would refuse again."""

logger = logging.getLogger(__name__)


class Outbox:
    """The records of one run that were not sent yet, in order."""

    def __init__(self, client: "MlflowClient", run_id: str, records: Sequence[Record] = ()) -> None:
        self.records = list(records)
        self._client = client
        self._run_id = run_id
        self._failed_at: float | None = None
        self._announced: set[str] = set()

    def add(self, record: Record) -> None:
        """Sends a record, or keeps it if MLflow failed less than a minute ago or fails now."""
        self.records.append(record)
        if self._failed_at is None or time.monotonic() - self._failed_at > WAIT_SECONDS:
            self.send()

    def send(self) -> None:
        """Tries all records; keeps those that could not be sent. A failing store of artifacts holds up nothing but tables."""
        kept: list[Record] = []
        self._failed_at, failing = None, set[str]()
        for record in self.records:
            target = "artifacts" if "table" in record else "server"
            if failing & {"server", target}:
                kept.append(record)
                continue
            try:
                _deliver(self._client, self._run_id, record)
            except Exception as error:  # noqa: BLE001  MLflow, its databases' drivers and its stores raise what they like
                if _is_final(error):
                    self._announce("refused", f"MLflow refused {', '.join(record)}: {reason(error)}. This is left out.")
                    continue
                self._announce(
                    target, f"MLflow failed: {reason(error)}. The stage goes on; what could not be sent is tried again."
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


def send_kept(client: "MlflowClient", folder: Path, uri: str) -> None:
    """Sends what earlier stages could not send to this server."""
    for file in sorted(folder.glob(unsent_file(folder, uri, "*").name)):
        try:
            outbox = Outbox(client, file.stem.partition("-")[2], read_jsonl(file))
        except (OSError, ValueError) as error:
            logger.warning("MLflow: what an earlier stage kept cannot be read: %s. Remove the file.", error)
            continue
        outbox.send()
        outbox.keep(file)


def _deliver(client: "MlflowClient", run_id: str, record: Record) -> None:
    """Sends a record. Sending it twice changes nothing."""
    from mlflow.entities import Dataset, DatasetInput, Metric, Param

    match record:
        case {"metrics": metrics}:
            client.log_batch(run_id, metrics=[Metric(*metric) for metric in metrics])
        case {"params": params}:
            client.log_batch(run_id, params=[Param(*param) for param in params])
        case {"inputs": inputs}:
            datasets = [Dataset(name, digest, "local", json.dumps({"uri": path})) for name, digest, path in inputs]
            client.log_inputs(run_id, datasets=[DatasetInput(dataset, []) for dataset in datasets])
        case {"table": [name, rows]}:
            _deliver_table(client, run_id, f"tables/{name}.json", rows)
        case {"end": [status, milliseconds]}:
            client.set_terminated(run_id, status, milliseconds)
        case _:
            raise ValueError(f"expected metrics, params, inputs, a table or an end, found {str(record)[:80]}")


def _deliver_table(client: "MlflowClient", run_id: str, path: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """As MLflow's log_table, which would append to what an earlier try has left, and fails when its tag is full."""
    import pandas
    from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

    client.log_text(run_id, pandas.DataFrame(rows).to_json(orient="split", index=False, date_format="iso"), path)
    logged = json.loads(client.get_run(run_id).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
    table = {"path": path, "type": "table"}
    if table not in logged:
        client.set_tag(run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([*logged, table][-MOST_TABLES:]))


def _is_final(error: Exception) -> bool:
    """Whether trying again would not help: MLflow understood and refused, or the values cannot be sent at all."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in REFUSALS
    return isinstance(error, ValueError | TypeError)


def reason(error: Exception) -> str:
    """MLflow's own reason in one line, without the SQL behind it."""
    text = " ".join(re.split(r"\[SQL:|\n\[parameters:", str(error))[0].split())
    text = f"{text[:LONGEST_REASON]}…" if len(text) > LONGEST_REASON else text.rstrip(".")
    return without_password(text) or type(error).__name__


def without_password(text: str) -> str:
    """An address, or a text that holds some, without user and password."""
    return re.sub(r"(?i)(?<=://)\S*@|(?<=password=)[^&\s]+", "", text)


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
