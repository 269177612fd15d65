"""Curves of scans that still run, on their way to the worker's child process: each frame is sent once.

The parent notes which frames it has sent (`SentScans`), the child keeps them (`HeldScans`), and an
`Increment` says what is new. The parent alone decides: the child forgets what it is told to forget, and holds
what the parent thinks it holds, for those notes live no longer than the process that they are about.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn.records import FrameReference, RockingCurve

MAX_HELD = 4
"""Running scans whose frames the child holds at once; a scan beyond is sent whole with each update."""

Pieces = tuple[NDArray[Any], ...] | tuple[FrameReference, ...]


@dataclass(frozen=True, eq=False)
class CurveInPieces:
    """A rocking curve whose frames have not been joined, so that those that were sent can be told.

    Parameters
    ----------
    frames
        One entry a point: an array (rows, columns), which is the same object from one time to the next as
        long as its point was not measured again, or a `FrameReference`.
    rest
        The other fields of `RockingCurve`, by name.
    """

    frames: Pieces
    rest: Mapping[str, Any]

    @property
    def raw_uid(self) -> str:
        """Of the raw run."""
        return self.rest["raw_uid"]

    def joined(self) -> RockingCurve:
        """Return the curve as everybody else wants it; arrays are copied."""
        return RockingCurve(frames=joined(self.frames), **self.rest)


@dataclass(frozen=True, eq=False)
class Increment:
    """A curve as it is sent.

    Parameters
    ----------
    known
        So many of its first frames the child holds; 0 when all are sent.
    frames
        The others; or one array (points, rows, columns) of all of them.
    rest
        As in `CurveInPieces`.
    keep
        Whether more will come of this scan.
    forget
        Scans that the child need not hold any more.
    """

    known: int
    frames: NDArray[Any] | Pieces
    rest: Mapping[str, Any]
    keep: bool = False
    forget: tuple[str, ...] = ()


class SentScans:
    """What one child process has been sent of running scans.

    Frames are known by identity, so they are kept here until the scan is forgotten; as long as it runs, they
    are kept elsewhere anyway.
    """

    def __init__(self) -> None:
        self._sent: OrderedDict[str, Pieces] = OrderedDict()
        self._forget: list[str] = []

    def increment(self, curve: RockingCurve | CurveInPieces, *, keep: bool) -> Increment:
        """Return what must be sent so that the child has a curve, and take it for sent.

        Parameters
        ----------
        curve
            Its frames in files are sent as references, again each time.
        keep
            Whether more will come of this scan.
        """
        if isinstance(curve, RockingCurve):
            return Increment(0, _contiguous(curve.frames), _rest(curve), forget=self._forgotten())
        uid = curve.raw_uid
        known = known_frames(self._sent.pop(uid, ()), curve.frames)
        if keep and not _in_files(curve.frames):
            self._sent[uid] = curve.frames
            while len(self._sent) > MAX_HELD:
                self._forget.append(self._sent.popitem(last=False)[0])
        return Increment(known, _contiguous(curve.frames[known:]), curve.rest, keep, self._forgotten())

    def forget(self, raw_uid: str) -> None:
        """Have the child forget a scan, with the next that it is sent."""
        if self._sent.pop(raw_uid, None) is not None:
            self._forget.append(raw_uid)

    def _forgotten(self) -> tuple[str, ...]:
        forgotten, self._forget = tuple(self._forget), []
        return forgotten


class HeldScans:
    """What this process, the child, holds of running scans."""

    def __init__(self) -> None:
        self._held: dict[str, GrowingFrames] = {}

    def __len__(self) -> int:
        return len(self._held)

    def curve(self, sent: Increment) -> RockingCurve:
        """Return the whole curve; what is held of its frames is read-only.

        Raises
        ------
        LookupError
            Frames are said to be held that are not.
        """
        for uid in sent.forget:
            self._held.pop(uid, None)
        if isinstance(sent.frames, np.ndarray):
            return RockingCurve(frames=sent.frames, **sent.rest)
        if references := tuple(f for f in sent.frames if isinstance(f, FrameReference)):
            return RockingCurve(frames=references, **sent.rest)
        uid = sent.rest["raw_uid"]
        held = self._held.pop(uid, None)
        growing = held if sent.known else GrowingFrames()
        if growing is None:
            raise LookupError(f"{sent.known} frames of scan {uid} are said to be held, none are")
        growing.extend([frame for frame in sent.frames if isinstance(frame, np.ndarray)])
        if sent.keep:
            self._held[uid] = growing
        return RockingCurve(frames=growing.array(), **sent.rest)


class GrowingFrames:
    """An array (points, rows, columns) that grows at its end; what was taken of it stays as it was."""

    def __init__(self) -> None:
        self._points = 0
        self._array: NDArray[Any] = np.empty(0)

    def extend(self, frames: Sequence[NDArray[Any]]) -> None:
        """Append frames of the same shape."""
        if not frames:
            return
        points = self._points + len(frames)
        dtypes = {frame.dtype for frame in frames} | ({self._array.dtype} if self._points else set())
        dtype = np.result_type(*dtypes)
        if points > len(self._array) or dtype != self._array.dtype:
            # Twice as many: each frame is moved once on the average. Unused memory costs nothing.
            roomier = np.empty((max(points, 2 * self._points), *frames[0].shape), dtype)
            if self._points:
                roomier[: self._points] = self._array[: self._points]
            self._array = roomier
        for place, frame in enumerate(frames, start=self._points):
            self._array[place] = frame
        self._points = points

    def array(self) -> NDArray[Any]:
        """Return all frames so far, read-only."""
        view = self._array[: self._points]
        view.flags.writeable = False
        return view


def known_frames(sent: Sequence[object], frames: Sequence[object]) -> int:
    """Return how many of the first frames were sent: all that were, or none if any is not the same now."""
    same = len(sent) <= len(frames) and all(one is other for one, other in zip(sent, frames, strict=False))
    return len(sent) if same else 0


def joined(frames: Pieces) -> NDArray[Any] | tuple[FrameReference, ...]:
    """Return frames as one array (points, rows, columns), or references as they are."""
    arrays = [frame for frame in frames if isinstance(frame, np.ndarray)]
    return np.stack(arrays) if arrays else tuple(f for f in frames if isinstance(f, FrameReference))


def _in_files(frames: Sequence[object]) -> bool:
    return bool(frames) and isinstance(frames[0], FrameReference)


def _contiguous(frames: Any) -> Any:
    """Only a contiguous array leaves without a copy made under the interpreter's lock."""
    if isinstance(frames, np.ndarray):
        return np.ascontiguousarray(frames)
    return frames if _in_files(frames) else tuple(map(np.ascontiguousarray, frames))


def _rest(curve: RockingCurve) -> dict[str, Any]:
    return {field.name: getattr(curve, field.name) for field in fields(curve) if field.name != "frames"}
