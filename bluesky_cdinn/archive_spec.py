"""Rocking scans of a SPEC file, with their frames in TIFF files; needs silx, the extra ``formats``."""

import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from bluesky_cdinn.archive import ArchivedScan
from bluesky_cdinn.errors import CdinnError, InvalidInput
from bluesky_cdinn.goniometer import load_beamline


@dataclass(frozen=True)
class TiffFrames:
    """One frame a file, each read when it is asked for."""

    files: tuple[Path, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Read one frame."""
        return tifffile.imread(self.files[index])


def tiff_frames(files: Sequence[Path]) -> TiffFrames:
    """Return a stack of TIFF files, ordered by the last number in their names, then by name.

    Raises
    ------
    InvalidInput
        There is none, or the first isn't a single grey frame.
    """
    if not files:
        raise InvalidInput("the frames of a SPEC scan must be TIFF files, got none")
    ordered = tuple(sorted(files, key=lambda path: (_number(path), path.name)))
    try:
        first = tifffile.imread(ordered[0])
    except (OSError, ValueError, tifffile.TiffFileError) as error:
        raise InvalidInput(f"{ordered[0]} can't be read as TIFF: {error}") from error
    if first.ndim != 2:
        raise InvalidInput(f"a TIFF file of a scan must hold one grey frame, {ordered[0]} has {first.shape}")
    return TiffFrames(ordered, (len(ordered), *first.shape), first.dtype)


def read_spec(
    spec: Path,
    files: Sequence[Path],
    cdi: Mapping[str, Any],
    *,
    scan: str | None = None,
    angles: str | None = None,
    count_time: str | None = None,
    monitor: str | None = None,
) -> ArchivedScan:
    """Read one scan of a SPEC file.

    Parameters
    ----------
    spec
        The SPEC file.
    files
        TIFF files with one frame a point.
    cdi
        As for `bluesky_cdinn.archive_hdf5.read_hdf5`; the motors' positions at the scan's start are known.
    scan
        Its number; the last one of the file if None.
    angles, count_time, monitor
        Columns; the angle is the first one, which a SPEC scan moves, if None.

    Raises
    ------
    InvalidInput
        No such file, scan or column, or not a frame for each point.
    CdinnError
        silx isn't installed.
    """
    try:
        from silx.io.specfile import SfErrScanNotFound, SpecFile
    except ImportError:
        raise CdinnError("SPEC files need silx: pip install 'bluesky-cdinn[formats]'") from None
    if not spec.is_file():
        raise InvalidInput(f"a SPEC file is required, there is none at {spec}")
    try:
        with closing(SpecFile(str(spec))) as file:
            found = file[f"{scan}.1" if scan is not None else -1]
            labels, header = list(found.labels), found.scan_header_dict
            columns = {name: np.asarray(found.data_column_by_name(name), float) for name in labels}
            motors = {
                str(name): float(at)
                for name, at in zip(found.motor_names, found.motor_positions, strict=False)
            }
            number = str(found.number)  # fmt: skip
    except (KeyError, IndexError, OSError, SfErrScanNotFound) as error:
        raise InvalidInput(f"{spec} holds no scan {scan or ''} that can be read: {error}") from error
    if not labels:
        raise InvalidInput(f"scan {number} of {spec.name} has no columns")
    motor = angles or labels[0]
    for name in filter(None, (motor, count_time, monitor)):
        if name not in columns:
            raise InvalidInput(f"scan {number} of {spec.name} has no column {name}, only {', '.join(labels)}")
    frames = tiff_frames(files)
    exposure = columns[count_time] if count_time else _preset(header, len(columns[motor]))
    return ArchivedScan(
        (spec, *frames.files),
        frames,
        columns[motor],
        motor,
        {**_circles(motors, cdi), **cdi},
        count_time_s=exposure,
        monitor=columns[monitor] if monitor else None,
        scan=number,
        measured=_date(header.get("D", "")),
    )


def _number(path: Path) -> int:
    digits = re.findall(r"\d+", path.stem)
    return int(digits[-1]) if digits else -1


def _preset(header: Mapping[str, str], points: int) -> NDArray[np.float64] | None:
    """Return the scan's preset exposure, from its #T line."""
    match = re.match(r"\s*([\d.eE+-]+)", header.get("T", ""))
    return np.full(points, float(match[1])) if match else None


def _circles(motors: Mapping[str, float], cdi: Mapping[str, Any]) -> dict[str, Any]:
    """Return where the circles of the named beamline stood."""
    if not isinstance(cdi.get("beamline"), str):
        return {}
    circles = load_beamline(cdi["beamline"]).circles
    angles = {circle.name: motors[name] for circle in circles
              for name in (circle.name, *circle.motors) if name in motors}  # fmt: skip
    return {"circles_deg": angles} if angles else {}


def _date(text: str) -> float | None:
    """Return when a #D line says, in this machine's time zone as SPEC writes none."""
    try:
        return datetime.strptime(text.strip(), "%a %b %d %H:%M:%S %Y").timestamp()
    except ValueError:
        return None
