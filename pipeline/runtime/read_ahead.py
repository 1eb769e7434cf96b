"""Work done a little ahead by threads, in order and with bounded memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
    work: Callable[[Item], Result], items: Iterable[Item], *, threads: int, ahead: int
) -> Iterator[Result]:
    """``map`` by ``threads`` threads, at most ``ahead`` items early, in the order of ``items``.

    An error is raised where its result would have come; leaving early cancels the rest.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(max_workers=threads) as pool:
        waiting = deque(pool.submit(work, item) for item in islice(remaining, ahead))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in islice(remaining, 1))
        finally:
            for future in waiting:
                future.cancel()
