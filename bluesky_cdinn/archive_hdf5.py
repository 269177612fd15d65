"""Rocking scans in HDF5 and NeXus files as synchrotrons write them, found by convention or by name."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import h5py.h5f
import h5py.h5o
import hdf5plugin  # noqa: F401 - registers the compressions that detectors write
import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn.archive import ArchivedScan
from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.goniometer import load_beamline
from bluesky_cdinn.sim.recording import StoredFrames

ROCKED = ("eta", "phi", "th", "theta", "omega", "om", "mu", "chi", "samth", "samrx", "samry", "gonphi")
"""Names under which a rocking angle is looked for where none is given."""

_COUNT_TIMES = ("count_time", "acq_time", "exposure_time", "integration_time", "count_time_s")
# What a number in each unit comes to; "" is no unit said.
_DEGREES = {
    **dict.fromkeys(("", "deg", "degs", "degree", "degrees", "°"), 1.0),
    **dict.fromkeys(("rad", "rads", "radian", "radians"), float(np.degrees(1.0))),
    "mrad": float(np.degrees(1e-3)), "mdeg": 1e-3,
}  # fmt: skip
_KEV = {"ev": 1e-3, "j": 1 / 1.602176634e-16, "kev": 1.0}
_METRES = {
    **dict.fromkeys(("", "m", "meter", "meters", "metre", "metres"), 1.0),
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres"), 1e-3),
    **dict.fromkeys(("um", "\N{MICRO SIGN}m", "\N{GREEK SMALL LETTER MU}m", "micron", "microns", "micrometer",
                     "micrometers", "micrometre", "micrometres"), 1e-6),
    "cm": 1e-2,
}  # fmt: skip
_PIXELS = ("", "pixel", "pixels", "px")


def read_hdf5(
    path: Path,
    cdi: Mapping[str, Any],
    *,
    scan: str | None = None,
    frames: str | None = None,
    angles: str | None = None,
    count_time: str | None = None,
    monitor: str | None = None,
) -> ArchivedScan:
    """Read a rocking scan.

    Parameters
    ----------
    path
        The file; its frames stay in it until they are imported.
    cdi
        Goes before what the file says. With a ``beamline`` the circles' angles are looked for too.
    scan
        Number of the entry (``24`` is ``/24.1`` at ESRF), or its name; the default one, or the only one.
    frames, angles, count_time, monitor
        Datasets, in the entry or from the root; frames and angles are looked for where they aren't given.

    Raises
    ------
    InvalidInput
        The file can't be read, or what is needed isn't there or is there twice; the message lists what is.
    """
    try:
        with h5py.File(path) as file:
            entry = _entry(file, scan)
            shown = frames or _only_frames(entry)
            stack = _named(file, entry, shown)
            if stack.ndim != 3 or stack.dtype.kind not in "iuf":
                raise InvalidInput(
                    f"frames must be counts (points, rows, columns), {stack.name} is {stack.dtype} of shape "
                    f"{stack.shape}"
                )
            points = stack.shape[0]
            turned = angles or _only_angles(entry, points)
            rocked, motor = _named(file, entry, turned), _last(turned).removesuffix("_deg")
            given = {
                name: _per_frame(_named(file, entry, dataset), points)
                for name, dataset in (("count_time_s", count_time), ("monitor", monitor))
                if dataset
            }
            if "count_time_s" not in given and (found := _found(entry, _COUNT_TIMES, points)) is not None:
                given["count_time_s"] = _per_frame(found, points)  # fmt: skip
            return ArchivedScan(
                (path,),
                StoredFrames(path, _from_root(entry, shown), stack.shape, stack.dtype),
                _per_frame(rocked, points) * _scanned_unit(rocked, cdi),
                motor,
                {**_geometry(entry, stack), **_circles(entry, cdi), **cdi},
                scan=None if entry.name == "/" else str(entry.name).strip("/").removesuffix(".1"),
                measured=_started(entry),
                sample=_text(entry, "sample/name") or _text(entry, "sample_1/name"),
                **given,
            )
    except OSError as error:
        raise InvalidInput(f"{path} can't be read as HDF5: {error}") from error


def _entry(file: h5py.File, scan: str | None) -> h5py.Group:
    groups = {name: item for name in list(file) if isinstance(item := _get(file, name), h5py.Group)}
    if scan is not None:
        names = (scan, f"{scan}.1", f"scan_{scan}", f"entry_{scan}", f"entry{scan}")
        found = [groups[name] for name in names if name in groups]
        if not found:
            raise InvalidInput(f"{file.filename} holds no scan {scan}, only {', '.join(groups) or 'none'}")
        return found[0]
    default = file.attrs.get("default")
    if isinstance(default, str) and default in groups:
        return groups[default]
    entries = [item for item in groups.values() if item.attrs.get("NX_class") in ("NXentry", b"NXentry")]
    if len(entries) > 1:
        raise InvalidInput(f"{file.filename} holds the scans {', '.join(groups)}: say which one, with scan")
    return entries[0] if entries else file


def _get(parent: h5py.Group, name: str) -> Any:
    """Return a member, None where it is a link to nowhere."""
    try:
        return parent[name]
    except (KeyError, OSError):
        return None


def _datasets(group: h5py.Group, depth: int = 6) -> Iterator[tuple[str, h5py.Dataset]]:
    """Yield the datasets under a group, those behind links too, each with the path that leads to it.

    Its own name may be one in another file.
    """
    for name in list(group):
        item = _get(group, name)
        if isinstance(item, h5py.Dataset):
            yield name, item
        elif isinstance(item, h5py.Group) and depth:
            yield from ((f"{name}/{path}", found) for path, found in _datasets(item, depth - 1))


def _named(file: h5py.File, entry: h5py.Group, name: str) -> h5py.Dataset:
    found = _get(entry, name) if name in entry else _get(file, name)
    if not isinstance(found, h5py.Dataset):
        there = ", ".join(sorted(path for path, _ in _datasets(entry))[:40])
        raise InvalidInput(f"{file.filename} holds no dataset {name} in {entry.name}, only {there or 'none'}")
    return found


def _only_frames(entry: h5py.Group) -> str:
    """Return the path of the only stack of frames."""
    stacks = {
        _place(item): path
        for path, item in _datasets(entry)
        if item.ndim == 3 and min(item.shape[1:]) > 1 and item.dtype.kind in "iuf"
    }
    if len(stacks) != 1:
        raise InvalidInput(f"one stack of frames must be in {entry.name}, or be named with frames; got "
                           f"{', '.join(sorted(stacks.values())) or 'none'}")  # fmt: skip
    return next(iter(stacks.values()))


def _only_angles(entry: h5py.Group, points: int) -> str:
    """Return the path of the only angle that varies."""
    found: dict[str, str] = {}
    for path, item in _datasets(entry):
        fits = item.shape == (points,) and item.dtype.kind in "iuf" and _last(path) in ROCKED
        if fits and np.ptp(item[()]) > 0:
            found.setdefault(_last(path), path)
    if len(found) != 1:
        raise InvalidInput(f"one angle of {', '.join(ROCKED)} must vary in {entry.name}, or be named with "
                           f"angles; got {', '.join(found) or 'none'}")  # fmt: skip
    return next(iter(found.values()))


def _from_root(entry: h5py.Group, name: str) -> str:
    return f"{entry.name}/{name}" if not name.startswith("/") and name in entry else name


def _last(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _place(item: h5py.HLObject) -> tuple[bytes, int]:
    """Return what tells an object from all others, whatever link it was opened by."""
    return h5py.h5f.get_name(item.id), h5py.h5o.get_info(item.id).addr


def _scanned_unit(rocked: h5py.Dataset, cdi: Mapping[str, Any]) -> float:
    """Return what brings a rocking angle to deg, or the energies of an energy scan to keV."""
    known = {"": 1.0, **_KEV} if cdi.get("scanned") == "energy" else _DEGREES
    if (unit := _unit(rocked)) not in known:
        raise InvalidInput(
            f"the unit of {rocked.name} must be one of {', '.join(filter(None, known))}, got {unit}"
        )
    return known[unit]


def _per_frame(dataset: h5py.Dataset, points: int) -> NDArray[np.float64]:
    if dataset.dtype.kind not in "iuf":
        raise InvalidInput(f"{dataset.name} must hold numbers, it holds {dataset.dtype}")
    values = np.asarray(dataset[()], dtype=np.float64)
    return np.full(points, values.item()) if values.size == 1 else values


def _found(entry: h5py.Group, names: tuple[str, ...], points: int) -> h5py.Dataset | None:
    """Return the first dataset of one of these names with one number, or one a frame."""
    there = (item for path, item in _datasets(entry) if _last(path) in names)
    fits = (item for item in there if item.shape in ((), (1,), (points,)))
    return next((item for item in fits if item.dtype.kind in "iuf"), None)


def _geometry(entry: h5py.Group, stack: h5py.Dataset) -> dict[str, Any]:
    """Return what NeXus groups say of energy, distance, pixels and beam centre."""
    said: dict[str, Any] = {}
    for name in ("incident_energy", "energy"):
        energy = _found(entry, (name,), stack.shape[0])
        if "energy_keV" not in said and energy is not None and _unit(energy) in _KEV:
            said["energy_keV"] = float(np.mean(energy[()])) * _KEV[_unit(energy)]
    items = _of_detector(entry, stack, ("distance", "y_pixel_size", "x_pixel_size"))
    metres = {name: float(np.mean(item[()])) * _METRES[_unit(item)]
              for name, item in items.items() if _unit(item) in _METRES}  # fmt: skip
    if "distance" in metres:
        said["detector_distance_m"] = metres["distance"]
    if {"y_pixel_size", "x_pixel_size"} <= metres.keys():
        said["pixel_size_um"] = [metres["y_pixel_size"] * 1e6, metres["x_pixel_size"] * 1e6]
    centre = [
        _in_pixels(item, metres.get(f"{name[-1]}_pixel_size"))
        for name, item in _of_detector(entry, stack, ("beam_center_y", "beam_center_x")).items()
    ]
    if len(centre) == 2 and None not in centre:
        said["beam_centre_px"] = centre
    return said


def _of_detector(entry: h5py.Group, stack: h5py.Dataset, names: tuple[str, ...]) -> dict[str, h5py.Dataset]:
    """Return what is said beside the frames or by the only NXdetector: sources have a distance too."""
    beside: list[str] = []
    detectors: dict[Any, str] = {}
    for path, item in _datasets(entry):
        above = path.rpartition("/")[0] or "."
        if item.shape == stack.shape and _place(item) == _place(stack):
            beside.append(above)
        if entry[above].attrs.get("NX_class") in ("NXdetector", b"NXdetector"):
            detectors.setdefault(_place(entry[above]), above)
    found: dict[str, h5py.Dataset] = {}
    for above in [*beside, *(detectors.values() if len(detectors) == 1 else ())]:
        for name in names:
            item = _get(entry, f"{above}/{name}")
            if isinstance(item, h5py.Dataset) and item.ndim < 2 and item.size and item.dtype.kind in "iuf":
                found.setdefault(name, item)
    return found


def _in_pixels(item: h5py.Dataset, pixel_m: float | None) -> float | None:
    """Return a place on the detector, None where its unit isn't known."""
    place, unit = float(np.mean(item[()])), _unit(item)
    if unit in _PIXELS:
        return place
    return place * _METRES[unit] / pixel_m if unit in _METRES and pixel_m else None


