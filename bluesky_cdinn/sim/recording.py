"""Recorded rocking scans, read from HDF5, npz or TIFF.

A file names its contents alike whatever its format:

=========================================  ==================================================
``frames``                                 counts (points, rows, columns)
``angles_deg`` or ``theta_deg``            rocking angle of each frame, deg (points,)
``count_time_s``                           exposure, s: one number, or one a frame
``dark``, ``whitefield``                   of the same pixels, or of a larger detector
``region``                                 (row0, row1, col0, col1) of the frames in the larger one
``energy_keV`` `detector_distance_m`       geometry, as in `bluesky_cdinn.records.Geometry`; also
``pixel_size_um`` or ``pixel_size_m``      one number for square pixels
``detector_angles_deg`` or                 (delta, gamma), or each by itself
``delta_deg``, ``gamma_deg``
``beam_centre_px``                         the frame's centre where it isn't given
``rocking_axis reflection lattice_nm``     as in `Geometry`, where known
``sample``                                 its name
=========================================  ==================================================

HDF5 holds them as datasets or as attributes of its root; npz as arrays. A TIFF stack, or a folder with
a TIFF a frame, has them beside it in a JSON file of the same name (``scan.tif``, ``scan.json``).
"""

import json
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import h5py
import hdf5plugin  # noqa: F401 - registers the compressions that detectors write
import numpy as np
import tifffile
from numpy.typing import NDArray

from bluesky_cdinn.errors import CdinnWarning, InvalidInput, MissingMetadata
from bluesky_cdinn.records import Geometry

Region = tuple[int, int, int, int]


class FrameStack(Protocol):
    """Frames in memory or in a file: a NumPy array, or what indexes like one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(points, rows, columns)."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a pixel."""
        ...

    def __getitem__(self, index: Any) -> NDArray[Any]: ...


@dataclass(frozen=True)
class StoredFrames:
    """Frames that stay in their HDF5 file until one is asked for; the file is open only meanwhile."""

    path: Path
    dataset: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Read from the file."""
        with h5py.File(self.path) as file:
            stack = file[self.dataset]
            assert isinstance(stack, h5py.Dataset)
            return stack[index]


class FieldReference(NamedTuple):
    """Where a dark or flat field lies, and which part of it the frames cover.

    Parameters
    ----------
    path, dataset
        HDF5 file, and the name of the field in it.
    region
        (row0, row1, column0, column1), half open.
    """

    path: Path
    dataset: str
    region: Region

    def to_document(self) -> dict[str, Any]:
        """Return the plain mapping that goes into a start document's ``cdi``."""
        return {"path": str(self.path), "dataset": self.dataset, "region": list(self.region)}


@dataclass(frozen=True, eq=False)
class Recording:
    """One recorded rocking scan.

    Parameters
    ----------
    frames
        Counts (points, rows, columns), any real dtype.
    angles_deg
        Rocking angle of each frame, float64 (points,).
    geometry
        Of the measurement.
    count_time_s
        Exposure of each frame, float64 (points,); None where the file doesn't say it.
    dark, whitefield
        Of the frames' own pixels (rows, columns): dark as the file has it (in
        counts, or non-zero where a pixel is bad), whitefield the relative response.
    dark_file, flat_file
        Where the two lie, for those who read them elsewhere.
    name
        What the sample or, failing that, the file is called.
    """

    frames: FrameStack
    angles_deg: NDArray[np.float64]
    geometry: Geometry
    count_time_s: NDArray[np.float64] | None = None
    dark: NDArray[Any] | None = None
    whitefield: NDArray[Any] | None = None
    dark_file: FieldReference | None = None
    flat_file: FieldReference | None = None
    name: str = ""

    def __post_init__(self) -> None:
        shape = _frame_shape(self.frames)
        points = self.frames.shape[0]
        if self.angles_deg.shape != (points,) or not np.isfinite(self.angles_deg).all():
            raise InvalidInput(
                f"angles_deg must hold a finite angle for each of the {points} frames, "
                f"got shape {self.angles_deg.shape}"
            )
        for name, wanted in (("count_time_s", (points,)), ("dark", shape), ("whitefield", shape)):
            values = getattr(self, name)
            if values is not None and values.shape != wanted:
                raise InvalidInput(f"{name} must have the frames' shape {wanted}, got {values.shape}")

    @property
    def step_deg(self) -> float:
        """Median distance of neighbouring angles, deg, repeated ones aside; 0 if all are the same."""
        gaps = np.diff(np.sort(self.angles_deg))
        # The readbacks of a repeated angle differ by much less than a step.
        steps = gaps[gaps > 0.1 * gaps.max(initial=0.0)]
        return float(np.median(steps)) if len(steps) else 0.0

    @property
    def scan_range(self) -> tuple[float, float, int]:
        """(start, stop, num) of an even scan over all the angles, in the direction they were recorded."""
        low, high = float(self.angles_deg.min()), float(self.angles_deg.max())
        num = round((high - low) / self.step_deg) + 1 if self.step_deg else 1
        return (low, high, num) if self.angles_deg[0] <= self.angles_deg[-1] else (high, low, num)

    @property
    def cdi(self) -> dict[str, Any]:
        """What a start document's ``cdi`` mapping should say beside the geometry."""
        known: dict[str, Any] = {"sample": self.name}
        if self.dark_file is not None:
            known["dark_file"] = self.dark_file.to_document()
        if self.flat_file is not None:
            known["flat_file"] = self.flat_file.to_document()
        return known


