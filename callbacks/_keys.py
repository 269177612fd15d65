"""Which data keys of a run hold the frames, the rocking angle, the exposure and the monitor.

Everything here reads descriptors and names; no value of an event is looked at.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.goniometer import is_called
from bluesky_cdinn.records import Geometry

logger = logging.getLogger(__name__)

COUNT_TIME_NAMES = ("count_time_s", "count_time", "acquire_time", "exposure_time", "preset_time", "exposure")
# What is scanned isn't a device's to say: ``frames_scanned`` is a number.
GEOMETRY_NAMES = tuple(f.name for f in fields(Geometry) if f.name != "scanned")

# A data key without units is taken to be in the first one of its table.
_PREFIXES = {"": 1.0, "m": 1e-3, "milli": 1e-3, "u": 1e-6, "micro": 1e-6}
DEGREES = {
    prefix + name: factor * unit
    for name, unit in (("deg", 1.0), ("rad", 180 / math.pi))
    for prefix, factor in _PREFIXES.items()
} | {"\N{DEGREE SIGN}": 1.0, "arcmin": 1 / 60, "arcsec": 1 / 3600}
ENERGIES = {"keV": 1.0, "eV": 1e-3, "MeV": 1e3}
SECONDS = {
    prefix + name: factor
    for prefix, factor in (("", 1.0), ("m", 1e-3), ("u", 1e-6), ("n", 1e-9))
    for name in ("s", "sec", "second")
}


@dataclass(frozen=True)
class Stream:
    """What the descriptors of one event stream say."""

    data_keys: dict[str, dict[str, Any]]
    object_keys: dict[str, list[str]]
    hints: dict[str, dict[str, Any]]
    configuration: dict[str, dict[str, Any]]
    configuration_keys: dict[str, dict[str, Any]]

    @classmethod
    def from_descriptor(cls, doc: Mapping[str, Any]) -> "Stream":
        """Read one descriptor."""
        configured = dict(doc.get("configuration", {}))
        return cls(
            data_keys={key: dict(described) for key, described in doc["data_keys"].items()},
            object_keys={name: list(keys) for name, keys in doc.get("object_keys", {}).items()},
            hints={name: dict(hints) for name, hints in doc.get("hints", {}).items()},
            configuration={name: dict(c.get("data", {})) for name, c in configured.items()},
            configuration_keys={
                k: dict(v) for c in configured.values() for k, v in c.get("data_keys", {}).items()
            },
        )

    def updated(self, later: "Stream") -> "Stream":
        """Return this with a later descriptor of the same stream over it."""
        return Stream(*({**getattr(self, f.name), **getattr(later, f.name)} for f in fields(self)))

    def shape(self, key: str) -> tuple[int | None, ...]:
        """Shape of a data key as described."""
        return tuple(self.data_keys.get(key, {}).get("shape") or ())

    def is_image(self, key: str) -> bool:
        """Whether a data key is described as a frame, or a few: its last two axes are longer than one."""
        shape = self.shape(key)
        return len(shape) >= 2 and all(n is None or n > 1 for n in shape[-2:])

    def is_external(self, key: str) -> bool:
        """Whether a data key's values lie in files that documents point to."""
        return bool(self.data_keys.get(key, {}).get("external"))

    def images(self) -> list[str]:
        """Every data key that is described as a frame."""
        return [key for key in self.data_keys if self.is_image(key)]

    def owner(self, key: str) -> str | None:
        """Name of the device that a data key comes from."""
        return next((name for name, keys in self.object_keys.items() if key in keys), None)

    def unit(self, key: str) -> str:
        """Return a key's own unit, empty where none is named."""
        described = self.data_keys.get(key) or self.configuration_keys.get(key) or {}
        return str(described.get("units") or "").strip().replace("\N{MICRO SIGN}", "u")

    def scale(self, key: str, units: Mapping[str, float]) -> float:
        """Factor from a key's own units to the first of a table."""
        name = self.unit(key)
        short = name.lower().removesuffix("s").removesuffix("ree").removesuffix("ian")
        factor = units.get(name, units.get(short))
        if factor is None:
            if name:
                _warn(key, name, next(iter(units)))
            return 1.0
        return factor

    def is_energy(self, key: str) -> bool:
        """Whether a data key is described in a unit of photon energy."""
        return str(self.data_keys.get(key, {}).get("units") or "").strip() in ENERGIES


