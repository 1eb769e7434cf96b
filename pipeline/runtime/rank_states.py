"""State that each rank needs to resume: its random numbers, and its part of the sums."""

from typing import Any, TypeAlias

import torch
from torch import Tensor

from pipeline.runtime.ranks import Ranks

RankState: TypeAlias = dict[str, Any]
"""``totals``: a `Totals.state_dict`; ``random``: a `random_state`."""

_OWN_SUMS = ("loss", "num_correct")


def all_states(own: RankState, ranks: Ranks) -> list[RankState]:
    """Collect the states of all ranks, in their order; all ranks must call this."""
    if not ranks.are_many:
        return [own]
    totals = own["totals"]
    numbers = ranks.each(torch.tensor(list(totals.values()), dtype=torch.float64))
    random = {
        name: None if state is None else ranks.each(state) for name, state in own["random"].items()
    }
    return [
        {
            "totals": {
                name: type(value)(number)
                for (name, value), number in zip(totals.items(), row, strict=True)
            },
            "random": {name: None if s is None else s[rank] for name, s in random.items()},
        }
        for rank, row in enumerate(numbers.tolist())
    ]


def own_state(states: list[RankState], ranks: Ranks) -> RankState:
    """Choose the state of this rank among the stored ones.

    If the number of ranks has changed, the first rank takes all sums. A rank that is new has None
    for its random numbers.
    """
    if len(states) == ranks.world:
        return states[ranks.rank]
    totals = dict(states[0]["totals"])
    for name in _OWN_SUMS:
        together = sum(state["totals"][name] for state in states)
        totals[name] = together if ranks.is_first else type(together)(0)
    known = ranks.rank < len(states)
    return {"totals": totals, "random": states[ranks.rank]["random"] if known else None}


def random_state(device: torch.device) -> dict[str, Tensor | None]:
    """Read the state of torch's random number generators."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Tensor | None], device: torch.device) -> None:
    """Restore what `random_state` returned."""
    if state["cpu"] is not None:
        torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


def random_stream(seed: int, rank: int, *, step: int) -> int:
    """Derive a seed for one rank from one step on, different from those of other ranks."""
    mixed = (seed * 0x9E3779B97F4A7C15 + rank * 0xD1B54A32D192ED03 + step) % 2**64
    mixed = (mixed ^ mixed >> 32) * 0xD6E8FEB86659FD93 % 2**64
    return mixed >> 1
