import numpy as np
import pytest
import torch
from crystals import crystal_and_counts, crystal_density
from scipy import ndimage

from bluesky_cdinn import quality
from bluesky_cdinn.forward import to_centre, to_corner
from bluesky_cdinn.grid import coarse_levels, window_on_grid
from bluesky_cdinn.phasing import (
    AGREED,
    Problem,
    climb,
    finish,
    fitted,
    is_steep,
    polish,
    search,
)
from bluesky_cdinn.refine import Measurement, Objects
from bluesky_cdinn.starts import autocorrelation_start


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def quiet(objects):
    pass


def problem_of(counts, levels=None, fitted=None, held_out=None):
    masks = [None if m is None else to_corner(torch.from_numpy(m)) for m in (fitted, held_out)]
    measurement = Measurement(to_corner(torch.from_numpy(np.sqrt(counts))), *masks)
    return Problem(measurement, levels or [counts.shape])


def density_of(objects, which=0):
    return to_centre(objects.density[which]).numpy()


@pytest.mark.parametrize("level", [(16, 18, 20), (20, 27, 12)])
def test_a_level_is_the_central_part_of_everything_measured(level):
    rng = np.random.default_rng(0)
    counts = rng.poisson(5.0, (24, 27, 30)).astype(np.float32)
    held = rng.random(counts.shape) > 0.9
    problem = problem_of(counts, [level, counts.shape], ~held, held)
    part = problem.at(level)
    window = window_on_grid(counts.shape, level)
    np.testing.assert_allclose(to_centre(part.magnitude).numpy() ** 2, counts[window], rtol=1e-6)
    assert part.fitted is not None
    assert part.held_out is not None
    np.testing.assert_array_equal(to_centre(part.held_out).numpy(), held[window])
    np.testing.assert_array_equal(to_centre(part.fitted).numpy(), ~held[window])
    assert problem.at(counts.shape) is problem.measurement


@pytest.mark.parametrize(("seed", "phase_range"), [(11, 0.8), (12, 3.0), (13, 5.5)])
def test_search_finds_a_crystal_twice(seed, phase_range):
    density, counts = crystal_and_counts(seed, phase_range, (32, 32, 32))
    seen = []
    found = search(
        problem_of(counts), autocorrelation_start, 4, generator(), lambda o: seen.append(1)
    ).objects
    assert len(found.density) >= 2
    assert len(seen) > 100
    for which in range(2):
        assert quality.correlation(density_of(found, which), density) > 0.98
    assert quality.correlation(density_of(found, 1), density_of(found, 0)) > AGREED
    again = search(problem_of(counts), autocorrelation_start, 4, generator(), quiet).objects
    assert torch.equal(found.density, again.density)


def test_search_from_one_start_returns_it():
    _, counts = crystal_and_counts(11, 0.8, (32, 32, 32))
    assert len(search(problem_of(counts), autocorrelation_start, 1, generator(), quiet).objects.density) == 1


def test_levels_lead_to_the_crystal_on_the_whole_grid():
    density, counts = crystal_and_counts(14, 2.5, (64, 60, 64), oversampling=2.5)
    problem = problem_of(counts, coarse_levels(counts, (26, 24, 26)))
    assert len(problem.levels) > 1
    objects = search(problem, autocorrelation_start, 4, generator(), quiet).objects
    objects = objects.keep(torch.arange(2))
    for level in problem.levels[1:]:
        objects = climb(objects, problem, level, quiet)
        assert objects.density.shape[1:] == level
    rough = quality.compare(density_of(objects), density)
    assert rough.correlation > 0.98
    objects = polish(objects, problem.measurement, quiet)
    found = quality.compare(density_of(objects), density)
    assert found.phase_rmse < 0.05
    assert found.iou > 0.95
    assert torch.isfinite(objects.chi2).all()
    assert (objects.chi2 < 5 * problem.measurement.noise).all()


@pytest.mark.parametrize(("phase_range", "steep"), [(2.0, False), (6.0, False), (15.0, True)])
def test_strong_strain_alone_is_steep(phase_range, steep):
    density = to_corner(torch.from_numpy(crystal_density(31, phase_range, (64, 64, 64))))[None]
    assert is_steep(Objects.start(density, density.abs() > 0.5)) == steep


