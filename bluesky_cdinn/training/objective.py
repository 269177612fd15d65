"""What a network is asked for: the object, up to what diffraction can't tell, and its diffraction."""

import torch
from torch import Tensor, nn

from bluesky_cdinn.forward import AXES, to_corner
from bluesky_cdinn.guess import chi2_of, continued, half_phased, room_of
from bluesky_cdinn.refine import Measurement, Objects
from bluesky_cdinn.support import autocorrelation_support
from bluesky_cdinn.training.batch import Batch

# How far phase retrieval has come when the network looks at it: iterations from random phases, drawn evenly.
HEADWAY = (10, 20, 40, 60, 100)
ROUNDS = 2
# Weight of the misfit to the data beside that to the object.
PHYSICS = 0.5
TINY = 1e-6
# From the nearest voxel to the peak between voxels.
NEWTON_STEPS = 3


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
        choice = torch.randint(len(HEADWAY), (1,), generator=generator, device=generator.device)
        objects = random_states(measurement, generator, HEADWAY[int(choice)])
    losses, scores = [], {}
    for look in range(1, ROUNDS + 1):
        guess = model(batch.magnitude, batch.measured, objects.density, objects.support)
        target = aligned(truth, guess.detach())
        error = squared_error(guess, target)
        misfit = chi2_of(guess, measurement)
        # The root, so that crystals nearly solved count as much as those that are not.
        losses.append((error + 1e-3).sqrt().mean() + PHYSICS * misfit.mean())
        scores[f"correlation_{look}"] = float(correlation(guess.detach(), target).mean())
        scores[f"chi2_{look}"] = float(misfit.detach().mean())
        if look < ROUNDS:
            with torch.no_grad():
                objects = continued(guess.detach(), measurement)
    return torch.stack(losses).mean(), scores


def random_states(measurement: Measurement, generator: torch.Generator, iterations: int) -> Objects:
    """Return where phase retrieval stands after some iterations from random phases, one for each crystal."""
    magnitude = measurement.magnitude
    support = torch.stack([autocorrelation_support(one) for one in magnitude.square()]).float()
    device = magnitude.device
    amplitude = torch.rand(magnitude.shape, generator=generator, device=device)
    phase = 2 * torch.pi * torch.rand(magnitude.shape, generator=generator, device=device)
    objects = Objects.start(torch.polar(amplitude, phase), support)
    power = magnitude.square().sum(AXES, keepdim=True)
    objects.density *= (power / objects.density.abs().square().sum(AXES, keepdim=True)).sqrt()
    return half_phased(objects, measurement, iterations, room_of(support))


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
    found by Newton's method.
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
    lines = [2 * torch.pi * torch.fft.fftfreq(n, device=truth.device) for n in shape]
    wavevectors = torch.stack(torch.meshgrid(*lines, indexing="ij"), -1).reshape(-1, 3)
    shift = _peak((other * chosen.conj()).flatten(1), wavevectors, place.to(torch.float32))
    ramp = torch.exp(-1j * (shift @ wavevectors.mT)).reshape(truth.shape)
    moved = torch.fft.ifftn(chosen * ramp, dim=AXES, norm="ortho")
    product = (guess * moved.conj()).sum(AXES, keepdim=True)
    return moved * torch.exp(1j * product.angle())


def _peak(spectrum: Tensor, wavevectors: Tensor, shift: Tensor) -> Tensor:
    """Return where abs(sum of spectrum * exp(i k . shift))**2 peaks near a shift, float (batch, 3)."""
    x, y, z = wavevectors.unbind(-1)
    second = torch.stack([x * x, x * y, x * z, y * y, y * z, z * z], -1)
    powers = torch.cat([torch.ones_like(x)[:, None], wavevectors, second], -1).to(spectrum.dtype)
    for _ in range(NEWTON_STEPS):
        turned = spectrum * torch.exp(1j * (shift @ wavevectors.mT))
        moments = turned @ powers
        value, slope, curvature = moments[:, :1], 1j * moments[:, 1:4], -moments[:, 4:]
        gradient = (value.conj() * slope).real
        bends = (value.conj() * curvature).real[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(-1, 3, 3)
        hessian = bends + (slope.conj()[:, :, None] * slope[:, None]).real
        # Where the peak is too flat to have a curvature of its own, the step stays small.
        level = -torch.linalg.eigvalsh(hessian).abs().amax(-1).clamp_min(TINY)[:, None, None]
        safe = hessian + 1e-3 * level * torch.eye(3, device=shift.device)
        step = torch.linalg.solve(safe, gradient[..., None])[..., 0]
        shift = shift - step.nan_to_num().clamp(-0.5, 0.5)
    return shift
