"""Ophyd devices for a beamline on EPICS: a rocking motor and area detectors that know their geometry.

They are ophyd's own, `ophyd.EpicsMotor` and its areaDetector classes, put together as a rocking scan needs
them; ``python -m bluesky_cdinn.sim.ioc`` serves all of it for practice. What they add: a move or an
exposure whose IOC goes away fails at once, where ophyd's wait for ever; and the geometry stands in the
detector's configuration, so that it reaches the run's documents.
"""

# ophyd annotates its readings with a class of its own that a plain dict does not fit.
# pyright: reportIncompatibleMethodOverride=false

import logging
import time
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from ophyd import Component, Device, EpicsMotor, EpicsSignalRO, Kind, Signal
from ophyd.areadetector import ADComponent, AreaDetector, SingleTrigger
from ophyd.areadetector.filestore_mixins import FileStoreHDF5IterativeWrite
from ophyd.areadetector.plugins import HDF5Plugin_V34, ImagePlugin, StatsPlugin
from ophyd.device import Staged
from ophyd.status import MoveStatus, StatusBase
from ophyd.utils import DisconnectedError
from ophyd.utils.errors import InvalidState

logger = logging.getLogger(__name__)

__all__ = ["BraggGeometry", "EventDetector", "FileDetector", "RockingMotor"]


def fail_when_lost(status: StatusBase, signal: Signal) -> None:
    """Let a status fail when a signal's IOC goes away; ophyd's own would never end.

    Parameters
    ----------
    status
        Of what the IOC is doing.
    signal
        Any of that IOC's.
    """

    def watch(*, connected: bool, **_: Any) -> None:
        if connected or status.done:
            return
        try:
            status.set_exception(
                DisconnectedError(f"{signal.name}: its IOC went away before it had done what was asked")
            )
        except InvalidState:  # it was finished meanwhile
            return

    token = signal.subscribe(watch, event_type=signal.SUB_META, run=True)
    status.add_callback(lambda _: signal.unsubscribe(token))


class RockingMotor(EpicsMotor):
    """An EPICS motor record whose moves fail when its IOC goes away."""

    def move(self, position: float, wait: bool = True, **kwargs: Any) -> MoveStatus:
        """Start to move; see `ophyd.EpicsMotor.move`."""
        status = super().move(position, wait=False, **kwargs)
        fail_when_lost(status, self.motor_done_move)
        if wait:
            status.wait()
        return status


class BraggGeometry(Device):
    """How beam, crystal and detector stand, each from a process variable, named as in `records.Geometry`.

    At a beamline they lie elsewhere: take a class like this one, with the suffixes changed or with
    `ophyd.FormattedComponent`, and leave out what no process variable knows; the start document's ``cdi``
    or the settings say it instead.
    """

    energy_keV = Component(EpicsSignalRO, "energy_keV", kind=Kind.config)
    detector_distance_m = Component(EpicsSignalRO, "detector_distance_m", kind=Kind.config)
    pixel_size_um = Component(EpicsSignalRO, "pixel_size_um", kind=Kind.config)
    detector_angles_deg = Component(EpicsSignalRO, "detector_angles_deg", kind=Kind.config)
    beam_centre_px = Component(EpicsSignalRO, "beam_centre_px", kind=Kind.config)
    rocking_axis = Component(EpicsSignalRO, "rocking_axis", kind=Kind.config)
    reflection = Component(EpicsSignalRO, "reflection", kind=Kind.config)
    lattice_nm = Component(EpicsSignalRO, "lattice_nm", kind=Kind.config)


