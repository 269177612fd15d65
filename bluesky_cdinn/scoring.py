"""What an object that is known nearly tells of background and of frames' scales.

The expected counts are linear in both: in the scale of each frame, and in the background's values on three
nodes an axis, between which it is linear. Fisher's scoring finds them in a step or two of as many sums over
the grid as two Fourier transforms cost: the frames' part of its equations is diagonal, and the functions
that make up the background are products of functions of one axis.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import lsq_linear
from torch import Tensor

from bluesky_cdinn.detection import Detection
from bluesky_cdinn.refine import Measurement

Part = Literal["background", "scales"]
Numbers = NDArray[np.float64]

# Nodes of the background along each axis, and in all.
AXIS, NODES = 3, 27
# Frames differ by a tenth at a guess, which is what those that hold next to nothing are left with.
ALIKE = 0.1
# No frame counts less than this, and none more.
SCALES = (0.05, 5.0)
# No voxel is expected to hold less, counts: it would outweigh all others.
FAINTEST = 0.05


def scored(power: Tensor, measurement: Measurement, parts: frozenset[Part]) -> Detection:
    """Return the detection of a measurement after a step of Fisher's scoring, the object as it is.

    Parameters
    ----------
    power
        ``abs(F)**2`` of the object, float (n0, n1, n2).
    measurement
        Its own detection is where the step starts from, and stays as it is.
    parts
        What is to be found; the rest of the detection stays.
    """
    a, b, c = power.shape
    detection = measurement.detection or Detection((a, b, c))
    fitted = torch.ones_like(power) if measurement.fitted is None else measurement.fitted.to(power.dtype)
    power = measurement.crystal_power(power)
    pattern, expected = detection.blurred(power).clamp_min(0), detection.expected(power)
    weight = fitted / expected.clamp_min(FAINTEST)
    excess = weight * (measurement.magnitude.square() - expected)
    basis = Basis.of(power)
    nodes = basis.at_nodes(detection.background)
    scales = np.ones(a) if detection.scales is None else detection.scales.double().cpu().numpy()
    gradient = np.concatenate([basis.sums(excess), _by_frame(excess * pattern) + (1 - scales) / ALIKE**2])
    fisher = np.zeros((NODES + a, NODES + a))
    fisher[:NODES, :NODES] = basis.products(weight)
    fisher[NODES:, :NODES] = basis.by_frame(weight * pattern)
    fisher[:NODES, NODES:] = fisher[NODES:, :NODES].T
    frames = np.arange(NODES, NODES + a)
    fisher[frames, frames] = _by_frame(weight * pattern.square()) + 1 / ALIKE**2
    wanted = np.repeat(["background" in parts, "scales" in parts], [NODES, a])
    lowest = np.repeat([0.0, SCALES[0]], [NODES, a])
    highest = np.repeat([np.inf, SCALES[1]], [NODES, a])
    now = np.concatenate([nodes, scales])
    found = now.copy()
    found[wanted] += _bounded_step(
        fisher[np.ix_(wanted, wanted)], gradient[wanted], (lowest - now)[wanted], (highest - now)[wanted]
    )
    if "background" in parts:
        detection = replace(detection, background=basis.expand(found[:NODES]))
    if "scales" in parts:
        counted = _by_frame(fitted * pattern)
        # No frame counts more than another of an object that scatters nothing.
        mean = (found[NODES:] @ counted) / counted.sum() if counted.any() else 1.0
        detection = replace(detection, scales=torch.from_numpy(found[NODES:] / mean).to(power))
    return detection


@dataclass(frozen=True, eq=False)
class Basis:
    """Functions whose sum the background is: products of three, each of one axis, origin at index 0.

    Parameters
    ----------
    hats
        float (n, 3) for each axis: linear between the axis' two ends and its middle, their sum 1.
    """

    hats: tuple[Tensor, Tensor, Tensor]

    @classmethod
    def of(cls, grid: Tensor) -> "Basis":
        """Return the basis on the grid of an array."""
        a, b, c = (_hats(n).to(grid) for n in grid.shape)
        return cls((a, b, c))

    def sums(self, values: Tensor) -> Numbers:
        """Return the sum of values (n0, n1, n2) times each function, (27,)."""
        return _numbers(torch.einsum("abc,ai,bj,ck->ijk", values, *self.hats)).ravel()

    def by_frame(self, values: Tensor) -> Numbers:
        """Return the same of each frame alone, (n0, 27)."""
        first, second, third = self.hats
        frames = torch.einsum("abc,bj,ck->ajk", values, second, third)
        return _numbers(torch.einsum("ajk,ai->aijk", frames, first)).reshape(-1, NODES)

    def products(self, weight: Tensor) -> Numbers:
        """Return the sum of a weight (n0, n1, n2) times each two functions, (27, 27)."""
        a, b, c = (torch.einsum("xi,xj->xij", hats, hats).flatten(1) for hats in self.hats)
        pairs = _numbers(torch.einsum("abc,ai,bj,ck->ijk", weight, a, b, c)).reshape((AXIS,) * 6)
        return pairs.transpose(0, 2, 4, 1, 3, 5).reshape(NODES, NODES)

    def expand(self, nodes: Numbers) -> Tensor:
        """Return the background that has these values at the nodes, (n0, n1, n2)."""
        values = torch.from_numpy(nodes.reshape((AXIS,) * 3)).to(self.hats[0])
        return torch.einsum("ijk,ai,bj,ck->abc", values, *self.hats)

    def at_nodes(self, background: Tensor | None) -> Numbers:
        """Return a background's values at the nodes, (27,)."""
        if background is None:
            return np.zeros(NODES)
        a, b, c = (hats.argmax(dim=0) for hats in self.hats)
        return _numbers(background[a][:, b][:, :, c]).ravel()


def _hats(n: int) -> Tensor:
    place = np.arange(n) - n // 2
    first, last = np.interp(place, [-(n // 2), 0], [1, 0]), np.interp(place, [0, n - 1 - n // 2], [0, 1])
    return torch.from_numpy(np.fft.ifftshift(np.stack([first, 1 - first - last, last], 1), axes=0))


def _by_frame(values: Tensor) -> Numbers:
    # One at a time: in double precision the whole would take twice its memory.
    return _numbers(torch.stack([frame.sum(dtype=torch.float64) for frame in values]))


def _numbers(values: Tensor) -> Numbers:
    return values.double().cpu().numpy()


def _bounded_step(fisher: Numbers, gradient: Numbers, lowest: Numbers, highest: Numbers) -> Numbers:
    """Return the minimum of the parabola ``x @ fisher @ x / 2 - gradient @ x`` within bounds."""
    unit = 1 / np.sqrt(np.maximum(np.diag(fisher), np.finfo(np.float32).tiny))
    scaled = fisher * unit[:, None] * unit + 1e-6 * np.eye(len(unit))
    root = np.linalg.cholesky(scaled)
    free = np.linalg.solve(scaled, gradient * unit) * unit
    if (free >= lowest).all() and (free <= highest).all():
        return free
    bounds = (lowest / unit - 1e-9, highest / unit + 1e-9)
    return lsq_linear(root.T, np.linalg.solve(root, gradient * unit), bounds=bounds).x * unit
