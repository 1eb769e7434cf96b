"""From the teacher's outputs to the units of a cache: rounded to 16 bits, and written behind it."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from pipeline.artefacts.cache.receipts import Note
from pipeline.artefacts.cache.writer import CacheWriter, Float32, Unit
from pipeline.errors import PipelineError

_FLOAT16_MAX = 65_504.0
_QUEUED = 3

Float16 = NDArray[np.float16]


@contextmanager
def writing_behind(writer: CacheWriter) -> Iterator[Callable[..., None]]:
    """Yield a `CacheWriter.write` that returns at once; at most three units wait to be written.

    So the teacher goes on while its last outputs are compressed and stored. An error of the writer
    is raised by the next call, or at the end.
    """
    with ThreadPoolExecutor(max_workers=_QUEUED, thread_name_prefix="cache-writer") as pool:
        waiting: list[Future[None]] = []

        def write(unit: Unit, arrays: Mapping[str, NDArray[np.generic]], note: Note) -> None:
            while len(waiting) >= _QUEUED or (waiting and waiting[0].done()):
                waiting.pop(0).result()
            waiting.append(pool.submit(writer.write, unit, arrays, note))

        yield write
        for future in waiting:
            future.result()


def as_float16(rows: Float32, *, name: str, view: int, first_sample: int) -> Float16:
    """``rows`` as they are stored.

    Raises:
        PipelineError: if a value is not finite or does not fit float16; it names the sample.
    """
    peak = np.abs(rows).max(axis=1)
    if not (peak <= _FLOAT16_MAX).all():  # false for NaN too
        bad = int(np.flatnonzero(~(peak <= _FLOAT16_MAX))[0])
        raise PipelineError(
            f"the teacher's {name} of sample {first_sample + bad} in view {view} reach "
            f"{peak[bad]} (expected finite values up to {_FLOAT16_MAX:.0f}). Check the "
            "checkpoint and `mean`/`std`, or try `--precision fp32`."
        )
    return rows.astype(np.float16)
