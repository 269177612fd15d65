"""Frames and pixels that count more than others, told by the pattern alone, before anything is phased.

A crystal's pattern is smooth: along each axis its lags end at the crystal's extent, blurred or not, and what
lies beyond is counting noise. A beam that flickers from frame to frame, or a flat field that is off by a few
percent, multiplies the pattern by something that isn't smooth, and puts a halo around the autocorrelation, in
which a search finds no bounds. The gains that account for what lies beyond are told by least squares::

    sum over samples of abs(beyond(counts / gains))**2 -> least

where the samples are the rocking curves of all pixels for the frames' gains, and all frames for the pixels'.
What gains change within the crystal's own extent is hardly seen by this, and left at 1 by a prior.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from bluesky_cdinn.grid import fill_invalid
from bluesky_cdinn.records import DiffractionVolume

Numbers = NDArray[np.floating]

logger = logging.getLogger(__name__)

STEP = "even_out"


class Kind(NamedTuple):
    """What is known of one kind of gains before they are told.

    Parameters
    ----------
    spread
        How far they are from 1 at a guess.
    enough
        Power beyond the crystal's lags, in that of counting noise, from which they are asked for. Without any
        it is up to 1.03; but what blur leaves of a long crystal may look like them, and pixels are many.
    rounds
        How often they are told at most.
    """

    spread: float
    enough: float
    rounds: int


FRAMES, PIXELS = Kind(0.1, 1.15, 4), Kind(0.05, 1.3, 1)
# Brightest pixels and frames that are asked, and the fewest that tell anything.
CURVES, IMAGES, FEWEST = 1024, 32, 8
# A sample whose outermost values exceed this share of its largest, or its noise, is cut: its lags don't end.
CUT = 0.02
# Share of the counts that may have been estimated where pixels are not valid.
FILLED = 1e-3
# Other relative errors of a voxel, so that the brightest don't decide alone.
UNLIKE = 0.03
# Where the search for the crystal's extent begins: a lag of this power, over the largest; by which steps it
# widens; and where it ends, a share of all lags along an axis.
FIRST, STEPS, WIDEST = 0.01, 0.1, 0.42
# The extent is reached where the power beyond is so close to the least farther out, and so many steps before
# the end: else it may go on.
NEAR, SURE = 1.6, 3
# Share of the lags that must lie beyond once gains are out, and share of what exceeds noise there that may be
# left: else it was something else, or the extent isn't known.
BEYOND, LEFT = 0.5, 0.5
# What is noted of each kind, what it is and what to do where it exceeds so much.
APART = {
    "frame_gain_rms": ("frames", "see the monitor, and whether the crystal stays in the beam"),
    "pixel_gain_rms": ("pixels", "measure the flat field again"),
}
REMARKABLE = 0.05
# Iterations of conjugate gradients, the share of the noise that is kept for their sake, and bounds of gains.
ITERATIONS, KEPT, BOUND = 40, 0.2, 3.0


def evened(volume: DiffractionVolume) -> DiffractionVolume:
    """Return the volume as frames and pixels that count alike would have shown it.

    Parameters
    ----------
    volume
        As measured, counts; frames of which no voxel is valid were not measured.

    Returns
    -------
    DiffractionVolume
        The same counts in all; unchanged where the pattern is even, cut, or sampled too coarsely to tell. The
        history has ``frame_gain_rms`` and ``pixel_gain_rms``, of gains minus 1, weighted by the counts, and
        ``frame_gains``, those of the frames that were measured.
    """
    measured = np.flatnonzero(volume.valid.any(axis=(1, 2)))
    if not len(measured):
        return volume
    valid = volume.valid[measured]
    counts = np.where(valid, volume.intensity[measured], 0).clip(0)
    noted: dict[str, float] = {}
    told: dict[str, list[float]] = {}
    # Beside a frame that is missing no frame's neighbours are known.
    in_a_row = np.ptp(measured) + 1 == len(measured)
    if in_a_row and (gains := frame_gains(counts, valid)) is not None:
        counts, noted["frame_gain_rms"] = _without(counts, gains, (1, 2))
        told["frame_gains"] = gains.astype(np.float64).round(4).tolist()
    if (gains := pixel_gains(counts, valid)) is not None:
        counts, noted["pixel_gain_rms"] = _without(counts, gains, (0,))
    if not noted:
        return volume
    intensity = volume.intensity.copy()
    intensity[measured] = np.where(valid, counts, volume.intensity[measured])
    step = {"step": STEP, **noted, **told, "warnings": _logged(noted)}
    return replace(volume, intensity=intensity, history=(*volume.history, step))


def gain_numbers(volume: DiffractionVolume) -> dict[str, float]:
    """Return what `evened` noted in a volume's history: ``frame_gain_rms`` and ``pixel_gain_rms``, if any."""
    told = [step for step in volume.history if step["step"] == STEP]
    return {name: float(step[name]) for step in told for name in APART if name in step}


