"""A crystal that is followed over a series of scans: where its peak goes, and when it has changed enough.

All of it is pure: `plans.follow` measures, and asks these.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.steering import STOP, Decision

logger = logging.getLogger(__name__)

# So many steps of the peak tell where it goes.
_STEPS = 3


@dataclass(frozen=True)
class FollowedScan:
    """One scan of a series, as far as it is known.

    Parameters
    ----------
    raw_uid
        Of its run.
    centre_deg
        Where its peak was on the rocking axis; NaN where none was seen.
    status, reason
        Of its reconstruction: "success", "failed", "cancelled"; "running" before there is one.
    numbers
        Of the reconstruction: ``strain_rms``, ``size_nm``, ``d_spacing_nm``, ``confidence``, ...
    readings
        Numbers that the devices read at the scan's last point, a temperature among them.
    """

    raw_uid: str
    centre_deg: float = math.nan
    status: str = "running"
    reason: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    readings: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.status != "success":
            return f"{self.raw_uid[:8]} at {self.centre_deg:.4f} deg: {self.status} {self.reason}".rstrip()
        told = [f"{name} {self.numbers[name]:.4g}" for name in _TOLD if name in self.numbers]
        return f"{self.raw_uid[:8]} at {self.centre_deg:.4f} deg: {', '.join(told)}"


_TOLD = ("strain_rms", "size_nm", "d_spacing_nm", "confidence")

SeriesRule = Callable[[Sequence[FollowedScan]], Decision | None]
"""Given the scans so far whose results are known, what to do; None to go on."""


def next_centre(centres_deg: Sequence[float]) -> float:
    """Return where the peak will be in the next scan of equal ones.

    Where the last steps all went one way it is taken to go on, by their median; else it stays: what moves to
    and fro is best expected where it was last.

    Parameters
    ----------
    centres_deg
        So far, the last one last; one at least. NaN where the peak was lost, which ends what was known of
        its way.
    """
    known = list(centres_deg)
    while known and math.isnan(known[-1]):
        known.pop()
    if not known:
        raise InvalidInput("one centre at least must be known to expect another")
    steps = np.diff(known[-_STEPS - 1 :])
    steps = steps[np.flatnonzero(np.isnan(steps))[-1] + 1 :] if np.isnan(steps).any() else steps
    one_way = len(steps) >= 2 and (np.all(steps > 0) or np.all(steps < 0))
    return float(known[-1] + (np.median(steps) if one_way else 0.0))


def threshold_rule(thresholds: Mapping[str, Sequence[float | None]], least_confidence: float) -> SeriesRule:
    """Return the rule that stops a series when a number leaves its range.

    Parameters
    ----------
    thresholds
        (lowest, highest) by name, None for no limit: ``{"strain_rms": [None, 5e-4]}``. Names are those of
        `FollowedScan.numbers` and ``readings``; one that a scan hasn't got can't leave its range.
    least_confidence
        That a reconstruction must have for its numbers to count.

    Raises
    ------
    InvalidInput
        A range isn't two numbers, or None, in order.
    """
    ranges = {name: _range(name, limits) for name, limits in thresholds.items()}

    def sure(scan: FollowedScan) -> bool:
        return scan.numbers.get("confidence", 0.0) >= least_confidence

    def rule(scans: Sequence[FollowedScan]) -> Decision | None:
        last = scans[-1]
        known = {**last.readings, **(last.numbers if sure(last) else {})}
        if sure(last) and not any(map(sure, scans[:-1])) and (absent := ranges.keys() - known.keys()):
            logger.warning(
                "thresholds of %s never trigger: the scan has no such numbers, but %s",
                ", ".join(sorted(absent)),
                ", ".join(sorted(known)),
            )
        for name, (low, high) in ranges.items():
            value = known.get(name, math.nan)
            if value < low or value > high:
                limit = f"under {low:g}" if value < low else f"over {high:g}"
                return Decision(STOP, f"{name} is {value:.4g}, {limit}", {name: value, "scans": len(scans)})
        return None

    return rule


def _range(name: str, limits: Sequence[float | None]) -> tuple[float, float]:
    try:
        low, high = limits
        bounds = -math.inf if low is None else float(low), math.inf if high is None else float(high)
    except (TypeError, ValueError):
        bounds = math.nan, math.nan
    if not bounds[0] < bounds[1]:
        raise InvalidInput(
            f"the range of {name} must be [lowest, highest], None for no limit, got {limits!r}"
        )
    return bounds
