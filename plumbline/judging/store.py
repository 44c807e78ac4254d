"""The store of bought replies, so that no reply is paid for twice or lost.

It is one SQLite file under `<project>/.verdicts`, outside every stage's outputs, so that neither DVC nor a crash removes it. Experiments that
run at the same time share it. A reply is committed the moment it arrives. Write-ahead logging survives a killed process; a power cut may
lose the last moments.
"""

import hashlib
import json
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from plumbline.judging.asking import Reply

SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tries (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, buyer TEXT NOT NULL, outcome TEXT NOT NULL,
    input_tokens INTEGER NOT NULL DEFAULT 0, output_tokens INTEGER NOT NULL DEFAULT 0, cost REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS budgets (buyer TEXT PRIMARY KEY, committed REAL NOT NULL);
"""
BUSY_SECONDS = 60.0
IN_FLIGHT, RECEIVED = "in flight", "received"
ROUNDING = 1e-9


class Totals(NamedTuple):
    """The tries of a buyer, summed up."""

    outcomes: Mapping[str, int]
    input_tokens: int
    output_tokens: int
    cost: float
    """Money for the replies that were received."""
    at_risk: float
    """The worst-case cost of tries that may be billed although no reply arrived: in flight, timed out or cut off."""


def store_folder() -> Path:
    """The project's folder `.verdicts`; DVC_ROOT names the real project even in a queued experiment's copy."""
    return Path(os.environ.get("DVC_ROOT", ".")) / ".verdicts"


def content_key(content: Any) -> str:
    """SHA-256 of a JSON value; the key of a reply is that of everything that determines the reply."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class VerdictStore:
    """Replies by key, tries and money by buyer; several processes may use the store at once."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(folder / "verdicts.sqlite", timeout=BUSY_SECONDS, isolation_level=None)
        with FileLock(
            folder / "verdicts.lock", timeout=BUSY_SECONDS
        ):  # SQLite does not wait while another process switches to WAL
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.executescript(SCHEMA)
        self._connection.execute("PRAGMA synchronous=NORMAL")

    def close(self) -> None:
        """Closes the file; everything has been committed."""
        self._connection.close()

    def get(self, key: str) -> Reply | None:
        """The reply that was bought for a key, or None."""
        row = self._connection.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return Reply(**json.loads(row[0])) if row else None

    def begin(self, key: str, buyer: str, worst_cost: float, max_cost: float | None) -> int | None:
        """Reserves a try's worst-case cost from the buyer's budget and returns the try's number, or None if the budget is too small."""
        with self._transaction():
            self._connection.execute("INSERT OR IGNORE INTO budgets VALUES (?, 0)", (buyer,))
            changed = self._connection.execute(
                "UPDATE budgets SET committed = committed + ?1 WHERE buyer = ?2 AND (?3 IS NULL OR committed + ?1 <= ?3 + ?4)",
                (worst_cost, buyer, max_cost, ROUNDING),
            ).rowcount
            if not changed:
                return None
            return self._connection.execute(
                "INSERT INTO tries (key, buyer, outcome, cost) VALUES (?, ?, ?, ?)", (key, buyer, IN_FLIGHT, worst_cost)
            ).lastrowid

    def receive(self, number: int, key: str, reply: Reply) -> None:
        """Keeps a reply and replaces its reserved cost by the actual one."""
        with self._transaction():
            self._connection.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, json.dumps(reply._asdict())))
            self._settle(number, RECEIVED, reply.cost, reply.input_tokens, reply.output_tokens)

    def keep(self, key: str, reply: Reply) -> None:
        """Keeps a reply that cost nothing."""
        self._connection.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, json.dumps(reply._asdict())))

    def fail(self, number: int, outcome: str, *, billed: bool) -> None:
        """Notes a try without a reply; if the endpoint may bill it, its worst-case cost stays reserved."""
        with self._transaction():
            cost = self._connection.execute("SELECT cost FROM tries WHERE id = ?", (number,)).fetchone()[0]
            self._settle(number, outcome, cost if billed else 0.0, 0, 0)

    def _settle(self, number: int, outcome: str, cost: float, input_tokens: int, output_tokens: int) -> None:
        buyer, reserved = self._connection.execute("SELECT buyer, cost FROM tries WHERE id = ?", (number,)).fetchone()
        self._connection.execute("UPDATE budgets SET committed = committed + ? WHERE buyer = ?", (cost - reserved, buyer))
        self._connection.execute(
            "UPDATE tries SET outcome = ?, cost = ?, input_tokens = ?, output_tokens = ? WHERE id = ?",
            (outcome, cost, input_tokens, output_tokens, number),
        )

    def totals(self, buyer: str | None = None) -> Totals:
        """The tries of one buyer, or of all, summed up."""
        rows = self._connection.execute(
            "SELECT outcome, COUNT(*), SUM(input_tokens), SUM(output_tokens), SUM(cost) FROM tries "
            "WHERE ?1 IS NULL OR buyer = ?1 GROUP BY outcome ORDER BY outcome",
            (buyer,),
        ).fetchall()
        return Totals(
            outcomes={outcome: count for outcome, count, *_ in rows},
            input_tokens=sum(row[2] for row in rows),
            output_tokens=sum(row[3] for row in rows),
            cost=sum(row[4] for row in rows if row[0] == RECEIVED),
            at_risk=sum(row[4] for row in rows if row[0] != RECEIVED),
        )

    def _transaction(self) -> "_Immediate":
        return _Immediate(self._connection)


class _Immediate:
    """A transaction that takes the write lock at once, since upgrading a read lock later fails instead of waiting."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._connection.execute("ROLLBACK" if kind else "COMMIT")
