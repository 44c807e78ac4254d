"""Tokenised rows in a table on disk that is mapped into memory: a million rows train in the memory of a few thousand."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from plumbline.pipeline import processes
from plumbline.pipeline.records import replacing_path, stream_rows

if TYPE_CHECKING:
    from datasets import Dataset

    from plumbline.methods.job import OfflineJob

Encode = Callable[[Sequence[dict[str, Any]]], Sequence[dict[str, Any]]]
"""Tokenises rows that stand together, one for each."""

CHUNK = 1024
"""The rows that are read and tokenised together."""


def signal_on_disk(
    job: "OfflineJob", columns: Sequence[str], method: str, encode: Encode, most: int | None = None
) -> tuple["Dataset", "Dataset"]:
    """The training and validation rows of a job's signal, as `encode` tokenises them, which gets these columns alone.

    most: the most training rows, for methods that compute something of every row before they train; they are chosen at random.

    Raises:
        ValueError: as `read_rows`.
    """
    train, validation = (job.signal / f"{split}.jsonl" for split in ("train", "validation"))
    with train.open("rb") as lines:
        count = sum(1 for _ in lines)
    chosen = range(count) if most is None or most >= count else set(Random(job.seed).sample(range(count), most))
    tables = []
    for file, numbers in ((train, chosen), (validation, None)):
        rows = (
            {column: row[column] for column in columns}
            for number, row in enumerate(stream_rows(file, columns, method))
            if numbers is None or number in numbers
        )
        tables.append(rows_on_disk(rows, encode, job.checkpoints / f"{file.stem}.arrow"))
    return tables[0], tables[1]


def rows_on_disk(rows: Iterable[dict[str, Any]], encode: Encode, file: Path, multiple_of: int = 1) -> "Dataset":
    """The rows as `encode` tokenises them, in an Arrow table. `encode` gets a multiple of `multiple_of` rows at a time.

    The first of several processes writes it, and all read it. A table that is there already is taken as it is: `file` belongs in a folder that
    identifies the computation, such as that of its checkpoints. So a resumed run tokenises nothing again. Neither does it ask the reference again,
    whose log-probabilities TRL keeps beside the table that they belong to.
    """
    from datasets import Dataset

    if processes.is_first() and not file.is_file():
        _write(iter(rows), encode, file, -(-CHUNK // multiple_of) * multiple_of)
    processes.wait_for_all()
    return Dataset.from_file(str(file))


def _write(rows: Iterator[dict[str, Any]], encode: Encode, file: Path, chunk_rows: int) -> None:
    import pyarrow

    chunks = iter(lambda: [*islice(rows, chunk_rows)], [])
    batches = (pyarrow.RecordBatch.from_pylist([*encode(chunk)]) for chunk in chunks)
    first = next(batches)
    with replacing_path(file) as temporary, pyarrow.ipc.new_stream(str(temporary), first.schema) as table:
        for batch in chain([first], batches):
            if batch.schema != first.schema:  # Arrow would cut 0.5 to 0 and drop a column
                raise ValueError(f"{file.stem} rows: expected all of the kind {first.schema}, found some of {batch.schema}")
            table.write_batch(batch)
