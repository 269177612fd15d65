"""Rocking angles as they were read -> a regular grid, and the frames that each of its slices is made of."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bluesky_cdinn.errors import IncompleteScan, InvalidInput
from bluesky_cdinn.uneven import fitted_shares, is_even

MIN_SLICES = 3

# In rocking steps: a frame belongs to the slice that it is this close to.
NEAR = 0.25
# Between frames that are further apart than this a slice was not measured, rather than interpolated.
BRACKET = 1.5

# In mean steps: a step this long leaves something unmeasured.
GAP = 2.0

# Slices for each frame: more of them mean that an angle is wrong, not that frames are missing.
SPARSEST = 20


def rocking_grid(angles_deg: ArrayLike) -> tuple[float, float, int]:
    """Find the regular grid that rocking angles lie on.

    The step is the median of the steps between neighbours, each counted by its length and the longest tenth
    left out, so that neither repeats (many, of no length) nor gaps (long, few) move it. A straight line
    through the angles against the whole number of steps to each then gives the grid without adding up the
    median's error.

    Parameters
    ----------
    angles_deg
        In any order, with repeats and gaps.

    Returns
    -------
    first, step, n
        The grid is ``first + step * arange(n)``, step > 0.

    Raises
    ------
    IncompleteScan
        If fewer than three angles differ.
    InvalidInput
        If the angles are spread so widely that they are no scan.
    """
    angles = np.sort(np.asarray(angles_deg, dtype=float))
    steps = np.diff(angles)
    if not steps.any():
        raise IncompleteScan(
            f"the rocking angle must take {MIN_SLICES} values or more, got {len(angles)} points "
            f"at {angles[:1]} deg"
        )
    rising = np.sort(steps)
    trimmed = rising[: len(rising) - len(rising) // 10]
    rising = trimmed if trimmed.any() else rising
    median = float(rising[np.searchsorted(np.cumsum(rising), rising.sum() / 2)])
    like = steps[(steps > median / 2) & (steps < 1.5 * median)]
    places = np.concatenate([[0.0], np.cumsum(np.rint(steps / like.mean()))])
    if places[-1] + 1 < MIN_SLICES:
        raise IncompleteScan(
            f"the rocking angle must take {MIN_SLICES} values or more, got {np.unique(angles)} deg"
        )
    if places[-1] > SPARSEST * len(angles):
        raise InvalidInput(
            f"rocking angles must be about evenly spaced, got {len(angles)} of them from {angles[0]:g} to "
            f"{angles[-1]:g} deg with steps of {median:g} deg"
        )
    slope, offset = np.polyfit(places, angles, 1)
    if not is_even((angles - offset) / slope):
        apart = steps[steps > NEAR * median]
        # Over all of the range: what repeats differ by is part of it.
        mean = float((angles[-1] - angles[0]) / len(apart))
        # Uneven steps without a gap: as many slices as there are angles.
        if apart.max() < GAP * mean:
            return float(angles[0]), mean, len(apart) + 1
    first = round((angles[0] - offset) / slope)
    last = round((angles[-1] - offset) / slope)
    return float(offset + slope * first), float(slope), last - first + 1


def planned_grid(angles_deg: ArrayLike, planned_deg: ArrayLike) -> tuple[float, float, int]:
    """Find the regular grid of a scan that still runs, from where it has been and where it will go.

    A motor reads back a little off where it was sent, always on the same side: the plan's grid is moved by
    that much, so that it stays the same until the end. Angles that don't fit the plan count for themselves.

    Parameters
    ----------
    angles_deg
        Read back, in any order, with repeats and gaps.
    planned_deg
        To be measured, those that were among them; empty where nothing is known.

    Returns
    -------
    first, step, n
        As `rocking_grid`, and raises what that does.
    """
    angles, planned = np.asarray(angles_deg, dtype=float), np.unique(np.asarray(planned_deg, dtype=float))
    if len(planned) < MIN_SLICES or not len(angles):
        return rocking_grid(np.concatenate([angles, planned]))
    first, step, n = rocking_grid(planned)
    places = (angles - first) / step
    offset = float(np.median(places - np.rint(places)))
    off = np.abs(places - offset - np.rint(places - offset))
    if off.max() > NEAR or places.min() < -1 or places.max() > n:
        return rocking_grid(np.concatenate([angles, planned]))
    return first + offset * step, step, n


def frame_shares(
    positions: NDArray[np.float64], n: int, exposures: NDArray[np.float64] | None = None
) -> list[Mapping[int, float]]:
    """Return which frames make each slice, with what weight; an empty mapping where none does.

    A slice takes every frame that is near it; without one it is interpolated between the frames on either
    side, if these are no further apart than slices that were measured one after the other. Frames that lie
    off the grid by more than a motor's jitter are fitted instead (`bluesky_cdinn.uneven`).

    Parameters
    ----------
    positions
        Of the frames, in slices.
    n
        How many slices.
    exposures
        Of the frames; all the same where not given.
    """
    order = np.argsort(positions, kind="stable")
    sorted_positions = positions[order]
    shares: list[Mapping[int, float]] = []
    for index in range(n):
        low, high = np.searchsorted(sorted_positions, (index - NEAR, index + NEAR))
        if low < high:
            shares.append(dict.fromkeys(order[low:high].tolist(), 1.0))
        elif 0 < low < len(order) and sorted_positions[low] - sorted_positions[low - 1] <= BRACKET:
            below, above = sorted_positions[low - 1], sorted_positions[low]
            share = float((index - below) / (above - below))
            shares.append({int(order[low - 1]): 1 - share, int(order[low]): share})
        else:
            shares.append({})
    if is_even(positions):
        return shares
    measured = np.array([bool(share) for share in shares])
    # A frame between two slices of which neither is measured otherwise measures the nearer one.
    measured[np.clip(np.rint(positions).astype(int), 0, n - 1)] = True
    return fitted_shares(positions, np.ones(len(positions)) if exposures is None else exposures, measured)
