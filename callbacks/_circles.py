"""What the devices of a run say of a beamline's circles: where each stood, under whatever name it is read."""

from collections.abc import Iterable, Mapping
from typing import Any

from bluesky_cdinn.callbacks._keys import DEGREES, Stream
from bluesky_cdinn.goniometer import Beamline


def circle_readings(beamline: Beamline, said: Iterable[tuple[Stream, Mapping[str, Any]]]) -> dict[str, float]:
    """Return what the circles' motors read, deg, the first found first.

    Parameters
    ----------
    beamline
        With its circles and their motors' names; a device's key counts under its last part.
    said
        Streams, and readings or configuration of them, the most trusted first.
    """
    angles: dict[str, float] = {}
    for stream, values in said:
        for circle in beamline.circles:
            key = next((key for key in values if _is_angle(values[key]) and circle.is_moved_by(key)), None)
            if key is not None:
                angles.setdefault(circle.name, float(values[key]) * stream.scale(key, DEGREES))
    return angles


def _is_angle(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
