"""Frames as events carry them -> one array or reference a frame."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.growing import Pieces
from bluesky_cdinn.records import FrameReference


def frame_array(value: Any, shape: Sequence[int | None]) -> NDArray[Any]:
    """Return the one 2D frame of what an event holds: (NY, NX), [1, NY, NX], several frames, a flat list.

    Parameters
    ----------
    value
        Anything that is an array to numpy; several frames are added.
    shape
        The data key's described shape, for a value that came flat.

    Raises
    ------
    InvalidInput
        If it holds no real numbers, or is not 2D at least.
    """
    frame = np.asarray(value)
    if frame.dtype.kind not in "buif":
        raise InvalidInput(f"a frame must hold real numbers, got the type {frame.dtype}")
    described = [n or 0 for n in shape]
    if frame.ndim == 1 and len(described) >= 2 and math.prod(described) == frame.size:
        frame = frame.reshape(described)
    if frame.ndim < 2 or frame.size == 0:
        raise InvalidInput(f"a frame must be 2D, or several stacked, got shape {frame.shape}")
    frame = frame.reshape(-1, *frame.shape[-2:])
    return frame[0] if len(frame) == 1 else frame.sum(axis=0)


def in_pieces(frames: Sequence[NDArray[Any] | tuple[FrameReference, ...]]) -> tuple[Pieces, list[int]]:
    """Return all points' frames one by one, arrays or references, and how many entries each point has.

    Raises
    ------
    InvalidInput
        If shapes differ, or some frames are arrays and others references.
    """
    arrays = [frame for frame in frames if isinstance(frame, np.ndarray)]
    references = [frame for frame in frames if isinstance(frame, tuple)]
    if arrays and references:
        raise InvalidInput("frames of a run must all be in its events, or all in files, got both")
    if references:
        return tuple(r for point in references for r in point), [len(point) for point in references]
    shapes = {frame.shape for frame in arrays}
    if len(shapes) > 1:
        raise InvalidInput(f"all frames of a run must have one shape, got {sorted(shapes)}")
    return tuple(arrays), [1] * len(arrays)
