"""The rule that stops a scan early, on partial results as scans give them."""

import math
from dataclasses import replace

import numpy as np
import pytest

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.records import PartialResult
from bluesky_cdinn.steadiness import UntilSteady, moved_rad

NOTHING = np.zeros((3, 1, 1), np.float32)
PLANNED = 100
GOOD = {"agreement": 0.999, "phase_spread_rad": 0.01}


def look(points, change_rad=None, *, confidence=0.95, planned=PLANNED, **scalars):
    said = {**GOOD, **({} if change_rad is None else {"change_rad": change_rad}), **scalars}
    said = {name: value for name, value in said.items() if value is not None}
    fraction = min(points / planned, 1.0)
    return PartialResult(points, fraction, NOTHING, NOTHING, chi2=0.001, confidence=confidence, scalars=said)


def looks(*partials):
    """Each compared with the one before."""
    return [
        replace(p, scalars={"change_since_points": before.points, **p.scalars})
        for before, p in zip((partials[0], *partials), partials, strict=False)
    ]


def test_an_object_that_stands_still_stops_the_scan():
    decision = UntilSteady()(looks(look(60), look(66, 0.08), look(72, 0.03)))
    assert decision is not None
    assert decision.action == "stop"
    assert decision.numbers["moved_rad"] == pytest.approx(0.03)
    assert decision.numbers["points"] == 72
    assert "0.030 rad" in decision.reason
    assert "0.05 rad" in decision.reason


@pytest.mark.parametrize(
    "partials",
    [
        pytest.param([look(60)], id="one look"),
        pytest.param([look(60), look(66, 0.06)], id="it still moves"),
        pytest.param([look(60), look(62, 0.001)], id="only two frames more"),
        pytest.param([look(60), look(63, 0.06), look(66, 0.001)], id="it moved before the last few frames"),
        pytest.param([look(60), *(look(n, 0.03) for n in range(61, 66))], id="small steps add up"),
        pytest.param([look(40), look(48, 0.01)], id="less than half of the scan"),
        pytest.param([look(60), look(66, 0.01, confidence=0.6)], id="not to be believed"),
        pytest.param([look(60), look(66, 0.01, confidence=math.nan)], id="no confidence"),
        pytest.param([look(60), look(66, 0.01, agreement=0.9)], id="two objects"),
        pytest.param([look(60), look(66, 0.01, agreement=None)], id="one object alone"),
        pytest.param([look(60), look(66, 0.01, phase_spread_rad=0.06)], id="two phases"),
        pytest.param([look(60), look(66, 0.01, phase_spread_rad=None)], id="no spread"),
        pytest.param([look(60), look(66, None)], id="no change: another grid"),
        pytest.param([look(60), look(66, math.nan)], id="no place in common"),
        pytest.param([look(60), look(63, None), look(66, 0.01)], id="a gap in the comparison"),
        pytest.param([look(60), look(66, 0.01, change_since_points=63)], id="a look that wasn't seen"),
        pytest.param([look(60, planned=math.nan), look(66, 0.01, planned=math.nan)], id="no plan"),
    ],
)
def test_otherwise_it_goes_on(partials):
    assert UntilSteady()(looks(*partials)) is None


def test_many_looks_close_together_are_as_good_as_few():
    """The noise of each fit adds up as noise does."""
    many = looks(look(60), *(look(n, 0.015) for n in range(61, 67)))
    assert UntilSteady()(many) is not None
    assert moved_rad(many, 0.05) == pytest.approx(0.015 * math.sqrt(5))


def test_whole_passes_are_compared_where_they_are_repeated():
    """The end of a pass holds few counts: standing still there says nothing of what another pass brings."""
    once = looks(*(look(n, 0.001) for n in range(60, 200, 10)))
    rule = UntilSteady(span=1.0)
    first_after_a_pass = next(n for n in range(1, len(once) + 1) if rule(once[:n]) is not None)
    assert once[first_after_a_pass - 1].points == 160
    assert UntilSteady()(once[:2]) is not None


def test_several_frames_at_each_angle_count_as_one_pass():
    partials = looks(*(look(n, 0.01, planned=200) for n in (120, 126, 132)))
    assert UntilSteady()(partials[:2]) is None
    assert UntilSteady()(partials) is not None


@pytest.mark.parametrize(
    "nonsense",
    [
        {"tolerance_rad": 0},
        {"tolerance_rad": math.nan},
        {"span": 0},
        {"least_fraction": 1.5},
        {"least_confidence": -0.1},
        {"least_agreement": math.nan},
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(nonsense):
    with pytest.raises(InvalidInput, match=next(iter(nonsense))):
        UntilSteady(**nonsense)
