"""The fit that ends every phasing: error reduction that learns how its steps curve (L-BFGS)."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from bluesky_cdinn.bending import Bending
from bluesky_cdinn.refine import Measurement, Objects, data_gap, inner_product
from bluesky_cdinn.support import TINY
from bluesky_cdinn.support_box import SupportBox


@dataclass(frozen=True)
class LBFGS:
    """Fit objects inside their supports by a quasi-Newton descent, with a preference for a smooth interior.

    Error reduction is gradient descent on chi2 with its exact step (Fienup 1982). Here the last few steps
    and what they did to the gradient make the next one (L-BFGS; Nocedal 1980), at the cost of an iteration
    of error reduction: whole steps are taken, for chi2 is close to a square, and all else happens in the
    supports' box. Where a step did harm, the object starts over with plain error reduction.

    What counting noise leaves undetermined, phases where less than a photon fell, stays as the start had
    it: noise, 0.05 rad in the interior at 1e6 counts. Inside a crystal the density bends slowly. With
    ``smoothness`` the squared second differences there are added to chi2, in the ratio of the noise's
    variance to theirs; the crystal's edge, and places where its amplitude is low such as voids and
    dislocation cores, are left out of it.

    Parameters
    ----------
    iterations
        How many.
    smoothness
        Weight of the second differences, for a density whose typical amplitude is 1 and counting noise.
        The less the counts, the more it weighs, on its own. 0 leaves it out.
    least
        Of that weight, whatever the counts.
    """

    iterations: int
    smoothness: float = 0.0
    least: float = 0.0

    # Steps remembered; more gain nothing. And by how much chi2 may rise before they are forgotten.
    MEMORY: ClassVar[int] = 5
    HARM: ClassVar[float] = 1.1

    def __call__(self, objects: Objects, measurement: Measurement) -> Iterator[Objects]:
        box = SupportBox.of(objects.support)
        inside = box.cut(objects.support)
        current = box.cut(objects.density).mul_(inside)
        smooth = self.smoothness > 0 or self.least > 0
        bending = Bending.of(current, self.smoothness, self.least) if smooth else None
        # The inverse of the gradient's Lipschitz constant: 1 for chi2, 16 an axis for second differences.
        rate = torch.ones_like(inside[:, :1, :1, :1]) if bending is None else 1 / (1 + 48 * bending.weight)
        # Zero outside the box, and stays so.
        density = objects.density.zero_()
        box.paste(current, density)
        history: deque[Step] = deque(maxlen=self.MEMORY)
        last: Taken | None = None
        for _ in range(self.iterations):
            gradient, distance = data_gap(density, measurement, box)
            objects.chi2 = distance / measurement.power
            gradient.mul_(inside)
            if bending is not None:
                bending.add_gradient(current, gradient)
            if last is not None:
                history.append(Step.of(last.move, gradient - last.gradient))
                harmed = distance > self.HARM * last.distance
                if harmed.any():
                    history = deque((step.without(harmed) for step in history), maxlen=self.MEMORY)
            last = Taken(newton_step(gradient, history, rate), gradient, distance)
            current += last.move
            box.paste(current, density)
            objects.density = density
            yield objects


class Taken(NamedTuple):
    """The move just made; the gradient, and the distance from the data, where it began."""

    move: Tensor
    gradient: Tensor
    distance: Tensor


class Step(NamedTuple):
    """A step of each object, what it did to the gradient, and the inverse of their inner product.

    That is zero where the gradient did not grow along the step, or where it did harm: such a step tells
    nothing of the curvature.
    """

    move: Tensor
    change: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, move: Tensor, change: Tensor) -> "Step":
        """Return a step of all objects, ``(starts, *sides)`` each."""
        product = inner_product(move, change)
        curved = product > 1e-6 * inner_product(move, move).clamp_min(TINY)
        return cls(move, change, torch.where(curved, 1 / product, 0.0))

    def without(self, starts: Tensor) -> "Step":
        """Return the step forgotten for the starts that a bool (starts,) names."""
        return self._replace(inverse=self.inverse.masked_fill(starts[:, None, None, None], 0))


def newton_step(gradient: Tensor, history: Sequence[Step], rate: Tensor) -> Tensor:
    """Return minus the inverse Hessian times the gradient, as far as the history tells it.

    The two-loop recursion of Nocedal (1980).

    Parameters
    ----------
    gradient
        Complex ``(starts, *sides)``.
    history
        The oldest first.
    rate
        Of the steepest descent, for objects of which nothing is known yet, float (starts, 1, 1, 1).
    """
    move, weights = -gradient, []
    for step in reversed(history):
        weight = step.inverse * inner_product(step.move, move)
        move -= weight * step.change
        weights.append(weight)
    if history:
        last = history[-1]
        scale = 1 / (last.inverse * inner_product(last.change, last.change)).clamp_min(TINY)
        rate = torch.where(last.inverse > 0, scale, rate)
    move *= rate
    for step, weight in zip(history, reversed(weights), strict=True):
        move += (weight - step.inverse * inner_product(step.change, move)) * step.move
    return move
