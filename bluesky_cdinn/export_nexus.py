"""A reconstruction as NeXus: NXdata groups that h5web and silx plot at once, and where it comes from."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn.export_contents import UNITS, Contents, group, own_arrays, put
from bluesky_cdinn.lab_frame import LabObject
from bluesky_cdinn.records import DiffractionVolume, Reconstruction
from bluesky_cdinn.volume_files import geometry_as_plain

_GRID = ("rocking", "row", "column")


def write_nexus(path: Path, contents: Contents) -> None:
    """Write a NeXus file.

    ``/entry/object``, which is shown first, is the crystal on cubic voxels, or on its own where their size
    isn't known; ``/entry/reconstruction`` everything on its own grid; ``/entry/measurement`` the volume.
    """
    shown = "object" if contents.result is not None else "measurement"
    with h5py.File(path, "w") as file:
        file.attrs.update({"NX_class": "NXroot", "default": "entry", "creator": "bluesky-cdinn"})
        entry = group(file, "entry", "NXentry", default=shown)
        said = contents.said
        put(entry, "title", said.get("sample", ""))
        put(entry, "program_name", said["creator"], version=said["version"])
        put(entry, "start_time", said["written"])
        for name, uid in (("entry_identifier", "processed_uid"), ("experiment_identifier", "raw_uid")):
            if uid in said:
                put(entry, name, said[uid])
        put(group(entry, "sample", "NXsample"), "name", said.get("sample", ""))
        _write_instrument(entry, contents)
        _write_process(entry, contents)
        if contents.result is not None:
            _write_object(entry, contents.result, contents.lab)
            _write_own(entry, contents.result)
            _write_curves(entry, contents.result)
        if contents.volume is not None:
            _write_volume(entry, contents.volume)


def nxdata(
    parent: h5py.Group,
    name: str,
    signals: dict[str, NDArray[Any]],
    axes: dict[str, tuple[NDArray[Any], str]],
    title: str,
    **units: str,
) -> h5py.Group:
    """Write a plottable group.

    Parameters
    ----------
    parent, name
        Where.
    signals
        Arrays of one shape; the first is shown, the others can be chosen.
    axes
        Name -> values and unit, one for each axis of the signals.
    title
        For people.
    **units
        Of the signals that have one.
    """
    first, *others = signals
    data = group(parent, name, "NXdata", signal=first, axes=list(axes))
    if others:
        data.attrs["auxiliary_signals"] = others
    put(data, "title", title)
    for signal, values in signals.items():
        shown = {"interpretation": "image"} if values.ndim > 1 else {}
        put(data, signal, values, units=units.get(signal, ""), long_name=signal.replace("_", " "), **shown)
    for place, (axis, (values, unit)) in enumerate(axes.items()):
        data.attrs[f"{axis}_indices"] = place
        put(data, axis, values, units=unit)
    return data


def _write_object(entry: h5py.Group, result: Reconstruction, lab: LabObject | None) -> None:
    if lab is None:
        signals = {"amplitude": result.amplitude, "phase": result.phase, "support": result.support}
        nxdata(entry, "object", signals, _indices(result.density), "Object, in voxels", **UNITS)
        return
    signals = {"amplitude": lab.amplitude, "phase": lab.phase, **lab.maps, "support": lab.support}
    first = lab.axes @ lab.origin_nm
    axes = {
        name: (start + lab.voxel_nm * np.arange(n), "nm")
        for name, start, n in zip("xyz", first, lab.density.shape, strict=True)
    }
    data = nxdata(entry, "object", signals, axes, "Object, on cubic voxels", **UNITS)
    put(data, "axes_in_lab", lab.axes)
    put(data, "ramp_taken_out", lab.ramp_per_nm, units="rad/nm")


def _write_own(entry: h5py.Group, result: Reconstruction) -> None:
    arrays = own_arrays(result)
    maps = {name: array for name, array in arrays.items() if array.shape == result.density.shape}
    signals = {"amplitude": result.amplitude, "phase": result.phase, **maps}
    data = nxdata(entry, "reconstruction", signals, _indices(result.density), "Object, as phased", **UNITS)
    for name in ("direct_basis", "reciprocal_basis", "q_vector"):
        if name in arrays:
            put(data, name, arrays[name], units=UNITS[name])


def _write_curves(entry: h5py.Group, result: Reconstruction) -> None:
    if result.resolution_curve is not None:
        frequency, value = result.resolution_curve
        nxdata(entry, "resolution", {"prtf": value}, {"frequency": (frequency, "1/voxel")},
               "Phase retrieval transfer function")  # fmt: skip
    if result.progress is not None and result.progress.size:
        iterations = np.arange(len(result.progress))
        nxdata(entry, "progress", {"chi2": result.progress}, {"iteration": (iterations, "")}, "Misfit")


def _write_volume(entry: h5py.Group, volume: DiffractionVolume) -> None:
    axes = _indices(volume.intensity)
    if volume.angles_deg is not None:
        energies = volume.geometry is not None and volume.geometry.scanned == "energy"
        scanned, unit = ("energy", "keV") if energies else ("angle", "deg")
        axes = {scanned: (volume.angles_deg, unit), **{name: axes[name] for name in _GRID[1:]}}
    signals = {"intensity": volume.intensity, "valid": volume.valid}
    data = nxdata(entry, "measurement", signals, axes, "Measured intensity", intensity="counts")
    put(data, "window", volume.window)
    if volume.flat_about is not None:
        put(data, "flat_about", volume.flat_about)


def _write_instrument(entry: h5py.Group, contents: Contents) -> None:
    geometry = contents.geometry
    if geometry is None:
        return
    instrument = group(entry, "instrument", "NXinstrument")
    put(group(instrument, "beam", "NXbeam"), "incident_energy", geometry.energy_keV, units="keV")
    detector = group(instrument, "detector", "NXdetector")
    put(detector, "distance", geometry.detector_distance_m, units="m")
    for name, size in zip(("y_pixel_size", "x_pixel_size"), geometry.pixel_size_um, strict=True):
        put(detector, name, size, units="um")
    for name, place in zip(("beam_center_y", "beam_center_x"), geometry.beam_centre_px, strict=True):
        put(detector, name, place, units="pixel")
    put(detector, "geometry", json.dumps(geometry_as_plain(geometry)))


def _write_process(entry: h5py.Group, contents: Contents) -> None:
    said = contents.said
    process = group(entry, "process", "NXprocess")
    put(process, "program", said["creator"])
    put(process, "version", said["version"])
    put(process, "date", said["written"])
    for name in ("raw_uid", "processed_uid", "status"):
        if name in said:
            put(process, name, said[name])
    for name in ("scalars", "parameters"):
        kept = group(process, name, "NXparameters")
        for key, value in said.get(name, {}).items():
            put(kept, key, value if isinstance(value, bool | int | float | str) else json.dumps(value))
    note = group(process, "provenance", "NXnote")
    put(note, "type", "application/json")
    put(note, "data", json.dumps(said))


def _indices(values: NDArray[Any]) -> dict[str, tuple[NDArray[Any], str]]:
    return {name: (np.arange(n), "") for name, n in zip(_GRID, values.shape, strict=True)}