@lru_cache(maxsize=1000)
def _warn(key: str, unit: str, taken: str) -> None:
    """Say it once: units are looked up again with every look at a scan."""
    logger.warning("the unit %r of %s is not known and taken as %s; name the unit in full", unit, key, taken)


def frame_key(streams: Mapping[str, Stream], wanted: str | None) -> tuple[str, str]:
    """Choose the detector: the device or data key that is named, else the run's only image.

    Returns
    -------
    stream, key
        Name of the event stream, and the data key in it.

    Raises
    ------
    InvalidInput
        If none fits, or more than one.
    """
    found = [(name, key) for name, stream in streams.items() for key in _frames(stream, wanted)]
    found = [item for item in found if item[0] == "primary"] or found
    if len(found) == 1:
        return found[0]
    images = sorted({key for stream in streams.values() for key in stream.images()})
    asked = f"cdi.detector {wanted!r}" if wanted else "a run without cdi.detector"
    raise InvalidInput(
        f"{asked} must fit exactly one detector image, got {[key for _, key in found]} of the images "
        f"{images}; name the device or its data key in the start document's cdi.detector"
    )


def _frames(stream: Stream, wanted: str | None) -> list[str]:
    if wanted is None:
        return stream.images()
    if wanted in stream.data_keys:
        return [wanted]
    return [
        key for key in stream.object_keys.get(wanted, ()) if key in stream.data_keys and stream.is_image(key)
    ]


def angle_key(stream: Stream, wanted: str | None, motors: Iterable[str]) -> str:
    """Choose the rocking angle's readback: ``cdi.rocking_motor`` (device or data key), else the only motor.

    Raises
    ------
    InvalidInput
        If none fits, or more than one.
    """
    names = [wanted] if wanted else list(motors)
    found = [key for name in names if (key := readback_key(stream, name)) is not None]
    if len(found) == 1:
        return found[0]
    raise InvalidInput(
        f"a rocking curve must have one rocking motor that is read with each frame, got {found} for the "
        f"motors {names} among the keys {sorted(stream.data_keys)}; name it in the start document's "
        "cdi.rocking_motor"
    )


def readback_key(stream: Stream, name: str) -> str | None:
    """Return the data key of where a device is, never of where it was sent; a data key's name will do."""
    keys = [key for key in stream.object_keys.get(name, ()) if key in stream.data_keys]
    hinted = [key for key in stream.hints.get(name, {}).get("fields", ()) if key in keys]
    readings = [key for key in keys if "setpoint" not in key]
    for candidates in (hinted, [name] if name in stream.data_keys else [], readings):
        if len(candidates) == 1:
            return candidates[0]
    return None


def count_time_key(keys: Iterable[str], owned: Iterable[str] = ()) -> str | None:
    """Return the key that is called like an exposure time, the detector's own before any other's."""
    owned = set(owned)
    called = [
        (key not in owned, rank, key)
        for key in keys
        for rank, name in enumerate(COUNT_TIME_NAMES)
        if is_called(key, name)
    ]
    return min(called)[-1] if called else None


def geometry_readings(devices: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Pick what is called like a field of `Geometry` out of the devices' values, the first found first.

    A device's key counts under its last part: ``det_cam_energy_keV`` is ``energy_keV``.
    """
    found: dict[str, Any] = {}
    for _, values in devices:
        for name in GEOMETRY_NAMES:
            key = next((key for key in values if is_called(key, name)), None)
            if key is not None:
                found.setdefault(name, values[key])
    return found


def detector_first(stream: Stream, detector: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the configuration of each device, the detector's before the others'."""
    owner = stream.owner(detector)
    yield from sorted(stream.configuration.items(), key=lambda item: item[0] != owner)
