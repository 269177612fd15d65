"""An ophyd-async detector that looks at a simulated crystal and writes HDF5, as those at beamlines do.

Its frames are in no event: StreamResource and StreamDatum documents point into one file for each staging,
which others may read while it grows. The angle of each frame lies in the same file, for fly scans, which
have no event that could say it. It needs ophyd-async (0.21 or later), which the package doesn't
require.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from ophyd_async.core import (
    Array1D,
    DetectorAcquireLogic,
    DetectorDataLogic,
    DetectorTriggerLogic,
    SignalR,
    SignalRW,
    StandardDetector,
    StreamableDataProvider,
    StreamResourceDataProvider,
    StreamResourceInfo,
    TriggerInfo,
    soft_signal_r_and_setter,
    soft_signal_rw,
)

from bluesky_cdinn.geometry_metadata import quantities
from bluesky_cdinn.records import Geometry
from bluesky_cdinn.sim.area_detector import FrameSource
from bluesky_cdinn.sim.frame_file import ANGLES, DATASET, FrameFile

Position = Callable[[], Awaitable[float]]
"""Says where the rocking stage stands, deg: ``theta.user_readback.get_value`` of an ophyd-async motor."""


class CrystalDetector(StandardDetector):
    """A detector of ophyd-async's kind that looks at a crystal from where a rocking stage stands.

    Its configuration holds ``count_time`` and the geometry, under the names of `records.Geometry`.

    Parameters
    ----------
    source
        What there is to see.
    position
        Asked for the rocking angle when an exposure begins.
    directory
        For the HDF5 files.
    name
        In the documents, and of the data key of its frames; that of their angles is ``{name}-angle``.
    """

    def __init__(self, source: FrameSource, position: Position, directory: Path, name: str = "") -> None:
        self.count_time = soft_signal_rw(float, 0.1, units="s", precision=4)
        camera = _Camera(source, position, self.count_time)
        self.add_detector_logics(_Trigger(camera), _Acquire(camera), _Files(camera, Path(directory)))
        self.add_config_signals(self.count_time, *self._geometry_signals(source.geometry))
        super().__init__(name=name)

    def _geometry_signals(self, geometry: Geometry) -> list[SignalR[Any]]:
        signals: list[SignalR[Any]] = []
        for name, value in quantities(geometry).items():
            if isinstance(value, list):
                signals.append(soft_signal_r_and_setter(Array1D[np.float64], np.asarray(value))[0])
            else:
                signals.append(soft_signal_r_and_setter(float, value)[0])
            setattr(self, name, signals[-1])
        return signals


class _Camera:
    """What the detector's three parts share: the exposures to be made, and the file that they go to."""

    def __init__(self, source: FrameSource, position: Position, count_time: SignalRW[float]) -> None:
        self.source = source
        self.count_time = count_time
        self.frames_to_take = 1
        self.deadtime_s = 0.0
        self.written, self.set_written = soft_signal_r_and_setter(int)
        self.file: FrameFile | None = None
        self._position = position

    async def take(self) -> None:
        """Expose and write the frames that were asked for."""
        if self.file is None:
            raise RuntimeError("the detector must be staged and prepared before it is triggered")
        seconds = await self.count_time.get_value()
        for _ in range(self.frames_to_take):
            closing = time.monotonic() + seconds
            angle = await self._position()
            frame = await asyncio.to_thread(self.source.frame, angle, seconds)
            await asyncio.sleep(max(closing - time.monotonic(), 0.0) + self.deadtime_s)
            self.file.append(frame, angle)
            self.set_written(len(self.file))

    def open(self, path: Path) -> None:
        """Start a new file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        dtype = np.dtype(self.source.dtype)
        self.file = FrameFile(path, self.source.shape, dtype, with_angles=True)
        self.set_written(0)

    def close(self) -> None:
        """Close the file, if one is open."""
        if self.file is not None:
            self.file.close()
            self.file = None


class _Trigger(DetectorTriggerLogic):
    def __init__(self, camera: _Camera) -> None:
        self._camera = camera

    async def prepare_internal(self, num: int, livetime: float, deadtime: float) -> None:
        self._camera.frames_to_take = num
        self._camera.deadtime_s = deadtime
        if livetime:
            await self._camera.count_time.set(livetime)

    async def default_trigger_info(self) -> TriggerInfo:
        return TriggerInfo()


class _Acquire(DetectorAcquireLogic):
    def __init__(self, camera: _Camera) -> None:
        self._camera = camera
        self._task: asyncio.Task[None] | None = None

    async def start_acquiring(self) -> None:
        self._task = asyncio.create_task(self._camera.take())

    async def wait_for_idle(self) -> None:
        if self._task is not None:
            await self._task

    async def ensure_stopped(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None


class _Files(DetectorDataLogic):
    def __init__(self, camera: _Camera, directory: Path) -> None:
        self._camera = camera
        self._directory = directory

    async def prepare_unbounded(self, datakey_name: str) -> StreamableDataProvider:
        path = (self._directory / f"{datakey_name}-{uuid4()}.h5").absolute()
        self._camera.open(path)
        shape = self._camera.source.shape
        frames = StreamResourceInfo(
            data_key=datakey_name,
            shape=shape,
            chunk_shape=(1, *shape),
            dtype_numpy=np.dtype(self._camera.source.dtype).str,
            parameters={"dataset": DATASET, "swmr": True},
        )
        angles = StreamResourceInfo(
            data_key=f"{datakey_name}-angle",
            shape=(),
            chunk_shape=(1024,),
            dtype_numpy="<f8",
            parameters={"dataset": ANGLES, "swmr": True},
        )
        return StreamResourceDataProvider(
            uri=f"file://localhost{path.as_posix()}",
            resources=[frames, angles],
            mimetype="application/x-hdf5",
            collections_written_signal=self._camera.written,
        )

    def get_hinted_fields(self, datakey_name: str) -> Sequence[str]:
        return [datakey_name]

    async def stop(self) -> None:
        self._camera.close()
