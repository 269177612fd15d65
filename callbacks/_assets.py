"""Documents that point to files -> references to frames, and the numbers that lie in files beside them.

No frame is read here. A new kind of file is supported by giving its spec (Resource) to the assembler's
``readers``; nothing else needs to change as long as its frames lie in HDF5.
"""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn.errors import IncompleteScan, InvalidInput
from bluesky_cdinn.frame_files import open_frames
from bluesky_cdinn.records import FrameReference

DatumReader = Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[FrameReference, ...]]
"""(resource, datum) -> the frames of that datum, which are summed to make the point's."""

DEFAULT_DATASET = "/entry/data/data"
"""Where EPICS areaDetector's HDF5 plugin puts frames unless it is told otherwise."""

MAX_FRAMES = 1_000_000
"""More than this in one document is taken for a mistake."""

POINT_NAMES = ("point_number", "index", "frame")


def hdf5_frames(resource: Mapping[str, Any], datum: Mapping[str, Any]) -> tuple[FrameReference, ...]:
    """Frames of one point in one growing dataset: ``frame_per_point`` of them from ``point_number``."""
    kwargs = resource["resource_kwargs"]
    frames = range(*_frame_range(kwargs, datum["datum_kwargs"]))
    path, dataset = resource_path(resource), dataset_name(kwargs)
    return tuple(FrameReference(path, dataset, index) for index in frames)


def hdf5_single_frames(resource: Mapping[str, Any], datum: Mapping[str, Any]) -> tuple[FrameReference, ...]:
    """Frames of one point when each is a file of its own, named by the areaDetector file template."""
    kwargs = resource["resource_kwargs"]
    folder = f"{resource_path(resource)}/"
    dataset = dataset_name(kwargs)
    return tuple(
        FrameReference(Path(kwargs["template"] % (folder, kwargs["filename"], number)), dataset, 0)
        for number in range(*_frame_range(kwargs, datum["datum_kwargs"]))
    )


DATUM_READERS: Mapping[str, DatumReader] = {
    **dict.fromkeys(
        ("AD_HDF5", "AD_HDF5_SWMR", "AD_HDF5_SWMR_STREAM", "AD_HDF5_SWMR_SLICE", "HDF5", "TPX_HDF5"),
        hdf5_frames,
    ),
    "AD_HDF5_SINGLE": hdf5_single_frames,
}
"""What is understood of Resource and Datum, by the resource's spec (in capitals)."""


def read_datum(
    resource: Mapping[str, Any], datum: Mapping[str, Any], readers: Mapping[str, DatumReader]
) -> tuple[FrameReference, ...]:
    """Find the reader for a resource's spec and apply it.

    Raises
    ------
    InvalidInput
        For a spec that no reader is known for.
    """
    spec = str(resource.get("spec", ""))
    reader = readers.get(spec) or readers.get(spec.upper())
    if reader is None:
        raise InvalidInput(
            f"frames of the spec {spec!r} can't be read, only {', '.join(sorted(readers))}; "
            "give a function for it in the assembler's readers"
        )
    return reader(resource, datum)


