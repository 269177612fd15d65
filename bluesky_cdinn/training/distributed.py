"""Several processes that train one network, as torchrun starts them; or one that needs nothing of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bluesky_cdinn.device import choose_device


@dataclass(frozen=True)
class Ranks:
    """One process among those that train together.

    Parameters
    ----------
    rank, size
        Which process this is, and how many there are.
    device
        Where it computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this process writes and evaluates."""
        return self.rank == 0

    def share_gradients(self, module: nn.Module) -> nn.Module:
        """Return a module whose backward pass leaves every process the mean of all gradients.

        All get the first one's weights.
        """
        return module if self.size == 1 else DistributedDataParallel(module)

    def largest(self, *values: float) -> list[float]:
        """Return the largest of each value over all processes, so that all decide alike."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()


@contextmanager
def ranks(device: str = "auto") -> Iterator[Ranks]:
    """Join the processes that torchrun started, if it did, and leave them at the end.

    Parameters
    ----------
    device
        "auto", "cpu", "cuda" or "cuda:N"; under torchrun each process takes the GPU of its local rank.

    Raises
    ------
    InvalidInput
        There is no such device.
    """
    place = choose_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks(device=place)
        return
    if place.type == "cuda":
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), place)
    finally:
        dist.destroy_process_group()
