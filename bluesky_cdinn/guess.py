"""What the network looks at, and what is made of what it says: a few iterations of phase retrieval."""

import torch
from torch import Tensor

from bluesky_cdinn.forward import AXES
from bluesky_cdinn.refine import HIO, BreakTwins, Measurement, Objects, ShrinkWrap, Step, run
from bluesky_cdinn.support import TINY, gaussian_blur, typical_amplitude

# Iterations between changes of the support.
CYCLE = 20
# A crystal's amplitude is even; what exceeds this multiple of it is stagnation, not matter.
CEILING = 1.15
# Of a support over the autocorrelation's.
ROOM = 1.3


def half_phased(
    objects: Objects, measurement: Measurement, iterations: int, room: tuple[int, ...]
) -> Objects:
    """Return where phase retrieval stands after some iterations.

    Parameters
    ----------
    objects
        Random starts; changed in place.
    measurement
        One for all, or with a first axis, one for each.
    iterations
        Of HIO under the amplitude ceiling.
    room
        The largest volume of each support, voxels.
    """
    for cycle, done in enumerate(range(0, iterations, CYCLE)):
        between: list[Step] = [] if cycle == 0 else [BreakTwins()]
        if cycle > 1:
            between = [ShrinkWrap(0.15, 2.0, room)]
        advance(objects, measurement, [*between, HIO(min(CYCLE, iterations - done), ceiling=CEILING)])
    return recentred(objects)


def room_of(support: Tensor) -> tuple[int, ...]:
    """Return the largest volume that each start's support may grow to from the autocorrelation's, voxels."""
    return tuple(max(1, int(ROOM * float(one.sum()))) for one in support)


def continued(guess: Tensor, measurement: Measurement, iterations: int = CYCLE) -> Objects:
    """Return where a few iterations of phase retrieval take a guess; complex (starts, n0, n1, n2)."""
    objects = as_objects(guess, measurement)
    advance(objects, measurement, [HIO(iterations, ceiling=CEILING)])
    return recentred(objects)


def advance(objects: Objects, measurement: Measurement, recipe: list[Step]) -> None:
    """Apply steps in place."""
    for _ in run(recipe, objects, measurement):
        pass


def as_objects(guess: Tensor, measurement: Measurement) -> Objects:
    """Return a guess in the measurement's scale, in a support with a margin."""
    return Objects.start(guess * scale_to(guess, measurement), guessed_support(guess))


def guessed_support(density: Tensor) -> Tensor:
    """Return where a guessed object is, with a margin, float32 of the same shape."""
    amplitude = density.abs()
    return (gaussian_blur(amplitude, 1.0) > 0.2 * typical_amplitude(amplitude)).to(torch.float32)


def scale_to(guess: Tensor, measurement: Measurement) -> Tensor:
    """Return the factor that brings each guess' diffraction closest to the measured magnitudes."""
    size = torch.fft.fftn(guess, dim=AXES, norm="ortho").abs()
    if measurement.fitted is not None:
        size = size * measurement.fitted
    product = (size * measurement.target).sum(AXES, keepdim=True)
    return product / size.square().sum(AXES, keepdim=True).clamp_min(TINY)


def chi2_of(guess: Tensor, measurement: Measurement) -> Tensor:
    """Return chi2 of each guess at its best scale, on what is fitted, float (starts,)."""
    size = torch.fft.fftn(guess, dim=AXES, norm="ortho").abs()
    if measurement.fitted is not None:
        size = size * measurement.fitted
    gap = scale_to(guess, measurement) * size - measurement.target
    return gap.square().sum(AXES) / measurement.target.square().sum(AXES).clamp_min(TINY)


def recentred(objects: Objects) -> Objects:
    """Return objects moved, by whole voxels, to have their centres of mass at index 0."""
    weight = objects.density.abs().square() * objects.support
    steps = []
    for axis in AXES:
        profile = weight.sum([a for a in AXES if a != axis])
        n = profile.shape[-1]
        turn = torch.exp(2j * torch.pi * torch.arange(n, device=profile.device) / n)
        # The mean on a circle, so that an object across the edge has a centre too.
        steps.append((torch.angle((profile * turn).sum(-1)) / (2 * torch.pi) * n).round().long())
    shifts = (-torch.stack(steps, -1)).tolist()
    density, support = (
        torch.stack([one.roll(shift, AXES) for one, shift in zip(values, shifts, strict=True)])
        for values in (objects.density, objects.support)
    )
    return Objects(density, support, objects.chi2)