def stream_frames(
    resource: Mapping[str, Any], datum: Mapping[str, Any], frame_shape: tuple[int | None, ...]
) -> dict[int, tuple[FrameReference, ...]]:
    """Return the frames of each event that a StreamDatum covers, by its ``seq_num``.

    Parameters
    ----------
    resource, datum
        StreamResource and StreamDatum; a StreamResource from before event-model 1.20 is read too.
    frame_shape
        The data key's shape in the descriptor, which says how many rows of the file one index covers; its
        last two axes are the frame's.

    Raises
    ------
    InvalidInput
        If the file is not HDF5 on a path of this machine, or indices don't divide among the events.
    """
    parameters = resource.get("parameters", resource.get("resource_kwargs", {}))
    mimetype = resource.get("mimetype", "application/x-hdf5")
    if mimetype != "application/x-hdf5":
        raise InvalidInput(f"frames must lie in HDF5 (application/x-hdf5), got {mimetype!r}")
    path = uri_path(resource["uri"]) if "uri" in resource else resource_path(resource)
    dataset = dataset_name(parameters)
    rows = 1 if parameters.get("join_method") == "stack" else _rows_an_index(parameters, frame_shape)
    indices, events = (range(int(datum[n]["start"]), int(datum[n]["stop"])) for n in ("indices", "seq_nums"))
    frames = len(indices) * rows
    if indices.start < 0 or not 0 < len(events) <= frames <= MAX_FRAMES or len(indices) % len(events):
        raise InvalidInput(
            "a stream_datum must cover a whole number of indices for each event, from 0 on, "
            f"and {MAX_FRAMES} frames at most, got the indices {indices} for {len(events)} events"
        )
    step = rows * (len(indices) // len(events))
    return {
        event: tuple(FrameReference(path, dataset, row) for row in range(first, first + step))
        for event, first in zip(events, itertools.count(indices.start * rows, step), strict=False)
    }


def stored_numbers(references: Mapping[int, tuple[FrameReference, ...]]) -> dict[int, float]:
    """Return the number that each event's references point to, of several their mean.

    Parameters
    ----------
    references
        Into one-dimensional datasets, by ``seq_num``: a fly scan's positions lie in files, not in events.

    Returns
    -------
    dict
        By ``seq_num``; numbers that aren't written yet are left out.

    Raises
    ------
    IncompleteScan
        If a file can't be read.
    """
    columns: dict[tuple[Path, str], NDArray[np.float64]] = {}
    for path, dataset in {(r.path, r.dataset) for event in references.values() for r in event}:
        try:
            with open_frames(path, dataset) as stored:
                columns[path, dataset] = np.asarray(stored[()], dtype=float).reshape(len(stored), -1)[:, 0]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise IncompleteScan(f"the angles in {path} can't be read: {error}") from error
    return {
        number: float(np.mean([columns[r.path, r.dataset][r.index] for r in event]))
        for number, event in references.items()
        if all(0 <= r.index < len(columns[r.path, r.dataset]) for r in event)
    }


def resource_path(resource: Mapping[str, Any]) -> Path:
    """Join root and path of a Resource; a path that already holds the root is taken as it is."""
    root, path = str(resource.get("root", "")), str(resource["resource_path"])
    if root and not path.startswith(root):
        return Path(root) / path.lstrip("/")
    return Path(path)


def uri_path(uri: str) -> Path:
    """Path of a ``file:`` URI with or without a host, or of a plain path.

    Raises
    ------
    InvalidInput
        For any other scheme.
    """
    parts = urlparse(uri)
    if parts.scheme not in ("file", ""):
        raise InvalidInput(f"a frame file must be on a path of this machine (file://...), got {uri!r}")
    return Path(unquote(parts.path))


def dataset_name(kwargs: Mapping[str, Any]) -> str:
    """Return the dataset that a resource names under one of its usual names."""
    name = kwargs.get("dataset") or kwargs.get("path") or kwargs.get("key") or DEFAULT_DATASET
    return name if isinstance(name, str) else "/".join(name)


def _frame_range(kwargs: Mapping[str, Any], datum_kwargs: Mapping[str, Any]) -> tuple[int, int]:
    frames = int(kwargs.get("frame_per_point") or 1)
    name = next((name for name in POINT_NAMES if name in datum_kwargs), None)
    if name is None:
        raise InvalidInput(f"a datum must have one of {', '.join(POINT_NAMES)}, got {sorted(datum_kwargs)}")
    point = int(datum_kwargs[name])
    if point < 0 or not 0 < frames <= MAX_FRAMES:
        raise InvalidInput(f"a datum must point to frames from 0 on, got point {point}, {frames} frames each")
    return point * frames, (point + 1) * frames


def _rows_an_index(parameters: Mapping[str, Any], shape: tuple[int | None, ...]) -> int:
    if multiplier := parameters.get("multiplier", parameters.get("frame_per_point")):
        return int(multiplier)
    rows = 1
    for length in shape[:-2]:
        rows *= length or 1
    return rows
