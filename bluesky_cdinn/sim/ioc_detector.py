"""An areaDetector that looks at a simulated crystal: the records that ophyd's classes use, and what they do.

``cam1:`` is the driver, ``image1:`` the standard arrays, ``Stats1:`` total and maximum, ``HDF1:`` the HDF5
plugin; ``cdi:`` says how beam, crystal and detector stand, under the names of `records.Geometry`.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn.geometry_metadata import quantities
from bluesky_cdinn.records import Geometry
from bluesky_cdinn.sim.area_detector import FrameSource
from bluesky_cdinn.sim.ioc_hdf5 import HDF5Plugin, plugin
from bluesky_cdinn.sim.ioc_records import Records

logger = logging.getLogger(__name__)

DATA_TYPES = ("Int8", "UInt8", "Int16", "UInt16", "Int32", "UInt32", "Int64", "UInt64", "Float32", "Float64")
SINGLE, MULTIPLE = 0, 1


class AreaDetector:
    """The driver and its plugins.

    An acquisition takes ``NumImages`` frames (one in the mode Single, without end in Continuous), each
    from where the motor stands when it begins. Plugins have had a frame before ``Acquire`` is done.

    Parameters
    ----------
    prefix
        Of all records.
    source
        What there is to see.
    position
        Returns the rocking angle, deg.
    """

    def __init__(self, prefix: str, source: FrameSource, position: Callable[[], float]) -> None:
        self._source = source
        self._position = position
        self._cam = _driver(f"{prefix}cam1:", source, self._start_or_stop)
        self._image = _standard_arrays(f"{prefix}image1:", source)
        self._stats = _statistics(f"{prefix}Stats1:", source)
        self._hdf5 = HDF5Plugin(f"{prefix}HDF1:", source.shape, np.dtype(source.dtype))
        self._acquisition: asyncio.Task[None] | None = None
        self.pvdb = {
            **self._cam.pvdb,
            **self._image.pvdb,
            **self._stats.pvdb,
            **self._hdf5.records.pvdb,
            **geometry_records(f"{prefix}cdi:", source.geometry).pvdb,
        }

    def close(self) -> None:
        """Close the file that is being written, if there is one."""
        self._hdf5.close()

    async def _start_or_stop(self, acquire: int) -> int:
        if acquire and self._acquisition is None:
            self._acquisition = asyncio.create_task(self._acquire())
        elif not acquire and self._acquisition is not None:
            self._acquisition.cancel()
        return acquire

    async def _acquire(self) -> None:
        cam = self._cam
        mode = cam.get("ImageMode")
        wanted = {SINGLE: 1, MULTIPLE: cam.get("NumImages")}.get(mode)
        taken = 0
        try:
            while wanted is None or taken < wanted:
                await self._expose()
                taken += 1
                await cam.set("NumImagesCounter_RBV", taken)
        except asyncio.CancelledError:
            logger.info("the acquisition was stopped after %d frames", taken)
        except Exception as error:
            # A task's boundary: without this the client would wait for ever.
            logger.exception("the acquisition failed")
            await cam.set("StatusMessage_RBV", str(error)[:200])
        finally:
            self._acquisition = None
            await cam.set_pair("Acquire", 0)

    async def _expose(self) -> None:
        """Take one frame and hand it to the plugins."""
        seconds = float(self._cam.get("AcquireTime"))
        closing = time.monotonic() + seconds
        angle = self._position()
        frame = await asyncio.to_thread(self._source.frame, angle, seconds)
        await asyncio.sleep(max(closing - time.monotonic(), 0.0))
        await self._cam.set_pair("ArrayCounter", self._cam.get("ArrayCounter") + 1)
        if self._cam.get("ArrayCallbacks"):
            for plugin_, take in ((self._image, _show), (self._stats, _sum)):
                if plugin_.get("EnableCallbacks"):
                    await take(plugin_, frame)
                    await plugin_.set_pair("ArrayCounter", plugin_.get("ArrayCounter") + 1)
            await self._hdf5.take(frame)


def geometry_records(prefix: str, geometry: Geometry) -> Records:
    """Return the records that say how beam, crystal and detector stand, one for each known field."""
    records = Records(prefix)
    for name, value in quantities(geometry).items():
        records.add(name, value)
    return records


def _driver(prefix: str, source: FrameSource, acquire: Callable[[int], Any]) -> Records:
    (rows, columns), dtype = source.shape, np.dtype(source.dtype)
    cam = Records(prefix)
    for name, value in (
        ("PortName", "CAM1"),
        ("Manufacturer", "bluesky-cdinn"),
        ("Model", "simulated crystal"),
        ("NumImagesCounter", 0),
        ("ArraySizeX", columns),
        ("ArraySizeY", rows),
        ("ArraySizeZ", 0),
        ("ArraySize", rows * columns * dtype.itemsize),
        ("MaxSizeX", columns),
        ("MaxSizeY", rows),
    ):
        cam.add(f"{name}_RBV", value)
    cam.add("StatusMessage_RBV", "", long=True)
    cam.pair("Acquire", 0, choices=("Done", "Acquire"), on_put=acquire)
    cam.pair("AcquireTime", 0.1, precision=4, units="s", on_put=_positive)
    cam.pair("AcquirePeriod", 0.0, precision=4, units="s")
    cam.pair("NumImages", 1)
    cam.pair("NumExposures", 1)
    cam.pair("ArrayCounter", 0)
    cam.pair("ImageMode", MULTIPLE, choices=("Single", "Multiple", "Continuous"))
    cam.pair("TriggerMode", 0, choices=("Internal",))
    cam.pair("ArrayCallbacks", 1, choices=("Disable", "Enable"))
    cam.pair("DataType", _data_type(dtype), choices=DATA_TYPES)
    cam.add("DataType_RBV.DISA", 0)
    return cam


async def _positive(seconds: float) -> float:
    return max(float(seconds), 1e-6)


def _data_type(dtype: np.dtype[Any]) -> int:
    return [name.lower() for name in DATA_TYPES].index(dtype.name)


def _standard_arrays(prefix: str, source: FrameSource) -> Records:
    image = plugin(prefix, "NDPluginStdArrays", "IMAGE1", source.shape)
    pixels = int(np.prod(source.shape))
    # Channel Access has no unsigned integers: int32 holds the counts of any detector but a summed one.
    zero = 0.0 if np.dtype(source.dtype).kind == "f" else 0
    image.add("ArrayData", [zero], max_length=pixels)
    return image


async def _show(image: Records, frame: NDArray[Any]) -> None:
    await image.set("ArrayData", frame.ravel().tolist())


def _statistics(prefix: str, source: FrameSource) -> Records:
    stats = plugin(prefix, "NDPluginStats", "STATS1", source.shape)
    stats.pair("ComputeStatistics", 1, choices=("No", "Yes"))
    stats.add("Total_RBV", 0.0, units="counts")
    stats.add("MaxValue_RBV", 0.0, units="counts")
    return stats


async def _sum(stats: Records, frame: NDArray[Any]) -> None:
    await stats.set("Total_RBV", float(frame.sum(dtype=np.float64)))
    await stats.set("MaxValue_RBV", float(frame.max()))
