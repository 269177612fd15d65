"""Where a coarse rocking curve has its peak, and how wide that is."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bluesky_cdinn.errors import InvalidInput

FloatArray = NDArray[np.float64]

# The lowest of this share of the curve is background.
_BASE = 0.25
# Of the height: what is higher belongs to the peak; fringes and noise are lower.
_FOOT = 0.1
LEAST_POINTS = 3


@dataclass(frozen=True)
class RockingPeak:
    """The peak of a rocking curve.

    Parameters
    ----------
    centre_deg
        Centre of mass of what exceeds a tenth of the height.
    fwhm_deg
        Full width at half maximum, interpolated; never less than a step.
    height
        Counts at the maximum, above the background.
    background
        Counts beside the peak.
    significance
        Height in standard deviations of the background's counting noise.
    cut
        Which end of the curve cuts the peak off: "first", "last", or "" for none.
    """

    centre_deg: float
    fwhm_deg: float
    height: float
    background: float
    significance: float
    cut: Literal["", "first", "last"]


def rocking_peak(angles_deg: ArrayLike, counts: ArrayLike) -> RockingPeak:
    """Return the peak of a rocking curve.

    Parameters
    ----------
    angles_deg
        Rising, float64 (points,).
    counts
        At each of them, (points,): whatever sums up the detector's part with the peak in it.

    Raises
    ------
    InvalidInput
        If there are fewer than three points, or angles don't rise.
    """
    angles, counts = np.asarray(angles_deg, dtype=float), np.asarray(counts, dtype=float)
    if angles.shape != counts.shape or len(angles) < LEAST_POINTS or not (np.diff(angles) > 0).all():
        raise InvalidInput(
            f"a rocking curve must have {LEAST_POINTS} rising angles or more, and counts at each, "
            f"got {angles.shape} and {counts.shape}"
        )
    lowest = np.sort(counts)[: max(1, int(_BASE * len(counts)))]
    background = float(lowest.mean())
    above = counts - background
    top = int(above.argmax())
    height = float(above[top])
    weights = np.clip(above - _FOOT * height, 0, None)
    centre = float(np.average(angles, weights=weights)) if weights.any() else float(angles[top])
    left, right = _half_height(angles, above, top, -1), _half_height(angles, above, top, 1)
    cut: Literal["", "first", "last"] = "" if left is not None else "first"
    if right is None and (left is not None or above[-1] > above[0]):
        cut = "last"
    sides = [abs(side - angles[top]) for side in (left, right) if side is not None]
    # Where one side is cut off the other stands for it; where both are, the whole curve is peak.
    width = 2 * float(np.mean(sides)) if sides else float(np.ptp(angles))
    return RockingPeak(
        centre_deg=centre,
        fwhm_deg=max(width, float(np.diff(angles).min())),
        height=height,
        background=background,
        significance=height / math.sqrt(max(background, 1.0)),
        cut=cut,
    )


def _half_height(angles: FloatArray, above: FloatArray, top: int, step: int) -> float | None:
    """Return where the curve first falls to half its height on one side; None where it never does."""
    half = above[top] / 2
    i = top
    while 0 <= i + step < len(angles):
        if above[i + step] <= half:
            share = (above[i] - half) / max(above[i] - above[i + step], 1e-30)
            return float(angles[i] + share * (angles[i + step] - angles[i]))
        i += step
    return None
