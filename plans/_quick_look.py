"""A fast, coarse rocking curve, looked at where the plan runs: what is there, and where."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import bluesky.preprocessors as bpp
import numpy as np
from bluesky.protocols import Movable, Readable
from bluesky.utils import MsgGenerator

from bluesky_cdinn.callbacks import RockingCurveAssembler
from bluesky_cdinn.errors import CdinnError, InvalidInput
from bluesky_cdinn.plans._rocking_scan import rocking_scan
from bluesky_cdinn.quick_look import QuickLook, look_at
from bluesky_cdinn.settings import Settings

logger = logging.getLogger(__name__)

ALIGNMENT = "alignment"
"""Purpose of its runs: they are not reconstructed."""

# A peak at the edge of the curve is followed so often, each time by half of its range.
_SHIFTS = 3
# Of the coarse curve, in its steps either side of the peak: the part that is measured again more finely.
_REACH = 2.0
_FINE_POINTS = 13
# Steps in a peak's width below which the curve was too coarse to tell where it is.
_LEAST_STEPS = 3.0


def quick_look(
    detectors: Readable | Sequence[Readable],
    motor: Movable,
    start: float,
    stop: float,
    num: int = 21,
    *,
    count_time: float | None = None,
    refine: bool = True,
    cdi: Mapping[str, Any] | None = None,
    md: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> MsgGenerator[QuickLook]:
    """Look quickly for a crystal's peak, and tell what is seen.

    A coarse curve; another, shifted by half its range, as long as the peak lies at its edge; and where the
    peak is narrower than a few steps, a finer one about it. Each is a run of its own, of purpose "alignment".

    Parameters
    ----------
    detectors, motor, start, stop, num, count_time
        As in `rocking_scan`.
    refine
        Whether a narrow peak is measured again more finely.
    cdi, md
        More for the start documents.
    defaults
        What the settings file says under ``cdi``; None reads it.

    Returns
    -------
    QuickLook
        Of the last curve; its ``peak`` is None where nothing stands out, which is an answer, not an error.

    Raises
    ------
    InvalidInput
        If an argument makes no sense, an angle is outside the motor's limits, or the motor counts in
        another unit than deg, or keV where the energy is scanned.
    """
    known = Settings().cdi if defaults is None else defaults

    def look(first: float, last: float, points: int) -> MsgGenerator[QuickLook]:
        assembler = RockingCurveAssembler(known)
        scan = rocking_scan(
            detectors,
            motor,
            first,
            last,
            points,
            count_time=count_time,
            cdi=dict(cdi or {}),
            md={"purpose": ALIGNMENT, **(md or {})},
        )
        uid = yield from bpp.subs_wrapper(scan, assembler)
        return look_of(assembler, uid, first, last)

    seen = yield from look(start, stop, num)
    half = (stop - start) / 2
    for _ in range(_SHIFTS):
        if seen.peak is None or not seen.peak.cut:
            break
        # "first" is the lower angle, whichever way the scan goes.
        shift = abs(half) if seen.peak.cut == "last" else -abs(half)
        try:
            further = yield from look(start + shift, stop + shift, num)
        except InvalidInput as limits:
            logger.info("the peak can't be followed further: %s", limits)
            break
        start, stop = start + shift, stop + shift
        seen = further.after(seen)
    step = abs(stop - start) / (num - 1)
    if refine and seen.peak is not None and seen.peak.fwhm_deg < _LEAST_STEPS * step:
        centre, reach = seen.peak.centre_deg, _REACH * step
        try:
            earlier, seen = seen, (yield from look(centre - reach, centre + reach, _FINE_POINTS))
        except InvalidInput as limits:
            logger.info("the peak can't be measured more finely: %s", limits)
            return seen
        if seen.peak is None:
            seen = replace(seen, reason=f"the peak seen at {centre:.5g} deg was not there again")
        seen = replace(seen.after(earlier), wide=earlier.volume)
    return seen


def look_of(assembler: RockingCurveAssembler, uid: str, first: float, last: float) -> QuickLook:
    """Return what a curve shows that was just measured, from one angle to another.

    Raises
    ------
    InvalidInput
        The angles came back in another unit: a motor can't be sent to what is seen at them.
    """
    try:
        curve = assembler.curve()
        came = float(np.ptp(curve.angles_deg)) / abs(last - first)
    except CdinnError as error:
        return QuickLook(None, str(error), raw_uids=(uid,))
    # Of all units that are converted none is between.
    if came > 0 and not 0.5 < came < 2:
        raise InvalidInput(
            "a plan that goes where the peak is needs a motor that counts in deg, or keV where the energy is "
            f"scanned; a range of {abs(last - first):g} came back as {came * abs(last - first):g}"
        )
    try:
        return look_at(curve)
    except CdinnError as error:
        return QuickLook(None, str(error), raw_uids=(uid,))
