"""The exposure of each point, set on whatever detectors have a signal for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bluesky.protocols import Readable
from numpy.typing import NDArray

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.plans._protocols import ReadableMovable

EXPOSURE_SIGNALS = ("count_time", "cam.acquire_time", "driver.acquire_time", "acquire_time", "exposure_time")
"""Where a detector's exposure is looked for, in this order: ours, areaDetector's, ophyd-async's, others'."""


@dataclass(frozen=True, eq=False)
class Exposures:
    """How long to expose each point, and on which signals to set that.

    Parameters
    ----------
    times_s
        float64 (points,).
    signals
        None where exposures are left as they are.
    """

    times_s: NDArray[np.float64]
    signals: tuple[ReadableMovable, ...] = ()

    @property
    def varied(self) -> bool:
        """Whether points differ; one exposure for all is configuration, and set once."""
        return bool(self.signals) and float(np.ptp(self.times_s)) > 0

    def settings(self, point: int) -> list[Any]:
        """Return arguments of `bluesky.plan_stubs.mv` that set one point's exposure."""
        return [item for signal in self.signals for item in (signal, float(self.times_s[point]))]

    def readables(self) -> list[Any]:
        """Return what is to be read with each point."""
        return [OnItsOwn(signal) for signal in self.signals] if self.varied else []


class OnItsOwn:
    """A detector's signal that is read beside its detector; bluesky would take it for read already."""

    parent = None

    def __init__(self, signal: ReadableMovable) -> None:
        self.name = signal.name
        self.read = signal.read
        self.describe = signal.describe


def find_exposures(
    devices: Sequence[Readable], count_time: float | Sequence[float] | None, num: int
) -> Exposures:
    """Return the exposures of `num` points.

    Raises
    ------
    InvalidInput
        If they aren't positive numbers, one or as many as points, or no device has a signal for them.
    """
    if count_time is None:
        return Exposures(np.zeros(num))
    times = np.asarray(count_time, dtype=float)
    if times.shape not in ((), (num,)):
        raise InvalidInput(
            f"count_time must be one number, or one for each of the {num} angles, got shape {times.shape}"
        )
    if not (np.isfinite(times) & (times > 0)).all():
        raise InvalidInput(f"count_time must be positive, in s, got {count_time}")
    signals = tuple(signal for device in devices if (signal := _exposure_signal(device)) is not None)
    if not signals:
        raise InvalidInput(
            f"count_time needs a detector with one of {', '.join(EXPOSURE_SIGNALS)}; "
            f"{', '.join(device.name for device in devices)} has none: leave count_time out"
        )
    return Exposures(np.broadcast_to(times, num), signals)


def _exposure_signal(device: Readable) -> ReadableMovable | None:
    for path in EXPOSURE_SIGNALS:
        signal: Any = device
        for attribute in path.split("."):
            signal = getattr(signal, attribute, None)
        if isinstance(signal, ReadableMovable):
            return signal
    return None
