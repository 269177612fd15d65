"""How far a beam's partial coherence blurs a pattern, told by fitting it together with the object.

An object that was fitted without blur has given way to it: its own derivatives by the blur tell next to
nothing, and taking turns between the two gets nowhere, for along the valley that both lie in the misfit
hardly falls. A quasi-Newton descent in both at once learns the valley's direction
(docs/explanations/phasing.md). A background is fitted with them, which would be taken for blur otherwise.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bluesky_cdinn.detection import ANSCOMBE, COHERENT, Blur, Detection, mutual_coherence
from bluesky_cdinn.forward import AXES, poisson_deviance
from bluesky_cdinn.lbfgs import LBFGS
from bluesky_cdinn.refine import Measurement, Objects, ShrinkWrap, power_of, run
from bluesky_cdinn.support import TINY

# What is tried first, sigma in voxels.
LEAST = 0.2
# Share of the misfit that it must take away for a fit to be worth its while.
WORTHWHILE = 0.01
# Iterations that settle an object under a blur; of the fit of both.
SETTLING, FITTING = 12, 60
# Counts a voxel that a background starts from; none would stay none.
FAINT = 0.05
# By which finite differences tell how much the pattern depends on a number.
STEP = 0.02

Take = Callable[[Objects], None]


def coherent_misfit(
    objects: Objects, measurement: Measurement, smoothness: float, watch: Take
) -> float | None:
    """Return the Poisson deviance a voxel without blur; None where none need be looked for.

    Parameters
    ----------
    objects, measurement, smoothness, watch
        As in `fitted_blur`.
    """
    coherent, little = under(measurement, COHERENT), under(measurement, (LEAST, LEAST, LEAST))
    without = settled(objects, coherent, smoothness, watch)
    now = deviance(without, coherent)
    then = deviance(settled(objects, little, smoothness, watch), little)
    if not then < (1 - WORTHWHILE) * now:
        return None
    return descended(Fit.of(without, measurement, ()), watch).misfit()


def fitted_blur(
    objects: Objects, measurement: Measurement, smoothness: float, watch: Take, start: Blur, *, alike: bool
) -> tuple[Blur, float]:
    """Return the blur that fits best together with the first object, and the deviance a voxel then.

    Parameters
    ----------
    objects
        Fitted to the measurement; they stay as they are.
    measurement
        On a small grid: an object is fitted to it some 75 times over.
    smoothness
        As `lbfgs.LBFGS` takes it.
    watch
        Gets the object after each iteration.
    start
        One sigma along each axis, voxels.
    alike
        Whether sigma is the same along all axes: what can be told of an object that isn't right yet.
    """
    known = settled(objects, under(measurement, start), smoothness, watch)
    fit = descended(Fit.of(known, measurement, start[:1] if alike else start), watch)
    return fit.blur, fit.misfit()


def settled(objects: Objects, measurement: Measurement, smoothness: float, watch: Take) -> Objects:
    """Return the first of some objects after a few iterations more."""
    first = objects.keep(torch.arange(1))
    for state in run([ShrinkWrap(0.2, sigma=0.8), LBFGS(SETTLING, smoothness)], first, measurement):
        watch(state)
    return first


def under(measurement: Measurement, blur: Blur) -> Measurement:
    """Return the measurement as a beam of that coherence gives it."""
    a, b, c = measurement.magnitude.shape
    return replace(measurement, detection=Detection((a, b, c), blur))


def deviance(objects: Objects, measurement: Measurement) -> float:
    """Return the Poisson deviance a voxel of the first object."""
    counts = measurement.magnitude.square()
    return float(poisson_deviance(measurement.expected(power_of(objects)), counts, measurement.fitted)[0])


def descended(fit: "Fit", watch: Take) -> "Fit":
    """Return a fit after its iterations."""
    for state in fit.iterations():
        watch(state)
    return fit


@dataclass(eq=False)
class Fit:
    """An object, the blur of its pattern and a background, fitted together.

    All are scaled so that the misfit, in square roots of counts, curves about alike along each, and the
    roots of sigma**2 and of the background are what varies, so that none comes out negative.

    Parameters
    ----------
    objects
        One object; its density changes.
    measurement
        That it is fitted to, inside its support.
    values
        The density's real and imaginary parts, then sigma along each axis and the background's root, each
        over its scale; one sigma for all axes, or none for a coherent beam.
    scales
        Of the numbers after the density.
    """

    objects: Objects
    measurement: Measurement
    values: tuple[Tensor, Tensor]
    scales: Tensor

    @classmethod
    def of(cls, objects: Objects, measurement: Measurement, sigmas: Sequence[float]) -> "Fit":
        """Start from an object settled under a blur: none, one for all axes, or one for each, voxels."""
        numbers = torch.tensor([*sigmas, FAINT**0.5], device=objects.density.device).clamp_min_(STEP)
        density = torch.view_as_real(objects.density * objects.support).clone()
        fit = cls(objects, measurement, (density, numbers), torch.ones_like(numbers))
        before = fit.roots(density, numbers)
        steps = STEP * torch.eye(len(numbers), device=numbers.device)
        slopes = [(fit.roots(density, numbers + step) - before).square().sum() / STEP**2 for step in steps]
        fit.scales = torch.stack(slopes).clamp_min(TINY).rsqrt()
        fit.values = (density, numbers / fit.scales)
        return fit

    @property
    def blur(self) -> Blur:
        """One sigma along each axis, voxels."""
        *sigmas, _ = (self.values[1].detach() * self.scales).abs().tolist()
        if len(sigmas) < 3:
            return (sigmas[0],) * 3 if sigmas else COHERENT
        return sigmas[0], sigmas[1], sigmas[2]

    def expected(self, density: Tensor, numbers: Tensor) -> Tensor:
        """Return the counts to expect, float (1, n0, n1, n2); differentiable."""
        field = torch.fft.fftn(torch.view_as_complex(density) * self.objects.support, dim=AXES, norm="ortho")
        power = self.measurement.crystal_power(field.real.square() + field.imag.square())
        if len(numbers) > 1:
            shape = power.shape[1:]
            lags = torch.fft.rfftn(power, dim=AXES) * mutual_coherence(shape, numbers[:-1].expand(3))
            power = torch.fft.irfftn(lags, s=shape, dim=AXES).clamp_min(0)
        return power + numbers[-1].square()

    def roots(self, density: Tensor, numbers: Tensor) -> Tensor:
        """Return the square roots of expected counts, where counts are to be fitted."""
        fitted = self.measurement.fitted
        roots = (self.expected(density, numbers) + ANSCOMBE).sqrt()
        return roots if fitted is None else roots * fitted

    def iterations(self) -> Iterator[Objects]:
        """Descend; yields the object after each look at the misfit."""
        magnitude, fitted = self.measurement.magnitude, self.measurement.fitted
        wanted = (magnitude.square() + ANSCOMBE).sqrt()
        wanted = wanted if fitted is None else wanted * fitted
        density, numbers = (value.requires_grad_() for value in self.values)
        descent = torch.optim.LBFGS(
            [density, numbers],
            max_iter=1,
            max_eval=25,
            history_size=10,
            line_search_fn="strong_wolfe",
            tolerance_grad=0,
            tolerance_change=0,
        )

        def loss() -> Tensor:
            descent.zero_grad()
            with torch.enable_grad():
                gap = (self.roots(density, numbers * self.scales) - wanted).square().sum()
                gap.backward()
            return gap.detach()

        for _ in range(FITTING):
            descent.step(loss)
            self.objects.density = torch.view_as_complex(density.detach()) * self.objects.support
            yield self.objects

    def misfit(self) -> float:
        """Return the Poisson deviance a voxel."""
        density, numbers = self.values
        expected = self.expected(density.detach(), numbers.detach() * self.scales)
        counts = self.measurement.magnitude.square()
        return float(poisson_deviance(expected, counts, self.measurement.fitted)[0])