def frame_gains(counts: Numbers, valid: NDArray[np.bool_]) -> Numbers | None:
    """Return how each frame counts, float32 (n0,), 1 for what is even; None where that can't be told.

    Parameters
    ----------
    counts
        float32 (n0, n1, n2).
    valid
        bool, the same shape; pixels that are not valid in all frames aren't asked.
    """
    curves = counts[:, valid.all(axis=0)].T
    return common_gains(_brightest(curves, CURVES), FRAMES)


def pixel_gains(counts: Numbers, valid: NDArray[np.bool_]) -> Numbers | None:
    """Return how each pixel counts, float32 (n1, n2); None where that can't be told.

    ``counts`` and ``valid`` as in `frame_gains`; pixels that are not valid in all frames are left at 1.
    """
    good: NDArray[np.bool_] = np.all(valid, axis=0)
    images = counts if valid.all() else fill_invalid(counts, valid)
    if images[~valid].sum() > FILLED * images.sum():
        return None
    return common_gains(_brightest(images, IMAGES), PIXELS, good)


def _without(counts: Numbers, gains: Numbers, axes: tuple[int, ...]) -> tuple[Numbers, float]:
    """Return as many counts without gains, and the rms of the gains minus 1, weighted by them.

    ``axes`` are those that the gains have not.
    """
    held = counts.sum(axis=axes, dtype=np.float64)
    gains = gains / np.average(gains, weights=held)
    even = counts / np.expand_dims(gains, axes)
    even *= held.sum() / even.sum(dtype=np.float64)
    return even.astype(np.float32), float(np.sqrt(np.average((gains - 1) ** 2, weights=held)))


def _logged(noted: Mapping[str, float]) -> list[str]:
    lines = [
        f"uneven {what}: they differ by {noted[name]:.0%} (rms): taken out; {remedy}"
        for name, (what, remedy) in APART.items()
        if noted.get(name, 0.0) > REMARKABLE
    ]
    for line in lines:
        logger.warning("%s", line)
    return lines


def _brightest(samples: Numbers, most: int) -> Numbers:
    """Return the samples of most counts that are not cut, (most, ...)."""
    axes = tuple(range(1, samples.ndim))
    largest = samples.max(axis=axes, initial=0)
    edges = [samples.take([0, 1, -2, -1], axis=axis).mean(axis=axis).max(axis=axes[:-1]) for axis in axes]
    outermost = np.max(edges, axis=0)
    # What doesn't meet across the edges has its square as the power of all lags; noise has the counts' sum.
    whole = np.asarray((outermost < CUT * largest) & (outermost**2 <= samples.sum(axis=axes)))
    chosen = np.flatnonzero(whole)[np.argsort(-samples[whole].sum(axis=axes), kind="stable")[:most]]
    return np.ascontiguousarray(samples[np.sort(chosen)], dtype=np.float32)


def common_gains(samples: Numbers, kind: Kind, free: NDArray[np.bool_] | None = None) -> Numbers | None:
    """Return the gains that all samples have in common; None where they tell of none.

    Parameters
    ----------
    samples
        Counts, float32 (samples, ...): a grid of one or two axes each.
    kind
        Of the gains.
    free
        Places of the grid that may have a gain; None for all.
    """
    gains = np.ones(samples.shape[1:], np.float32)
    first = lags = Lags.of(samples)
    for _ in range(kind.rounds):
        if lags is None or lags.excess < kind.enough:
            break
        gains = gains * lags.gains(kind.spread, free)
        # With less of a halo the crystal's extent shows better, and with it more of the gains.
        lags = Lags.of(samples / gains)
    if first is None or lags is None or lags is first:
        return None
    told = lags.beyond >= BEYOND and lags.excess - 1 <= LEFT * (first.excess - 1)
    return gains if told else None


