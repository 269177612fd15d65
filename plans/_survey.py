"""Look at many grains, and measure the best of them properly."""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from bluesky.protocols import Movable, Readable
from bluesky.utils import MsgGenerator

from bluesky_cdinn.callbacks import default_live
from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.plans._decisions import steering_run
from bluesky_cdinn.plans._exposure import find_exposures
from bluesky_cdinn.plans._grains import Aligner, GrainVisit, Visited, with_result
from bluesky_cdinn.plans._protocols import LiveCallback
from bluesky_cdinn.plans._rocking_scan import as_list, check_limits
from bluesky_cdinn.steering import Decision, Pass
from bluesky_cdinn.survey_ranking import GrainSeen, Ranking, ranked, weighted_score
from bluesky_cdinn.survey_table import SurveyTable, in_order, numbers_of

# Grains that are looked at while the reconstruction of an earlier one is waited for.
_AHEAD = 2

Note = Callable[[Decision], MsgGenerator[None]]


def survey(
    detectors: Readable | Sequence[Readable],
    motor: Movable,
    stages: Sequence[Movable],
    grains: Sequence[dict],
    start: float,
    stop: float,
    num: int = 21,
    *,
    count_time: float = 0.1,
    best: int = 3,
    glance_s: float = 5.0,
    measure_s: float = 60.0,
    weights: dict | None = None,
    least_counts: float = 300.0,
    least_confidence: float = 0.3,
    detector_motors: Sequence[Movable] | None = None,
    pixels_per_unit: Sequence[Sequence[float]] | None = None,
    test_move: float = 0.1,
    cdi: dict | None = None,
    md: dict | None = None,
    live: LiveCallback | None = None,
    timeout: float = 600.0,
    ranking: Ranking | None = None,
) -> MsgGenerator[SurveyTable]:
    """Look at many grains, rank them, and measure the best properly.

    At each place: a quick look finds the peak on the rocking axis, two motors bring it to the detector's
    middle where they are given, and a quick rocking curve is reconstructed while the next places are looked
    at. What isn't worth more is skipped with the reason: no peak, one that is cut or too weak, two grains at
    once, a reconstruction that failed or can't be trusted; whatever else goes wrong at a grain, too. The best
    of the others are measured; where that reconstruction fails the next best takes its turn.

    Each decision is in the survey's own run, of purpose "steering", whose uid the other runs carry as
    ``steering_uid``: `bluesky_cdinn.survey_table.survey_table` makes the table from it.

    Parameters
    ----------
    detectors : Readable or sequence of Readable
        The area detector, or several devices to read at each point.
    motor : Movable
        Turns the crystals.
    stages : sequence of Movable
        Motors of the sample.
    grains : sequence of dict
        Where grains are: ``{"name": "g1", "positions": {"x": 1.0, "y": 2.5}}``, positions by the names of
        `stages`. `bluesky_cdinn.survey_ranking.grain_grid` makes them where no list is known.
    start, stop : float
        First and last angle of the quick look, deg.
    num : int, optional
        Its number of angles.
    count_time : float, optional
        Its exposure a frame, s.
    best : int, optional
        How many grains to measure properly.
    glance_s : float, optional
        Exposure of all frames of the quick rocking curve that is reconstructed, s; 0 ranks without one.
    measure_s : float, optional
        Exposure of all frames of a proper measurement, s.
    weights : dict, optional
        What counts how much: ``size``, ``counts``, ``strain`` (little of it), ``confidence``; a negative one
        prefers the opposite. See `bluesky_cdinn.survey_ranking.weighted_score`.
    least_counts : float, optional
        In the brightest voxel of a proper measurement; a grain that will have fewer is skipped.
    least_confidence : float, optional
        Of the quick reconstruction.
    detector_motors : sequence of Movable, optional
        Two motors, of the detector or of the sample, that bring the peak to the detector's middle. Without
        them it is taken where it is.
    pixels_per_unit : sequence of sequence of float, optional
        By how many pixels (row, column) each moves the peak: ``[[row by first, row by second], [column by
        first, column by second]]``. None has it measured at the first grain that is seen.
    test_move : float, optional
        By how much they are moved for that, in their unit.
    cdi, md : dict, optional
        More for the start documents.
    live : LiveReconstruction, optional
        The callback that reconstructs; None takes the session's.
    timeout : float, optional
        How long to wait for a result, s.
    ranking : callable, optional
        ``GrainSeen -> float``, the largest first, in place of `weights`.

    Returns
    -------
    SurveyTable
        What is known of each grain, those measured first; it prints as a table.

    Raises
    ------
    InvalidInput
        If an argument makes no sense; nothing has moved then.

    Examples
    --------
    >>> RE(survey(det, theta, [x, y], grain_grid({"x": range(0, 50, 10), "y": range(0, 30, 10)}), -0.4, 0.4))
    """
    names = {str(stage.name): stage for stage in stages}  # pyright: ignore[reportAttributeAccessIssue]
    places = _places(grains, set(names))
    _check(best=best, glance_s=glance_s, measure_s=measure_s, timeout=timeout, count_time=count_time)
    devices = as_list(detectors)
    scan = Pass(start, stop, int(num), count_time)
    find_exposures(devices, count_time, scan.num)
    check_limits(motor, np.array([start, stop]))
    order = weighted_score(weights, measure_s / scan.num) if ranking is None else ranking
    aligner = _aligner(detector_motors, pixels_per_unit, test_move)
    callback: LiveCallback = default_live() if live is None else live

    def body(note: Note, uid: str) -> MsgGenerator[SurveyTable]:
        visit = GrainVisit(
            detectors=devices,
            motor=motor,
            stages=names,
            scan=scan,
            glance_s=glance_s,
            measure_s=measure_s,
            least_counts=least_counts,
            least_confidence=least_confidence,
            aligner=aligner,
            live=callback,
            timeout=timeout,
            cdi=cdi or {},
            md={**(md or {}), "steering_uid": uid},
        )
        home = yield from visit.detector_positions()
        # A grain begins where the detector stood, not where the last one left it.
        from_home = [replace(place, positions={**home, **place.positions}) for place in places]
        seen = yield from _look_at_all(visit, from_home, note)
        return (yield from _measure_best(visit, seen, order, int(best), note))

    about = {
        "detectors": [device.name for device in devices],
        "motors": [motor.name],  # pyright: ignore[reportAttributeAccessIssue]
        "num_grains": len(places),
        "plan_args": {"start": start, "stop": stop, "num": int(num), "best": int(best)},
        **(md or {}),
    }
    return (yield from steering_run("survey", about, body))


