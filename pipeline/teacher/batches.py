"""The number of images that a network is run on at once: bounded memory, the same on every machine.

A network's memory is a small multiple of its largest intermediate value, so that value is bounded.
On a CPU the bound is also the largest block of memory that glibc reuses. It returns larger blocks
to the system at once, and the next batch waits until the system has cleared them again.
"""

from typing import Final

import torch
from torch import Tensor, nn

from pipeline.runtime.device import Runtime

LARGEST_BATCH: Final = 512
LEAST_BATCH: Final = 2
"""A CPU runs a single image with other kernels, which round differently."""
_MOST_BYTES: Final = {"cpu": 32 << 20}
_MOST_BYTES_OF_ACCELERATOR: Final = 1 << 30
_TRIED: Final = 2
"""Images of the trial; with one image, some networks squeeze the batch away."""


@torch.no_grad()
def fitting_batch(
    model: nn.Module, image_size: tuple[int, int], runtime: Runtime, *, most: int = LARGEST_BATCH
) -> int:
    """Largest power of two of images, up to ``most``, whose intermediate values are bounded.

    It depends on the network, the size of the images, the precision and the kind of device, and not
    on the free memory. So workers with the same configuration choose the same batch.

    Args:
        model: the network on the runtime's device, in evaluation mode.
        image_size: height and width of an image in pixels.
        runtime: device and precision.
        most: upper limit.
    """
    limit = _MOST_BYTES.get(runtime.device.type, _MOST_BYTES_OF_ACCELERATOR)
    fitting = limit * _TRIED // _largest_value(model, image_size, runtime)
    return min(most, 1 << (max(fitting, LEAST_BATCH).bit_length() - 1))


def _largest_value(model: nn.Module, image_size: tuple[int, int], runtime: Runtime) -> int:
    """Bytes of the largest input or output of a module, for the images of the trial."""
    images = torch.zeros(_TRIED, 3, *image_size, device=runtime.device, dtype=runtime.dtype)
    sizes = [images.nbytes]

    def watch(_module: nn.Module, _inputs: object, output: object) -> None:
        values = output if isinstance(output, tuple | list) else (output,)
        sizes.extend(value.nbytes for value in values if isinstance(value, Tensor))

    hooks = [module.register_forward_hook(watch) for module in model.modules()]
    try:
        with runtime.autocast():
            model(images.to(memory_format=torch.channels_last))
    finally:
        for hook in hooks:
            hook.remove()
    return max(sizes)
