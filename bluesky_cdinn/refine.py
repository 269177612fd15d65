"""Iterative phasing: small steps that compose, batched over independent starts.

A step is a callable that takes the objects and the measurement and is a generator: it yields after each
iteration, so that whoever runs it can report, draw or stop between any two, as a plan does for a scan::

    recipe = [HIO(100), ShrinkWrap(), ER(20)]
    for objects in run(recipe, objects, measurement):
        print(objects.chi2)

Inside, the origin of every array is at index 0 (`forward.to_corner`), which saves four shifts an iteration.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bluesky_cdinn.forward import AXES, amplitude_loss, poisson_deviance
from bluesky_cdinn.support import below_ceiling, gaussian_blur, largest, typical_amplitude

# Keeps the unit phase of a vanishing field finite; far below one count.
TINY = 1e-12


@dataclass(eq=False)
class Measurement:
    """What the objects are fitted to.

    Parameters
    ----------
    magnitude
        sqrt of the counts, float32 (n0, n1, n2); zero wherever it is not fitted.
    fitted
        bool (n0, n1, n2), False where nothing is known or the voxel is held out; None where all are.
    """

    magnitude: Tensor
    fitted: Tensor | None = None

    def __post_init__(self) -> None:
        self.unfitted = None if self.fitted is None else (~self.fitted).to(self.magnitude.dtype)
        if self.fitted is not None:
            self.magnitude = self.magnitude * self.fitted
        self.power = float(self.magnitude.square().sum())

    def impose(self, field: Tensor) -> Tensor:
        """Give a field the measured magnitudes in place, keeping its phases and what was not measured."""
        ratio = field.real.square()
        ratio.addcmul_(field.imag, field.imag).add_(TINY).rsqrt_().mul_(self.magnitude)
        if self.unfitted is not None:
            ratio.add_(self.unfitted)
        return field.mul_(ratio)


@dataclass(eq=False)
class Objects:
    """Objects that are being phased, one for each start.

    Parameters
    ----------
    density
        complex64 (starts, n0, n1, n2).
    support
        Where each may be non-zero, float32 (starts, n0, n1, n2), 1 inside and 0 outside.
    chi2
        Of each start when last computed, float32 (starts,).
    """

    density: Tensor
    support: Tensor
    chi2: Tensor

    @classmethod
    def start(cls, density: Tensor, support: Tensor) -> "Objects":
        """Return objects at iteration 0, confined to their support."""
        chi2 = torch.full(density.shape[:1], torch.nan, device=density.device)
        return cls(density * support, support.to(torch.float32), chi2)

    def keep(self, indices: Tensor) -> "Objects":
        """Return the starts that ``indices`` names."""
        return Objects(self.density[indices], self.support[indices], self.chi2[indices])

    def join(self, other: "Objects") -> "Objects":
        """Return these objects followed by others of the same shape."""
        return Objects(
            torch.cat([self.density, other.density]),
            torch.cat([self.support, other.support]),
            torch.cat([self.chi2, other.chi2]),
        )


Step = Callable[[Objects, Measurement], Iterator[Objects]]


def run(recipe: Iterable[Step], objects: Objects, measurement: Measurement) -> Iterator[Objects]:
    """Apply steps in order and yield the objects after each iteration."""
    for step in recipe:
        yield from step(objects, measurement)


def measured_image(density: Tensor, measurement: Measurement) -> Tensor:
    """Return the nearest object that has the measured magnitudes: the projection on the data."""
    field = torch.fft.fftn(density, dim=AXES, norm="ortho")
    return torch.fft.ifftn(measurement.impose(field), dim=AXES, norm="ortho")


def chi2(density: Tensor, measurement: Measurement) -> Tensor:
    """Return chi2 of each object on the fitted voxels, float (starts,)."""
    field = torch.fft.fftn(density, dim=AXES, norm="ortho")
    return amplitude_loss(field, measurement.magnitude, measurement.fitted)


@dataclass(frozen=True)
class HIO:
    """Hybrid input-output (Fienup 1982): outside the support, feed back what should not be there.

    Parameters
    ----------
    iterations
        How many.
    beta
        Strength of the feedback.
    ceiling
        Largest amplitude inside the support, as a multiple of the typical one; larger values keep their
        phase and are cut. A crystal's density is as even as its lattice, and what stagnates on strong
        phases are hot spots: with the ceiling three times as many random starts succeed at a phase range
        of 2 pi, and strong ones succeed at all (docs/explanations/phasing.md). None leaves it out.
    """

    iterations: int
    beta: float = 0.9
    ceiling: float | None = None

    def __call__(self, objects: Objects, measurement: Measurement) -> Iterator[Objects]:
        outside = 1 - objects.support
        for _ in range(self.iterations):
            image = measured_image(objects.density, measurement)
            gain = objects.support
            if self.ceiling is not None:
                gain = gain * below_ceiling(image, objects.support, self.ceiling)
            # inside: image, under the ceiling; outside: density - beta * image
            objects.density.mul_(outside).add_(image.mul_(gain - self.beta * outside))
            yield objects


@dataclass(frozen=True)
class RAAR:
    """Relaxed averaged alternating reflections (Luke 2005): inside: image; outside: a damped HIO."""

    iterations: int
    beta: float = 0.9

    def __call__(self, objects: Objects, measurement: Measurement) -> Iterator[Objects]:
        outside = 1 - objects.support
        for _ in range(self.iterations):
            image = measured_image(objects.density, measurement)
            objects.density.mul_(self.beta * outside)
            objects.density.add_(image.mul_(objects.support + (1 - 2 * self.beta) * outside))
            yield objects


@dataclass(frozen=True)
class ER:
    """Error reduction (Gerchberg and Saxton 1972; Fienup 1982): project on the data, then on the support."""

    iterations: int

    def __call__(self, objects: Objects, measurement: Measurement) -> Iterator[Objects]:
        for _ in range(self.iterations):
            objects.density = measured_image(objects.density, measurement).mul_(objects.support)
            yield objects


@dataclass(frozen=True)
class AcceleratedER:
    """Error reduction with Nesterov's momentum, restarted for each object whose chi2 rises.

    Error reduction is gradient descent on chi2 with its exact step (Fienup 1982), so that momentum and
    the adaptive restart of O'Donoghue and Candes (2015) speed it up as they do any gradient descent.
    """

    iterations: int

    def __call__(self, objects: Objects, measurement: Measurement) -> Iterator[Objects]:
        current = objects.density * objects.support
        ahead = current.clone()
        age = torch.zeros(len(current), device=current.device)
        last = torch.full_like(age, torch.inf)
        for _ in range(self.iterations):
            field = torch.fft.fftn(ahead, dim=AXES, norm="ortho")
            error = amplitude_loss(field, measurement.magnitude, measurement.fitted)
            image = torch.fft.ifftn(measurement.impose(field), dim=AXES, norm="ortho").mul_(objects.support)
            age = torch.where(error > last, 0.0, age + 1)
            last, objects.chi2 = error, error
            momentum = ((age - 1) / (age + 2)).clamp_min(0)[:, None, None, None]
            ahead = image + momentum * (image - current)
            current = objects.density = image
            yield objects


@dataclass(frozen=True)
class ShrinkWrap:
    """Find the support anew from the object itself (Marchesini et al. 2003).

    Parameters
    ----------
    threshold
        Share of the object's typical amplitude that counts as inside.
    sigma
        Width of the Gaussian that smooths the amplitude first, voxels.
    max_voxels
        The support's largest volume: without a bound a low threshold lets it grow until anything fits.
    """

    threshold: float = 0.2
    sigma: float = 1.0
    max_voxels: int | None = None

    def __call__(self, objects: Objects, measurement: Measurement) -> Iterator[Objects]:
        amplitude = objects.density.abs()
        smooth = gaussian_blur(amplitude, self.sigma) if self.sigma else amplitude
        level = self.threshold * typical_amplitude(amplitude * objects.support)
        if self.max_voxels is not None:
            level = torch.maximum(level, largest(smooth, self.max_voxels))
        objects.support = (smooth > level).to(amplitude.dtype)
        yield objects


@dataclass(frozen=True)
class BreakTwins:
    """Zero half of the box once, so that an object and its twin can't both stay (Guizar-Sicairos 2012)."""

    axis: int = -1

    def __call__(self, objects: Objects, measurement: Measurement) -> Iterator[Objects]:
        n = objects.density.shape[self.axis]
        objects.density.narrow(self.axis, n // 2, n - n // 2).zero_()
        yield objects


@dataclass(frozen=True)
class GradientDescent:
    """Fit the complex density by automatic differentiation and Adam (Kingma and Ba 2015).

    Slower than `AcceleratedER` where both apply; it is for losses that have no projection, such as the
    Poisson likelihood at a few counts a voxel.

    Parameters
    ----------
    iterations
        How many.
    loss
        "amplitude": chi2; "poisson": the deviance of the counts.
    rate
        Adam's learning rate as a share of the object's typical amplitude.
    """

    iterations: int
    loss: Literal["amplitude", "poisson"] = "poisson"
    rate: float = 0.01

    def __call__(self, objects: Objects, measurement: Measurement) -> Iterator[Objects]:
        scale = typical_amplitude(objects.density.abs())
        values = torch.view_as_real(objects.density / scale).clone().requires_grad_()
        optimiser = torch.optim.Adam([values], lr=self.rate)
        counts = measurement.magnitude.square()
        for _ in range(self.iterations):
            optimiser.zero_grad(set_to_none=True)
            with torch.enable_grad():
                density = torch.view_as_complex(values) * (scale * objects.support)
                field = torch.fft.fftn(density, dim=AXES, norm="ortho")
                error = amplitude_loss(field, measurement.magnitude, measurement.fitted)
                if self.loss == "poisson":
                    power = field.real.square() + field.imag.square()
                    loss = poisson_deviance(power, counts, measurement.fitted).sum()
                else:
                    loss = error.sum()
                loss.backward()
            optimiser.step()
            objects.chi2 = error.detach()
            objects.density = (torch.view_as_complex(values) * (scale * objects.support)).detach()
            yield objects
