"""Where phasing starts from: the seam that every guess, classical or learned, comes in by."""

from typing import Protocol

import torch
from torch import Tensor

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.forward import AXES, to_corner
from bluesky_cdinn.refine import Measurement, Objects
from bluesky_cdinn.support import autocorrelation_support


class Start(Protocol):
    """Gives first objects for a measurement."""

    def __call__(self, measurement: Measurement, count: int, generator: torch.Generator) -> Objects:
        """Return ``count`` independent first objects, the same for the same generator state."""
        ...


def autocorrelation_start(measurement: Measurement, count: int, generator: torch.Generator) -> Objects:
    """Start from random phases inside the support that the autocorrelation tells."""
    support = autocorrelation_support(measurement.object_intensity)
    return _random_density(support.to(torch.float32), measurement, count, generator)


def random_start(measurement: Measurement, count: int, generator: torch.Generator) -> Objects:
    """Start from random phases inside the central half of each axis: knowing nothing but the sampling."""
    support = torch.zeros_like(measurement.magnitude)
    support[tuple(slice(n // 4, n // 4 + max(n // 2, 1)) for n in support.shape)] = 1
    return _random_density(to_corner(support), measurement, count, generator)


def start_named(name: str) -> Start:
    """Return the start of a name in `settings.ReconstructionOptions.start` that needs no weights.

    Raises
    ------
    InvalidInput
        If there is no such start.
    """
    if name in ("auto", "autocorrelation"):
        return autocorrelation_start
    if name == "random":
        return random_start
    raise InvalidInput(f"start must be auto, network, autocorrelation or random, got {name!r}")


def _random_density(
    support: Tensor, measurement: Measurement, count: int, generator: torch.Generator
) -> Objects:
    shape = (count, *support.shape)
    # Drawn on the CPU, so that a seed means the same start on every device.
    amplitude = torch.rand(shape, generator=generator)
    phase = 2 * torch.pi * torch.rand(shape, generator=generator)
    density = torch.polar(amplitude, phase).to(support.device) * support
    scale = (measurement.power / density.abs().square().sum(AXES, keepdim=True).clamp_min(1e-12)).sqrt()
    return Objects.start(density * scale, support.expand(shape).clone())
