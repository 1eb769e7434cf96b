"""Coroutines of a library, such as zarr's, in the calling thread.

So an interrupt leaves no thread that continues to write, and a forked process does not wait for a
thread that it does not have.
"""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar, TypeVarTuple

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


class _Here(asyncio.SelectorEventLoop):
    """An event loop without threads: work that would go to a thread is done at once."""

    def run_in_executor(
        self,
        executor: Executor | None,  # noqa: ARG002
        func: Callable[[*Arguments], Result],
        *args: *Arguments,
    ) -> asyncio.Future[Result]:
        """The result of ``func``, which is called at once."""
        done: asyncio.Future[Result] = self.create_future()
        done.set_result(func(*args))
        return done

    def __del__(self) -> None:
        """Close the loop; one whose construction was interrupted has nothing to close."""
        with suppress(AttributeError):
            self.close()


def run_here(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end in this thread; in another one if a loop runs already.

    Notebooks have a running loop. An error or an interrupt cancels the rest of the coroutine.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run_here(work)
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(_run_here, work).result()


def _run_here(work: Coroutine[Any, Any, Result]) -> Result:
    loop = _Here()
    loop.set_exception_handler(lambda *_: None)  # the first error is raised; others add nothing
    try:
        return loop.run_until_complete(work)
    finally:
        if rest := asyncio.all_tasks(loop):
            for task in rest:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))
        loop.close()
