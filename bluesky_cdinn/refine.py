"""Iterative phasing: small steps that compose, batched over independent starts.

A step is a callable that takes the objects and the measurement and is a generator: it yields after each
iteration, so that whoever runs it can report, draw or stop between any two, as a plan does for a scan::

    recipe = [HIO(100), ShrinkWrap(), ER(20)]
    for objects in run(recipe, objects, measurement):
        print(objects.chi2)

Inside, the origin of every array is at index 0 (`forward.to_corner`), which saves four shifts an iteration.
Steps change the objects in place. They cost two Fourier transforms and little more: what happens inside the
support happens in its box (`support_box`), and as few passes as possible over the whole grid.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bluesky_cdinn.detection import Detection
from bluesky_cdinn.forward import AXES, amplitude_loss, poisson_deviance
from bluesky_cdinn.support import TINY, below_ceiling, gaussian_blur, largest, modulus, typical_amplitude
from bluesky_cdinn.support_box import SupportBox
from bluesky_cdinn.voxels import crystal_power, mean_field


@dataclass(eq=False)
class Measurement:
    """What the objects are fitted to, and what they are judged by.

    Parameters
    ----------
    magnitude
        sqrt of the counts, float32 (n0, n1, n2); zero where not measured.
    fitted
        bool (n0, n1, n2), False where nothing is known or the voxel is held out; None where all are.
    held_out
        bool (n0, n1, n2), True where measured and kept from the fit; None where none is.
    filled
        Counts with an estimate where nothing was measured, float32 (n0, n1, n2), for the autocorrelation;
        None where all was.
    detection
        How the voxels count the crystal's far field; None where they count ``abs(F)**2``.
    averaged
        Whether the objects are means over voxels of a crystal that scatters beyond the grid (`voxels`): then
        so much less is asked of their field. Else it is the crystal's own.
    """

    magnitude: Tensor
    fitted: Tensor | None = None
    held_out: Tensor | None = None
    filled: Tensor | None = None
    detection: Detection | None = None
    averaged: bool = False

    def __post_init__(self) -> None:
        self.unfitted = None if self.fitted is None else (~self.fitted).to(self.magnitude.dtype)
        # Zero where it is not fitted, so that imposing it takes no mask.
        self.target = self.magnitude if self.fitted is None else self.magnitude * self.fitted
        # The chi2 that counting noise alone gives: the variance of sqrt(counts) is 1/4, and that of no
        # more than their mean where they are few.
        noise = self.target.clamp_max(0.5)
        if self.averaged:
            self.target, noise = mean_field(self.target), mean_field(noise)
        self.power = float(self.target.square().sum())
        self.noise = float(noise.square().sum()) / max(self.power, TINY)

    @property
    def intensity(self) -> Tensor:
        """Counts, or the estimate of them where they were not measured."""
        return self.magnitude.square() if self.filled is None else self.filled

    @property
    def fitted_counts(self) -> Tensor:
        """Counts, zero where they are not fitted."""
        counts = self.magnitude.square()
        return counts if self.fitted is None else counts.mul_(self.fitted)

    @property
    def object_intensity(self) -> Tensor:
        """What the intensity is of the objects' own field."""
        return mean_field(self.intensity.sqrt()).square() if self.averaged else self.intensity

    def crystal_power(self, power: Tensor) -> Tensor:
        """Return the crystal's ``abs(F)**2`` from the objects' own, float (..., n0, n1, n2)."""
        return crystal_power(power) if self.averaged else power

    def expected(self, power: Tensor) -> Tensor:
        """Return the counts to expect of the objects' ``abs(F)**2``, float (..., n0, n1, n2)."""
        power = self.crystal_power(power)
        return power if self.detection is None else self.detection.expected(power)

    def chi2(self, power: Tensor) -> Tensor:
        """Return chi2 of the objects' ``abs(F)**2`` where it is fitted, as iterations count it."""
        expected = self.expected(power).sqrt()
        expected = mean_field(expected) if self.averaged else expected
        return amplitude_loss(expected, self.target, self.fitted)

    def impose(self, field: Tensor, starts: slice = slice(None)) -> Tensor:
        """Give a field the measured magnitudes in place, keeping its phases and what was not measured.

        ``starts`` says which it is of, where each has a measurement of its own.
        """
        if self.detection is not None:
            power = self.crystal_power(field.real.square().add_(field.imag.square()))
            return self.detection.impose(field, self.magnitude, self.fitted, power)
        target, unfitted = self.target, self.unfitted
        if target.ndim > 3:
            target, unfitted = target[starts], None if unfitted is None else unfitted[starts]
        ratio = modulus(field)
        if unfitted is None:
            torch.div(target, ratio, out=ratio)
        else:
            torch.addcdiv(unfitted, target, ratio, out=ratio)
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

    def to(self, device: torch.device | str) -> "Objects":
        """Return these objects on a device."""
        return Objects(self.density.to(device), self.support.to(device), self.chi2.to(device))

    def join(self, other: "Objects") -> "Objects":
        """Return these objects followed by others of the same shape."""
        return Objects(
            torch.cat([self.density, other.density]),
            torch.cat([self.support, other.support]),
            torch.cat([self.chi2, other.chi2]),
        )


