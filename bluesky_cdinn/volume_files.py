"""Diffraction volumes in files that other programs write, and reconstructions in files that they read.

A volume comes as npz (``intensity``, and optionally ``mask``, True where valid) or as CXI, the HDF5 layout of
the Coherent X-ray Imaging Data Bank (Maia, Nature Methods 9, 854 (2012)). Those that this package exported
say their rocking angles and geometry too, in ``angles_deg``, ``window``, ``flat_about`` and, as
JSON, ``geometry``.
"""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 - registers the compressions that detectors write
import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn.documents import finite_scalars, plain
from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.files import replacing
from bluesky_cdinn.records import DiffractionVolume, Geometry, Reconstruction
from bluesky_cdinn.volume import trusted

# data_1 may point to an object instead.
CXI_DETECTOR = "/entry_1/instrument_1/detector_1"
CXI_DATA = (f"{CXI_DETECTOR}/data", "/entry_1/data_1/data")
CXI_MASK = (f"{CXI_DETECTOR}/mask", "/entry_1/data_1/mask")
# The one bit of a CXI mask that speaks for a pixel ("signal above background"); every other tells a fault.
CXI_HAS_SIGNAL = 0x00001000


def read_volume(path: Path) -> DiffractionVolume:
    """Return the diffraction volume that a file holds.

    Parameters
    ----------
    path
        An npz or a CXI file; what it is, its content says and not its name.

    Returns
    -------
    DiffractionVolume
        Voxels that are masked, not finite, or at the largest number of an unsigned type are not valid and 0;
        negative counts, which a subtracted background leaves, are 0.

    Raises
    ------
    InvalidInput
        The file is absent, neither npz nor HDF5, or doesn't hold a real 3D intensity with a mask that fits.
    """
    if not path.is_file():
        raise InvalidInput(f"a file with a diffraction volume is required, there is none at {path}")
    if zipfile.is_zipfile(path):
        intensity, valid, said = _read_npz(path)
    elif h5py.is_hdf5(path):
        intensity, valid, said = _read_cxi(path)
    else:
        raise InvalidInput(f"{path} must be npz (with an array 'intensity') or CXI (HDF5), it is neither")
    return _volume(intensity, valid, said, path)


def geometry_as_plain(geometry: Geometry) -> dict[str, Any]:
    """Return a geometry as JSON can hold it; `geometry_from_plain` reads it back."""
    return plain({name: value for name, value in asdict(geometry).items() if value is not None})


def geometry_from_plain(fields: Mapping[str, Any]) -> Geometry:
    """Return the geometry that `geometry_as_plain` told.

    Raises
    ------
    InvalidInput
        It isn't one.
    """

    def as_tuples(value: Any) -> Any:
        return tuple(as_tuples(item) for item in value) if isinstance(value, list) else value

    try:
        return Geometry(**{name: as_tuples(value) for name, value in fields.items()})
    except TypeError as error:
        raise InvalidInput(
            f"a geometry must have the fields of `Geometry`, got {fields!r}: {error}"
        ) from None


def write_reconstruction(path: Path, result: Reconstruction) -> None:
    """Write a reconstruction as npz, whole or not at all.

    Parameters
    ----------
    path
        Where to; its directory must be there.
    result
        What to write: ``density`` complex64 and ``support`` bool on the volume's own grid, the scalars by
        their names, and ``timings_s`` and ``parameters`` as JSON text.
    """
    arrays: dict[str, Any] = {
        "density": result.density,
        "support": result.support,
        "timings_s": json.dumps(dict(result.timings_s)),
        "parameters": json.dumps(dict(result.parameters), default=str),
        **finite_scalars(result),
    }
    with replacing(path) as stream:
        np.savez_compressed(stream, **arrays)


_SAID = ("angles_deg", "window", "geometry", "flat_about")

_Parts = tuple[NDArray[Any], NDArray[Any] | None, dict[str, Any]]


