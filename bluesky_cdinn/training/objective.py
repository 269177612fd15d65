"""What a network is asked for: the object, up to what diffraction can't tell, and its diffraction."""

import torch
from torch import Tensor, nn

from bluesky_cdinn.forward import AXES, to_corner
from bluesky_cdinn.refine import HIO, BreakTwins, Measurement, Objects, ShrinkWrap, run
from bluesky_cdinn.starts import guessed_support
from bluesky_cdinn.support import autocorrelation_support
from bluesky_cdinn.training.batch import Batch

# How far phase retrieval has come when the network looks at it: iterations from random phases, drawn evenly.
HEADWAY = (10, 20, 40, 60, 100)
# Between two looks of the network.
BETWEEN = 20
ROUNDS = 2
# Weight of the misfit to the data beside that to the object.
PHYSICS = 0.5
CEILING, ROOM = 1.15, 1.3
TINY = 1e-6


def objective(model: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of a network on a batch, and scores by name.

    The network looks twice: at what some iterations made of random phases, and at what a few more made of
    its own first guess; so it learns from its own mistakes too. Each look is compared with the true
    object, after twin, translation and global phase are taken from the comparison, and, propagated,
    with the measurement.
    """
    measurement = Measurement(batch.magnitude, batch.measured)
    truth = to_corner(batch.truth)
    with torch.no_grad():
        objects = half_phased(measurement, generator)
    losses, scores = [], {}
    for look in range(1, ROUNDS + 1):
        guess = model(batch.magnitude, batch.measured, objects.density, objects.support)
        target = aligned(truth, guess.detach())
        error = squared_error(guess, target)
        misfit = chi2(guess, batch)
        # The root, so that crystals nearly solved count as much as those that are not.
        losses.append((error + 1e-3).sqrt().mean() + PHYSICS * misfit.mean())
        scores[f"correlation_{look}"] = float(correlation(guess.detach(), target).mean())
        scores[f"chi2_{look}"] = float(misfit.detach().mean())
        if look < ROUNDS:
            with torch.no_grad():
                objects = continued(guess.detach(), measurement)
    return torch.stack(losses).mean(), scores


def half_phased(measurement: Measurement, generator: torch.Generator) -> Objects:
    """Return where phase retrieval stands after some iterations from random phases."""
    magnitude = measurement.magnitude
    support = torch.stack([autocorrelation_support(one) for one in magnitude.square()]).float()
    room = [int(ROOM * float(one.sum())) for one in support]
    device = magnitude.device
    phases = 6.2832 * torch.rand(magnitude.shape, generator=generator, device=device)
    objects = Objects.start(
        torch.polar(torch.rand(magnitude.shape, generator=generator, device=device), phases), support
    )
    power = magnitude.square().sum(AXES, keepdim=True)
    objects.density *= (power / objects.density.abs().square().sum(AXES, keepdim=True)).sqrt()
    choice = int(torch.randint(len(HEADWAY), (1,), generator=generator, device=device))
    left = HEADWAY[choice]
    first = True
    while left > 0:
        _advance(objects, measurement, HIO(min(20, left), ceiling=CEILING))
        left -= 20
        if first:
            if left > 0:
                _advance(objects, measurement, BreakTwins())
            first = False
        elif left > 0:
            _wrap(objects, measurement, room, 2.0)
    return recentred(objects)


def continued(guess: Tensor, measurement: Measurement) -> Objects:
    """Return where a few iterations of phase retrieval take a network's guess."""
    objects = Objects.start(guess * scale_to(guess, measurement), guessed_support(guess))
    _advance(objects, measurement, HIO(BETWEEN, ceiling=CEILING))
    return recentred(objects)


def _advance(objects: Objects, measurement: Measurement, step: HIO | BreakTwins) -> None:
    for _ in run([step], objects, measurement):
        pass


def _wrap(objects: Objects, measurement: Measurement, room: list[int], sigma: float) -> None:
    for i, voxels in enumerate(room):
        one = objects.keep(torch.tensor([i], device=objects.density.device))
        for _ in run([ShrinkWrap(0.15, sigma, max(1, voxels))], one, measurement):
            pass
        objects.support[i] = one.support[0]


def recentred(objects: Objects) -> Objects:
    """Return objects moved, by whole voxels, to have their centres of mass at index 0."""
    weight = objects.density.abs().square() * objects.support
    shifts = []
    for axis in AXES:
        profile = weight.sum([a for a in AXES if a != axis])
        n = profile.shape[-1]
        turn = torch.exp(2j * torch.pi * torch.arange(n, device=profile.device) / n)
        shifts.append((torch.angle((profile * turn).sum(-1)) / (2 * torch.pi) * n).round().long())
    moved = [
        (density.roll(step, AXES), support.roll(step, AXES))
        for density, support, step in zip(
            objects.density, objects.support, (-torch.stack(shifts, -1)).tolist(), strict=True
        )
    ]
    density, support = (torch.stack(part) for part in zip(*moved, strict=True))
    return Objects(density, support, objects.chi2)


def scale_to(guess: Tensor, measurement: Measurement) -> Tensor:
    """Return the factor that brings each guess' diffraction closest to the measured magnitudes."""
    size = torch.fft.fftn(guess, dim=AXES, norm="ortho").abs()
    known = measurement.target
    if measurement.fitted is not None:
        size = size * measurement.fitted
    return (size * known).sum(AXES, keepdim=True) / size.square().sum(AXES, keepdim=True).clamp_min(TINY)


def chi2(guess: Tensor, batch: Batch) -> Tensor:
    """Return chi2 of each guess at its best scale, float (batch,)."""
    size = torch.fft.fftn(guess, dim=AXES, norm="ortho").abs() * batch.measured
    scale = (size * batch.magnitude).sum(AXES, keepdim=True)
    scale = scale / size.square().sum(AXES, keepdim=True).clamp_min(TINY)
    power = batch.magnitude.square().sum(AXES).clamp_min(TINY)
    return (scale * size - batch.magnitude).square().sum(AXES) / power


def squared_error(guess: Tensor, target: Tensor) -> Tensor:
    """Return the squared distance over the target's squared norm, float (batch,)."""
    gap = torch.view_as_real(guess - target).square().sum((-1, *(a - 1 for a in AXES)))
    return gap / target.abs().square().sum(AXES)


def correlation(guess: Tensor, target: Tensor) -> Tensor:
    """Return the complex correlation of each guess with its target, 0 to 1, float (batch,)."""
    product = (guess * target.conj()).sum(AXES).abs()
    return product / (guess.abs().square().sum(AXES) * target.abs().square().sum(AXES)).sqrt().clamp_min(TINY)


@torch.no_grad()
def aligned(truth: Tensor, guess: Tensor) -> Tensor:
    """Return each true object as it is most like a guess: itself or its twin, moved, at a global phase.

    Parameters
    ----------
    truth, guess
        complex64 (batch, n0, n1, n2), origin at index 0.

    Notes
    -----
    The correlation over all shifts is one transform (the correlation theorem); between voxels its peak is
    a parabola's.
    """
    field, other = (torch.fft.fftn(values, dim=AXES, norm="ortho") for values in (truth, guess))
    # The twin, conjugated and inverted in space, has the conjugate transform.
    fields = torch.stack([field, field.conj().resolve_conj()])
    likeness = torch.fft.ifftn(other * fields.conj(), dim=AXES).abs()
    best = likeness.flatten(-3).amax(-1).argmax(0)
    rows = torch.arange(len(truth), device=truth.device)
    chosen, likeness = fields[best, rows], likeness[best, rows]
    shape = likeness.shape[-3:]
    place = torch.stack(torch.unravel_index(likeness.flatten(1).argmax(1), shape), -1)
    peak = likeness[rows, *place.unbind(-1)]
    for axis, n in zip(AXES, shape, strict=True):
        step = torch.zeros(3, dtype=torch.long, device=truth.device)
        step[axis] = 1
        sizes = torch.tensor(shape, device=truth.device)
        below = likeness[rows, *((place - step) % sizes).unbind(-1)]
        above = likeness[rows, *((place + step) % sizes).unbind(-1)]
        bend = (2 * peak - below - above).clamp_min(TINY)
        shift = place[:, axis] + (0.5 * (above - below) / bend).clamp(-0.5, 0.5)
        turns = torch.fft.fftfreq(n, device=truth.device)
        ramp = torch.exp(-2j * torch.pi * shift[:, None] * turns)
        view = [len(truth), 1, 1, 1]
        view[axis] = n
        chosen = chosen * ramp.reshape(view)
    moved = torch.fft.ifftn(chosen, dim=AXES, norm="ortho")
    product = (guess * moved.conj()).sum(AXES, keepdim=True)
    return moved * torch.exp(1j * product.angle())
