"""Bring a peak to where it is wanted on the detector, by any two motors that move it there."""

import logging
from collections.abc import Callable, Sequence

import bluesky.plan_stubs as bps
import numpy as np
from bluesky.protocols import Movable
from bluesky.utils import MsgGenerator
from numpy.typing import ArrayLike, NDArray

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.plans._rocking_scan import position_of
from bluesky_cdinn.quick_look import QuickLook

logger = logging.getLogger(__name__)

Effect = NDArray[np.float64]
"""Pixels a unit, float64 (2, 2): by how much (row, column) each of two motors moves the peak."""

NEAR_PX = 2.0
"""A peak as near as this is where it is wanted."""

_ROUNDS = 3
# Of a test move, pixels: less can't be told from noise.
_LEAST_PX = 1.0


def centre_on_detector(
    look: QuickLook,
    again: Callable[[], MsgGenerator[QuickLook]],
    motors: Sequence[Movable],
    target_px: Sequence[float],
    effect: Effect,
) -> MsgGenerator[QuickLook]:
    """Move two motors until the peak is where it is wanted; return the last look at it.

    Parameters
    ----------
    look
        At the peak where it is.
    again
        Looks at it again.
    motors
        Two, of the detector's arm or of the sample.
    target_px
        (row, column).
    effect
        Of the motors.

    Raises
    ------
    InvalidInput
        The motors don't move the peak in two directions.
    """
    if not np.isfinite(effect).all() or np.linalg.cond(effect) > 1e3:
        raise InvalidInput(
            "two motors that centre a peak must move it in two directions, in pixels a unit, got "
            f"{np.asarray(effect).tolist()}"
        )
    for _ in range(_ROUNDS):
        if look.pixel is None or np.hypot(*np.subtract(target_px, look.pixel)) <= NEAR_PX:
            break
        steps = np.linalg.solve(effect, np.subtract(target_px, look.pixel))
        yield from move_by(motors, steps)
        look = yield from again()
    return look


def measured_effect(
    look: QuickLook,
    again: Callable[[], MsgGenerator[QuickLook]],
    motors: Sequence[Movable],
    test_move: float,
) -> MsgGenerator[Effect]:
    """Move two motors a little, one after the other and back, and return what that does to the peak.

    Raises
    ------
    InvalidInput
        The peak doesn't follow.
    """
    effect = np.zeros((2, 2))
    for column, motor in enumerate(motors):
        yield from move_by([motor], [test_move])
        moved = yield from again()
        yield from move_by([motor], [-test_move])
        if look.pixel is None or moved.pixel is None:
            raise InvalidInput(f"a test move of {test_move:g} must leave the peak in view, it was lost")
        shift = np.subtract(moved.pixel, look.pixel)
        if np.hypot(*shift) < _LEAST_PX:
            raise InvalidInput(
                f"a test move must shift the peak by a pixel or more, {test_move:g} shifted it by "
                f"{np.hypot(*shift):.2g}; take a larger one"
            )
        effect[:, column] = shift / test_move
    logger.info("the motors move the peak by %s pixels a unit", effect.round(3).tolist())
    return effect


def move_by(motors: Sequence[Movable], steps: ArrayLike) -> MsgGenerator[None]:
    """Move motors from where they stand."""
    where: list[object] = []
    for motor, step in zip(motors, np.asarray(steps, dtype=float).tolist(), strict=True):
        position = yield from position_of(motor)
        where += [motor, position + step]
    yield from bps.mv(*where)
