"""What the devices of a run say of a beamline's circles: where each stood, under whatever name it is read."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from bluesky_cdinn.callbacks._keys import DEGREES, Stream
from bluesky_cdinn.goniometer import Beamline

# Units of readings that stand beside angles in most events; any other unknown one is told of.
_NO_ANGLES = frozenset({"counts", "s", "mm", "um", "nm", "m", "keV", "eV", "K", "C", "A", "mA", "V", "Hz"})


def angles_read(stream: Stream, values: Mapping[str, Any]) -> dict[str, float]:
    """Return those of a stream's readings, or its configuration, that may be angles, deg, by key."""
    numbers = {key: _number(value) for key, value in values.items() if stream.unit(key) not in _NO_ANGLES}
    return {key: n * stream.scale(key, DEGREES) for key, n in numbers.items() if math.isfinite(n)}


def circle_readings(beamline: Beamline, said: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return what the circles' motors read, deg, the first found first.

    Parameters
    ----------
    beamline
        With its circles and their motors' names; a device's key counts under its last part, unless another
        has the name itself.
    said
        From `angles_read`, the most trusted first.
    """
    angles: dict[str, float] = {}
    for values in said:
        for circle in beamline.circles:
            own = (circle.name, *circle.motors)
            keys = sorted((key for key in values if circle.is_moved_by(key)), key=lambda key: key not in own)
            if keys:
                angles.setdefault(circle.name, values[keys[0]])
    return angles


def _number(value: Any) -> float:
    """Return a real number, an array of one too, as a float; NaN for anything else."""
    if not isinstance(value, int | float | list | tuple | np.generic | np.ndarray):
        return math.nan
    array = np.asarray(value)
    return float(array.ravel()[0]) if array.size == 1 and array.dtype.kind in "iuf" else math.nan
