"""The three ways in which detectors at beamlines hand over their frames.

In the event itself; in an HDF5 file that Resource and Datum documents point into, as areaDetector's
ophyd devices do; in an HDF5 file that StreamResource and StreamDatum documents point into, as
ophyd-async's do. The files are written with SWMR, so that they can be read while the scan runs.
"""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from event_model import (
    ComposeResourceBundle,
    ComposeStreamResourceBundle,
    compose_resource,
    compose_stream_resource,
)
from event_model.documents import StreamRange
from numpy.typing import NDArray

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.sim.frame_file import DATASET, FrameFile

DeliveryName = Literal["event", "resource", "stream"]


class FrameFormat(NamedTuple):
    """What every frame of a detector has in common.

    Parameters
    ----------
    key
        Data key of the image, such as ``det_image``.
    shape
        (rows, columns).
    dtype
        Of a pixel.
    """

    key: str
    shape: tuple[int, int]
    dtype: np.dtype[Any]


class Delivery(ABC):
    """Hands frames over to whoever reads the documents.

    Its life follows the detector's: `open` when staged, `deliver` after each exposure, then `read` and
    `collect_asset_docs` for the event, `close` when unstaged.
    """

    def __init__(self, frames: FrameFormat) -> None:
        self.frames = frames

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the image's event-model data key."""

    def open(self) -> None:  # noqa: B027 - not every way has something to open
        """Get ready for frames."""

    @abstractmethod
    def deliver(self, frame: NDArray[Any]) -> None:
        """Take the frame just exposed; it replaces one that no event has referred to."""

    @abstractmethod
    def read(self) -> dict[str, Any]:
        """Return the image's reading, empty where documents beside the event carry it."""

    def collect_asset_docs(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield each (name, document) due since the last call."""
        yield from ()

    def close(self) -> None:  # noqa: B027
        """Let go of files. Calling it twice does no harm."""

    def _data_key(self, **more: Any) -> dict[str, Any]:
        return {
            "source": f"SIM:{self.frames.key}",
            "dtype": "array",
            "dtype_numpy": self.frames.dtype.str,
            "units": "counts",
            **more,
        }


class InEvent(Delivery):
    """The image itself in the event, shape [rows, columns]."""

    def __init__(self, frames: FrameFormat) -> None:
        super().__init__(frames)
        self._frame = np.zeros(frames.shape, frames.dtype)
        self._timestamp = time.time()

    def describe(self) -> dict[str, Any]:
        """Return the image's event-model data key."""
        return {self.frames.key: self._data_key(shape=list(self.frames.shape))}

    def deliver(self, frame: NDArray[Any]) -> None:
        """Take the frame just exposed."""
        self._frame, self._timestamp = frame, time.time()

    def read(self) -> dict[str, Any]:
        """Return the image."""
        return {self.frames.key: {"value": self._frame, "timestamp": self._timestamp}}


class _InFile(Delivery):
    """One HDF5 file for each staging, one chunk a frame."""

    def __init__(self, frames: FrameFormat, directory: Path) -> None:
        super().__init__(frames)
        self._directory = directory
        self._file: FrameFile | None = None
        self._index = -1
        self._timestamp = time.time()
        self._due = False
        self.path: Path | None = None

    def open(self) -> None:
        """Start a new file, readable by others from now on."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self.path = (self._directory / f"{self.frames.key}-{uuid.uuid4()}.h5").absolute()
        self._file = FrameFile(self.path, self.frames.shape, self.frames.dtype)
        self._index = -1
        self._due = False
        self._announce(self.path)

    def deliver(self, frame: NDArray[Any]) -> None:
        """Append the frame, or write it over the last one if no event has referred to that."""
        if self._file is None:
            raise RuntimeError(f"{self.frames.key} goes to a file: stage the detector before it is triggered")
        if self._due:
            self._file.overwrite(frame)
        else:
            self._index += 1
            self._file.append(frame)
        self._timestamp = time.time()
        self._due = True

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @abstractmethod
    def _announce(self, path: Path) -> None:
        """Compose the document that names the file."""


class ByResource(_InFile):
    """HDF5 by Resource and Datum, described as areaDetector's are: shape [1, rows, columns]."""

    def __init__(self, frames: FrameFormat, directory: Path) -> None:
        super().__init__(frames, directory)
        self._bundle: ComposeResourceBundle | None = None
        self._announced = False
        self._datum: Mapping[str, Any] | None = None

    def _announce(self, path: Path) -> None:
        self._bundle = compose_resource(
            spec="AD_HDF5",
            root=str(path.parent),
            resource_path=path.name,
            resource_kwargs={"frame_per_point": 1},
        )
        self._announced = False
        self._datum = None

    def describe(self) -> dict[str, Any]:
        """Return the image's event-model data key."""
        return {self.frames.key: self._data_key(shape=[1, *self.frames.shape], external="FILESTORE:")}

    def deliver(self, frame: NDArray[Any]) -> None:
        """Append the frame and compose its datum."""
        super().deliver(frame)
        assert self._bundle is not None
        self._datum = self._bundle.compose_datum({"point_number": self._index})

    def read(self) -> dict[str, Any]:
        """Return the id of the last frame's datum."""
        if self._datum is None:
            raise RuntimeError(f"{self.frames.key} has no frame yet: trigger the detector before it is read")
        return {self.frames.key: {"value": self._datum["datum_id"], "timestamp": self._timestamp}}

    def collect_asset_docs(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the resource once, and the datum of a frame not yet referred to."""
        if self._bundle is None or self._datum is None or not self._due:
            return
        if not self._announced:
            self._announced = True
            yield "resource", self._bundle.resource_doc
        self._due = False
        yield "datum", self._datum


class ByStream(_InFile):
    """HDF5 by StreamResource and StreamDatum, shape [1, rows, columns]."""

    def __init__(self, frames: FrameFormat, directory: Path) -> None:
        super().__init__(frames, directory)
        self._bundle: ComposeStreamResourceBundle | None = None
        self._announced = False

    def _announce(self, path: Path) -> None:
        self._bundle = compose_stream_resource(
            mimetype="application/x-hdf5",
            uri=f"file://localhost{path.as_posix()}",
            data_key=self.frames.key,
            parameters={"dataset": DATASET, "chunk_shape": [1, *self.frames.shape], "swmr": True},
        )
        self._announced = False

    def describe(self) -> dict[str, Any]:
        """Return the image's event-model data key."""
        return {self.frames.key: self._data_key(shape=[1, *self.frames.shape], external="STREAM:")}

    def read(self) -> dict[str, Any]:
        """Return nothing: a stream's frames are in no event."""
        return {}

    def collect_asset_docs(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the stream resource once, and the stream datum of a frame not yet referred to."""
        if self._bundle is None or not self._due:
            return
        if not self._announced:
            self._announced = True
            yield "stream_resource", self._bundle.stream_resource_doc
        self._due = False
        # Sequence numbers (0, 0) ask the RunEngine to fill in the event's.
        yield (
            "stream_datum",
            self._bundle.compose_stream_datum(indices=StreamRange(start=self._index, stop=self._index + 1)),
        )


def make_delivery(name: DeliveryName, frames: FrameFormat, directory: Path | None) -> Delivery:
    """Return the way of delivering frames that goes by `name`.

    Raises
    ------
    InvalidInput
        For an unknown name, or files without a directory.
    """
    if name == "event":
        return InEvent(frames)
    if name not in ("resource", "stream"):
        raise InvalidInput(f"delivery must be 'event', 'resource' or 'stream', got {name!r}")
    if directory is None:
        raise InvalidInput(f"delivery={name!r} writes HDF5 files: give the directory for them")
    return ByResource(frames, directory) if name == "resource" else ByStream(frames, directory)
