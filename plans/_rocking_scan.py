"""Measure one rocking curve."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np
from bluesky.protocols import Checkable, Locatable, Movable, Readable
from bluesky.utils import MsgGenerator, get_hinted_fields
from numpy.typing import NDArray

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.plans._exposure import Exposures, find_exposures
from bluesky_cdinn.plans._protocols import KnowsExperiment

FloatArray = NDArray[np.float64]

LEAST_POINTS = 3
"""A curve of fewer points has no width."""


def rocking_scan(
    detectors: Readable | Sequence[Readable],
    motor: Movable,
    start: float,
    stop: float,
    num: int,
    *,
    count_time: float | Sequence[float] | None = None,
    relative: bool = False,
    repeats: int = 1,
    cdi: dict | None = None,
    md: dict | None = None,
    until: Callable[[], MsgGenerator[bool]] | None = None,
) -> MsgGenerator[str]:
    """Rock a crystal through its Bragg peak, one frame at each angle, as one run.

    Parameters
    ----------
    detectors : Readable or sequence of Readable
        The area detector, or several devices to read at each point.
    motor : Movable
        Turns the crystal; or the monochromator, with the crystal at rest: angles are then energies in its
        own unit, eV or keV.
    start : float
        First angle, deg; it may be larger than the last one.
    stop : float
        Last angle, deg.
    num : int
        Number of angles, evenly spaced.
    count_time : float or sequence of float, optional
        Exposure, s: of every point, or one for each of the `num` angles, which is then read with each
        point. It is set on every detector that has a signal for it. None leaves it as it is.
    relative : bool, optional
        Angles are counted from where the motor stands, and it returns there, after a failure too.
    repeats : int, optional
        Pass over the angles this many times, every other time backwards.
    cdi : dict, optional
        What the devices don't know: ``sample``, ``reflection``, ``lattice_nm``, or anything else of the
        start document's ``cdi`` mapping.
    md : dict, optional
        More metadata for the start document.
    until : callable, optional
        Gives a plan to be carried out between points; the run ends there, successfully, if it returns True.
        None measures all points.

    Returns
    -------
    str
        The run's uid.

    Raises
    ------
    InvalidInput
        If an argument makes no sense, or an angle is outside the motor's limits; nothing has moved then.

    Examples
    --------
    >>> RE(rocking_scan(det, theta, -0.3, 0.3, 61, count_time=1.0, cdi={"sample": "gold 7"}))
    """
    devices = as_list(detectors)
    angles = _angles(start, stop, num)
    exposures = find_exposures(devices, count_time, len(angles))
    order = _there_and_back(len(angles), repeats)
    plan_args = {
        "detectors": list(map(repr, devices)),
        "motor": repr(motor),
        "start": float(start),
        "stop": float(stop),
        "num": len(angles),
        "count_time": count_time if count_time is None else np.asarray(count_time, float).tolist(),
        "relative": bool(relative),
        "repeats": int(repeats),
    }
    metadata = scan_metadata(devices, motor, len(order), plan_args, cdi or {}, md or {})
    if not relative:
        check_limits(motor, angles)
        return (yield from _measure(devices, motor, angles, exposures, order, metadata, until))
    origin = yield from position_of(motor)
    check_limits(motor, angles + origin)
    scan = _measure(devices, motor, angles + origin, exposures, order, metadata, until)
    return (yield from bpp.finalize_wrapper(scan, lambda: bps.mv(motor, origin)))


def _measure(
    devices: Sequence[Readable],
    motor: Movable,
    angles: FloatArray,
    exposures: Exposures,
    order: Sequence[int],
    metadata: dict[str, Any],
    until: Callable[[], MsgGenerator[bool]] | None,
) -> MsgGenerator[str]:
    """Take one frame at each angle, in the order given, until it is enough."""
    planned = [float(angles[0]), float(angles[-1]), len(angles)]
    metadata = {**metadata, "cdi": {"planned_deg": planned, **metadata["cdi"]}}
    if exposures.signals:
        yield from bps.mv(*exposures.settings(order[0]))
    read = [*devices, motor, *exposures.readables()]

    @bpp.stage_decorator([*devices, motor])
    @bpp.run_decorator(md=metadata)
    def run() -> MsgGenerator[None]:
        for place, point in enumerate(order):
            if place and until is not None and (yield from until()):
                return
            exposure = exposures.settings(point) if exposures.varied else []
            yield from bps.checkpoint()
            yield from bps.mv(motor, float(angles[point]), *exposure)
            yield from bps.trigger_and_read(read)

    return (yield from run())  # pyright: ignore[reportReturnType] - the decorator returns the run's uid


def as_list(detectors: Readable | Sequence[Readable]) -> list[Readable]:
    """Return a list of one or several devices."""
    devices = list(detectors) if isinstance(detectors, Sequence) else [detectors]
    if not devices or not all(isinstance(device, Readable) for device in devices):
        raise InvalidInput(f"detectors must be a readable device or several, got {detectors!r}")
    return devices


def _angles(start: float, stop: float, num: int) -> FloatArray:
    if not float(num).is_integer() or num < LEAST_POINTS:
        raise InvalidInput(f"num must be a whole number of angles, at least {LEAST_POINTS}, got {num}")
    if not (math.isfinite(start) and math.isfinite(stop)) or start == stop:
        raise InvalidInput(f"start and stop must be two different angles in deg, got {start} and {stop}")
    return np.linspace(start, stop, int(num))


def _there_and_back(num: int, repeats: int) -> list[int]:
    """Return indices of points: upwards, and every other time downwards."""
    if not float(repeats).is_integer() or repeats < 1:
        raise InvalidInput(f"repeats must be a whole number, at least 1, got {repeats}")
    upwards = list(range(num))
    return [point for turn in range(int(repeats)) for point in upwards[:: -1 if turn % 2 else 1]]


def check_limits(motor: Movable, angles: FloatArray) -> None:
    """Ask the motor about the outermost angles, where it can be asked without waiting."""
    if not isinstance(motor, Checkable):
        return
    for angle in (angles.min(), angles.max()):
        try:
            answer = motor.check_value(float(angle))
        except ValueError as error:
            raise InvalidInput(f"the scan must stay within the motor's limits: {error}") from error
        if answer is not None:  # a coroutine: the motor itself refuses when it is set
            answer.close()  # pyright: ignore[reportAttributeAccessIssue]


def position_of(motor: Movable) -> MsgGenerator[float]:
    """Read where the motor was sent, or stands if it doesn't tell."""
    if isinstance(motor, Locatable):
        # bluesky annotates what this yields as strings; they are messages
        location = yield from bps.locate(motor)  # pyright: ignore[reportReturnType]
        return float(location["setpoint"])
    return float((yield from bps.rd(motor)))  # pyright: ignore[reportArgumentType]


def scan_metadata(
    devices: Sequence[Readable],
    motor: Movable,
    points: int,
    plan_args: Mapping[str, Any],
    cdi: Mapping[str, Any],
    md: Mapping[str, Any],
) -> dict[str, Any]:
    """Compose the start document's metadata; what the user gives goes over what is found."""
    name = motor.name  # pyright: ignore[reportAttributeAccessIssue]
    known: dict[str, Any] = {"rocking_motor": name}
    if len(devices) == 1:  # among several, the one with images is found by its documents
        known["detector"] = devices[0].name
    for device in reversed(devices):
        if isinstance(device, KnowsExperiment):
            known.update(device.cdi)
    return {
        "plan_name": "rocking_scan",
        "purpose": "rocking_curve",
        "detectors": [device.name for device in devices],
        "motors": [name],
        "num_points": points,
        "num_intervals": points - 1,
        "plan_args": plan_args,
        **md,
        "hints": {"dimensions": [(get_hinted_fields(motor), "primary")], **md.get("hints", {})},
        "cdi": {**known, **md.get("cdi", {}), **cdi},
    }