def _look_at_all(
    visit: GrainVisit, places: Sequence[GrainSeen], note: Note
) -> MsgGenerator[dict[str, Visited]]:
    """Visit all grains; while one is reconstructed the next are looked at."""
    seen: dict[str, Visited] = {}
    waiting: deque[Visited] = deque()

    def settle(most: int) -> MsgGenerator[None]:
        while len(waiting) > most:
            first = waiting.popleft()
            judged = yield from visit.guarded(visit.judge(first), first.grain)
            seen[judged.grain.name] = judged
            yield from note(_said(judged.grain))

    for place in places:
        visited = yield from visit.guarded(visit.glance(place), place)
        if visited.grain.status == "skipped":
            seen[visited.grain.name] = visited
            yield from note(_said(visited.grain))
        else:
            waiting.append(visited)
        yield from settle(_AHEAD)
    yield from settle(0)
    return seen


def _measure_best(
    visit: GrainVisit, seen: dict[str, Visited], order: Ranking, best: int, note: Note
) -> MsgGenerator[SurveyTable]:
    """Measure the best grains; return what is known of all."""
    known = {name: visited.grain for name, visited in seen.items()}
    left = ranked(known.values(), order)
    done = 0
    for place, (score, found) in enumerate(left, start=1):
        grain = replace(found, score=score)
        rank = f"ranked {place} of {len(left)} with {score:.3g}"
        if done == best:
            known[grain.name] = grain
            yield from note(Decision("leave", f"{grain.name}: {rank}", numbers_of(grain)))
            continue
        yield from note(Decision("measure", f"{grain.name}: {rank}", numbers_of(grain)))
        visited = replace(seen[grain.name], grain=grain)
        measured = yield from visit.guarded(_measured(visit, visited), grain)
        done += measured.grain.status == "measured"
        known[grain.name] = measured.grain
        yield from note(_said(measured.grain))
    return in_order(known.values())


def _measured(visit: GrainVisit, visited: Visited) -> MsgGenerator[Visited]:
    summary = yield from visit.measure(visited)
    grain = replace(with_result(visited.grain, summary), raw_uid=summary.raw_uid)
    if summary.status == "success":
        return replace(visited, grain=replace(grain, status="measured"))
    reason = f"measured, but the reconstruction {summary.status}: {summary.reason}"
    return replace(visited, grain=replace(grain, status="skipped", reason=reason))


def _said(grain: GrainSeen) -> Decision:
    """Return what was decided about a grain by what is known of it now."""
    words = {
        "skipped": ("skip", grain.reason),
        "seen": ("keep", f"confidence {grain.confidence:.2f}" if math.isfinite(grain.confidence) else "seen"),
    }
    action, reason = words.get(grain.status, ("measured", f"confidence {grain.confidence:.2f}"))
    return Decision(action, f"{grain.name}: {reason}", numbers_of(grain))


def _places(grains: Sequence[Mapping[str, Any]], stages: set[str]) -> list[GrainSeen]:
    places = []
    for grain in grains:
        positions = grain.get("positions") if isinstance(grain, Mapping) else None
        if not isinstance(positions, Mapping) or not grain.get("name") or not positions.keys() <= stages:
            raise InvalidInput(
                "each grain must be a mapping with a name and positions by motor, of "
                f"{', '.join(sorted(stages)) or 'no motor at all'}, got {grain!r}"
            )
        at = {str(motor): float(position) for motor, position in positions.items()}
        places.append(GrainSeen(str(grain["name"]), at))
    if not places or len({place.name for place in places}) < len(places):
        raise InvalidInput("grains must be one or more, each with a name of its own")
    return places


def _check(best: int, **positive: float) -> None:
    if not float(best).is_integer() or best < 0:
        raise InvalidInput(f"best must be a whole number of grains, 0 or more, got {best}")
    for name, value in positive.items():
        if not (math.isfinite(value) and (value > 0 or (name == "glance_s" and value == 0))):
            raise InvalidInput(f"{name} must be positive, in s, got {value}")


def _aligner(
    motors: Sequence[Movable] | None, effect: Sequence[Sequence[float]] | None, test_move: float
) -> Aligner | None:
    if not motors:
        return None
    matrix = None if effect is None else np.asarray(effect, dtype=float)
    if len(motors) != 2 or (matrix is not None and matrix.shape != (2, 2)) or not test_move:
        raise InvalidInput(
            "two motors centre a peak on the detector, with 2 x 2 pixels a unit where they are known, and a "
            f"test move where not; got {len(motors)} motors, {effect} and {test_move}"
        )
    return Aligner(motors, matrix, float(test_move))
