"""Device, precision and cores of this machine, and how much of each is used."""

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
"""Description of the CPU on Linux; on ARM it names no model."""
_LOW_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Device and precision that networks run on."""

    device: torch.device
    precision: Precision

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Run matrix products in a low precision, if that is chosen; the rest in `dtype`."""
        dtype = _LOW_PRECISION.get(self.precision, torch.bfloat16)
        with torch.autocast(
            self.device.type, dtype=dtype, enabled=self.precision in _LOW_PRECISION
        ):
            yield

    @property
    def dtype(self) -> torch.dtype:
        """Data type of images and weights."""
        return torch.float64 if self.precision == "fp64" else torch.float32

    def place(self, model: Module) -> Module:
        """Move a network to the device, in the memory format and type that it runs in."""
        placed = model.to(device=self.device, dtype=self.dtype)
        return placed.to(memory_format=torch.channels_last)

    def loader_workers(self, wanted: int) -> int:
        """Choose the number of loader threads: as wanted; 0 stands for what suits the device.

        On a CPU one thread feeds any network many times over. More threads would spin on the cores
        that the network needs. An accelerator leaves all cores to the loader.
        """
        return wanted or (num_cores() if self.device.type == "cuda" else 1)

    @property
    def description(self) -> str:
        """Device, threads and precision in words."""
        if self.device.type == "cuda":
            return f"{torch.cuda.get_device_name(self.device)}, {self.precision}"
        num_threads = torch.get_num_threads()
        threads = "1 thread" if num_threads == 1 else f"{num_threads:,} threads"
        return f"{processor()}, {threads}, {self.precision}"


def resolve_runtime(precision: Literal["auto", "bf16", "fp16", "fp32", "fp64"]) -> Runtime:
    """Find the device of this machine, and the precision that ``auto`` means on it."""
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
    """Count the cores that this process may use: its share of the machine, or OMP_NUM_THREADS.

    The ranks of one machine share the cores that torchrun may use. OMP_NUM_THREADS=1 of a rank is
    ignored: torchrun sets it by default, so it is not the user's choice.
    """
    allowed = len(os.sched_getaffinity(0))
    num_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if num_ranks > 1:
        shared = len(os.sched_getaffinity(os.getppid()))
        allowed = max(1, min(allowed, shared // num_ranks))
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    is_set = wanted.isdigit() and int(wanted) > (1 if num_ranks > 1 else 0)
    return min(allowed, int(wanted)) if is_set else allowed


def processor() -> str:
    """Name the model of the CPU, because models round differently; else its instruction set."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, models), f"{platform.machine()} CPU")


def versions() -> dict[str, str]:
    """List the versions of the packages that influence numbers."""
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
