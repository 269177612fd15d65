"""Reconstructions and measured volumes as files that other programs open.

=========  ======================================================  ==========================
format     what it holds                                           opened by
=========  ======================================================  ==========================
``cxi``    the object on its own grid, and the measured volume     PyNX, silx, cdiutils, bcdi
``nexus``  the object on cubic voxels and on its own, the volume   silx, h5web, NexPy
``vti``    the object on cubic voxels                              ParaView, PyVista
``vts``    the object on its own oblique voxels                    ParaView, PyVista
``npz``    every array of the record, and the volume               NumPy
=========  ======================================================  ==========================

Each says where it comes from (`bluesky_cdinn.provenance`), and is written whole or not at all.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.export_contents import Contents, own_arrays
from bluesky_cdinn.export_cxi import write_cxi
from bluesky_cdinn.export_nexus import write_nexus
from bluesky_cdinn.export_vtk import write_vti, write_vts
from bluesky_cdinn.files import replacing_file, require_writable
from bluesky_cdinn.lab_frame import FloatArray, to_lab_frame
from bluesky_cdinn.provenance import provenance
from bluesky_cdinn.records import DiffractionVolume, Reconstruction
from bluesky_cdinn.volume_files import geometry_as_plain

Format = Literal["cxi", "nexus", "vti", "vts", "npz"]

_SUFFIXES: Mapping[str, Format] = {
    ".cxi": "cxi", ".nxs": "nexus", ".nx": "nexus", ".h5": "nexus", ".hdf5": "nexus",
    ".vti": "vti", ".vts": "vts", ".npz": "npz",
}  # fmt: skip
_OF_CRYSTALS = ("vti", "vts")


def format_of(path: Path, named: str | None = None) -> Format:
    """Return the format that a file is to have: the named one, else what its suffix says.

    Raises
    ------
    InvalidInput
        There is no such format, or the suffix says none.
    """
    known = ", ".join(get_args(Format))
    if named is not None:
        if named not in get_args(Format):
            raise InvalidInput(f"the format must be one of {known}, got {named!r}")
        return named  # pyright: ignore[reportReturnType]
    if path.suffix.lower() not in _SUFFIXES:
        raise InvalidInput(
            f"a file's name must end in {', '.join(_SUFFIXES)}, or its format be given ({known}), "
            f"got {path.name}"
        )
    return _SUFFIXES[path.suffix.lower()]


def export(
    path: Path,
    result: Reconstruction,
    format: str | None = None,
    *,
    volume: DiffractionVolume | None = None,
    processed_uid: str = "",
    voxel_nm: float | None = None,
    axes: FloatArray | None = None,
) -> None:
    """Write a reconstruction into a file.

    Parameters
    ----------
    path
        Where to; its folder must be there. A file that is there is replaced.
    result
        A successful one.
    format
        One of this module's table; what the path's suffix says if None.
    volume
        The measured volume, on the result's grid, for cxi, nexus and npz.
    processed_uid
        Of the run that holds the result, for its provenance.
    voxel_nm, axes
        Of the cubic voxels of nexus and vti; see `bluesky_cdinn.lab_frame.to_lab_frame`.

    Raises
    ------
    InvalidInput
        Before anything is written: no such format or folder, no object, or a volume that doesn't fit.
    MissingMetadata
        vti and vts are in nm, and the result is in voxel units.
    """
    chosen = format_of(path, format)
    require_writable(path)
    if not result.support.any():
        raise InvalidInput(f"a reconstruction with an object is required, this one is {result.status}: "
                           f"{result.reason or 'its support is empty'}")  # fmt: skip
    if volume is not None and volume.intensity.shape != result.density.shape:
        raise InvalidInput(
            f"the volume must be on the reconstruction's grid {result.density.shape}, it is "
            f"{volume.intensity.shape}: reconstruct the scan with the same options"
        )
    if volume is not None and chosen in _OF_CRYSTALS:
        raise InvalidInput(f"a measured volume goes into cxi, nexus or npz, not into {chosen}")
    wants_lab = chosen == "vti" or (chosen == "nexus" and result.direct_basis is not None)
    lab = to_lab_frame(result, voxel_nm, axes) if wants_lab else None
    _write(chosen, path, Contents(result, lab, volume, provenance(result, processed_uid)))


def export_volume(
    path: Path,
    volume: DiffractionVolume,
    format: str | None = None,
    *,
    raw_uid: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a measured volume alone, as `export` does; ``cdinn phase`` takes its cxi and npz.

    Parameters
    ----------
    path, volume, format
        As for `export`; cxi, nexus or npz.
    raw_uid, metadata
        Of the raw run: its uid, and what its start document said.

    Raises
    ------
    InvalidInput
        No such format or folder, or one for crystals only.
    """
    chosen = format_of(path, format)
    require_writable(path)
    if chosen in _OF_CRYSTALS:
        raise InvalidInput(f"a measured volume goes into cxi, nexus or npz, not into {chosen}")
    nothing = Reconstruction(np.zeros((0, 0, 0), np.complex64), np.zeros((0, 0, 0), bool), raw_uid=raw_uid,
                             history=volume.history, metadata=metadata or {})  # fmt: skip
    of_result = ("status", "scalars", "parameters")
    said = {name: value for name, value in provenance(nothing).items() if name not in of_result}
    _write(chosen, path, Contents(None, None, volume, said))


def _write_npz(path: Path, contents: Contents) -> None:
    arrays: dict[str, Any] = {} if contents.result is None else own_arrays(contents.result)
    volume = contents.volume
    if volume is not None:
        arrays |= {"intensity": volume.intensity, "mask": volume.valid, "window": volume.window}
        if volume.angles_deg is not None:
            arrays["angles_deg"] = volume.angles_deg
        if volume.flat_about is not None:
            arrays["flat_about"] = volume.flat_about
    if contents.geometry is not None:
        arrays["geometry"] = json.dumps(geometry_as_plain(contents.geometry))
    with path.open("wb") as stream:
        np.savez_compressed(stream, provenance=json.dumps(contents.said), **arrays)


_WRITERS: Mapping[Format, Callable[[Path, Contents], None]] = {
    "cxi": write_cxi, "nexus": write_nexus, "vti": write_vti, "vts": write_vts, "npz": _write_npz,
}  # fmt: skip


def _write(chosen: Format, path: Path, contents: Contents) -> None:
    with replacing_file(path) as part:
        _WRITERS[chosen](part, contents)
