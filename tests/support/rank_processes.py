"""Real processes that talk by gloo, forked from this one, which has everything imported."""

import multiprocessing
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor
from torch import distributed as dist

from pipeline.runtime.ranks import Ranks

LONGEST_SECONDS = 300
_WAIT = timedelta(seconds=60)


def on_ranks(
    work: Callable[[Ranks], dict[str, Tensor]], *, world: int, folder: Path
) -> list[dict[str, Tensor]]:
    """Run ``work`` on ``world`` ranks; return the result of each."""
    codes = exit_codes(lambda ranks: _keep(work(ranks), folder, ranks), world=world, folder=folder)
    assert codes == [0] * world
    return [torch.load(_kept(folder, rank)) for rank in range(world)]


def exit_codes(work: Callable[[Ranks], None], *, world: int, folder: Path) -> list[int | None]:
    """Exit codes of the ranks that do ``work``; None for ranks that hang, which are ended."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("fork")
    ranks = [Ranks(rank=rank, world=world) for rank in range(world)]
    processes = [context.Process(target=_one, args=(work, own, folder)) for own in ranks]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LONGEST_SECONDS)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes


def _one(work: Callable[[Ranks], None], ranks: Ranks, folder: Path) -> None:
    # More threads than one would wait for those of OpenMP, which a fork does not have.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=ranks.rank,
        world_size=ranks.world,
        timeout=_WAIT,
    )
    work(ranks)
    dist.destroy_process_group()


def _keep(found: dict[str, Tensor], folder: Path, ranks: Ranks) -> None:
    torch.save(found, _kept(folder, ranks.rank))


def _kept(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.pt"
