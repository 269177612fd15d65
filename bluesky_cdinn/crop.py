"""A box around the peak of a diffraction volume."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.peak import find_peak
from bluesky_cdinn.records import DiffractionVolume


def crop_around_peak(
    volume: DiffractionVolume,
    shape: tuple[int, int, int],
    centre: tuple[float, float, float] | None = None,
) -> DiffractionVolume:
    """Cut out a box with the peak at its centre, index n // 2 along each axis.

    Parameters
    ----------
    volume
        Stays as it is.
    shape
        Of the box. Where it leaves the measured region it is filled with voxels that are not valid.
    centre
        Of the box; the peak where not given.

    Raises
    ------
    InvalidInput
        If the shape isn't three positive numbers.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise InvalidInput(f"a box must have three positive lengths, got {shape}")
    place = [round(c) for c in (find_peak(volume) if centre is None else centre)]
    first = [c - n // 2 for c, n in zip(place, shape, strict=True)]
    source = tuple(slice(max(0, f), max(0, f + n, 0)) for f, n in zip(first, shape, strict=True))
    inside = volume.intensity[source]
    target = tuple(slice(max(0, -f), max(0, -f) + n) for f, n in zip(first, inside.shape, strict=True))
    intensity, valid = np.zeros(shape, np.float32), np.zeros(shape, np.bool_)
    intensity[target], valid[target] = inside, volume.valid[source]
    window = tuple(w + f for w, f in zip(volume.window, first, strict=True))
    step = {"step": "crop", "shape": list(shape), "peak": place, "outside": int(valid.size - inside.size)}
    return replace(
        volume,
        intensity=intensity,
        valid=valid,
        angles_deg=_cropped_angles(volume.angles_deg, first[0], shape[0]),
        window=window,
        history=(*volume.history, step),
    )


def _cropped_angles(angles: NDArray[np.float64] | None, first: int, n: int) -> NDArray[np.float64] | None:
    """Angles of a part of the slices, continued evenly beyond the ends."""
    if angles is None:
        return None
    places = first + np.arange(n)
    if len(angles) < 2:
        return np.full(n, angles[0])
    step = (angles[-1] - angles[0]) / (len(angles) - 1)
    inside = angles[np.clip(places, 0, len(angles) - 1)]
    return inside + step * (places - np.clip(places, 0, len(angles) - 1))
