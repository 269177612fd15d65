"""A reconstruction, a diffraction volume or both as CXI, the format of the Coherent X-ray Imaging Data Bank.

Version 1.6 of Maia, Nature Methods 9, 854 (2012): PyNX, silx and most programs for phase retrieval open it.
Everything is on the reconstruction's own grid. Units are SI as CXI has them, except in ``note_1`` and in what
says its units itself.
"""

import json
from pathlib import Path

import h5py
import numpy as np

from bluesky_cdinn.export_contents import UNITS, Contents, group, own_arrays, put
from bluesky_cdinn.records import DiffractionVolume, Geometry, Reconstruction
from bluesky_cdinn.volume_files import geometry_as_plain

VERSION = 160
KEV_J = 1.602176634e-16
# Bits of CXI's pixel masks.
BAD_PIXEL = 0x00000001


def write_cxi(path: Path, contents: Contents) -> None:
    """Write a CXI file; ``/entry_1/image_1`` is the object, ``detector_1`` the measured volume."""
    with h5py.File(path, "w") as file:
        file.attrs.update({"NX_class": "NXroot", "default": "entry_1", "creator": "bluesky-cdinn"})
        put(file, "cxi_version", VERSION)
        default = "data_1" if contents.result is None else "image_1"
        entry = group(file, "entry_1", "NXentry", default=default)
        put(entry, "program_name", f"{contents.said['creator']} {contents.said['version']}")
        put(entry, "start_time", contents.said["written"])
        put(entry, "title", contents.said.get("sample", ""))
        sample = group(entry, "sample_1", "NXsample")
        put(sample, "name", contents.said.get("sample", ""))
        _write_instrument(entry, contents.geometry, contents.volume)
        if contents.result is not None:
            _write_process(_write_image(entry, contents.result), contents)
        else:
            _write_process(entry, contents)
        data = group(entry, "data_1", "NXdata", signal="data")
        shown = "/entry_1/image_1" if contents.volume is None else "/entry_1/instrument_1/detector_1"
        data["data"] = h5py.SoftLink(f"{shown}/data")


def _write_image(entry: h5py.Group, result: Reconstruction) -> h5py.Group:
    image = group(entry, "image_1", "NXdata", signal="data", interpretation="image")
    put(image, "data", result.density)
    put(image, "data_space", "real")
    put(image, "data_type", "electron density")
    put(image, "is_fft_shifted", 0)  # the object is at the middle of the array
    put(image, "image_center", [n // 2 for n in reversed(result.density.shape)])
    # 0 in a mask of CXI is a good voxel.
    put(image, "mask", np.where(result.support, 0, BAD_PIXEL).astype(np.uint32))
    put(image, "support", result.support)
    if result.direct_basis is not None:
        extents = np.linalg.norm(result.direct_basis, axis=0) * result.density.shape * 1e-9
        put(image, "image_size", extents[::-1], units="m")
    for name, array in own_arrays(result).items():
        if name not in ("density", "support"):
            put(image, name, array, units=UNITS.get(name, ""))
    return image


def _write_instrument(entry: h5py.Group, geometry: Geometry | None, volume: DiffractionVolume | None) -> None:
    if geometry is None and volume is None:
        return
    instrument = group(entry, "instrument_1", "NXinstrument")
    detector = group(instrument, "detector_1", "NXdetector")
    if geometry is not None:
        source = group(instrument, "source_1", "NXsource")
        put(source, "energy", geometry.energy_keV * KEV_J, units="J")
        put(detector, "distance", geometry.detector_distance_m, units="m")
        rows, columns = geometry.pixel_size_um
        put(detector, "x_pixel_size", columns * 1e-6, units="m")
        put(detector, "y_pixel_size", rows * 1e-6, units="m")
        put(detector, "geometry", json.dumps(geometry_as_plain(geometry)))
    if volume is not None:
        put(detector, "data", volume.intensity, interpretation="image")
        put(detector, "mask", np.where(volume.valid, 0, BAD_PIXEL).astype(np.uint32))
        put(detector, "data_space", "diffraction")
        put(detector, "data_type", "intensity")
        put(detector, "is_fft_shifted", 0)
        put(detector, "window", volume.window)
        if volume.flat_about is not None:
            put(detector, "flat_about", volume.flat_about)
        if volume.angles_deg is not None:
            energies = geometry is not None and geometry.scanned == "energy"
            put(detector, "angles_deg", volume.angles_deg, units="keV" if energies else "deg")


def _write_process(parent: h5py.Group, contents: Contents) -> None:
    process = group(parent, "process_1", "NXprocess")
    said = contents.said
    put(process, "program", said["creator"])
    put(process, "version", said["version"])
    put(process, "date", said["written"])
    put(process, "comment", said["conventions"])
    for name in ("raw_uid", "processed_uid", "sample", "status"):
        if name in said:
            put(process, name, said[name])
    note = group(process, "note_1", "NXnote")
    put(note, "type", "application/json")
    put(note, "data", json.dumps(said))
    scalars = group(process, "scalars", "NXcollection")
    for name, value in said.get("scalars", {}).items():
        put(scalars, name, value)
