"""The ``cdi`` metadata -> a `Geometry`: quantities by name, or a beamline by name and its circles' angles."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.goniometer import Beamline, Circle, load_beamline
from bluesky_cdinn.records import Geometry, Vector

# What the ``cdi`` metadata may say: how many numbers, from, to, unit. The bounds are far outside of what
# Bragg CDI uses, so that a value in the wrong unit (eV, mm, angstrom) doesn't pass.
_QUANTITIES = {
    "energy_keV": (1, 1.0, 200.0, "keV"),
    "detector_distance_m": (1, 0.05, 50.0, "m"),
    "pixel_size_um": (2, 0.5, 1000.0, "um, (row, column) or one for both"),
    "detector_angles_deg": (2, -180.0, 180.0, "deg, (delta, gamma)"),
    "detector_axes": (9, -1.001, 1.001, "three unit vectors: along rows' and columns' numbers, and the arm"),
    "beam_centre_px": (2, -1e5, 1e5, "pixels, (row, column)"),
    "rocking_axis": (3, -1e6, 1e6, "(x, y, z), a direction in the lab frame"),
    "reflection": (3, -99.0, 99.0, "(h, k, l)"),
    "lattice_nm": (1, 0.1, 3.0, "nm"),
}
# Those that are said in words.
WORDS = ("beamline", "rocking_circle", "rocking_motor", "scanned")

# Those without which there is no geometry.
REQUIRED = ("energy_keV", "detector_distance_m", "pixel_size_um", "detector_angles_deg", "beam_centre_px")
# Those that a beamline's circles tell instead.
FROM_CIRCLES = ("detector_angles_deg", "detector_axes", "rocking_axis")

CIRCLES = "circles_deg"
"""Name of the mapping from a circle, or its motor, to its angle."""


def geometry_from(*layers: Mapping[str, Any]) -> tuple[Geometry | None, tuple[str, ...]]:
    """Read a geometry from what the documents and the settings say.

    Parameters
    ----------
    layers
        Mappings with the names of the start document's ``cdi`` entry, the first having precedence:
        start document, device configuration, settings. A value of None counts as not said. A single
        ``pixel_size_um`` stands for both directions. ``rocking_axis``, ``reflection`` and
        ``lattice_nm`` may be absent; ``detector_axes`` does for ``detector_angles_deg``. Where a
        ``beamline`` is named these two and ``rocking_axis`` aren't read, but follow from ``circles_deg`` and
        from which circle is rocked: ``rocking_circle``, else the one that ``rocking_motor`` turns.

    Returns
    -------
    tuple
        The geometry, or None where something needed was said nowhere; and the names of what is missing.

    Raises
    ------
    InvalidInput
        If a value has the wrong type or shape, or can't be in the unit of its name; if there is no such
        beamline, or no such circle.
    """
    words = _words(layers)
    beamline = None if words["beamline"] is None else load_beamline(words["beamline"])
    if beamline is not None:
        layers = (*layers, beamline.cdi)
    fields, missing = _fields(layers, () if beamline is None else FROM_CIRCLES)
    scanned = words["scanned"] or "angle"
    if scanned not in ("angle", "energy"):
        raise InvalidInput(f"scanned must be 'angle' or 'energy', got {scanned!r}")
    fields["scanned"] = scanned
    if beamline is not None:
        directions, absent = _from_circles(beamline, circle_angles(beamline, *layers), words)
        fields, missing = {**fields, **directions}, (*missing, *absent)
    return (None, missing) if missing else (Geometry(**fields), ())


def quantities(geometry: Geometry) -> dict[str, float | list[float]]:
    """Return what a device would say of a geometry, by name, arrays flat; `geometry_from` reads it back."""
    said = {name: getattr(geometry, name) for name in _QUANTITIES}
    flat = {name: np.asarray(value, dtype=float) for name, value in said.items() if value is not None}
    return {name: value.ravel().tolist() if value.ndim else float(value) for name, value in flat.items()}


def circle_angles(beamline: Beamline, *layers: Mapping[str, Any]) -> dict[str, float]:
    """Return what the circles of a beamline read, deg, where somebody says it or it has a default.

    Raises
    ------
    InvalidInput
        If an angle is no number from -360 to 360, or ``circles_deg`` no mapping.
    """
    said: dict[str, Any] = {}
    for layer in reversed(layers):
        given = layer.get(CIRCLES) or {}
        if not isinstance(given, Mapping):
            raise InvalidInput(f"{CIRCLES} must be a mapping of circles to angles in deg, got {given!r}")
        for circle in beamline.circles:
            names = [name for name in given if circle.is_moved_by(str(name)) and given[name] is not None]
            if names:
                said[circle.name] = given[names[0]]
    angles = {circle.name: circle.default_deg for circle in beamline.circles}
    for name, value in said.items():
        angles[name] = _numbers(f"{CIRCLES}.{name}", value, (1, -360.0, 360.0, "deg"))[0]
    return {name: angle for name, angle in angles.items() if angle is not None}


def _words(layers: tuple[Mapping[str, Any], ...]) -> dict[str, Any]:
    """Return what the layers say in words, None where they don't."""
    words: dict[str, Any] = dict.fromkeys(WORDS)
    for layer in reversed(layers):
        if not isinstance(layer, Mapping):
            raise InvalidInput(f"the cdi metadata must be a mapping of names to values, got {layer!r}")
        words.update({name: layer[name] for name in WORDS if layer.get(name) is not None})
    if wrong := {name: value for name, value in words.items() if not isinstance(value, str | None)}:
        raise InvalidInput(f"{', '.join(wrong)} must be a name, got {wrong}")
    return words