def _read_npz(path: Path) -> _Parts:
    try:
        with np.load(path, allow_pickle=False) as file:
            if "intensity" not in file:
                raise InvalidInput(f"{path} must hold an array 'intensity', it holds {sorted(file)}")
            mask = file["mask"].astype(bool) if "mask" in file else None
            return file["intensity"], mask, {name: file[name][()] for name in _SAID if name in file}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(f"{path} can't be read as npz of plain arrays: {error}") from error


def _read_cxi(path: Path) -> _Parts:
    try:
        with h5py.File(path, "r") as file:
            data = _first_dataset(file, CXI_DATA)
            if data is None:
                raise InvalidInput(f"{path} must hold its volume at {' or '.join(CXI_DATA)} as CXI files do")
            mask = _first_dataset(file, CXI_MASK)
            valid = None if mask is None else (np.asarray(mask).astype(np.int64) & ~CXI_HAS_SIGNAL) == 0
            found = {name: _first_dataset(file, (f"{CXI_DETECTOR}/{name}",)) for name in _SAID}
            said = {name: item[()] for name, item in found.items() if item is not None}
            return np.asarray(data), valid, said
    except OSError as error:
        raise InvalidInput(f"{path} can't be read as HDF5: {error}") from error


def _first_dataset(file: h5py.File, names: tuple[str, ...]) -> h5py.Dataset | None:
    found = (file.get(name) for name in names)
    return next((item for item in found if isinstance(item, h5py.Dataset)), None)


def _volume(
    intensity: NDArray[Any], mask: NDArray[Any] | None, said: Mapping[str, Any], path: Path
) -> DiffractionVolume:
    if intensity.ndim != 3 or intensity.dtype.kind not in "buif":
        raise InvalidInput(
            f"the intensity in {path} must be real and 3D, got {intensity.dtype} of shape {intensity.shape}"
        )
    if mask is not None:
        try:
            mask = np.broadcast_to(mask, intensity.shape)  # one mask for all frames of a detector is usual
        except ValueError:
            raise InvalidInput(
                f"the mask in {path} must have the intensity's shape {intensity.shape}, got {mask.shape}"
            ) from None
    valid = trusted(intensity)
    if mask is not None:
        valid &= mask
    step = {
        "step": "read",
        "file": path.name,
        "dtype": str(intensity.dtype),
        "mask": mask is not None,
        "negative": int(np.count_nonzero(intensity < 0)),
    }
    counts = np.where(valid, np.maximum(intensity, 0), 0).astype(np.float32)
    angles, flat_about = _numbers(said, "angles_deg", path), _numbers(said, "flat_about", path, 3)
    window = _numbers(said, "window", path, 3)
    return DiffractionVolume(
        intensity=counts,
        valid=valid,
        angles_deg=angles,
        geometry=None if "geometry" not in said else geometry_from_plain(_json(said["geometry"], path)),
        window=(0, 0, 0) if window is None else tuple(map(int, window)),  # pyright: ignore[reportArgumentType]
        history=(step,),
        flat_about=None if flat_about is None else tuple(map(float, flat_about)),  # pyright: ignore[reportArgumentType]
    )


def _numbers(
    said: Mapping[str, Any], name: str, path: Path, count: int | None = None
) -> NDArray[np.float64] | None:
    """Return a row of numbers that a file says, None where it doesn't."""
    if name not in said:
        return None
    try:
        values = np.asarray(said[name], dtype=np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    fits = values.ndim == 1 and values.size and count in (None, values.size)
    if not fits or not np.isfinite(values).all():
        wanted = "finite numbers" if count is None else f"{count} finite numbers"
        raise InvalidInput(f"{name} in {path} must be a row of {wanted}, got {said[name]!r}")
    return values


def _json(text: Any, path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(text.decode() if isinstance(text, bytes) else str(text)))
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"the geometry in {path} must be a JSON object: {error}") from None
