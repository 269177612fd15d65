"""Rocking scans in HDF5 and NeXus files as synchrotrons write them, found by convention or by name."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
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
_DEGREES = {"rad": np.degrees(1.0), "radian": np.degrees(1.0), "mrad": np.degrees(1e-3), "mdeg": 1e-3}
_KEV = {"ev": 1e-3, "j": 1 / 1.602176634e-16, "kev": 1.0}
_METRES = {"mm": 1e-3, "cm": 1e-2, "um": 1e-6, "µm": 1e-6, "m": 1.0}


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
            stack = _named(file, entry, frames) if frames else _only_frames(entry)
            points = stack.shape[0]
            rocked = _named(file, entry, angles) if angles else _only_angles(entry, points)
            motor = str(rocked.name).rsplit("/", 1)[-1].removesuffix("_deg")
            unit = _unit(rocked)
            given = {
                name: _per_frame(_named(file, entry, dataset), points)
                for name, dataset in (("count_time_s", count_time), ("monitor", monitor))
                if dataset
            }
            if "count_time_s" not in given and (found := _found(entry, _COUNT_TIMES)) is not None:
                given["count_time_s"] = _per_frame(found, points)  # fmt: skip
            return ArchivedScan(
                (path,),
                StoredFrames(path, str(stack.name), stack.shape, stack.dtype),
                _per_frame(rocked, points) * _DEGREES.get(unit, 1.0),
                motor,
                {**_geometry(entry), **_circles(entry, cdi), **cdi},
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


def _datasets(group: h5py.Group, depth: int = 6) -> Iterator[h5py.Dataset]:
    """Yield the datasets under a group, those behind links too."""
    for name in list(group):
        item = _get(group, name)
        if isinstance(item, h5py.Dataset):
            yield item
        elif isinstance(item, h5py.Group) and depth:
            yield from _datasets(item, depth - 1)


def _named(file: h5py.File, entry: h5py.Group, name: str) -> h5py.Dataset:
    found = _get(entry, name) if name in entry else _get(file, name)
    if not isinstance(found, h5py.Dataset):
        there = ", ".join(sorted({str(item.name) for item in _datasets(entry)})[:40])
        raise InvalidInput(f"{file.filename} holds no dataset {name}, only {there or 'none'}")
    return found


def _only_frames(entry: h5py.Group) -> h5py.Dataset:
    stacks = {
        h5py.h5o.get_info(item.id).addr: item
        for item in _datasets(entry)
        if item.ndim == 3 and min(item.shape[1:]) > 1 and item.dtype.kind in "iuf"
    }
    if len(stacks) != 1:
        names = ", ".join(sorted(str(item.name) for item in stacks.values()))
        raise InvalidInput(f"one stack of frames must be in {entry.name}, or be named with frames; got "
                           f"{names or 'none'}")  # fmt: skip
    return next(iter(stacks.values()))


def _only_angles(entry: h5py.Group, points: int) -> h5py.Dataset:
    found: dict[str, h5py.Dataset] = {}
    for item in _datasets(entry):
        name = str(item.name).rsplit("/", 1)[-1]
        if item.shape == (points,) and item.dtype.kind in "iuf" and name in ROCKED and np.ptp(item[()]) > 0:
            found.setdefault(name, item)
    if len(found) != 1:
        raise InvalidInput(f"one angle of {', '.join(ROCKED)} must vary in {entry.name}, or be named with "
                           f"angles; got {', '.join(found) or 'none'}")  # fmt: skip
    return next(iter(found.values()))


def _per_frame(dataset: h5py.Dataset, points: int) -> NDArray[np.float64]:
    values = np.asarray(dataset[()], dtype=np.float64)
    return np.full(points, values) if values.ndim == 0 else values


def _found(entry: h5py.Group, names: tuple[str, ...]) -> h5py.Dataset | None:
    there = (item for item in _datasets(entry) if str(item.name).rsplit("/", 1)[-1] in names)
    return next((item for item in there if item.ndim < 2 and item.dtype.kind in "iuf"), None)


def _geometry(entry: h5py.Group) -> dict[str, Any]:
    """Return what NeXus groups say of energy, distance, pixels and beam centre."""
    said: dict[str, Any] = {}
    for name in ("incident_energy", "energy"):
        energy = _found(entry, (name,))
        if "energy_keV" not in said and energy is not None and _unit(energy) in _KEV:
            said["energy_keV"] = float(np.mean(energy[()])) * _KEV[_unit(energy)]
    lengths = {name: _found(entry, (name,)) for name in ("distance", "y_pixel_size", "x_pixel_size")}
    metres = {name: float(np.mean(item[()])) * _METRES.get(_unit(item), 1.0)
              for name, item in lengths.items() if item is not None}  # fmt: skip
    if "distance" in metres:
        said["detector_distance_m"] = metres["distance"]
    if {"y_pixel_size", "x_pixel_size"} <= metres.keys():
        said["pixel_size_um"] = [metres["y_pixel_size"] * 1e6, metres["x_pixel_size"] * 1e6]
    row, column = _found(entry, ("beam_center_y",)), _found(entry, ("beam_center_x",))
    if row is not None and column is not None:
        said["beam_centre_px"] = [float(np.mean(row[()])), float(np.mean(column[()]))]
    return said


def _circles(entry: h5py.Group, cdi: Mapping[str, Any]) -> dict[str, Any]:
    """Return where the circles of the named beamline stood, as far as the file says it."""
    if not isinstance(cdi.get("beamline"), str):
        return {}
    names = {name: circle.name for circle in load_beamline(cdi["beamline"]).circles
             for name in (circle.name, *circle.motors)}  # fmt: skip
    angles: dict[str, float] = {}
    for item in _datasets(entry):
        name = str(item.name).rsplit("/", 1)[-1]
        if name in names and item.ndim < 2 and item.dtype.kind in "iuf" and item.size:
            angles.setdefault(names[name], float(np.mean(item[()])) * _DEGREES.get(_unit(item), 1.0))
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