class _Detector(SingleTrigger, AreaDetector):
    """An areaDetector that takes one exposure a point, with total counts and geometry."""

    _default_configuration_attrs = ("cam", "geometry")
    _default_read_attrs = ("stats1",)

    stats1 = ADComponent(StatsPlugin, "Stats1:", read_attrs=["total", "max_value"], configuration_attrs=[])
    geometry = Component(BraggGeometry, "cdi:")

    def __init__(self, prefix: str, *, name: str, **kwargs: Any) -> None:
        super().__init__(prefix, name=name, **kwargs)
        self.stats1.total.kind = Kind.hinted
        self.stats1.stage_sigs["compute_statistics"] = "Yes"

    def trigger(self) -> StatusBase:
        """Start one exposure; its status fails when the IOC goes away.

        Raises
        ------
        RuntimeError
            If the detector isn't staged.
        """
        if self._staged != Staged.yes:
            raise RuntimeError(f"{self.name} must be staged before it is triggered: let a plan do both")
        # Not SingleTrigger.trigger: a short exposure is over before that returns, and takes its status away.
        status = self._status = self._status_type(self)
        fail_when_lost(status, self.cam.acquire)
        self.generate_datum(self._image_name, time.time(), {})
        self.cam.acquire.put(1, wait=False)
        return status

    def unstage(self) -> list[object]:
        """Put back what staging changed; where the IOC is gone that is left to whoever restarts it."""
        try:
            return cast(list[object], super().unstage())
        except TimeoutError:
            if self.cam.acquire.connected:
                raise
            # Raised, it would hide why the scan failed, and keep the detector from being staged again.
            logger.warning("%s can't be unstaged: its IOC is gone", self.name)
            _forget_staging(self)
            return [self]


def _forget_staging(device: Device) -> None:
    for part in (device, *(part for _, part in device.walk_subdevices())):
        part._original_vals.clear()
        part._staged = Staged.no


class EventDetector(_Detector):
    """An areaDetector whose frames travel in the events, as ``{name}_image``: for small detectors.

    Parameters
    ----------
    prefix
        Of the detector's records, such as ``CDI:det:``.
    name
        In the documents.
    """

    image1 = ADComponent(ImagePlugin, "image1:", read_attrs=[], configuration_attrs=[])

    def read(self) -> dict[str, Any]:
        """Return the last frame and its statistics."""
        reading = cast(dict[str, Any], super().read())
        frame = self._frame()
        reading[f"{self.name}_image"] = {"value": frame, "timestamp": self.image1.array_data.timestamp}
        return reading

    def describe(self) -> dict[str, Any]:
        """Describe the frame and its statistics."""
        described = cast(dict[str, Any], super().describe())
        frame = self._frame()
        described[f"{self.name}_image"] = {
            "source": f"PV:{self.image1.array_data.pvname}",
            "dtype": "array",
            "dtype_numpy": frame.dtype.str,
            "shape": list(frame.shape),
            "units": "counts",
        }
        return described

    def _frame(self) -> NDArray[Any]:
        # Not ImagePlugin.image: that takes a 2D array's depth, 0, for one of its two sizes.
        # Asked for, all three: what a monitor told last may be of the frame before, or of none.
        rows, columns = (int(side.get(use_monitor=False)) for side in (self.image1.height, self.image1.width))
        image = self.image1.array_data.get(count=rows * columns, use_monitor=False)
        return np.asarray(image).reshape(rows, columns)


class HDF5Files(HDF5Plugin_V34, FileStoreHDF5IterativeWrite):
    """The HDF5 plugin, one file a scan, readable by others while it grows."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Before capture is switched on, which opens the file. 0 lets it take frames until it is unstaged.
        self.stage_sigs.update([("swmr_mode", "On"), ("num_frames_flush", 1), ("num_capture", 0)])
        self.stage_sigs.move_to_end("capture")


class FileDetector(_Detector):
    """An areaDetector whose frames go to HDF5 files, one a scan, that documents point into.

    Parameters
    ----------
    prefix
        Of the detector's records, such as ``CDI:det:``.
    name
        In the documents; the frames are ``{name}_image``.
    write_path
        Folder in which the IOC writes; `datetime.datetime.strftime` fills in dates.
    read_path
        The same folder as this machine and the worker's see it, where that differs.
    """

    _default_read_attrs = ("stats1", "hdf1")

    hdf1 = ADComponent(HDF5Files, "HDF1:", write_path_template="/", read_attrs=[], configuration_attrs=[])

    def __init__(
        self, prefix: str, *, name: str, write_path: str, read_path: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(prefix, name=name, **kwargs)
        self.hdf1.write_path_template = write_path
        self.hdf1.read_path_template = read_path
