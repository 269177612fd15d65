"""A quick look at a crystal: real RunEngine, simulated devices."""

from collections import defaultdict

import numpy as np
import pytest

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.plans._quick_look import ALIGNMENT, quick_look
from bluesky_cdinn.sim.devices import simulated_beamline

SEED = 1_000_000


def beamline(offset=0.0, **kwargs):
    det, theta = simulated_beamline(**{"seed": SEED, "size_nm": 300.0, "time_scale": 0.0, **kwargs})
    det.source.centre_deg = offset
    return det, theta


def run(RE, plan):
    documents = defaultdict(list)
    seen = RE(plan, lambda name, doc: documents[name].append(doc)).plan_result
    return seen, documents


@pytest.mark.parametrize("offset", [0.0, 0.07])
def test_finds_the_peak_on_both_axes(RE, offset):
    det, theta = beamline(offset)
    seen, documents = run(RE, quick_look(det, theta, -0.3, 0.3, count_time=0.1, defaults={}))
    assert seen.peak.centre_deg == pytest.approx(offset, abs=0.01)
    assert seen.pixel == pytest.approx((64, 64), abs=1)
    assert seen.rate == pytest.approx(1e6, rel=0.3)
    assert {start["purpose"] for start in documents["start"]} == {ALIGNMENT}
    assert list(seen.raw_uids) == [start["uid"] for start in documents["start"]]


def test_follows_a_peak_that_lies_at_the_edge(RE):
    det, theta = beamline(0.35)
    seen, documents = run(RE, quick_look(det, theta, -0.3, 0.3, count_time=0.1, refine=False, defaults={}))
    assert seen.peak.centre_deg == pytest.approx(0.35, abs=0.02)
    assert not seen.peak.cut
    assert len(documents["start"]) == 2


def test_measures_a_narrow_peak_again_more_finely(RE):
    det, theta = beamline(0.02, size_nm=600.0)
    seen, documents = run(RE, quick_look(det, theta, -0.3, 0.3, 16, count_time=0.1, defaults={}))
    assert len(documents["start"]) == 2
    assert seen.peak.centre_deg == pytest.approx(0.02, abs=0.005)
    assert np.diff(seen.volume.angles_deg).max() < 0.6 / 15 / 2


def test_says_that_there_is_nothing_to_see(RE):
    det, theta = beamline(peak_rate=1e-3)
    seen, _ = run(RE, quick_look(det, theta, -0.3, 0.3, count_time=0.1, defaults={}))
    assert seen.peak is None
    assert seen.reason


def test_stops_following_at_the_limits_of_the_motor(RE):
    det, theta = beamline(0.32)
    theta.check_value = lambda value: (_ for _ in ()).throw(ValueError("limit")) if value > 0.31 else None
    seen, documents = run(RE, quick_look(det, theta, -0.3, 0.3, count_time=0.1, refine=False, defaults={}))
    assert seen.peak.cut == "last"
    assert len(documents["start"]) == 1


def test_refuses_nonsense_before_anything_moves(RE):
    det, theta = beamline()
    with pytest.raises(InvalidInput):
        RE(quick_look(det, theta, 0.3, 0.3, defaults={}))


def test_a_fine_look_beyond_the_motors_limits_is_left_out(RE):
    det, theta = beamline(0.27, size_nm=600.0)
    theta.check_value = lambda value: (_ for _ in ()).throw(ValueError("limit")) if value > 0.301 else None
    seen, documents = run(RE, quick_look(det, theta, -0.3, 0.3, 16, count_time=0.1, defaults={}))
    assert len(documents["start"]) == 1
    assert seen.peak.centre_deg == pytest.approx(0.27, abs=0.02)


def test_a_motor_in_another_unit_is_refused(RE):
    det, theta = beamline()
    theta.egu = "mrad"
    with pytest.raises(InvalidInput, match="counts in deg"):
        run(RE, quick_look(det, theta, -0.3, 0.3, count_time=0.1, defaults={}))