def _fields(
    layers: tuple[Mapping[str, Any], ...], unread: tuple[str, ...]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the fields of a `Geometry` that are said as quantities, and which needed ones are missing."""
    read = [name for name in _QUANTITIES if name not in unread]
    said: dict[str, Any] = {}
    for layer in reversed(layers):
        said.update({name: layer[name] for name in read if layer.get(name) is not None})
    numbers = {name: _numbers(name, value, _QUANTITIES[name]) for name, value in said.items()}
    fields: dict[str, Any] = {
        name: values[0] if len(values) == 1 else tuple(values) for name, values in numbers.items()
    }
    if "rocking_axis" in fields:
        axis = np.array(fields["rocking_axis"])
        if not axis.any():
            raise InvalidInput("rocking_axis must be a direction (x, y, z) in the lab frame, got zeros")
        fields["rocking_axis"] = tuple((axis / np.linalg.norm(axis)).tolist())
    if "detector_axes" in fields:
        fields |= _detector(_unit_vectors(numbers["detector_axes"]))
    if "reflection" in fields:
        fields["reflection"] = tuple(round(index) for index in numbers["reflection"])
    return fields, tuple(name for name in REQUIRED if name in read and name not in fields)


def _unit_vectors(numbers: list[float]) -> tuple[Vector, Vector, Vector]:
    axes = np.reshape(numbers, (3, 3))
    lengths = np.linalg.norm(axes, axis=1)
    if np.abs(lengths - 1).max() > 1e-3 or abs(np.linalg.det(axes)) < 0.1:
        raise InvalidInput(
            "detector_axes must be three unit vectors that span space: along which row numbers rise, column "
            f"numbers rise, and from the sample to the beam centre; got {axes.tolist()}"
        )
    rows, columns, arm = (axes / lengths[:, None]).tolist()
    return tuple(rows), tuple(columns), tuple(arm)


def _detector(axes: tuple[Vector, Vector, Vector]) -> dict[str, Any]:
    """Return the fields that say where the detector is: its axes, and where its arm points."""
    x, y, z = axes[2]
    delta, gamma = np.degrees([np.arctan2(x, z), np.arcsin(np.clip(y, -1, 1))]).tolist()
    return {"detector_axes": axes, "detector_angles_deg": (delta, gamma)}


def _from_circles(
    beamline: Beamline, angles: Mapping[str, float], words: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the fields that follow from the circles, and whose angles are missing for them."""
    rocked = None
    if words["scanned"] != "energy":
        if words["rocking_circle"] is None and words["rocking_motor"] is None:
            return {}, ("rocking_motor",)
        rocked = _rocked(beamline, words)
    absent = [circle.name for circle in beamline.needed(rocked) if circle.name not in angles]
    if absent:
        return {}, tuple(f"{CIRCLES}.{name}" for name in absent)
    fields = _detector(beamline.detector_axes(angles))
    if rocked is not None:
        fields["rocking_axis"] = beamline.rocking_axis(rocked, angles)
    return fields, ()


def _rocked(beamline: Beamline, words: Mapping[str, Any]) -> Circle:
    name = words["rocking_circle"] or words["rocking_motor"]
    circle = beamline.rocked_by(name)
    if circle is None:
        raise InvalidInput(
            f"rocking_motor must turn one of the sample's circles of {beamline.title}, "
            f"{', '.join(circle.name for circle in beamline.sample)}, got {name!r}: say which one it turns "
            "in cdi.rocking_circle, or scanned = 'energy' if it is the photon energy's"
        )
    if any(circle.name == carrying.name for carrying in beamline.arm):
        raise InvalidInput(
            f"a rocking circle must leave the detector where it is, and {circle.name} of {beamline.title} "
            "carries it with the sample: rock another circle"
        )
    return circle


def _numbers(name: str, value: Any, bounds: tuple[int, float, float, str]) -> list[float]:
    """Check a value against how many numbers there must be, from where to where, and return them plain."""
    count, low, high, unit = bounds
    required = (
        f"{name} must be {'a number' if count == 1 else f'{count} numbers'} from {low:g} to {high:g} {unit}"
    )
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InvalidInput(f"{required}, got {value!r}") from error
    if array.dtype.kind not in "iuf":
        raise InvalidInput(f"{required}, got {value!r}")
    array = array.astype(float).ravel()
    if name == "pixel_size_um" and array.size == 1:
        array = array.repeat(2)
    if array.size != count:
        raise InvalidInput(f"{required}, got {array.size} values: {value!r}")
    if not ((array >= low) & (array <= high)).all():
        raise InvalidInput(f"{required}, got {value!r}; check its unit")
    if name == "reflection" and (array % 1).any():
        raise InvalidInput(f"reflection must be whole Miller indices, got {value!r}")
    return array.tolist()
