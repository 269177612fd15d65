from pathlib import Path

import numpy as np
import pytest
import torch

from bluesky_cdinn import quality
from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.forward import propagate, to_centre
from bluesky_cdinn.training.held_out import (
    CLASSES,
    COUNTS,
    FIRST_SEED,
    SIDE,
    atomistic_cases,
    measured,
    procedural_case,
    procedural_cases,
    strain_class,
)


@pytest.fixture(scope="module")
def cases():
    return list(procedural_cases(3))


def test_every_class_comes_with_every_number_of_counts_and_every_trouble(cases):
    assert len(cases) == len({case.name for case in cases}) == 3 * len(CLASSES) * len(COUNTS)
    assert {(c.strain, c.facts["counts"]) for c in cases} == {(s, n) for s in CLASSES for n in COUNTS}
    assert {case.facts["trouble"] for case in cases} == {"none", "gap", "void"}
    assert min(case.facts["seed"] for case in cases) == FIRST_SEED


def test_the_same_seed_is_the_same_crystal_at_all_counts(cases):
    few, many = cases[:2]
    assert few.facts["seed"] == many.facts["seed"]
    assert quality.similarity(few.truth, many.truth) == pytest.approx(1, abs=1e-4)
    ratio = np.linalg.norm(many.truth) / np.linalg.norm(few.truth)
    assert ratio == pytest.approx((COUNTS[1] / COUNTS[0]) ** 0.5, rel=1e-4)


def test_a_case_is_told_by_its_seed(cases):
    again = next(procedural_cases(3))
    np.testing.assert_array_equal(again.intensity, cases[0].intensity)
    np.testing.assert_array_equal(again.truth, cases[0].truth)


def dispersion(case):
    """Return the mean square of the counts' residuals in sigma: 1 for counting noise about the truth."""
    expected = propagate(torch.from_numpy(case.truth)).abs().square().numpy()
    lit = case.valid & (expected > 3)
    return np.mean((case.intensity - expected)[lit] ** 2 / expected[lit])


def test_the_truth_explains_the_counts_but_for_their_noise(cases):
    for case in cases:
        assert dispersion(case) == pytest.approx(1, abs=0.15)


def test_the_crystal_takes_less_than_half_of_each_axis(cases):
    for case in cases:
        inside = np.argwhere(quality.half_level_support(case.truth))
        assert (np.ptp(inside, axis=0) < SIDE / 2).all()
        assert all(2 <= value <= 3.5 for value in case.facts["oversampling"])


def test_phases_span_their_class():
    assert [strain_class(high - 0.01) for _, high in CLASSES.values()] == list(CLASSES)
    assert strain_class(20.0) == "very strong"


def test_a_measurement_leaves_gaps_free_and_fills_them_for_the_autocorrelation(cases):
    case = next(case for case in cases if case.facts["trouble"] == "gap" and case.facts["counts"] == 1e6)
    measurement = case.measurement()
    assert measurement.fitted is not None
    assert not case.valid.all(axis=(0, 1)).all()
    assert (measurement.magnitude[~measurement.fitted] == 0).all()
    assert torch.equal(to_centre(measurement.fitted), torch.from_numpy(case.valid))
    filled = to_centre(measurement.intensity).numpy()
    np.testing.assert_allclose(filled[case.valid], case.intensity[case.valid], rtol=1e-5)
    assert filled[~case.valid].sum() > 0
    assert cases[0].measurement().fitted is None


def test_the_central_window_is_the_same_crystal_in_coarser_voxels(cases):
    for case in cases[:3]:
        coarse = case.at(32)
        assert coarse.intensity.shape == coarse.valid.shape == coarse.truth.shape == (32, 32, 32)
        assert coarse.intensity[16, 16, 16] == case.intensity[32, 32, 32]
        assert dispersion(coarse) == pytest.approx(1, abs=0.15)


def test_a_pattern_off_the_centre_is_brought_there_with_its_object():
    case = procedural_case("a", 1, 1.0, 1e6)
    cycles = (3, -4, 5)
    moved = case.truth * quality.ramp(case.truth.shape, cycles)
    rng = np.random.default_rng(0)
    again = measured("b", "procedural", moved, 1e6, rng, case.facts)
    assert quality.similarity(again.truth, case.truth) == pytest.approx(1, abs=1e-5)


def test_unknown_trouble_is_refused():
    with pytest.raises(InvalidInput, match="twinning"):
        procedural_case("a", 1, 1.0, 1e6, "twinning")


def test_relaxed_crystals_come_in_every_class():
    path = Path(__file__).parents[2] / "benchmarks" / "data" / "atomistic_heldout.npz"
    cases = list(atomistic_cases(path, 2))
    assert len({case.name for case in cases}) == len(cases) == 2 * len(CLASSES) * len(COUNTS)
    assert {case.kind for case in cases} == {"atomistic"}
    assert {case.strain for case in cases} == set(CLASSES)
    assert {case.facts["trouble"] for case in cases} == {"none", "gap"}
    assert len({case.facts["item"] for case in cases}) == 2 * len(CLASSES)
    for case in cases:
        assert dispersion(case) == pytest.approx(1, abs=0.15)
        inside = np.argwhere(quality.half_level_support(case.truth))
        assert (np.ptp(inside, axis=0) < 0.6 * SIDE).all()
