"""A simulated area detector, coupled to the rocking stage."""

# ophyd annotates its readings with a class of its own that a plain dict does not fit.
# pyright: reportIncompatibleMethodOverride=false

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from ophyd import Component, Device, Kind, Signal
from ophyd.signal import InternalSignal
from ophyd.status import Status

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.geometry_metadata import quantities
from bluesky_cdinn.records import Geometry
from bluesky_cdinn.sim.delivery import DeliveryName, FrameFormat, make_delivery
from bluesky_cdinn.sim.stage import RockingStage

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 30.0
"""Computing one frame can't be interrupted; it takes much less."""


class FrameSource(Protocol):
    """What a detector would see: a simulated diffraction experiment, or a recorded one."""

    @property
    def geometry(self) -> Geometry:
        """How beam, crystal and detector stand."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of a frame."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a pixel."""
        ...

    def frame(self, angle_deg: float, count_time_s: float) -> NDArray[Any]:
        """Return counts (rows, columns) at one rocking angle."""
        ...


class _CountTime(Signal):
    """Exposure in s, positive; fixed where frames were recorded with one."""

    fixed_s: float | None = None

    def check_value(self, value: float, **kwargs: Any) -> None:
        if not (np.isfinite(value) and value > 0):
            raise InvalidInput(f"{self.name} must be a positive number of seconds, got {value}")
        if self.fixed_s is not None and not np.isclose(value, self.fixed_s):
            raise InvalidInput(
                f"{self.name} can't be {value} s: these frames were recorded with {self.fixed_s} s each. "
                "Leave count_time out"
            )


@dataclass(eq=False)
class _Exposure:
    """One exposure under way. Its own thread is the only one that finishes its status."""

    status: Status
    angle_deg: float
    count_time_s: float
    halted: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    halted_with_success: bool = False


