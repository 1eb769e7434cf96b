"""Numbers of a training as events for TensorBoard, while it runs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from pipeline.provenance import Json


@contextmanager
def events_into(folder: Path, *, next_epoch: int) -> Iterator[Callable[[Mapping[str, Json]], None]]:
    """Yield what writes an epoch's line of metrics as scalars.

    Args:
        folder: where the file of events is made, beside earlier ones of the same training.
        next_epoch: the first one that will be told, from 1; TensorBoard forgets what an earlier,
            killed attempt told of it and of later ones.
    """
    purge = next_epoch if next_epoch > 1 else None
    with SummaryWriter(str(folder), purge_step=purge) as writer:

        def tell(line: Mapping[str, Json]) -> None:
            epoch = line["epoch"]
            assert isinstance(epoch, int)
            for name, value in line.items():
                if name != "epoch" and isinstance(value, int | float):
                    writer.add_scalar(name, value, global_step=epoch)
            writer.flush()

        yield tell
