"""What pass over a rocking curve comes next: the rule on looks and results that are made up."""

import math
from functools import lru_cache

import numpy as np
import pytest

from bluesky_cdinn.curve_design import affordable, peak_shape, sufficient
from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.exposing import Aim, Measured, between, covered
from bluesky_cdinn.quick_look import QuickLook, look_at
from bluesky_cdinn.records import PartialResult, RockingCurve
from bluesky_cdinn.sim.crystal import random_crystal
from bluesky_cdinn.sim.devices import gold_geometry
from bluesky_cdinn.sim.diffraction import Diffraction
from bluesky_cdinn.steering import MEASURE, STOP, Pass

SIDE = 48
NOTHING = np.zeros((3, 1, 1), np.float32)
GEOMETRY = gold_geometry((SIDE, SIDE), pixel_size_um=110.0)


@lru_cache
def look(*, size_nm=150.0, rate=3e4, exposure_s=0.1, geometry=GEOMETRY, phase=2.0, seed=1_000_300):
    """Return a quick look at a simulated crystal."""
    angles, expected = diffraction(size_nm, phase, seed)
    frames = np.random.default_rng([seed, 1]).poisson(expected * rate * exposure_s).astype(np.uint32)
    times = np.full(len(angles), exposure_s)
    return look_at(RockingCurve(frames, angles, times, geometry=geometry, raw_uid="quick"))


@lru_cache
def diffraction(size_nm, phase, seed):
    crystal = random_crystal(np.random.default_rng(seed), size_nm, phase)
    angles = np.linspace(-0.4, 0.4, 31)
    return angles, Diffraction(crystal, GEOMETRY, (SIDE, SIDE)).frames(angles)


@pytest.fixture
def seen():
    return look()


def result(resolution_nm=15.0, confidence=0.9, chi2=0.01, spread=0.05, sampled=3.0):
    scalars = {
        "resolution_nm": resolution_nm,
        "phase_spread_rad": spread,
        "oversampling_rocking": sampled,
    }
    return PartialResult(60, 1.0, NOTHING, NOTHING, chi2=chi2, confidence=confidence, scalars=scalars)


SCAN = Pass(-0.4, 0.4, 41, 0.2)


def after(seen, *results):
    return Measured(seen, (SCAN,) * len(results), results)


def test_shape_tells_size_and_reach_of_a_peak(seen):
    shape = peak_shape(seen)
    swept = math.degrees(2 * math.pi / 150 / 26.68)
    assert shape.fringe[0] == pytest.approx(swept, rel=0.35)
    assert 0.15 <= shape.slope <= 0.5
    assert all(0 < reach <= edge * 1.1 for reach, edge in zip(shape.reach, shape.edge, strict=True))
    assert shape.resolution_nm(1.0) < shape.resolution_nm(0.1)


def test_larger_crystals_are_measured_in_finer_steps():
    small, large = (affordable(peak_shape(look(size_nm=size)), 60.0, 3.0) for size in (90.0, 220.0))
    assert small.step_deg > 1.7 * large.step_deg


def test_brighter_crystals_are_measured_further_out():
    faint, bright = (affordable(peak_shape(look(rate=rate)), 5.0, 3.0) for rate in (300.0, 3e4))
    assert bright.stop > 1.3 * faint.stop


@pytest.mark.parametrize("budget_s", [3.0, 60.0, 1000.0])
def test_the_affordable_curve_costs_the_budget(seen, budget_s):
    assert affordable(peak_shape(seen), budget_s, 3.0).exposure_s == pytest.approx(budget_s)


def test_the_sufficient_curve_is_the_cheapest_that_reaches_a_resolution(seen):
    shape = peak_shape(seen)
    fine = shape.resolution_nm(affordable(shape, 60.0, 3.0).count_time)
    cheap = sufficient(shape, 1.3 * fine, 3.0, 60.0)
    assert cheap.exposure_s < 60
    assert shape.resolution_nm(cheap.count_time) == pytest.approx(1.3 * fine, rel=0.01)
    assert sufficient(shape, 0.9 * shape.resolution_nm(math.inf), 3.0, 60.0) is None


def test_without_a_geometry_the_width_of_the_peak_stands_for_its_fringes():
    bare = look(geometry=None)
    shape = peak_shape(bare)
    assert shape.fringe[0] == pytest.approx(bare.peak.fwhm_deg / 0.886)
    assert Aim(60.0)(Measured(bare)).action == MEASURE
    with pytest.raises(InvalidInput, match="geometry"):
        Aim(60.0, resolution_nm=20.0)(Measured(bare))