def power_of(objects: Objects) -> Tensor:
    """Return ``abs(F)**2``, float (starts, n0, n1, n2)."""
    field = torch.fft.fftn(objects.density, dim=AXES, norm="ortho")
    return field.real.square().add_(field.imag.square())


Step = Callable[[Objects, Measurement], Iterator[Objects]]


def run(recipe: Iterable[Step], objects: Objects, measurement: Measurement) -> Iterator[Objects]:
    """Apply steps in order and yield the objects after each iteration."""
    for step in recipe:
        yield from step(objects, measurement)


def measured_image(density: Tensor, measurement: Measurement, starts: slice = slice(None)) -> Tensor:
    """Return the nearest object that has the measured magnitudes: the projection on the data."""
    field = torch.fft.fftn(density, dim=AXES, norm="ortho")
    return torch.fft.ifftn(measurement.impose(field, starts), dim=AXES, norm="ortho")


def measured_images(density: Tensor, measurement: Measurement) -> Iterator[tuple[slice, Tensor]]:
    """Yield which objects, and their projections on the data, until all are done.

    On a CPU one object at a time: it takes the memory that the one before has left, while large batches get
    fresh pages in each iteration, which cost as much as the transforms. On an accelerator all at once.
    """
    for part in parts(density):
        yield part, measured_image(density[part], measurement, part)


def parts(density: Tensor) -> list[slice]:
    """Return which objects are worked on together: see `measured_images`."""
    together = 1 if density.device.type == "cpu" else len(density)
    return [slice(first, first + together) for first in range(0, len(density), together)]


def free_chi2(density: Tensor, measurement: Measurement) -> Tensor:
    """Return chi2 of each object on the voxels held out of the fit, float (starts,)."""
    field = torch.fft.fftn(density, dim=AXES, norm="ortho")
    power = measurement.crystal_power(field.abs().square())
    return amplitude_loss(power.sqrt(), measurement.magnitude, measurement.held_out)


