"""What a judge was asked for each shard, kept in the shard's folder.

A stage that was killed and goes on judges the shards that are missing. What it reports of the judge, in `.timings/` and MLflow, has to cover the
others as well: replies, money, and the sample of conversations. What the interrupted shard had bought is missing from the money: its replies
come from the cache when it is judged again.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from plumbline.judging.asking import Ledger
from plumbline.judging.conversations import Conversations
from plumbline.judging.judge import Judge
from plumbline.pipeline.records import read_json, write_json

ASKED = "asked.json"
"""A shard's file. It depends on what was cached before, so it is not part of an output."""


class Asked(NamedTuple):
    """What a judge was asked for all shards of a computation, in however many attempts."""

    ledger: Ledger
    conversations: Conversations


@contextmanager
def recorded(judge: Judge | None, shard: Path) -> Iterator[None]:
    """Writes what the judge is asked in this block to the shard's folder; nothing if there is no judge."""
    if judge is None:
        yield
        return
    before = replace(judge.ledger)
    judge.take_conversations()
    yield
    taken = judge.take_conversations()
    write_json(shard / ASKED, {"ledger": asdict(judge.ledger.less(before)), "conversations": taken.state() if taken else None})


def asked(shards: Iterable[Path]) -> Asked:
    """What all shards together say."""
    ledger, conversations = Ledger(), Conversations()
    for shard in shards:
        record = read_json(shard / ASKED)
        ledger = ledger.add(Ledger(**record["ledger"]))
        if record["conversations"]:
            conversations.merge(record["conversations"])
    return Asked(ledger, conversations)
