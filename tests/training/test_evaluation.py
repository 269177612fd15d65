from itertools import pairwise

import numpy as np
import pytest
import torch

from bluesky_cdinn import phasing, quality
from bluesky_cdinn.forward import AXES, to_corner
from bluesky_cdinn.refine import ER, Objects
from bluesky_cdinn.starts import autocorrelation_start
from bluesky_cdinn.support import autocorrelation_support
from bluesky_cdinn.training.evaluation import (
    Judge,
    follow,
    median,
    scaled_chi2,
    score,
    score_start,
    table,
    timed,
)
from bluesky_cdinn.training.held_out import procedural_case, procedural_cases


@pytest.fixture(scope="module")
def case():
    return procedural_case("a", 11, 2.0, 1e5, "gap")


def corner(density):
    return to_corner(torch.from_numpy(np.ascontiguousarray(density)))


def disguised(truth):
    """Return the twin elsewhere, in another scale and with another global phase."""
    return 3.7j * np.roll(quality.twin(truth), (5, -7, 2), axis=(0, 1, 2))


def knowing(truth):
    """Return a start that knows the truth, in disguise."""

    def start(measurement, count, generator):
        density = corner(disguised(truth)).expand(count, *truth.shape).clone()
        return Objects.start(density, torch.ones(density.shape))

    return start


def test_what_diffraction_cannot_tell_costs_nothing(case):
    measurement = case.measurement()
    plain, hidden = (score(corner(d), measurement, case) for d in (case.truth, disguised(case.truth)))
    assert plain.found
    assert hidden.found
    assert hidden.correlation == pytest.approx(1, abs=1e-4)
    assert hidden.phase_rmse == pytest.approx(0, abs=1e-3)
    assert hidden.iou > 0.99
    # Only counting noise is left.
    assert hidden.chi2 == pytest.approx(plain.chi2, rel=1e-3)
    assert 0 < plain.chi2 < 3 * measurement.noise


def test_chi2_is_that_of_the_best_scale_on_valid_voxels(case):
    measurement = case.measurement()
    rng = np.random.default_rng(0)
    density = case.truth * np.exp(1j * rng.normal(0, 0.5, case.truth.shape))
    model = np.abs(np.fft.fftn(np.fft.ifftshift(density), norm="ortho"))
    goal = np.sqrt(np.fft.ifftshift(case.intensity))
    inside = np.fft.ifftshift(case.valid)
    scales = np.linspace(0.5, 2, 601)
    slow = min(((s * model - goal)[inside] ** 2).sum() for s in scales) / (goal[inside] ** 2).sum()
    assert scaled_chi2(corner(density.astype(np.complex64)), measurement) == pytest.approx(slow, rel=1e-3)


def test_nothing_explains_nothing(case):
    empty = torch.zeros(case.truth.shape, dtype=torch.complex64)
    result = score(empty, case.measurement(), case)
    assert result.chi2 == 1
    assert not result.found


def test_the_judge_finds_the_twin_anywhere(case):
    judge = Judge(case, case.measurement())
    assert judge.correlation(corner(case.truth)) == pytest.approx(1, abs=1e-4)
    assert judge.correlation(corner(disguised(case.truth))) == pytest.approx(1, abs=1e-4)
    half = quality.shift(case.truth, (0.5, -0.5, 0.5))
    assert 0.8 < judge.correlation(corner(half)) < 1
    assert judge.correlation(torch.zeros(case.truth.shape, dtype=torch.complex64)) == 0


def test_a_start_is_scored_case_by_case(case):
    (row,) = score_start(knowing(case.truth), [case])
    assert row["case"] == "a"
    assert (row["kind"], row["strain"], row["trouble"]) == ("procedural", "medium", "gap")
    assert row["found"]
    assert row["cpu_s"] >= 0


def test_scores_repeat_by_seed():
    cases = list(procedural_cases(1, counts=(1e4,)))[:2]
    once, again, other = (score_start(autocorrelation_start, cases, seed=s) for s in (1, 1, 2))
    for row in (*once, *again, *other):
        del row["cpu_s"]
    assert once == again != other


def test_following_ends_once_the_crystal_is_found(case):
    points = list(follow(knowing(case.truth), lambda _: [ER(60)], case, every=5, beyond=10))
    assert [point.step for point in points] == [0, 5, 10]
    assert all(point.found for point in points)
    assert all(a.cpu_s <= b.cpu_s for a, b in pairwise(points))


def test_following_leaves_gradients_as_they_were(case):
    states = []
    for _ in follow(knowing(case.truth), lambda _: [ER(4)], case, every=2):
        states.append(torch.is_grad_enabled())
    assert states == [True] * 3


def test_a_classical_start_is_followed_to_the_crystal():
    case = procedural_case("easy", 12, 1.0, 1e6)

    def recipe(measurement):
        room = 1.3 * float(autocorrelation_support(measurement.intensity).sum())
        return phasing.search_recipe(int(room))

    points = list(follow(autocorrelation_start, recipe, case, beyond=0))
    assert points[0].score is None
    assert not points[0].found
    assert points[-1].found
    assert points[-1].chi2 < points[0].chi2
    assert not any(point.found for point in points[:-1])


def test_time_between_iterations_is_not_counted():
    def steps():
        for _ in range(3):
            yield Objects.start(torch.ones(1, 2, 2, 2, dtype=torch.complex64), torch.ones(1, 2, 2, 2))

    taken = []
    for objects, cpu_s in timed(steps()):
        torch.fft.fftn(torch.rand(64, 64, 64), dim=AXES)
        taken.append(cpu_s)
        assert objects.density.shape == (1, 2, 2, 2)
    assert len(taken) == 3
    assert max(taken) < 0.01


def test_groups_are_told_by_their_medians():
    row = {
        "kind": "procedural",
        "strain": "weak",
        "counts": 1e4,
        "iou": 0.9,
        "correlation": 0.9,
        "cpu_s": 0.1,
    }
    rows = [
        {**row, "cpu_s": 0.1, "chi2": chi2, "phase_rmse": rmse, "found": rmse < 0.2}
        for chi2, rmse in ((0.1, 0.1), (0.2, 0.3), (0.3, float("nan")))
    ]
    assert median(rows, "chi2") == 0.2
    assert median(rows, "phase_rmse") == 0.3
    assert median(rows[1:], "phase_rmse") == np.inf
    lines = table(rows).splitlines()
    assert lines[2] == "| procedural | weak | 1e+04 | 3 | 0.2000 | 0.900 | 0.300 | 0.900 | 1 | 0.100 |"
    assert len(lines) == 3
