"""What a partly coherent beam has blurred is searched without its blur."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from crystals import crystal_and_counts
from detected import SHAPE, known_crystal, quiet

from bluesky_cdinn import partial_coherence
from bluesky_cdinn.detection import COHERENT, Detection
from bluesky_cdinn.forward import to_centre, to_corner
from bluesky_cdinn.partial_coherence import (
    blur_of,
    blurred,
    blurred_alike,
    deblurred,
    on_grid,
    searched_again,
)
from bluesky_cdinn.phasing import Found, Problem
from bluesky_cdinn.posing import Posed, sampled
from bluesky_cdinn.refine import Measurement

HALF = (0.5, 0.5, 0.5)


@pytest.fixture
def blurred_crystal():
    """Return the true object, its clean measurement and the posed problem of its blurred pattern."""
    _, clean = known_crystal()
    objects, measurement = known_crystal(Detection(SHAPE, HALF))
    return objects, clean, Posed(sampled(measurement, 1), measurement)


def test_the_search_looks_at_the_pattern_without_its_blur(blurred_crystal):
    objects, clean, posed = blurred_crystal
    searched = []

    def search(problem):
        searched.append(problem.measurement)
        return Found(objects, "classical")

    problem, found = searched_again(posed, 1, Found(objects, "network"), search, quiet)
    assert found.start == "classical"
    assert problem.measurement.detection.blur == pytest.approx(HALF, abs=0.03)
    measured = posed.full.magnitude
    off = [(one.magnitude - clean.magnitude).norm() for one in searched]
    assert max(off) < 0.5 * (measured - clean.magnitude).norm()
    # Two agree by then: no third search.
    assert len(searched) <= 2


def test_a_blur_under_which_nothing_fits_better_was_none(blurred_crystal, monkeypatch):
    objects, _, posed = blurred_crystal
    first = Found(objects, "classical")
    told = iter([((0.5, 0.5, 0.5), 1.0), ((0.5, 0.5, 0.5), 3.0)])
    monkeypatch.setattr(partial_coherence, "coherent_misfit", lambda *known: 2.0)
    monkeypatch.setattr(partial_coherence, "fitted_blur", lambda *known, alike: next(told))
    assert searched_again(posed, 1, first, lambda problem: first, quiet) == (posed.working, first)


def test_a_clean_pattern_is_not_searched_again():
    objects, measurement = known_crystal()
    posed, first = Posed(sampled(measurement, 1), measurement), Found(objects, "classical")
    assert searched_again(posed, 1, first, lambda problem: pytest.fail("searched"), quiet) == (
        posed.working,
        first,
    )


def test_wrong_objects_of_wide_blurs_are_searched_without_a_wider_one(blurred_crystal, monkeypatch):
    objects, _, posed = blurred_crystal
    looked = []
    answers = iter([((0.7,) * 3, 8.0), ((0.7, 0.8, 0.6), 6.0), ((1.2,) * 3, 1.5), ((1.2,) * 3, 1.4)])
    monkeypatch.setattr(partial_coherence, "coherent_misfit", lambda *known: 10.0)
    monkeypatch.setattr(partial_coherence, "fitted_blur", lambda *known, alike: next(answers))
    monkeypatch.setattr(partial_coherence, "deblurred", lambda problem: looked.append(problem) or problem)
    problem, _ = searched_again(posed, 1, Found(objects, ""), lambda problem: Found(objects, ""), quiet)
    widths = [one.measurement.detection.blur[0] for one in looked]
    assert widths == pytest.approx([0.7, 0.9, 1.2])
    assert problem.measurement.detection.blur == pytest.approx((1.2, 1.2, 1.2))


def test_an_object_from_before_tells_the_blur_and_stays(blurred_crystal):
    objects, _, posed = blurred_crystal
    before = objects.density.clone()
    assert blur_of(objects, posed.working, quiet) == pytest.approx(HALF, abs=0.05)
    assert torch.equal(objects.density, before)
    assert blur_of(*known_problem(), quiet) == COHERENT


def known_problem():
    objects, measurement = known_crystal()
    return objects, Problem(measurement, [SHAPE])


def test_a_blur_on_another_grid_covers_the_same_frequencies():
    coarse, fine = (Measurement(torch.ones(shape)) for shape in ((32, 40, 48), (64, 64, 64)))
    assert on_grid((0.5, 0.5, 0.6), coarse, fine) == pytest.approx((1.0, 0.8, 0.8))
    seen = blurred(Problem(coarse, [(32, 40, 48)]), (0.5, 0.5, 0.6)).measurement
    assert blurred_alike(fine, seen).detection.blur == pytest.approx((1.0, 0.8, 0.8))
    assert blurred_alike(fine, coarse) is fine


def test_a_coherent_problem_has_no_blur_to_take_out():
    _, problem = known_problem()
    assert deblurred(problem) is problem


def test_the_grid_of_a_blurred_pattern_holds_the_crystal_that_blur_hides():
    shape = (64, 64, 64)
    density, _ = crystal_and_counts(7, 5.0, shape, oversampling=2.3)
    power = to_corner(torch.from_numpy(np.abs(np.fft.fftshift(np.fft.fftn(density, norm="ortho"))) ** 2))
    counts = Detection(shape, (1.2, 1.2, 1.2)).expected(power.float())
    full = Measurement(
        counts.sqrt(), torch.ones(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    )
    sides = [max(sampled(full, 1, blur).measurement.magnitude.shape) for blur in (COHERENT, (1.2, 1.2, 1.2))]
    across = int(to_centre(torch.from_numpy(np.abs(density) > 0)).any(dim=0).any(dim=0).sum())
    assert sides[0] < 2 * across <= sides[1]


def test_what_noise_amplifies_is_no_larger_crystal():
    """Of few counts a wide blur leaves nothing to go by: the grid stays."""
    shape = (48, 48, 48)
    _, counts = crystal_and_counts(3, 1.0, shape, peak=300, oversampling=4.5)
    full = Measurement(
        to_corner(torch.from_numpy(counts)).sqrt(),
        torch.ones(shape, dtype=torch.bool),
        torch.zeros(shape, dtype=torch.bool),
    )
    plain, again = (sampled(full, 1, blur).measurement for blur in (COHERENT, (3.0, 3.0, 3.0)))
    assert plain.magnitude.shape == again.magnitude.shape
    assert replace(plain).magnitude.shape != shape
