"""The devices of a session: a simulated beamline, or the real one over EPICS, as the settings say."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ophyd.signal import EpicsSignalBase

from bluesky_cdinn.errors import DeviceUnavailable, InvalidInput
from bluesky_cdinn.settings import SessionSettings, Settings


def beamline_devices(settings: Settings | None = None) -> tuple[Any, Any]:
    """Return the area detector ``det`` and the rocking motor ``theta``.

    Parameters
    ----------
    settings
        ``session.devices`` says which; None reads the settings file and the environment.

    Raises
    ------
    InvalidInput
        There is no client of Channel Access: the ``epics`` extra isn't installed.
    DeviceUnavailable
        EPICS records weren't found in time.
    """
    chosen = (settings or Settings()).session
    if chosen.devices == "epics":
        return _epics_devices(chosen)
    # The other way needs none of its imports.
    from bluesky_cdinn.sim.devices import simulated_beamline

    return simulated_beamline()


def _epics_devices(chosen: SessionSettings) -> tuple[Any, Any]:
    from ophyd import cl

    if cl.name == "dummy":
        raise InvalidInput(
            "session.devices = 'epics' needs a client of Channel Access: pip install 'bluesky-cdinn[epics]'"
        )
    from bluesky_cdinn.epics import EventDetector, FileDetector, RockingMotor

    # Whoever has made signals before this has chosen for himself.
    with suppress(RuntimeError):
        EpicsSignalBase.set_defaults(connection_timeout=chosen.connect_s)
    with _within(chosen.connect_s, f"the motor record {chosen.motor} (session.motor)"):
        theta = RockingMotor(chosen.motor, name="theta")
        theta.wait_for_connection(timeout=chosen.connect_s)
    with _within(chosen.connect_s, f"the areaDetector {chosen.detector} (session.detector)"):
        if chosen.write_path is None:
            det = EventDetector(chosen.detector, name="det")
        else:
            paths = {"write_path": chosen.write_path, "read_path": chosen.read_path}
            det = FileDetector(chosen.detector, name="det", **paths)
        det.wait_for_connection(timeout=chosen.connect_s)
    return det, theta


@contextmanager
def _within(timeout_s: float, device: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise DeviceUnavailable(
            f"session.devices = 'epics' needs {device}, not found within {timeout_s:g} s: is its IOC "
            "up, and does EPICS_CA_ADDR_LIST lead there? session.devices = 'simulated' needs none"
        ) from error
