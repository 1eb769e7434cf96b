"""Work done a little ahead by threads, in order and in bounded memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from threading import get_ident
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
    work: Callable[[Item], Result], items: Iterable[Item], *, threads: int, ahead: int
) -> Iterator[Result]:
    """Map ``work`` over ``items`` in ``threads`` threads, in order, at most ``ahead`` items early.

    An error is raised in place of its result. Leaving early cancels the rest.
    """
    remaining, reader = iter(items), get_ident()
    pool = ThreadPoolExecutor(max_workers=threads)
    waiting: deque[Future[Result]] = deque()
    try:
        waiting.extend(pool.submit(work, item) for item in islice(remaining, ahead))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(work, item) for item in islice(remaining, 1))
    finally:
        for future in waiting:
            future.cancel()
        # The garbage collector may close an abandoned generator in a thread of the pool itself,
        # which cannot wait for its own end.
        pool.shutdown(wait=get_ident() == reader)
