"""An HDF5 file that frames are appended to, laid out as areaDetector's HDF5 plugin does."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

DATASET = "/entry/data/data"
"""Where areaDetector's HDF5 plugin writes the frames, and where readers look for them."""

ANGLES = "/entry/instrument/NDAttributes/angle"
"""Where it writes a number of each frame, if it is given one."""


class FrameFile:
    """A growing stack of frames, one chunk each.

    Parameters
    ----------
    path
        Of the file, which is made, or made anew.
    shape
        (rows, columns) of a frame.
    dtype
        Of a pixel.
    swmr
        Whether others may read the file while it grows (single writer, multiple readers).
    with_angles
        Whether an angle comes with each frame, deg.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int],
        dtype: np.dtype[Any],
        *,
        swmr: bool = True,
        with_angles: bool = False,
    ) -> None:
        self.path = path
        self._file = h5py.File(path, "w", libver="latest" if swmr else None)
        self._stack = self._file.create_dataset(
            DATASET, shape=(0, *shape), maxshape=(None, *shape), chunks=(1, *shape), dtype=dtype
        )
        self._angles: h5py.Dataset | None = None
        if with_angles:
            self._angles = self._file.create_dataset(ANGLES, (0,), float, maxshape=(None,), chunks=(1024,))
        if swmr:
            self._file.swmr_mode = True

    def __len__(self) -> int:
        """Return how many frames there are."""
        return len(self._stack)

    def append(self, frame: NDArray[Any], angle_deg: float = np.nan) -> None:
        """Add a frame; readers see it, and then its angle, once this returns."""
        self._stack.resize(len(self) + 1, axis=0)
        self.overwrite(frame)
        if self._angles is not None:
            self._angles.resize(len(self), axis=0)
            self._angles[-1] = angle_deg
            self._angles.flush()

    def overwrite(self, frame: NDArray[Any]) -> None:
        """Put a frame in the last one's place."""
        self._stack[-1] = frame
        self._stack.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
