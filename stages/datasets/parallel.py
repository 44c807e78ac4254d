"""A function over many chunks, in order, on all cores, with a bounded number in flight."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice
from typing import Any, TypeVar

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")
Context = TypeVar("Context")

_WORTH_PROCESSES = 24  # chunks; fewer are done before the processes' imports are
_PRELOAD = ["stages.datasets.gathering", "stages.datasets.finishing"]
_IN_FLIGHT = 3  # chunks for each process: enough to keep it busy, few enough to keep memory flat


def chunked(items: Iterable[Chunk], size: int) -> Iterator[list[Chunk]]:
    """Lists of `size` consecutive items; the last may be shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def map_chunks(
    work: Callable[[Context, list[Chunk]], Result], context: Context, chunks: Iterable[list[Chunk]], processes: int
) -> Iterator[Result]:
    """`work(context, chunk)` of every chunk, in order. With few chunks, or one process, it runs here.

    Processes are started by a fork server, not forked from here, where libraries may hold threads and locks; that costs
    seconds of imports, so data of few chunks never start any.
    """
    iterator = iter(chunks)
    first = list(islice(iterator, _WORTH_PROCESSES if processes > 1 else 0))
    if len(first) < _WORTH_PROCESSES:
        yield from (work(context, chunk) for chunk in chain(first, iterator))
        return
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(_PRELOAD)
    with ProcessPoolExecutor(processes, mp_context=server, initializer=_remember, initargs=(work, context)) as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for chunk in chain(first, iterator):
                if len(pending) >= _IN_FLIGHT * processes:
                    yield pending.popleft().result()
                pending.append(pool.submit(_work, chunk))
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


_state: list[Any] = []


def _remember(work: Callable[[Context, list[Chunk]], Result], context: Context) -> None:
    _state[:] = [work, context]


def _work(chunk: list[Any]) -> Any:
    work, context = _state
    return work(context, chunk)