@dataclass(frozen=True, eq=False)
class Lags:
    """Samples, and what their lags say beyond the crystal's.

    Parameters
    ----------
    samples
        Counts, float32 (samples, ...).
    weight
        Of each sample, one over the mean variance of its counts, float32 (samples, 1, ...).
    noise
        Variance at each place, weighted and summed over the samples, float32 (...).
    distance
        Of each lag, 1 where the crystal's end, float32 (...), origin at index 0.
    excess
        Power beyond the crystal's lags over that of counting noise.
    beyond
        Share of the lags that lie there.
    """

    samples: Numbers
    weight: Numbers
    noise: Numbers
    distance: Numbers
    excess: float
    beyond: float

    @classmethod
    def of(cls, samples: Numbers) -> "Lags | None":
        """Return the lags of samples; None where too few samples or lags are left to tell anything."""
        if len(samples) < FEWEST:
            return None
        grid, axes = samples.shape[1:], tuple(range(1, samples.ndim))
        # Of counts that no detector gives, squares overflow.
        with np.errstate(over="ignore", invalid="ignore"):
            variance = (samples + (UNLIKE * samples) ** 2).mean(axis=axes, keepdims=True)
            weight = (1 / (variance + 1 / np.prod(grid))).astype(np.float32)
            noise = (weight * samples).sum(axis=0)
            lags = np.abs(np.asarray(scipy.fft.fftn(samples, axes=axes)))
            power = (weight * lags**2).sum(axis=0) / noise.sum()
        reach = extent(power) if np.isfinite(power).all() else None
        if reach is None:
            return None
        distance = _distance(grid, reach)
        outside = distance > 1
        return cls(samples, weight, noise, distance, float(power[outside].mean()), float(outside.mean()))

    def gains(self, spread: float, free: NDArray[np.bool_] | None = None) -> Numbers:
        """Return the gains that account for what lies beyond, as in `common_gains`."""
        outside = self.distance > 1
        noise = self.noise * self.beyond
        # What varies more slowly than the crystal is long is hardly seen beyond it.
        likely = spread * np.minimum(self.distance, 1) ** 2
        allowed = np.ones(self.noise.shape) if free is None else free

        def unlikely(factors: Numbers) -> Numbers:
            return (self.weight * self.samples * _filtered(self.samples * factors, outside)).sum(axis=0)

        def changed(unknown: Numbers) -> Numbers:
            return allowed * _filtered(unknown, likely)

        def curvature(unknown: Numbers) -> Numbers:
            change = changed(unknown)
            rise = unlikely(change) - (1 - KEPT) * noise * change
            return _filtered(allowed * rise, likely) + unknown

        even = np.ones(self.noise.shape, np.float32)
        slope = _filtered(allowed * (unlikely(even) - noise), likely)
        factors = even + changed(conjugate_gradients(curvature, -slope))
        return (1 / factors.clip(1 / BOUND, BOUND)).astype(np.float32)


def extent(power: NDArray[np.floating]) -> tuple[int, ...] | None:
    """Return how far a crystal's lags reach along each axis; None where too few are left beyond.

    Parameters
    ----------
    power
        Of each lag, origin at index 0, float of one or two axes.
    """
    first = []
    for axis, n in enumerate(power.shape):
        line = np.moveaxis(power, axis, 0).reshape(n, -1)[: n // 2, 0]
        first.append(1 + int(np.flatnonzero(line > FIRST * line[0]).max(initial=0)))
    boxes: list[tuple[int, ...]] = []
    box = tuple(first)
    while all(r <= WIDEST * n for r, n in zip(box, power.shape, strict=True)):
        boxes.append(box)
        box = tuple(round(r * (1 + STEPS * len(boxes))) for r in first)
    if len(boxes) <= SURE:
        return None
    left = [float(power[_distance(power.shape, box) > 1].mean()) for box in boxes]
    reached = next(i for i, value in enumerate(left) if value <= NEAR * min(left))
    return tuple(r + 1 for r in boxes[reached]) if reached + SURE < len(boxes) else None


def _distance(grid: tuple[int, ...], reach: tuple[int, ...]) -> Numbers:
    """Return each lag in the reach of the crystal's along its axes, the largest of them, float32."""
    lags = [np.abs(scipy.fft.fftfreq(n, 1 / n)) / r for n, r in zip(grid, reach, strict=True)]
    return np.max(np.meshgrid(*lags, indexing="ij"), axis=0).astype(np.float32)


def _filtered(values: Numbers, by: NDArray[np.generic]) -> Numbers:
    """Return real values, their lags multiplied by those of ``by``, (..., *grid); self-adjoint."""
    axes = tuple(range(values.ndim - by.ndim, values.ndim))
    lags = np.asarray(scipy.fft.fftn(values.astype(np.float32, copy=False), axes=axes))
    return np.real(np.asarray(scipy.fft.ifftn(lags * by, axes=axes)))


def conjugate_gradients(matrix: Callable[[Numbers], Numbers], right: Numbers) -> Numbers:
    """Return what a positive matrix takes to the right-hand side, nearly (Hestenes and Stiefel 1952).

    Where noise makes the matrix indefinite after all, as far as it was positive.
    """
    found, rest = np.zeros_like(right), right.copy()
    direction, size = rest.copy(), float((rest**2).sum())
    for _ in range(ITERATIONS):
        image = matrix(direction)
        curvature = float((direction * image).sum())
        if size == 0 or curvature <= 0:
            break
        found += size / curvature * direction
        rest -= size / curvature * image
        size, last = float((rest**2).sum()), size
        direction = rest + size / last * direction
    return found
