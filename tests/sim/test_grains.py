"""Simulated samples: what is in the beam where, and a crystal that changes."""

from dataclasses import replace

import numpy as np
import pytest

from bluesky_cdinn.sim.crystal import random_crystal
from bluesky_cdinn.sim.detector_effects import DetectorModel
from bluesky_cdinn.sim.devices import gold_geometry
from bluesky_cdinn.sim.grains import DriftingCrystal, Grain, random_grains, sample_beamline

SHAPE = (48, 48)


@pytest.fixture(scope="module")
def crystal():
    return random_crystal(np.random.default_rng(1), 150.0, 1.0)


@pytest.fixture(scope="module")
def beamline(crystal):
    grains = [
        Grain("a", crystal, (0.0, 0.0), 0.1, (6.0, -5.0), 1e5),
        Grain("b", crystal, (10.0, 0.0), -0.2, (0.0, 0.0), 2e4),
    ]
    return sample_beamline(grains, detector=DetectorModel(SHAPE, dtype=np.int32))


def brightest(frame):
    return tuple(int(place) for place in np.unravel_index(frame.argmax(), frame.shape))


def test_each_grain_is_where_it_lies_at_its_own_angle_and_pixel(beamline):
    beamline.x.set(0.0).wait(timeout=5)
    frame = beamline.det.source.frame(0.1, 1.0)
    assert brightest(frame) == pytest.approx((30, 19), abs=1)
    assert frame.max() == pytest.approx(1e5, rel=0.1)
    assert beamline.det.source.frame(-1.5, 1.0).max() < 1e3
    beamline.x.set(10.0).wait(timeout=5)
    frame = beamline.det.source.frame(-0.2, 1.0)
    assert brightest(frame) == pytest.approx((24, 24), abs=1)
    beamline.x.set(5.0).wait(timeout=5)
    assert beamline.det.source.frame(0.0, 1.0).max() == 0


def test_a_detector_that_moves_sees_the_peak_elsewhere_and_says_so(beamline):
    beamline.x.set(10.0).wait(timeout=5)
    before = beamline.det.source.geometry.beam_centre_px
    # Ten pixels of 55 um.
    beamline.det_row.set(0.55).wait(timeout=5)
    assert brightest(beamline.det.source.frame(-0.2, 1.0)) == pytest.approx((14, 24), abs=1)
    assert beamline.det.source.geometry.beam_centre_px == pytest.approx((before[0] - 10, before[1]))
    beamline.det_row.set(0.0).wait(timeout=5)


def test_two_grains_in_one_place_add_up(crystal):
    one = Grain("one", crystal, (0.0, 0.0), 0.0, (-12.0, -12.0), 1e4)
    both = sample_beamline(
        [one, replace(one, name="other", shift_px=(12.0, 12.0))],
        detector=DetectorModel(SHAPE, dtype=np.int32),
    )
    frame = both.det.source.frame(0.0, 1.0)
    assert frame[12, 12] == pytest.approx(frame[36, 36], rel=0.2)


def test_a_random_sample_has_what_was_asked_for():
    grains = random_grains(np.random.default_rng(1_000_000), 3, 2)
    places = {grain.place_um for grain in grains}
    # One place is empty, and one has two.
    assert len(places) == 5
    assert len(grains) == 6
    assert sum(grain.peak_rate < 1e3 for grain in grains) == 1
    assert sum(grain.shift_px[0] == 64.0 for grain in grains) == 1
    again = random_grains(np.random.default_rng(1_000_000), 3, 2)
    assert [grain.centre_deg for grain in grains] == [grain.centre_deg for grain in again]


def test_a_crystal_drifts_while_it_is_exposed(crystal):
    asked = []
    source = DriftingCrystal(
        lambda s: asked.append(s) or crystal,
        lambda s: 0.1 * s,
        gold_geometry(SHAPE),
        DetectorModel(SHAPE, dtype=np.int32),
        each_s=2.0,
        peak_rate=1e5,
    )
    assert source.frame(0.0, 1.0).max() == pytest.approx(1e5, rel=0.05)
    # A second later it stands a tenth of a degree further on.
    assert source.frame(0.1, 1.0).max() == pytest.approx(1e5, rel=0.05)
    source.frame(0.2, 1.0)
    assert source.exposed_s == 3.0
    assert asked == [0.0, 2.0]
