"""References to frames -> the frames, also while their file is still being written."""

import logging
import time
from collections import defaultdict
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  importing it registers the compression filters of detectors with h5py
import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn.errors import IncompleteScan, InvalidInput
from bluesky_cdinn.records import FrameReference, RockingCurve

logger = logging.getLogger(__name__)

MIN_FRAMES = 3
RETRY_S = 0.1

# What h5py raises for files that are missing, unfinished or damaged, whose sizes may be nonsense too.
_UNREADABLE = (OSError, KeyError, RuntimeError, ValueError, TypeError, MemoryError)


def load_frames(
    curve: RockingCurve,
    *,
    patience_s: float = 5.0,
    known: MutableMapping[FrameReference, NDArray[Any]] | None = None,
) -> RockingCurve:
    """Return the curve with its frames in one array instead of references.

    A frame that can't be read is left out together with its point, and its place in the curve is added to
    ``metadata["unreadable_points"]``, which `assemble` carries into the volume's history.

    Parameters
    ----------
    curve
        Returned as it is if its frames are an array already.
    patience_s
        How long to wait, in all, for files that aren't there, or frames that aren't written yet.
    known
        Frames that were read before and needn't be again; what is read is added.

    Raises
    ------
    IncompleteScan
        If fewer than three frames can be read; it carries the first reason.
    InvalidInput
        If frames differ in shape, or hold no real numbers.
    """
    if isinstance(curve.frames, np.ndarray):
        return curve
    deadline = time.monotonic() + patience_s
    by_dataset: dict[tuple[Path, str], list[int]] = defaultdict(list)
    frames: dict[int, NDArray[Any]] = {}
    for place, reference in enumerate(curve.frames):
        if known is not None and reference in known:
            frames[place] = known[reference]
        else:
            by_dataset[reference.path, reference.dataset].append(place)
    reasons: list[str] = []
    for (path, dataset), places in by_dataset.items():
        wanted = [curve.frames[place].index for place in places]
        read, reason = _read_patiently(path, dataset, wanted, deadline)
        frames.update({place: read[i] for place, i in zip(places, wanted, strict=True) if i in read})
        reasons += [reason] if reason else []
    if known is not None:
        known.update({curve.frames[place]: frame for place, frame in frames.items()})
    for reason in reasons:
        logger.warning("frames can't be read: %s", reason)
    if len(frames) < MIN_FRAMES:
        raise IncompleteScan(
            f"{MIN_FRAMES} frames or more must be readable, got {len(frames)} of {len(curve.frames)}: "
            f"{'; '.join(reasons)}"
        )
    return _with_frames(curve, frames)


def _with_frames(curve: RockingCurve, frames: dict[int, NDArray[Any]]) -> RockingCurve:
    kept = sorted(frames)
    shapes = {frame.shape for frame in frames.values()}
    if len(shapes) > 1:
        raise InvalidInput(f"all frames of a rocking curve must have one shape, got {sorted(shapes)}")
    lost = [place for place in range(len(curve.frames)) if place not in frames]
    return replace(
        curve,
        frames=np.stack([frames[place] for place in kept]),
        angles_deg=curve.angles_deg[kept],
        count_time_s=None if curve.count_time_s is None else curve.count_time_s[kept],
        monitor=None if curve.monitor is None else curve.monitor[kept],
        metadata={**curve.metadata, "unreadable_points": lost} if lost else curve.metadata,
    )


def _read_patiently(
    path: Path, dataset: str, indices: Sequence[int], deadline: float
) -> tuple[dict[int, NDArray[Any]], str]:
    """Read what there is of some frames, waiting for the rest; return it, and why others are lost."""
    frames: dict[int, NDArray[Any]] = {}
    while True:
        left = sorted({index for index in indices if index not in frames})
        reason = ""
        try:
            with open_frames(path, dataset) as data:
                for index, frame in _read(data, left):
                    frames[index] = frame
        except InvalidInput:
            raise
        except _UNREADABLE as error:
            reason = f"{path}: {error}"
        missing = [index for index in left if index not in frames]
        if not missing:
            return frames, ""
        if time.monotonic() > deadline:
            return frames, reason or f"{path} holds no frame {missing[0]} in {dataset}"
        time.sleep(RETRY_S)


@contextmanager
def open_frames(path: Path, dataset: str) -> Iterator[h5py.Dataset]:
    """Open a dataset for reading, whether or not its file is still open for writing somewhere.

    Raises
    ------
    OSError
        If the file isn't there, or can't be opened yet.
    KeyError
        If it has no such dataset.
    """
    try:
        file = h5py.File(path, "r", swmr=True)
    except (OSError, ValueError):
        # A file in the older format, which is not written as single-writer-multiple-readers.
        file = h5py.File(path, "r")
    with file:
        if not isinstance(data := file.get(dataset), h5py.Dataset):
            raise KeyError(f"no dataset {dataset!r}, only {', '.join(map(str, datasets(file))) or 'none'}")
        yield data


def datasets(file: h5py.File) -> list[str]:
    """Names of a file's datasets that may hold frames."""
    names: list[str] = []
    file.visititems(
        lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) and item.ndim >= 2 else None
    )
    return names


def _read(data: h5py.Dataset, indices: Sequence[int]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield frames by rising index, those that lie beside each other read in one go.

    The first error is raised once everything else has been read.
    """
    if data.dtype.kind not in "buif":
        raise InvalidInput(f"frames must hold real numbers, got the type {data.dtype} in {data.name}")
    if data.ndim == 2:
        if 0 in indices:
            yield 0, data[()]
        return
    if data.ndim < 2:
        raise InvalidInput(f"frames must be 2D, got the shape {data.shape} in {data.name}")
    there = [index for index in indices if 0 <= index < len(data) and _is_written(data, index)]
    breaks = [0, *(n + 1 for n, (a, b) in enumerate(pairwise(there)) if b != a + 1), len(there)]
    todo = [there[first:end] for first, end in pairwise(breaks) if first < end]
    errors: list[Exception] = []
    while todo:
        block = todo.pop(0)
        try:
            yield from zip(block, _block(data, block[0], block[-1] + 1), strict=True)
        except _UNREADABLE as error:
            if len(block) == 1:
                errors.append(error)
            else:
                # A damaged frame must not take its neighbours with it.
                todo = [[index] for index in block] + todo
    if errors:
        raise errors[0]


def _is_written(data: h5py.Dataset, index: int) -> bool:
    """Whether there is anything of a frame: HDF5 gives zeros, as if measured, for what was never written."""
    if data.chunks is None or data.is_virtual:
        return True
    first = (index // data.chunks[0] * data.chunks[0], *[0] * (data.ndim - 1))
    return data.id.get_chunk_info_by_coord(first).byte_offset is not None


def _block(data: h5py.Dataset, first: int, end: int) -> NDArray[Any]:
    """Read frames that lie beside each other; (frames, rows, columns)."""
    block = data[first:end]
    # [1, NY, NX] is one frame; several at one index belong to one point and are added.
    while block.ndim > 3:
        block = block[:, 0] if block.shape[1] == 1 else block.sum(axis=1)
    return block