class SimulatedAreaDetector(Device):
    """An area detector that looks at a `FrameSource` from where the rocking stage stands.

    Reads as ``{name}_image``, ``{name}_total`` and ``{name}_max``. Its configuration holds
    ``{name}_count_time`` and the geometry under the names of the start document's ``cdi`` mapping:
    ``{name}_energy_keV``, ``{name}_detector_distance_m``, ``{name}_pixel_size_um``,
    ``{name}_detector_angles_deg``, ``{name}_beam_centre_px``, ``{name}_rocking_axis`` and, where known,
    ``{name}_detector_axes``, ``{name}_reflection`` and ``{name}_lattice_nm``.

    Parameters
    ----------
    source
        What there is to see.
    stage
        Whose position is the rocking angle.
    delivery
        How frames are handed over: "event", "resource" or "stream" (see `bluesky_cdinn.sim.delivery`).
    directory
        For the HDF5 files of "resource" and "stream".
    count_time_s
        Exposure at first, s; the signal ``count_time`` changes it.
    fixed_count_time_s
        The only exposure that there is, for recorded frames.
    time_scale
        Real seconds for each second of exposure; 0 doesn't wait beyond the computing.
    cdi
        What is known of the sample beside the geometry, for the start document's ``cdi`` mapping;
        `bluesky_cdinn.plans` puts it there.
    """

    total = Component(InternalSignal, value=0.0, kind=Kind.hinted)
    max = Component(InternalSignal, value=0.0, kind=Kind.hinted)
    count_time = Component(_CountTime, value=1.0, kind=Kind.config)

    def __init__(
        self,
        prefix: str = "",
        *,
        name: str,
        source: FrameSource,
        stage: RockingStage,
        delivery: DeliveryName = "event",
        directory: Path | str | None = None,
        count_time_s: float = 1.0,
        fixed_count_time_s: float | None = None,
        time_scale: float = 1.0,
        cdi: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if time_scale < 0:
            raise InvalidInput(f"time_scale must not be negative, got {time_scale}")
        super().__init__(prefix, name=name, **kwargs)
        self.source = source
        self.cdi = dict(cdi or {})
        self._stage = stage
        self._time_scale = time_scale
        self._created = time.time()
        frames = FrameFormat(f"{name}_image", source.shape, np.dtype(source.dtype))
        self._delivery = make_delivery(delivery, frames, Path(directory) if directory else None)
        self._lock = threading.Lock()
        self._exposure: _Exposure | None = None
        self.count_time.put(count_time_s if fixed_count_time_s is None else fixed_count_time_s)
        self.count_time.fixed_s = fixed_count_time_s

    def stage(self) -> list[object]:
        """Get ready for a scan; opens a new file where frames go to one."""
        staged = super().stage()
        try:
            self._delivery.open()
        except Exception:
            super().unstage()
            raise
        return staged

    def unstage(self) -> list[object]:
        """End the exposure under way, if there is one, and close the file."""
        self.stop(success=True)
        self._delivery.close()
        return super().unstage()

    def trigger(self) -> Status:
        """Start one exposure; the status is done when the frame has been delivered.

        Raises
        ------
        RuntimeError
            If an exposure is under way.
        """
        with self._lock:
            if self._exposure is not None:
                raise RuntimeError(f"{self.name} is exposing: wait for that before it is triggered again")
            exposure = self._exposure = _Exposure(
                Status(obj=self), self._stage.position, cast(float, self.count_time.get())
            )
        threading.Thread(
            target=self._expose, args=(exposure,), name=f"{self.name}-exposure", daemon=True
        ).start()
        return exposure.status

    def stop(self, *, success: bool = False) -> None:
        """End the exposure under way without a frame; it then counts as `success` says."""
        with self._lock:
            exposure = self._exposure
            if exposure is None:
                return
            exposure.halted_with_success = success
            exposure.halted.set()
        if not exposure.over.wait(timeout=STOP_TIMEOUT_S):
            logger.error("%s: its exposure did not stop within %g s", self.name, STOP_TIMEOUT_S)

    def pause(self) -> None:
        """End the exposure under way; the plan, once resumed, goes back and triggers it again."""
        self.stop(success=True)

    def read(self) -> dict[str, Any]:
        """Return the last frame, as its delivery has it, and its statistics."""
        reading = cast(dict[str, Any], super().read())
        reading.update(self._delivery.read())
        return reading

    def describe(self) -> dict[str, Any]:
        """Describe the image and its statistics."""
        described = cast(dict[str, Any], super().describe())
        for data_key in described.values():
            data_key["units"] = "counts"
        described.update(self._delivery.describe())
        return described

    def read_configuration(self) -> dict[str, Any]:
        """Return the exposure and the geometry."""
        reading = cast(dict[str, Any], super().read_configuration())
        for key, value in self._geometry_items():
            reading[key] = {"value": value, "timestamp": self._created}
        return reading

    def describe_configuration(self) -> dict[str, Any]:
        """Describe the exposure and the geometry."""
        described = cast(dict[str, Any], super().describe_configuration())
        for key, value in self._geometry_items():
            pair = isinstance(value, list)
            described[key] = {
                "source": f"SIM:{key}",
                "dtype": "array" if pair else "number",
                "shape": [len(value)] if pair else [],
            }
        return described

    def collect_asset_docs(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the documents that point to the last frame, where it isn't in the event."""
        yield from self._delivery.collect_asset_docs()

    def _geometry_items(self) -> Iterator[tuple[str, float | list[float]]]:
        for name, value in quantities(self.source.geometry).items():
            yield f"{self.name}_{name}", value

    def _expose(self, exposure: _Exposure) -> None:
        """Make one exposure, in its own thread."""
        closing = time.monotonic() + exposure.count_time_s * self._time_scale
        failure: Exception | None = None
        try:
            frame = self.source.frame(exposure.angle_deg, exposure.count_time_s)
            if not exposure.halted.wait(max(closing - time.monotonic(), 0.0)):
                self.total.put(float(frame.sum(dtype=np.float64)), internal=True)
                self.max.put(float(frame.max()), internal=True)
                self._delivery.deliver(frame)
            elif not exposure.halted_with_success:
                raise RuntimeError(f"the exposure of {self.name} at {exposure.angle_deg} deg was stopped")
        except Exception as error:
            # A thread's boundary: what goes wrong in it must reach the plan, through the status.
            logger.debug("%s: exposure at %g deg failed", self.name, exposure.angle_deg, exc_info=True)
            failure = error
        with self._lock:
            self._exposure = None
        exposure.over.set()
        if failure is None:
            exposure.status.set_finished()
        else:
            exposure.status.set_exception(failure)