def held_out_deviance(power: Tensor, measurement: Measurement) -> float:
    """Return the Poisson deviance of a voxel held out of the fit.

    ``power`` is ``abs(F)**2`` of an object, float (n0, n1, n2).
    """
    counts = measurement.magnitude.square()
    return float(poisson_deviance(measurement.expected(power), counts, measurement.held_out))


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
        phases are hot spots: with the ceiling twice as many random starts succeed at a phase range
        of 2 pi, and strong ones succeed at all (docs/explanations/phasing.md). None leaves it out.
    """

    iterations: int
    beta: float = 0.9
    ceiling: float | None = None

    def __call__(self, objects: Objects, measurement: Measurement) -> Iterator[Objects]:
        density, box = objects.density, SupportBox.of(objects.support)
        inside = box.cut(objects.support)
        outside = 1 - inside
        for _ in range(self.iterations):
            # outside: density - beta * image; inside: image, under the ceiling
            image = feed_back(density, measurement, box, 1, -self.beta)
            if self.ceiling is not None:
                image.mul_(below_ceiling(image, inside, self.ceiling))
            box.paste(box.cut(density).mul_(outside).add_(image.mul_(inside)), density)
            yield objects


@dataclass(frozen=True)
class RAAR:
    """Relaxed averaged alternating reflections (Luke 2005): inside: image; outside: a damped HIO."""

    iterations: int
    beta: float = 0.9

    def __call__(self, objects: Objects, measurement: Measurement) -> Iterator[Objects]:
        density, box = objects.density, SupportBox.of(objects.support)
        inside = box.cut(objects.support)
        outside = 1 - inside
        for _ in range(self.iterations):
            image = feed_back(density, measurement, box, self.beta, 1 - 2 * self.beta)
            box.paste(box.cut(density).mul_(outside).add_(image.mul_(inside)), density)
            yield objects


def feed_back(density: Tensor, measurement: Measurement, box: SupportBox, kept: float, fed: float) -> Tensor:
    """Make a density ``kept * density + fed * image`` in place, as it is to be outside the support.

    Returns
    -------
    image
        In the box, ``(starts, *sides)``, as it is to be inside the support.
    """
    inside = density.new_empty(box.places.shape)
    for part, image in measured_images(density, measurement):
        inside[part] = box.cut(image)
        if kept != 1:
            density[part].mul_(kept)
        density[part].add_(image, alpha=fed)
    return inside


@dataclass(frozen=True)
class ER:
    """Error reduction (Gerchberg and Saxton 1972; Fienup 1982): project on the data, then on the support."""

    iterations: int

    def __call__(self, objects: Objects, measurement: Measurement) -> Iterator[Objects]:
        for _ in range(self.iterations):
            for part, image in measured_images(objects.density, measurement):
                torch.mul(image, objects.support[part], out=objects.density[part])
            yield objects


def data_gap(density: Tensor, measurement: Measurement, box: SupportBox) -> tuple[Tensor, Tensor]:
    """Return what a density that is zero outside a box lacks to fit the data, and its squared norm.

    Returns
    -------
    gap
        ``density - image`` in the box, complex ``(starts, *sides)``.
    distance
        The sum of its squares over the whole grid, float (starts,): by Parseval that of the magnitudes.
    """
    gap, distances = box.cut(density), []
    for part, image in measured_images(density, measurement):
        gap[part] -= box.cut(image)
        # Outside the box the gap is the image, but for its sign.
        box.paste(gap[part], image)
        distances.append(squared_norm(image).flatten())
    return gap, torch.cat(distances)


def squared_norm(values: Tensor) -> Tensor:
    """Return the sum of abs(values)**2 of each object, float (starts, 1, 1, 1)."""
    return inner_product(values, values)


def inner_product(first: Tensor, second: Tensor) -> Tensor:
    """Return the real part of each object's inner product with another, float (starts, 1, 1, 1)."""
    rows = zip(torch.view_as_real(first).flatten(1), torch.view_as_real(second).flatten(1), strict=True)
    return torch.stack([torch.dot(a, b) for a, b in rows])[:, None, None, None]


@dataclass(frozen=True)
class CentreObjects:
    """Move each object's centre of mass to n // 2, as any shift of it has the same diffraction.

    Away from the box's edge it can be cut out whole.
    """

    def __call__(self, objects: Objects, measurement: Measurement) -> Iterator[Objects]:
        amplitude = objects.density.abs() * objects.support
        for start, weight in enumerate(amplitude):
            steps = []
            for axis, n in enumerate(weight.shape):
                profile = weight.sum(dim=tuple(a for a in range(3) if a != axis))
                turn = torch.exp(2j * torch.pi * torch.arange(n, device=weight.device) / n)
                # The mean on a circle, so that an object across the edge has a centre too.
                place = float(torch.angle((profile * turn).sum())) / (2 * torch.pi) * n
                steps.append(n // 2 - round(place))
            objects.density[start] = objects.density[start].roll(steps, (0, 1, 2))
            objects.support[start] = objects.support[start].roll(steps, (0, 1, 2))
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
        The support's largest volume, or that of each object: without a bound a low threshold lets it grow
        until anything fits.
    """

    threshold: float = 0.2
    sigma: float = 1.0
    max_voxels: int | tuple[int, ...] | None = None

    def __call__(self, objects: Objects, measurement: Measurement) -> Iterator[Objects]:
        found = torch.empty_like(objects.support)
        for part in parts(objects.density):
            amplitude = objects.density[part].abs()
            smooth = gaussian_blur(amplitude, self.sigma) if self.sigma else amplitude
            level = self.threshold * typical_amplitude(amplitude * objects.support[part])
            if self.max_voxels is not None:
                most = self.max_voxels
                level = torch.maximum(level, largest(smooth, most if isinstance(most, int) else most[part]))
            found[part] = smooth > level
        objects.support = found
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

    Slower than `lbfgs.LBFGS` where both apply; it is for losses that have no projection, such as the
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
                error = amplitude_loss(field, measurement.target, measurement.fitted)
                if self.loss == "poisson":
                    power = measurement.expected(field.real.square() + field.imag.square())
                    loss = poisson_deviance(power, counts, measurement.fitted).sum()
                else:
                    loss = error.sum()
                loss.backward()
            optimiser.step()
            objects.chi2 = error.detach()
            objects.density = (torch.view_as_complex(values) * (scale * objects.support)).detach()
            yield objects
