"""The devices of a session: a simulated beamline, or the real one over EPICS, as the settings say."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from ophyd.signal import EpicsSignalBase

from bluesky_cdinn.errors import DeviceUnavailable, InvalidInput
from bluesky_cdinn.settings import SessionSettings, Settings


def beamline_devices(settings: Settings | None = None) -> dict[str, Any]:
    """Return the devices by name: area detector ``det``, rocking motor ``theta``, and the sample's motors.

    The simulated sample's are ``x`` and ``y``, um: a crystal is in the beam at (0, 0), and at every ten um
    up to (20, 10) there is another, or none, or one of no use (`bluesky_cdinn.sim.grains`).

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
    return _epics_devices(chosen) if chosen.devices == "epics" else _simulated_devices()


def _simulated_devices() -> dict[str, Any]:
    # The other way needs none of its imports.
    from bluesky_cdinn.sim.crystal import random_crystal
    from bluesky_cdinn.sim.grains import Grain, random_grains, sample_beamline

    first = Grain("x0y0", random_crystal(np.random.default_rng(0), 400.0, 3.0), (0.0, 0.0), peak_rate=1e6)
    others = [
        grain for grain in random_grains(np.random.default_rng(0), 3, 2) if grain.place_um != (0.0, 0.0)
    ]
    beamline = sample_beamline([first, *others], time_scale=0.02)
    return {name: getattr(beamline, name) for name in ("det", "theta", "x", "y")}


def _epics_devices(chosen: SessionSettings) -> dict[str, Any]:
    from ophyd import cl

    if cl.name == "dummy":
        raise InvalidInput(
            "session.devices = 'epics' needs a client of Channel Access: pip install 'bluesky-cdinn[epics]'"
        )
    from bluesky_cdinn.epics import EventDetector, FileDetector, RockingMotor

    # Whoever has made signals before this has chosen for himself.
    with suppress(RuntimeError):
        EpicsSignalBase.set_defaults(connection_timeout=chosen.connect_s)
    made: dict[str, Any] = {}
    for name, record in {"theta": chosen.motor, **chosen.stages}.items():
        with _within(chosen.connect_s, f"the motor record {record}, as {name}"):
            made[name] = RockingMotor(record, name=name)
            made[name].wait_for_connection(timeout=chosen.connect_s)
    with _within(chosen.connect_s, f"the areaDetector {chosen.detector}, as det"):
        if chosen.write_path is None:
            made["det"] = EventDetector(chosen.detector, name="det")
        else:
            paths = {"write_path": chosen.write_path, "read_path": chosen.read_path}
            made["det"] = FileDetector(chosen.detector, name="det", **paths)
        made["det"].wait_for_connection(timeout=chosen.connect_s)
    return made


@contextmanager
def _within(timeout_s: float, device: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise DeviceUnavailable(
            f"session.devices = 'epics' needs {device}, not found within {timeout_s:g} s: is its IOC "
            "up, and does EPICS_CA_ADDR_LIST lead there? session.devices = 'simulated' needs none"
        ) from error