def test_a_strongly_strained_crystal_grows_from_a_support_far_too_small():
    density, counts = crystal_and_counts(32, 13.0, (64, 64, 64))
    problem = problem_of(counts)
    scale = counts.sum() ** 0.5 / np.linalg.norm(density)
    core = ndimage.binary_erosion(np.abs(density) > 0.5, iterations=2)
    start = to_corner(torch.from_numpy((scale * density * core).astype(np.complex64)))[None]
    small = Objects.start(start, start.abs() > 0)
    found = quality.compare(density_of(fitted(small, problem, quiet)), density)
    assert found.iou > 0.98
    assert found.phase_rmse < 0.03


def test_finishing_fits_the_measurement_around_a_smaller_grid():
    density, counts = crystal_and_counts(15, 2.0, (48, 50, 45), oversampling=3)
    inner = (32, 32, 32)
    window = window_on_grid(counts.shape, inner)
    # Centred as `polish` leaves it, away from the smaller box's edge; too weak to fit yet.
    centred = torch.from_numpy(density[window] * np.complex64(0.9))[None]
    measurement = problem_of(counts).measurement
    objects = finish(Objects(centred, (centred.abs() > 0).float(), torch.zeros(1)), measurement, quiet)
    assert objects.density.shape[1:] == counts.shape
    found = quality.compare(density_of(objects), density)
    assert found.phase_rmse < 0.05
    assert found.iou > 0.95
    assert float(objects.chi2) < 5 * measurement.noise


def test_watching_can_stop_the_work():
    _, counts = crystal_and_counts(11, 0.8, (32, 32, 32))

    class Enough(Exception):
        pass

    def stop(objects):
        raise Enough

    with pytest.raises(Enough):
        search(problem_of(counts), autocorrelation_start, 2, generator(), stop)


def a_guess(density, quality_of_it, seen=None):
    """Return a start that guesses a crystal, its phases wrong by some rad rms: each guess in its own way."""

    def guess(measurement, count, random):
        noise = torch.randn((count, *measurement.magnitude.shape), generator=random)
        true = to_corner(torch.from_numpy(density)).expand(noise.shape)
        support = (true.abs() > 0.3 * true.abs().max()).float()
        objects = Objects.start(true * torch.exp(1j * quality_of_it * noise), support)
        objects.chi2 = torch.full((count,), 0.01 if quality_of_it < 2 else 0.5)
        return objects

    return guess


def test_good_guesses_need_few_iterations():
    density, counts = crystal_and_counts(12, 3.0, (32, 32, 32))
    classical, guided = [], []
    search(problem_of(counts), autocorrelation_start, 2, generator(), lambda o: classical.append(1))
    found = search(
        problem_of(counts),
        autocorrelation_start,
        2,
        generator(),
        lambda o: guided.append(1),
        a_guess(density, 0.7),
    )
    assert found.start == "network"
    assert found.guess_chi2 == pytest.approx(0.01)
    assert quality.correlation(density_of(found.objects), density) > 0.98
    assert len(guided) < 0.8 * len(classical)


def test_guesses_that_are_no_numbers_are_left():
    density, counts = crystal_and_counts(12, 3.0, (32, 32, 32))

    def guess(measurement, count, random):
        objects = autocorrelation_start(measurement, count, random)
        return Objects(objects.density * torch.nan, objects.support, objects.chi2)

    found = search(problem_of(counts), autocorrelation_start, 3, generator(), quiet, guess)
    assert found.start == "classical"
    assert quality.correlation(density_of(found.objects), density) > 0.98


def guesses_apart(measurement, count, random):
    """Guess small things that have nothing in common, and claim that they fit."""
    density = torch.randn((count, *measurement.magnitude.shape), generator=random, dtype=torch.complex64)
    support = torch.zeros(density.shape)
    for which in range(count):
        support[which, : 3 + 2 * which, : 9 - 2 * which, :4] = 1
    objects = Objects.start(density, support)
    objects.chi2 = torch.full((count,), 0.01)
    return objects


def test_guesses_that_misfit_the_data_are_left():
    density, counts = crystal_and_counts(12, 3.0, (32, 32, 32))
    found = search(problem_of(counts), autocorrelation_start, 3, generator(), quiet, a_guess(density, 3.0))
    assert found.start == "classical"
    assert found.guess_chi2 == pytest.approx(0.5)
    assert quality.correlation(density_of(found.objects), density) > 0.98


def test_guesses_that_lead_to_different_objects_are_left():
    density, counts = crystal_and_counts(12, 3.0, (32, 32, 32))
    found = search(problem_of(counts), autocorrelation_start, 3, generator(), quiet, guesses_apart)
    assert found.start == "classical"
    assert quality.correlation(density_of(found.objects), density) > 0.98