def test_nothing_is_measured_where_nothing_was_seen():
    decision = Aim(60.0)(Measured(QuickLook(None, "no peak stands out")))
    assert decision.action == STOP
    assert "no peak stands out" in decision.reason
    with pytest.raises(InvalidInput, match="no peak stands out"):
        peak_shape(QuickLook(None, "no peak stands out"))


def test_the_first_pass_leaves_something_to_mend_with():
    decision = Aim(20.0)(Measured(look(rate=500.0)))
    assert 0.4 * 20 < decision.scan.exposure_s < 0.7 * 20
    assert decision.numbers["wanted_nm"] < decision.numbers["expected_nm"]


def test_the_first_pass_takes_no_more_than_a_coarse_resolution_needs(seen):
    fine, coarse = (Aim(600.0, resolution_nm=r)(Measured(seen)).scan for r in (14.0, 25.0))
    assert coarse.exposure_s < 0.3 * fine.exposure_s
    assert coarse.stop < fine.stop


AIM = Aim(60.0, resolution_nm=16.0, confidence=0.8, chi2=0.02)


@pytest.mark.parametrize(
    ("results", "action", "reason"),
    [
        ([result()], STOP, "the aim is reached"),
        ([result(resolution_nm=20.0)], MEASURE, "the resolution is 20 nm, 16 are wanted"),
        ([result(confidence=0.3)], MEASURE, "the confidence is 0.30"),
        ([result(chi2=0.5)], MEASURE, "chi2 is 0.5"),
        ([result(sampled=1.5)], MEASURE, "1.5 samples a fringe"),
        (["the peak is not in view"], MEASURE, "no reconstruction yet"),
        (["not in view", result()], STOP, "the aim is reached"),
        ([result(confidence=0.3), result(confidence=0.4)], MEASURE, "the confidence is 0.40"),
        ([result(confidence=0.3)] * 3, STOP, "it stops improving"),
        ([result(confidence=0.3, spread=s) for s in (0.3, 0.2, 0.1)], MEASURE, "the confidence"),
        (["nothing", "nothing", "nothing"], STOP, "it stops improving"),
        ([result(confidence=0.3, spread=0.5 / n) for n in range(1, 8)], STOP, "the budget is spent"),
    ],
)
def test_what_comes_next_follows_from_what_is_known(seen, results, action, reason):
    decision = AIM(after(seen, *results))
    assert decision.action == action
    assert reason in decision.reason
    assert (decision.scan is not None) == (action == MEASURE)
    if decision.scan is not None:
        assert decision.scan.exposure_s <= 60 - SCAN.exposure_s * len(results) + 1e-6


def test_what_says_nothing_of_itself_has_not_reached_anything(seen):
    silent = PartialResult(60, 1.0, NOTHING, NOTHING)
    assert AIM(after(seen, silent)).action == MEASURE


def test_a_pass_in_between_halves_the_step_and_the_next_repeats_the_whole(seen):
    coarse = after(seen, result(sampled=1.5))
    finer = AIM(coarse).scan
    assert finer.step_deg == pytest.approx(0.02)
    assert finer.start == pytest.approx(-0.39)
    both = (*coarse.passes, finer)
    whole = covered(both)
    assert (whole.start, whole.stop, whole.num) == (-0.4, 0.4, 81)
    again = AIM(Measured(seen, both, (result(sampled=1.5), result(confidence=0.2)))).scan
    assert again.num == 81
    assert between(both, 1.0).exposure_s == pytest.approx(1.0)


def test_frames_are_kept_from_the_end_of_their_numbers():
    bright = look(rate=1e5)
    assert Aim(600.0, most_counts=1e4)(Measured(bright)).scan.count_time == pytest.approx(
        1e4 / bright.rate, rel=1e-6
    )


@pytest.mark.parametrize(
    "nonsense",
    [
        {"budget_s": 0.0},
        {"budget_s": math.inf},
        {"resolution_nm": -1.0},
        {"confidence": 1.5},
        {"oversampling": 1.0},
    ],
)
def test_refuses_aims_that_make_no_sense(nonsense):
    with pytest.raises(InvalidInput):
        Aim(**{"budget_s": 60.0, **nonsense})
