"""Measure one rocking curve."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np
from bluesky.protocols import Checkable, Locatable, Movable, Readable
from bluesky.utils import MsgGenerator, get_hinted_fields
from numpy.typing import NDArray

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.plans._protocols import KnowsExperiment, ReadableMovable

FloatArray = NDArray[np.float64]

LEAST_POINTS = 3
"""A curve of fewer points has no width."""

EXPOSURE_SIGNALS = ("count_time", "cam.acquire_time", "driver.acquire_time", "acquire_time", "exposure_time")
"""Where a detector's exposure is looked for, in this order."""


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
) -> MsgGenerator[str]:
    """Rock a crystal through its Bragg peak, one frame at each angle, as one run.

    Parameters
    ----------
    detectors : Readable or sequence of Readable
        The area detector, or several devices to read at each point.
    motor : Movable
        Turns the crystal.
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

    Yields
    ------
    Msg
        To the RunEngine.

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
    angles = _there_and_back(_angles(start, stop, num), repeats)
    signals: list[ReadableMovable] = []
    exposures = None
    if count_time is not None:
        exposures = _there_and_back(_exposures(count_time, num), repeats)
        signals = _exposure_signals(devices)
    metadata = _metadata(devices, motor, len(angles), cdi or {}, md or {})
    metadata.setdefault(
        "plan_args",
        {
            "detectors": list(map(repr, devices)),
            "motor": repr(motor),
            "start": start,
            "stop": stop,
            "num": num,
            "count_time": count_time if count_time is None else np.asarray(count_time, float).tolist(),
            "relative": relative,
            "repeats": repeats,
        },
    )
    if not relative:
        _check_limits(motor, angles)
        return (yield from _measure(devices, motor, angles, signals, exposures, metadata))
    origin = yield from _position(motor)
    _check_limits(motor, angles + origin)
    scan = _measure(devices, motor, angles + origin, signals, exposures, metadata)
    return (yield from bpp.finalize_wrapper(scan, lambda: bps.mv(motor, origin)))


def _measure(
    devices: Sequence[Readable],
    motor: Movable,
    angles: FloatArray,
    signals: Sequence[ReadableMovable],
    exposures: FloatArray | None,
    metadata: dict[str, Any],
) -> MsgGenerator[str]:
    """Take one frame at each angle; exposures that vary are read with each point."""
    varied = exposures is not None and np.ptp(exposures) > 0
    if exposures is not None:
        yield from bps.mv(*_each(signals, exposures[0]))
    read = [*devices, motor, *(map(_OnItsOwn, signals) if varied else ())]

    @bpp.stage_decorator([*devices, motor])
    @bpp.run_decorator(md=metadata)
    def run() -> MsgGenerator[None]:
        for index, angle in enumerate(angles):
            exposure = _each(signals, exposures[index]) if exposures is not None and varied else []
            yield from bps.checkpoint()
            yield from bps.mv(motor, float(angle), *exposure)
            yield from bps.trigger_and_read(read)

    return (yield from run())  # pyright: ignore[reportReturnType] - the decorator returns the run's uid


def _each(signals: Sequence[ReadableMovable], value: float) -> list[Any]:
    """Return arguments of `bluesky.plan_stubs.mv` that set every signal to one value."""
    return [item for signal in signals for item in (signal, float(value))]


class _OnItsOwn:
    """A detector's signal that is read beside its detector; bluesky would take it for read already."""

    parent = None

    def __init__(self, signal: ReadableMovable) -> None:
        self.name = signal.name
        self.read = signal.read
        self.describe = signal.describe


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


def _exposures(count_time: float | Sequence[float], num: int) -> FloatArray:
    times = np.asarray(count_time, dtype=float)
    if times.shape not in ((), (int(num),)):
        raise InvalidInput(
            f"count_time must be one number, or one for each of the {num} angles, got shape {times.shape}"
        )
    if not (np.isfinite(times) & (times > 0)).all():
        raise InvalidInput(f"count_time must be positive, in s, got {count_time}")
    return np.broadcast_to(times, int(num))


def _there_and_back(values: FloatArray, repeats: int) -> FloatArray:
    """Repeat values, every other time backwards."""
    if not float(repeats).is_integer() or repeats < 1:
        raise InvalidInput(f"repeats must be a whole number, at least 1, got {repeats}")
    return np.concatenate([values[:: -1 if turn % 2 else 1] for turn in range(int(repeats))])


def _exposure_signals(devices: Sequence[Readable]) -> list[ReadableMovable]:
    """Return the exposure signal of every detector that has one."""
    found = [signal for device in devices if (signal := _exposure_signal(device)) is not None]
    if not found:
        raise InvalidInput(
            f"count_time needs a detector with one of {', '.join(EXPOSURE_SIGNALS)}; "
            f"{', '.join(device.name for device in devices)} has none: leave count_time out"
        )
    return found


def _exposure_signal(device: Readable) -> ReadableMovable | None:
    for path in EXPOSURE_SIGNALS:
        signal: Any = device
        for attribute in path.split("."):
            signal = getattr(signal, attribute, None)
        if isinstance(signal, ReadableMovable):
            return signal
    return None


def _check_limits(motor: Movable, angles: FloatArray) -> None:
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


def _position(motor: Movable) -> MsgGenerator[float]:
    """Read where the motor was sent, or stands if it doesn't tell."""
    if isinstance(motor, Locatable):
        # bluesky annotates what this yields as strings; they are messages
        location = yield from bps.locate(motor)  # pyright: ignore[reportReturnType]
        return float(location["setpoint"])
    return float((yield from bps.rd(motor)))  # pyright: ignore[reportArgumentType]


def _metadata(
    devices: Sequence[Readable],
    motor: Movable,
    points: int,
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
        **md,
        "hints": {"dimensions": [(get_hinted_fields(motor), "primary")], **md.get("hints", {})},
        "cdi": {**known, **md.get("cdi", {}), **cdi},
    }
