"""Background and frames' scales are found where they are, and only there."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from detected import SHAPE, known_crystal, quiet

from bluesky_cdinn.detection import Detection
from bluesky_cdinn.imperfections import fitted_with_background, wanted
from bluesky_cdinn.refine import Measurement, power_of
from bluesky_cdinn.scoring import Basis, scored


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_of_an_object_that_scatters_nothing_all_frames_count_alike():
    found = scored(torch.zeros(8, 8, 8), Measurement(torch.ones(8, 8, 8)), frozenset(["scales"]))
    assert torch.equal(found.scales, torch.ones(8))


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
