"""What the machine offers: device, precision, cores, and how much of each is used."""

import contextlib
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)

Precision: TypeAlias = Literal["bf16", "fp16", "fp32", "fp64"]

_CPU_INFO = Path("/proc/cpuinfo")
"""Of Linux; on ARM it names no model."""
_LOW_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Where and how the networks run."""

    device: torch.device
    precision: Precision

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Run matrix products in the precision where it is a low one; the rest in `dtype`."""
        dtype = _LOW_PRECISION.get(self.precision, torch.bfloat16)
        with torch.autocast(
            self.device.type, dtype=dtype, enabled=self.precision in _LOW_PRECISION
        ):
            yield

    @property
    def dtype(self) -> torch.dtype:
        """Of images and weights."""
        return torch.float64 if self.precision == "fp64" else torch.float32

    def place(self, model: Module) -> Module:
        """The network on the device, in the memory format and the type that it runs in."""
        placed = model.to(device=self.device, dtype=self.dtype)
        return placed.to(memory_format=torch.channels_last)

    def loader_workers(self, wanted: int) -> int:
        """Loader threads: as wanted, or 0 for what suits the device.

        On a CPU one thread feeds any network many times over, and more of them would spin on the
        cores that the network needs; an accelerator leaves all cores to the loader.
        """
        return wanted or (num_cores() if self.device.type == "cuda" else 1)

    @property
    def description(self) -> str:
        """For people: device, precision, threads."""
        if self.device.type == "cuda":
            return f"{torch.cuda.get_device_name(self.device)}, {self.precision}"
        num_threads = torch.get_num_threads()
        threads = "1 thread" if num_threads == 1 else f"{num_threads:,} threads"
        return f"{processor()}, {threads}, {self.precision}"


def resolve_runtime(precision: Literal["auto", "bf16", "fp16", "fp32", "fp64"]) -> Runtime:
    """The device of this machine and the precision that ``auto`` means on it."""
    device = torch.device("cpu")
    if torch.cuda.is_available():  # torchrun gives every process of a machine a GPU of its own
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
    if device.type == "cpu":
        torch.set_num_threads(num_cores())
    if precision == "auto":
        precision = "bf16" if _has_fast_bf16(device) else "fp32"
    return Runtime(device=device, precision=precision)


def num_cores() -> int:
    """Cores that this process may use: its share of the machine's, or what OMP_NUM_THREADS says.

    The ranks of one machine share the cores that torchrun may use. The one thread that torchrun
    sets for every rank is a default of its own and no wish of the user's.
    """
    allowed = len(os.sched_getaffinity(0))
    num_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if num_ranks > 1:
        shared = len(os.sched_getaffinity(os.getppid()))
        allowed = max(1, min(allowed, shared // num_ranks))
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    is_told = wanted.isdigit() and int(wanted) > (1 if num_ranks > 1 else 0)
    return min(allowed, int(wanted)) if is_told else allowed


def processor() -> str:
    """Model of the CPU, because kinds of it round differently; its instruction set if unknown."""
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, models), f"{platform.machine()} CPU")


def versions() -> dict[str, str]:
    """Versions of what shapes the numbers."""
    import numpy
    import torchvision

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
        "zarr": metadata.version("zarr"),
    }


def _has_fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
