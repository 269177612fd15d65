"""Scans from an archive as raw runs: found in Tiled, reconstructed and backfilled like those measured here.

A run keeps its origin in its start document: ``origin`` says the file, its hash, the scan in it and when it
was imported; ``time`` is when it was measured, where the file says that.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import tifffile
from event_model import compose_run
from numpy.typing import NDArray
from tiled.queries import Eq

from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.documents import Document, plain
from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.sim.recording import FrameStack, load_recording
from bluesky_cdinn.volume_files import geometry_as_plain, read_volume

PLAN = "import"
DETECTOR = "detector"


@dataclass(frozen=True, eq=False)
class ArchivedScan:
    """One rocking scan as an archive holds it.

    Parameters
    ----------
    files
        What it was read from.
    frames
        Counts (points, rows, columns), any real dtype; read one by one.
    angles_deg
        Rocking angle of each frame, float64 (points,); of an energy scan keV.
    motor
        What was rocked.
    cdi
        What the start document's ``cdi`` shall say: geometry, beamline, fields.
    count_time_s, monitor
        Of each frame, float64 (points,), where known.
    scan
        Which scan of the file; None where it holds one.
    measured
        When, seconds since 1970; None where it isn't said.
    sample
        Its name, empty where it isn't said.
    """

    files: tuple[Path, ...]
    frames: FrameStack
    angles_deg: NDArray[np.float64]
    motor: str = "theta"
    cdi: Mapping[str, Any] = field(default_factory=dict)
    count_time_s: NDArray[np.float64] | None = None
    monitor: NDArray[np.float64] | None = None
    scan: str | None = None
    measured: float | None = None
    sample: str = ""

    def __post_init__(self) -> None:
        points = len(self.angles_deg)
        if self.frames.dtype.kind not in "biuf":
            raise InvalidInput(f"the frames of a scan must be real numbers, got {self.frames.dtype}")
        if len(self.frames.shape) != 3 or self.frames.shape[0] != points or points < 3:
            raise InvalidInput(
                "a rocking scan must have three frames or more and an angle for each, got frames of shape "
                f"{tuple(self.frames.shape)} and {points} angles"
            )
        for name in ("angles_deg", "count_time_s", "monitor"):
            values = getattr(self, name)
            if values is not None and (values.shape != (points,) or not np.isfinite(values).all()):
                raise InvalidInput(f"{name} must have a finite number for each of the {points} frames")
        if not np.ptp(self.angles_deg) > 0:
            raise InvalidInput(f"the rocking angle must vary, {self.motor} stays at {self.angles_deg[0]:g}")


class Imported(NamedTuple):
    """What became of a scan.

    Parameters
    ----------
    uid
        Of the raw run.
    new
        Whether it was imported now; else it was there already.
    """

    uid: str
    new: bool


def import_scan(catalog: Catalog, scan: ArchivedScan, *, again: bool = False) -> Imported:
    """Bring a scan into Tiled as a raw run, unless it is there.

    Parameters
    ----------
    catalog
        Gets the run, by its spool.
    scan
        What to import.
    again
        Import it though a run with the same content is there.

    Raises
    ------
    StoreUnavailable
        Tiled can't be asked whether it is there.
    InvalidInput
        A frame can't be read, or isn't like the first; nothing is kept then.
    """
    origin = origin_of(scan)
    if not again and (known := find_imported(catalog, origin["sha256"])) is not None:
        return Imported(known, False)
    return Imported(catalog.store_raw(import_documents(scan, origin)), True)


def find_imported(catalog: Catalog, sha256: str) -> str | None:
    """Return the uid of the raw run that holds the same counts and angles, None if there is none.

    Parameters
    ----------
    catalog
        Asked in Tiled, and what waits for it.
    sha256
        As `origin_of` gives it.

    Raises
    ------
    StoreUnavailable
        Tiled can't be asked.
    """
    # In this order none is missed that is delivered meanwhile.
    for start in catalog.waiting_raw():
        if start.get("origin", {}).get("sha256") == sha256:
            return start["uid"]
    found = catalog.raw.search(Eq("start.origin.sha256", sha256))
    return next((run.metadata["start"]["uid"] for run in found.values()), None)


def origin_of(scan: ArchivedScan) -> dict[str, Any]:
    """Return what the start document says of where a scan comes from.

    Its ``sha256`` is of the scan's own angles and counts: a file may be renamed, or grow by other scans.

    Raises
    ------
    InvalidInput
        A frame can't be read, or isn't like the first.
    """
    origin: dict[str, Any] = {
        "file": str(scan.files[0].absolute()),
        "files": len(scan.files),
        "sha256": _hash(scan),
        "imported": time.time(),
        "version": version("bluesky-cdinn"),
    }
    known = {"scan": scan.scan, "measured": scan.measured}
    return origin | {name: value for name, value in known.items() if value is not None}


def import_documents(scan: ArchivedScan, origin: Mapping[str, Any]) -> Iterator[Document]:
    """Yield the documents of a raw run that holds a scan, its frames in the events."""
    points = len(scan.angles_deg)
    start = {
        "purpose": "rocking_curve",
        "plan_name": PLAN,
        "detectors": [DETECTOR],
        "motors": [scan.motor],
        "num_points": points,
        "cdi": {"sample": scan.sample, **plain(scan.cdi), "detector": DETECTOR, "rocking_motor": scan.motor},
        "origin": dict(origin),
        **({"scan_id": int(scan.scan)} if scan.scan is not None and scan.scan.isdigit() else {}),
        **({"sample": scan.sample} if scan.sample else {}),
    }
    run = compose_run(time=scan.measured, metadata=start)
    yield "start", dict(run.start_doc)
    image, columns = f"{DETECTOR}_image", _columns(scan)
    unit = "keV" if scan.cdi.get("scanned") == "energy" else "deg"
    units = {scan.motor: unit, "count_time": "s", "monitor": ""}
    number = {"source": PLAN, "dtype": "number", "shape": []}
    keys: dict[str, Any] = {name: {**number, "units": units[name]} for name in columns}
    keys[image] = {"source": PLAN, "dtype": "array", "shape": list(scan.frames.shape[1:]),
                   "dtype_numpy": np.dtype(scan.frames.dtype).str, "units": "counts"}  # fmt: skip
    owners = {scan.motor: [scan.motor], DETECTOR: [name for name in keys if name != scan.motor]}
    stream = run.compose_descriptor(
        name="primary", data_keys=keys, object_keys=owners, hints={scan.motor: {"fields": [scan.motor]}}
    )
    yield "descriptor", dict(stream.descriptor_doc)
    for place in range(points):
        data: dict[str, Any] = {name: float(values[place]) for name, values in columns.items()}
        data[image] = _frame(scan, place)
        stamps = dict.fromkeys(data, run.start_doc["time"])
        yield "event", dict(stream.compose_event(data=data, timestamps=stamps, validate=False))
    yield "stop", dict(run.compose_stop())


def read_recorded(path: Path, cdi: Mapping[str, Any]) -> ArchivedScan:
    """Read a file as `bluesky_cdinn.sim.recording` describes it; ``cdi`` goes before what it says.

    Raises
    ------
    InvalidInput, MissingMetadata
        As `bluesky_cdinn.sim.recording.load_recording`.
    """
    recording = load_recording(path, **cdi)
    files = tuple(sorted(path.glob("*.tif*"))) if path.is_dir() else (path,)
    known = {**geometry_as_plain(recording.geometry), **recording.cdi, **cdi}
    sample = str(known.pop("sample", ""))
    return ArchivedScan(files, recording.frames, recording.angles_deg, cdi=known, sample=sample,
                        count_time_s=recording.count_time_s)  # fmt: skip


def read_archived_volume(path: Path, cdi: Mapping[str, Any]) -> ArchivedScan:
    """Read an assembled volume, CXI or npz, as a rocking scan with a slice a frame.

    What isn't valid becomes NaN, as no detector counts it.

    Raises
    ------
    InvalidInput
        It is no volume, says no rocking angles, or was resampled onto a lattice, which no frame is.
    """
    volume = read_volume(path)
    if volume.angles_deg is None:
        raise InvalidInput(f"{path} must hold angles_deg, the rocking angle of each slice, to be a scan; "
                           "`cdinn phase` takes it as it is")  # fmt: skip
    if volume.flat_about is not None:
        raise InvalidInput(f"{path} was resampled onto a lattice and holds no frames: phase it as it "
                           "is with `cdinn phase`")  # fmt: skip
    geometry = {} if volume.geometry is None else geometry_as_plain(volume.geometry)
    if geometry:
        row, column = geometry["beam_centre_px"]
        geometry["beam_centre_px"] = [row - volume.window[1], column - volume.window[2]]
    frames = np.where(volume.valid, volume.intensity, np.nan).astype(np.float32)
    return ArchivedScan((path,), cast(FrameStack, frames), volume.angles_deg, cdi={**geometry, **cdi})


def _frame(scan: ArchivedScan, place: int) -> NDArray[Any]:
    """Return a frame of the scan; a file can be damaged, or be another scan's, in its midst."""
    try:
        frame = np.asarray(scan.frames[place])
    except (OSError, ValueError, KeyError, tifffile.TiffFileError) as error:
        raise InvalidInput(f"frame {place} of {scan.files[0]} can't be read: {error}") from error
    wanted = tuple(scan.frames.shape[1:]), scan.frames.dtype
    if (frame.shape, frame.dtype) != wanted:
        raise InvalidInput(
            f"all frames of a scan must be alike, {wanted[1]} of shape {wanted[0]} as the first; "
            f"frame {place} of {scan.files[0]} is {frame.dtype} of shape {frame.shape}"
        )
    return frame


def _columns(scan: ArchivedScan) -> dict[str, NDArray[np.float64]]:
    columns = {scan.motor: scan.angles_deg, "count_time": scan.count_time_s, "monitor": scan.monitor}
    return {name: values for name, values in columns.items() if values is not None}


def _hash(scan: ArchivedScan) -> str:
    digest = hashlib.sha256(f"{scan.frames.dtype.str} {tuple(scan.frames.shape)}".encode())
    digest.update(np.asarray(scan.angles_deg, np.float64).tobytes())
    for place in range(len(scan.angles_deg)):
        digest.update(_frame(scan, place).tobytes())
    return digest.hexdigest()
