"""Which angles the plan announced, where the start document says it in a way that is understood."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

MAX_ANGLES = 1_000_000
"""More than this is taken for a mistake."""

_SLACK = 0.1
# A point further outside the plan's range than this share of it: the plan is another one than it seems.

logger = logging.getLogger(__name__)


def planned_angles(
    start: Mapping[str, Any], motor: str | None, unit_deg: float, measured_deg: FloatArray
) -> FloatArray | None:
    """Return the angles that a plan announced, deg; None where it did not, or wasn't understood.

    ``cdi.planned_deg``, (first, last, number), is taken first; then ``plan_pattern`` of Bluesky's own scans
    of evenly spaced or listed positions. Relative ones are counted from the first point.

    Parameters
    ----------
    start
        The run's start document.
    motor
        Name of the rocking motor; None where only one moves.
    unit_deg
        The motor's unit.
    measured_deg
        What has been measured, in the order of measurement: an announcement that doesn't fit is not believed.
    """
    try:
        announced = start.get("cdi", {}).get("planned_deg")
        if announced is not None:
            # Whoever writes it may not know in which unit the motor is read.
            angles = _evenly(*announced)
            angles = angles if _fits(angles, measured_deg) else angles * unit_deg
        else:
            angles = _pattern(start, motor)
            if angles is not None:
                angles = angles * unit_deg
                if str(start.get("plan_name", "")).startswith("rel_"):
                    angles = angles - angles[0] + measured_deg[0]
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        logger.info("the plan's angles are not understood: %s: %s", type(error).__name__, error)
        return None
    return angles if angles is not None and _fits(angles, measured_deg) else None


def _pattern(start: Mapping[str, Any], motor: str | None) -> FloatArray | None:
    pattern, arguments = start.get("plan_pattern"), start.get("plan_pattern_args", {})
    motors: list[Any] = list(start.get("motors") or ())
    place = motors.index(motor) if motor is not None else 0
    if pattern == "inner_product":
        first, last = arguments["args"][3 * place + 1 : 3 * place + 3]
        return _evenly(first, last, arguments["num"])
    if pattern == "inner_list_product":
        return _finite(arguments["args"][2 * place + 1])
    return None


def _evenly(first: Any, last: Any, number: Any) -> FloatArray:
    if int(number) != number or not 1 <= number <= MAX_ANGLES:
        raise ValueError(f"the number of angles must be whole and from 1 to {MAX_ANGLES}, got {number!r}")
    return _finite(np.linspace(float(first), float(last), int(number)))


def _finite(values: Sequence[Any] | FloatArray) -> FloatArray:
    angles = np.asarray(values, dtype=np.float64)
    if angles.ndim != 1 or not 1 <= len(angles) <= MAX_ANGLES or not np.isfinite(angles).all():
        raise ValueError(f"angles must be a list of finite numbers, got {values!r}")
    return angles


def _fits(angles: FloatArray, measured: FloatArray) -> bool:
    slack = _SLACK * float(np.ptp(angles)) + math.ulp(float(np.abs(angles).max()))
    return bool(angles.min() - slack <= measured.min() and measured.max() <= angles.max() + slack)
