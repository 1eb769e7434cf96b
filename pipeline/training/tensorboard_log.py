"""Metrics of a running training as events for TensorBoard."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from pipeline.provenance import Json


@contextmanager
def events_into(folder: Path, *, next_epoch: int) -> Iterator[Callable[[Mapping[str, Json]], None]]:
    """Yield a function that writes an epoch's line of metrics as scalars.

    Args:
        folder: folder of the event file, next to earlier ones of the same training.
        next_epoch: the first epoch to write, from 1; TensorBoard drops events of this and later
            epochs from an earlier, killed attempt.
    """
    purge = next_epoch if next_epoch > 1 else None
    with SummaryWriter(str(folder), purge_step=purge) as writer:

        def write(line: Mapping[str, Json]) -> None:
            epoch = line["epoch"]
            assert isinstance(epoch, int)
            for name, value in line.items():
                if name != "epoch" and isinstance(value, int | float):
                    writer.add_scalar(name, value, global_step=epoch)
            writer.flush()

        yield write
