"""A function over many chunks, in order, on all cores, with a bounded number of chunks in flight."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Context = TypeVar("Context")

_WORTH_PROCESSES = 24  # chunks; fewer are done before the processes have finished their imports
_PRELOAD = ["plumbline.data.gathering", "plumbline.data.writing"]
_IN_FLIGHT = 3  # chunks for each process: enough to keep it busy, few enough to bound memory


def map_chunks(
    work: Callable[[Context, list[Item]], Result], context: Context, chunks: Iterable[list[Item]], processes: int
) -> Iterator[Result]:
    """`work(context, chunk)` for every chunk, in order. With few chunks or one process, the work is done in this process.

    Processes are started by a fork server. They are not forked from this process, in which libraries may hold threads and locks. Their
    imports take seconds, so data of few chunks never start any.
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


_state: list[Any] = []  # of a worker process: the function and its context


def _remember(work: Callable[[Context, list[Item]], Result], context: Context) -> None:
    _state[:] = [work, context]


def _work(chunk: list[Any]) -> Any:
    work, context = _state
    return work(context, chunk)
