"""areaDetector's HDF5 plugin, as far as ophyd's file-store classes use it: frames streamed to one file."""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn.sim.frame_file import FrameFile
from bluesky_cdinn.sim.ioc_records import Records

logger = logging.getLogger(__name__)

STREAM = 2
OFF_ON = ("Off", "On")
NO_YES = ("No", "Yes")


def plugin(prefix: str, kind: str, port: str, shape: tuple[int, int]) -> Records:
    """Return the records that every areaDetector plugin has."""
    rows, columns = shape
    records = Records(prefix)
    for name, value in (
        ("PluginType", kind),
        ("PortName", port),
        ("ArraySize0", columns),
        ("ArraySize1", rows),
        ("ArraySize2", 0),
        ("NDimensions", 2),
    ):
        records.add(f"{name}_RBV", value)
    records.pair("NDArrayPort", "CAM1")
    records.pair("EnableCallbacks", 1, choices=("Disable", "Enable"))
    records.pair("BlockingCallbacks", 1, choices=NO_YES)
    records.pair("ArrayCounter", 0)
    return records


class HDF5Plugin:
    """Writes frames to an HDF5 file while ``Capture`` is on, in the write mode Stream.

    The file is named by ``FileTemplate`` of ``FilePath``, ``FileName`` and ``FileNumber``, and opened when
    ``Capture`` is switched on. With ``SWMRMode`` others may read it while it grows.

    Parameters
    ----------
    prefix
        Of its records.
    shape
        (rows, columns) of a frame.
    dtype
        Of a pixel.
    """

    def __init__(self, prefix: str, shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
        self._shape = shape
        self._dtype = dtype
        self._file: FrameFile | None = None
        self.records = records = plugin(prefix, "NDFileHDF5", "HDF1", shape)
        records.pair("FilePath", "", long=True, on_put=self._set_path)
        records.add("FilePathExists_RBV", 0, choices=NO_YES)
        records.pair("FileName", "", long=True)
        records.pair("FileTemplate", "%s%s_%6.6d.h5", long=True)
        records.pair("FileNumber", 0)
        records.pair("FileWriteMode", STREAM, choices=("Single", "Capture", "Stream"))
        records.pair("AutoIncrement", 1, choices=NO_YES)
        records.pair("AutoSave", 1, choices=NO_YES)
        records.pair("CreateDirectory", 0)
        records.pair("LazyOpen", 0, choices=NO_YES)
        records.pair("SWMRMode", 0, choices=OFF_ON)
        records.add("SWMRActive_RBV", 0, choices=("Off", "Active"))
        records.add("SWMRSupported_RBV", 1, choices=("Not Supported", "Supported"))
        records.pair("NumFramesFlush", 1)
        records.pair("NumCapture", 0)
        records.add("NumCaptured_RBV", 0)
        records.add("FullFileName_RBV", "", long=True)
        records.add("WriteStatus", 0, choices=("Write OK", "Write error"))
        records.add("WriteMessage", "", long=True)
        records.pair("Capture", 0, choices=("Done", "Capture"), on_put=self._capture)

    async def take(self, frame: NDArray[Any]) -> None:
        """Append a frame, if the plugin is enabled and captures."""
        if self._file is None or not self.records.get("EnableCallbacks"):
            return
        self._file.append(frame)
        await self.records.set_pair("ArrayCounter", self.records.get("ArrayCounter") + 1)
        await self.records.set("NumCaptured_RBV", len(self._file))
        if len(self._file) == self.records.get("NumCapture"):
            await self.records.set_pair("Capture", await self._capture(0))

    def close(self) -> None:
        """Close the file, if one is open."""
        if self._file is not None:
            self._file.close()
            self._file = None

    async def _set_path(self, path: str) -> str:
        """Take a folder, made as deep as a negative ``CreateDirectory`` allows."""
        folder = Path(path)
        depth = -int(self.records.get("CreateDirectory"))
        missing = next((i for i, p in enumerate([folder, *folder.parents]) if p.is_dir()), 0)
        if 0 < missing <= depth:
            folder.mkdir(parents=True, exist_ok=True)
        await self.records.set("FilePathExists_RBV", int(folder.is_dir() and os.access(folder, os.W_OK)))
        return path if path.endswith("/") else f"{path}/"

    async def _capture(self, capture: int) -> int:
        """Open or close a file; returns whether one is open."""
        records = self.records
        self.close()
        if capture:
            try:
                await self._open()
            except (OSError, TypeError, ValueError) as error:
                logger.warning("no file can be written: %s", error)
                await records.set("WriteStatus", 1)
                await records.set("WriteMessage", str(error)[:200])
        await records.set("SWMRActive_RBV", int(self._file is not None and records.get("SWMRMode")))
        return int(self._file is not None)

    async def _open(self) -> None:
        records = self.records
        number = int(records.get("FileNumber"))
        name = records.get("FileTemplate") % (records.get("FilePath"), records.get("FileName"), number)
        swmr = bool(records.get("SWMRMode"))
        self._file = FrameFile(Path(name), self._shape, self._dtype, swmr=swmr)
        await records.set("FullFileName_RBV", name)
        await records.set("NumCaptured_RBV", 0)
        await records.set("WriteStatus", 0)
        if records.get("AutoIncrement"):
            await records.set_pair("FileNumber", number + 1)
