"""What an experiment does to a crystal's diffraction: windows, counts, gaps, missing frames, blur."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bluesky_cdinn.forward import AXES
from bluesky_cdinn.training.batch import Batch
from bluesky_cdinn.training.procedural import Crystals, Draw

# The centre of mass is taken of voxels above this share of the peak, as the pipeline does.
FRINGES = 0.02


@dataclass(frozen=True)
class Conditions:
    """How crystals are measured; each trouble with its probability.

    Parameters
    ----------
    counts
        Expected in the brightest voxel; drawn uniformly in its logarithm.
    background
        Of a uniform background, up to half a count a voxel.
    blurred
        Of partial coherence: a Gaussian of the lag that falls to 0.67 to 0.95 over the crystal's extent.
    gap
        Of a detector's gap: a slab of 1 to 4 voxels across the second or third axis.
    frames
        Of missing frames: the range cut on one side, or a few frames lost.
    beamstop
        Of a covered centre.
    displaced
        Of a peak that lies one voxel away from the centre.
    """

    counts: tuple[float, float] = (1e3, 1e7)
    background: float = 0.3
    blurred: float = 0.25
    gap: float = 0.25
    frames: float = 0.2
    beamstop: float = 0.03
    displaced: float = 0.2


def measure(crystals: Crystals, side: int, generator: torch.Generator, conditions: Conditions) -> Batch:
    """Return what a detector counts of crystals, in a window of ``side`` voxels about the peak.

    The truth that comes with it is the crystal as this window shows it: its field cut to the window.
    """
    draw = Draw(len(crystals.density), generator)
    field = _window(_far_field(crystals.density), side + 2)
    field = _centred(field, side, draw, conditions.displaced)
    low, high = (torch.tensor(c).log().item() for c in conditions.counts)
    counts = draw.uniform(low, high).exp()
    intensity = field.abs().square()
    intensity = _blurred(intensity, draw, crystals.oversampling, conditions.blurred)
    intensity = intensity * (counts / intensity.amax(AXES))[:, None, None, None]
    background = draw.uniform(0, 0.5) * draw.chance(conditions.background)
    measured = _measured(draw, side, conditions)
    expected = torch.fft.ifftshift(intensity, dim=AXES) + background[:, None, None, None]
    noisy = torch.poisson(expected, generator=generator)
    magnitude = noisy.sqrt() * measured
    truth = _object(field) * (field[0].numel() / crystals.density[0].numel()) ** 0.5
    facts = {
        "phase_range_rad": crystals.phase_range_rad,
        "counts": counts,
        "oversampling": crystals.oversampling,
    }
    return Batch(magnitude, measured, truth, facts)


def _far_field(density: Tensor) -> Tensor:
    """Return the orthonormal transform, origins at n // 2."""
    spectrum = torch.fft.fftn(torch.fft.ifftshift(density, dim=AXES), dim=AXES, norm="ortho")
    return torch.fft.fftshift(spectrum, dim=AXES)


def _object(field: Tensor) -> Tensor:
    """Return the inverse of `_far_field`."""
    density = torch.fft.ifftn(torch.fft.ifftshift(field, dim=AXES), dim=AXES, norm="ortho")
    return torch.fft.fftshift(density, dim=AXES)


def _window(field: Tensor, side: int) -> Tensor:
    """Return the central part of a field."""
    low = field.shape[-1] // 2 - side // 2
    return field[(slice(None), *[slice(low, low + side)] * 3)]


def _centred(field: Tensor, side: int, draw: Draw, displaced: float) -> Tensor:
    """Return the window about each peak's centre of mass, which the pipeline puts at n // 2, or beside it."""
    intensity = field.abs().square()
    bright = torch.where(intensity > FRINGES * intensity.amax(AXES, keepdim=True), intensity, 0)
    line = torch.arange(field.shape[-1], device=field.device, dtype=torch.float32)
    total = bright.sum(AXES)
    places = torch.stack(
        [bright.sum([a for a in AXES if a != axis]) @ line / total for axis in AXES], -1
    ).round()
    offset = draw.integers(-1, 2, 3) * draw.chance(displaced)[:, None]
    first = places.long() - field.shape[-1] // 2 + offset
    rolled = [one.roll((-steps).tolist(), AXES) for one, steps in zip(field, first, strict=True)]
    return _window(torch.stack(rolled), side)


def _blurred(intensity: Tensor, draw: Draw, oversampling: Tensor, probability: float) -> Tensor:
    """Return intensities with partial coherence: the autocorrelation damped by a Gaussian of the lag."""
    side = intensity.shape[-1]
    line = (torch.arange(side, device=intensity.device) - side // 2) / side
    # Lags are in units of the crystal's extent, which is 1 / oversampling of the box.
    damping = -draw.uniform(0.05, 0.5, 3).log1p() * draw.chance(probability)[:, None]
    exponent = damping[:, :, None] * (line * oversampling[:, None])[:, None] ** 2
    a, b, c = exponent.unbind(1)
    factor = (a[:, :, None, None] + b[:, None, :, None] + c[:, None, None, :]).exp()
    lags = _object(intensity.to(torch.complex64)) * factor
    return _far_field(lags).real.clamp_min(0)


def _measured(draw: Draw, side: int, conditions: Conditions) -> Tensor:
    """Return which voxels are measured, origin at index 0, bool (batch, side, side, side)."""
    line = torch.arange(side, device=draw.device)
    away = torch.fft.ifftshift(line - side // 2)
    width = draw.integers(1, 5, 1)
    place = draw.integers(3, side // 2 - 4, 1) * torch.where(draw.chance(0.5), 1, -1)[:, None]
    gap = (away >= place) & (away < place + width) & draw.chance(conditions.gap)[:, None]
    across = draw.chance(0.5)[:, None, None, None]
    lost = torch.where(across, gap[:, None, :, None], gap[:, None, None, :])
    cut = away > draw.integers(side // 6, side // 2, 1)
    few = draw.uniform(0, 1, side) < 0.12
    frames = torch.where(draw.chance(0.5)[:, None], cut, few & (away.abs() > 1))
    lost = lost | (frames & draw.chance(conditions.frames)[:, None])[:, :, None, None]
    distance = (away[:, None, None] ** 2 + away[:, None] ** 2 + away**2).sqrt()
    covered = (distance <= draw.uniform(0.5, 1.8)[:, None, None, None]) & draw.chance(conditions.beamstop)[
        :, None, None, None
    ]
    return ~(lost | covered)