def load_recording(path: Path | str, **overrides: Any) -> Recording:
    """Read a recorded rocking scan.

    Parameters
    ----------
    path
        HDF5 (.h5, .hdf5, .nxs), npz or TIFF file, or a folder of TIFF files in the order of their names.
    **overrides
        Anything that the file could say, under the names of this module's table; they override it.

    Returns
    -------
    Recording
        HDF5 frames stay in the file until one is asked for.

    Raises
    ------
    InvalidInput
        If the file isn't there, isn't of a known kind, or its contents don't fit together.
    MissingMetadata
        If frames, angles or geometry are given nowhere.
    """
    path = Path(path).absolute()
    if not path.exists():
        raise InvalidInput(f"a recording must be a file or a folder of TIFF files; there is no {path}")
    if path.is_dir() or path.suffix.lower() in {".tif", ".tiff"}:
        contents = _read_tiff(path)
    elif path.suffix.lower() == ".npz":
        contents = _read_npz(path)
    elif h5py.is_hdf5(path):
        contents = _read_hdf5(path)
    else:
        raise InvalidInput(f"a recording must be HDF5, npz or TIFF, got {path.name}")
    in_hdf5 = path.is_file() and h5py.is_hdf5(path)
    stored = {name for name in _FIELDS if in_hdf5 and name not in overrides}
    return _compose(path, {**_normalised(contents), **_normalised(overrides)}, stored)


_FIELDS = ("dark", "whitefield")


def _read_hdf5(path: Path) -> dict[str, Any]:
    with h5py.File(path) as file:
        contents: dict[str, Any] = dict(file.attrs)
        for name, item in file.items():
            if not isinstance(item, h5py.Dataset):
                continue
            large = name == "frames"
            contents[name] = StoredFrames(path, name, item.shape, item.dtype) if large else item[()]
    return contents


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise InvalidInput(f"{path.name} must be an npz of plain arrays: {error}") from error


def _read_tiff(path: Path) -> dict[str, Any]:
    files = sorted(path.glob("*.tif*")) if path.is_dir() else [path]
    if not files:
        raise InvalidInput(f"a folder of frames must hold .tif or .tiff files, {path} holds none")
    try:
        frames = np.concatenate([_as_stack(tifffile.imread(file)) for file in files])
    except (OSError, ValueError, tifffile.TiffFileError) as error:
        raise InvalidInput(f"{path} must hold TIFF frames of one shape: {error}") from error
    beside = path.with_suffix(".json")
    try:
        contents = dict(json.loads(beside.read_text())) if beside.is_file() else {}
    except (OSError, TypeError, ValueError) as error:
        raise InvalidInput(f"{beside} must be a JSON object: {error}") from error
    return {**contents, "frames": frames}


def _as_stack(image: NDArray[Any]) -> NDArray[Any]:
    return image[None] if image.ndim == 2 else image