def _circles(entry: h5py.Group, cdi: Mapping[str, Any]) -> dict[str, Any]:
    """Return where the circles of the named beamline stood, as far as the file says it."""
    if not isinstance(cdi.get("beamline"), str):
        return {}
    names = {name: circle.name for circle in load_beamline(cdi["beamline"]).circles
             for name in (circle.name, *circle.motors)}  # fmt: skip
    angles: dict[str, float] = {}
    for path, item in _datasets(entry):
        name = _last(path)
        fits = item.ndim < 2 and item.dtype.kind in "iuf" and item.size and _unit(item) in _DEGREES
        if name in names and fits:
            angles.setdefault(names[name], float(np.mean(item[()])) * _DEGREES[_unit(item)])
    return {"circles_deg": angles} if angles else {}


def _unit(dataset: h5py.Dataset) -> str:
    unit = dataset.attrs.get("units", "")
    return (unit.decode() if isinstance(unit, bytes) else str(unit)).lower()


def _text(entry: h5py.Group, name: str) -> str:
    item = _get(entry, name) if name in entry else None
    if not isinstance(item, h5py.Dataset) or item.shape not in ((), (1,)):
        return ""
    value = np.asarray(item[()]).ravel()[0]
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _started(entry: h5py.Group) -> float | None:
    try:
        return datetime.fromisoformat(_text(entry, "start_time")).timestamp()
    except ValueError:
        return None
