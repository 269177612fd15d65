"""Blur, background and frames' scales are found where they are, and only there."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from crystals import crystal_and_counts

from bluesky_cdinn import imperfections
from bluesky_cdinn.blur import found_blur, lowest
from bluesky_cdinn.detection import COHERENT, Detection
from bluesky_cdinn.errors import Cancelled
from bluesky_cdinn.forward import to_corner
from bluesky_cdinn.imperfections import fitted_with_background, power_of, searched_again, wanted
from bluesky_cdinn.phasing import SMOOTHNESS, Found, Problem
from bluesky_cdinn.refine import Measurement, Objects
from bluesky_cdinn.scoring import Basis, scored

SHAPE = (32, 32, 32)


def known_crystal(detection=None, peak=1e6, seed=5):
    """Return a crystal inside its support, and its counts as a detection has them."""
    density, counts = crystal_and_counts(seed, 3.0, SHAPE, peak=peak)
    density = to_corner(torch.from_numpy(density))[None]
    objects = Objects.start(density, (density.abs() > 0).float())
    rng = np.random.default_rng(seed)
    if detection is None:
        counts = to_corner(torch.from_numpy(counts))
    else:
        expected = detection.expected(power_of(objects)[0]).double().numpy()
        counts = torch.from_numpy(rng.poisson(expected).astype(np.float32))
    held_out = torch.from_numpy(rng.uniform(size=SHAPE) < 0.05)
    return objects, Measurement(counts.sqrt(), ~held_out, held_out)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def quiet(objects):
    pass


@pytest.mark.parametrize("blur", [(0.5, 0.5, 0.5), (0.8, 0.4, 0.4)])
def test_the_blur_is_found_from_an_object_that_was_fitted_without(blur):
    objects, measurement = known_crystal(Detection(SHAPE, blur))
    np.testing.assert_allclose(found_blur(objects, measurement, SMOOTHNESS, quiet), blur, atol=0.12)


def test_a_coherent_pattern_has_no_blur():
    assert found_blur(*known_crystal(), SMOOTHNESS, quiet) == COHERENT


def test_the_trials_of_a_blur_can_be_stopped():
    objects, measurement = known_crystal()
    before, seen = objects.density.clone(), []

    def stop(state):
        seen.append(state)
        if len(seen) == 3:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        found_blur(objects, measurement, SMOOTHNESS, stop)
    assert torch.equal(objects.density, before)


def test_of_an_object_that_scatters_nothing_all_frames_count_alike():
    found = scored(torch.zeros(8, 8, 8), Measurement(torch.ones(8, 8, 8)), frozenset(["scales"]))
    assert torch.equal(found.scales, torch.ones(8))


def test_the_bottom_of_a_parabola():
    places = [0.1, 0.5, 1.0]
    assert lowest(places, [(p - 0.7) ** 2 for p in places]) == pytest.approx(0.7)
    assert lowest(places, [3.0, 2.0, 0.5]) == 1.0


def test_background_is_made_of_functions_that_sum_to_one(rng):
    basis = Basis.of(torch.zeros(9, 10, 12, dtype=torch.float64))
    torch.testing.assert_close(basis.expand(np.ones(27)), torch.ones(9, 10, 12, dtype=torch.float64))
    nodes = rng.uniform(size=27)
    np.testing.assert_allclose(basis.at_nodes(basis.expand(nodes)), nodes)


def test_sums_over_the_grid_are_those_of_the_functions_themselves(rng):
    weight = torch.from_numpy(rng.uniform(size=(6, 5, 7)))
    basis = Basis.of(weight)
    each = torch.stack([basis.expand(unit) for unit in np.eye(27)]).flatten(1)
    np.testing.assert_allclose(basis.sums(weight), each @ weight.flatten())
    np.testing.assert_allclose(basis.products(weight), (each * weight.flatten()) @ each.T)
    by_frame = (each.reshape(27, 6, 35) * weight.reshape(6, 35)).sum(2).T
    np.testing.assert_allclose(basis.by_frame(weight), by_frame)


def test_scoring_finds_background_and_scales_of_a_known_crystal():
    basis = Basis.of(torch.zeros(SHAPE))
    background = basis.expand(np.linspace(1.0, 3.0, 27))
    scales = np.random.default_rng(3).normal(1, 0.1, 32)
    detection = Detection(SHAPE, background=background, scales=torch.from_numpy(scales).float())
    objects, measurement = known_crystal(detection)
    power = power_of(objects)[0]
    for _ in range(3):
        found = scored(power, measurement, frozenset(["background", "scales"]))
        measurement = replace(measurement, detection=found)
    assert found.background is not None
    assert found.scales is not None
    assert (found.background - background).abs().mean() < 0.1
    counted = power.sum((1, 2)).numpy()
    wrong = found.scales.numpy() / (scales * counted.sum() / (scales @ counted)) - 1
    assert np.sqrt(np.average(wrong**2, weights=counted)) < 0.02


def test_only_what_is_there_is_wanted():
    plain, measurement = known_crystal()
    assert wanted(power_of(plain)[0], measurement) == frozenset()
    background = Detection(SHAPE, background=torch.ones(SHAPE))
    objects, measurement = known_crystal(background)
    assert wanted(power_of(objects)[0], measurement) == {"background"}
    scales = torch.ones(32)
    scales[2] = 0.5
    objects, measurement = known_crystal(Detection(SHAPE, scales=scales))
    assert wanted(power_of(objects)[0], measurement) == {"scales"}


def test_a_clean_problem_stays_as_it_is():
    objects, measurement = known_crystal()
    assert fitted_with_background(objects, measurement, quiet) is measurement


def test_blur_that_goes_with_its_object_was_none(monkeypatch):
    """The first search is believed after all, and nothing is searched a third time."""
    objects, measurement = known_crystal()
    problem, first = Problem(measurement, [SHAPE]), Found(objects, "classical")
    told = iter([(0.4, 0.4, 0.4), COHERENT])
    monkeypatch.setattr(imperfections, "blur_of", lambda objects, problem, watch: next(told))
    searched = []

    def search(problem):
        searched.append(problem)
        return Found(objects, "classical")

    assert searched_again(problem, first, search, quiet) == (problem, first)
    assert [one.measurement.detection for one in searched] == [None]


def test_the_search_looks_at_the_pattern_without_its_blur(monkeypatch):
    _, clean = known_crystal()
    objects, measurement = known_crystal(Detection(SHAPE, (0.5, 0.5, 0.5)))
    monkeypatch.setattr(imperfections, "blur_of", lambda objects, problem, watch: (0.5, 0.5, 0.5))
    searched = []

    def search(problem):
        searched.append(problem.measurement)
        return Found(objects, "classical")

    problem = Problem(measurement, [SHAPE])
    blurred, _ = searched_again(problem, Found(objects, "classical"), search, quiet)
    assert blurred.measurement.detection.blur == (0.5, 0.5, 0.5)
    assert len(searched) == 1
    off = (searched[0].magnitude - clean.magnitude).norm()
    assert off < 0.5 * (measurement.magnitude - clean.magnitude).norm()