def _normalised(contents: Mapping[str, Any]) -> dict[str, Any]:
    """Return contents under the first of each name that this module's table allows."""
    known = dict(contents)
    if "theta_deg" in known:
        known.setdefault("angles_deg", known["theta_deg"])
    if "pixel_size_m" in known:
        known.setdefault("pixel_size_um", np.asarray(known["pixel_size_m"]) * 1e6)
    if {"delta_deg", "gamma_deg"} <= known.keys():
        known.setdefault("detector_angles_deg", (known["delta_deg"], known["gamma_deg"]))
    return known


_NEEDED = (
    "frames",
    "angles_deg",
    "energy_keV",
    "detector_distance_m",
    "pixel_size_um",
    "detector_angles_deg",
)


def _compose(path: Path, contents: Mapping[str, Any], stored: set[str]) -> Recording:
    """Make a `Recording` of normalised contents; `stored` names the fields that lie in an HDF5 file."""
    missing = [name for name in _NEEDED if contents.get(name) is None]
    if missing:
        raise MissingMetadata(
            f"{path.name} must say {', '.join(missing)}, it only holds "
            f"{', '.join(sorted(contents)) or 'nothing'}: give the rest as keywords of load_recording"
        )
    frames = contents["frames"]
    shape = _frame_shape(frames)
    angles = np.asarray(contents["angles_deg"], dtype=np.float64)
    count_time, sample = contents.get("count_time_s"), contents.get("sample")
    if count_time is not None:
        count_time = np.asarray(count_time, dtype=np.float64)
        count_time = np.full(angles.shape, count_time) if count_time.ndim == 0 else count_time
    region = _region(contents, shape)
    fields = {name: _field(contents, name, region, shape) for name in _FIELDS}
    given = {name for name, values in fields.items() if values is not None}
    references = {name: FieldReference(path, name, region) for name in given & stored}
    if left := sorted(given - stored):
        warnings.warn(
            f"a replay won't be corrected for {' and '.join(left)} of {path.name}: a run can only refer to "
            "fields in HDF5; store the recording as HDF5",
            CdinnWarning,
            stacklevel=3,
        )
    return Recording(
        frames=frames,
        angles_deg=angles,
        geometry=_geometry(contents, shape),
        count_time_s=count_time,
        **fields,
        dark_file=references.get("dark"),
        flat_file=references.get("whitefield"),
        name=path.stem if sample is None else str(sample),
    )


def _frame_shape(frames: FrameStack) -> tuple[int, int]:
    if len(frames.shape) != 3:
        raise InvalidInput(f"frames must be (points, rows, columns), got shape {frames.shape}")
    return frames.shape[1], frames.shape[2]


def _region(contents: Mapping[str, Any], shape: tuple[int, ...]) -> Region:
    row0, row1, col0, col1 = (int(edge) for edge in contents.get("region", (0, shape[0], 0, shape[1])))
    return row0, row1, col0, col1


def _field(
    contents: Mapping[str, Any], name: str, region: Region, shape: tuple[int, ...]
) -> NDArray[Any] | None:
    """Return the part of a dark or flat field that the frames cover."""
    if contents.get(name) is None:
        return None
    whole = np.asarray(contents[name])
    part = whole[region[0] : region[1], region[2] : region[3]]
    if part.shape != shape:
        raise InvalidInput(
            f"{name} must cover the frames' {shape} pixels, region {region} of its {whole.shape} doesn't: "
            "give region=(row0, row1, column0, column1)"
        )
    return part


def _geometry(contents: Mapping[str, Any], shape: tuple[int, ...]) -> Geometry:
    reflection, lattice = contents.get("reflection"), contents.get("lattice_nm")
    return Geometry(
        energy_keV=float(contents["energy_keV"]),
        detector_distance_m=float(contents["detector_distance_m"]),
        pixel_size_um=_floats(contents["pixel_size_um"], 2),
        detector_angles_deg=_floats(contents["detector_angles_deg"], 2),
        beam_centre_px=_floats(contents.get("beam_centre_px", (shape[0] / 2, shape[1] / 2)), 2),
        rocking_axis=_floats(contents.get("rocking_axis", Geometry.rocking_axis), 3),
        reflection=None if reflection is None else cast(Any, tuple(int(index) for index in reflection)),
        lattice_nm=None if lattice is None else float(lattice),
    )


def _floats(values: Any, count: int) -> Any:
    """Return `count` plain floats; a single one is repeated."""
    return tuple(float(value) for value in np.broadcast_to(np.asarray(values, dtype=float), (count,)))
