from dataclasses import replace

import numpy as np
import pytest
import torch
from crystals import far_field, random_object

from bluesky_cdinn import quality
from bluesky_cdinn.detection import Detection
from bluesky_cdinn.forward import to_centre, to_corner
from bluesky_cdinn.grid import held_out_voxels
from bluesky_cdinn.lbfgs import LBFGS
from bluesky_cdinn.phasing import as_it_scatters
from bluesky_cdinn.refine import Measurement, Objects, free_chi2, held_out_deviance, power_of, run
from bluesky_cdinn.sim.crystal import random_crystal, sample
from bluesky_cdinn.voxels import (
    averaged,
    crystal_field,
    crystal_power,
    mean_field,
    unaveraged,
    voxel_form_factor,
)
from bluesky_cdinn.windows import density_on, measurement_window, windowed

SHAPE = (32, 30, 36)


@pytest.fixture
def field():
    return torch.from_numpy(random_object(np.random.default_rng(0), (2, *SHAPE), np.complex64))


def crystal(shape=SHAPE, finer=1, seed=4, phase_range=3.0):
    """Return a crystal's voxels on the grid, or its field from voxels so many times finer, cut off."""
    body = random_crystal(np.random.default_rng(seed), 100.0, phase_range)
    steps = np.diag(np.ptp(body.body.vertices(), axis=0) * 2.4 / np.array(shape))
    density = sample(body, steps, shape)
    if finer == 1:
        return density
    whole = far_field(sample(body, steps / finer, tuple(finer * n for n in shape)))
    cut = whole[tuple(slice((finer - 1) * n // 2, (finer - 1) * n // 2 + n) for n in shape)]
    return (cut * np.linalg.norm(density) / np.linalg.norm(cut)).astype(np.complex64)


def measured(pattern, peak=1e6, **kwargs):
    """Return Poisson counts of a pattern as a measurement with voxels held out, and the pattern's scale."""
    rng = np.random.default_rng(1)
    scale = peak / pattern.max()
    counts = rng.poisson(scale * pattern)
    held = held_out_voxels(np.ones(counts.shape, bool), 0.05, 0.15, rng)
    arrays = (np.sqrt(counts).astype(np.float32), ~held, held)
    magnitude, fitted, held_out = (to_corner(torch.from_numpy(a)) for a in arrays)
    return Measurement(magnitude, fitted, held_out, **kwargs), scale**0.5


def test_form_factor_is_the_transform_of_a_box_of_one_voxel():
    # A box of 41 times finer voxels, so large as one of the grid's.
    n, finer = 12, 41
    box = np.zeros(n * finer)
    box[: finer // 2 + 1] = box[-(finer // 2) :] = 1 / finer
    expected = np.fft.fft(box)[np.fft.fftfreq(n, 1 / n).astype(int)]
    first, second, third = voxel_form_factor((n, n, n), torch.zeros(1))
    for line in (first, second, third):
        np.testing.assert_allclose(line.numpy().ravel(), expected.real, atol=1e-3)
    assert (first * second * third).shape == (n, n, n)


def test_means_are_undone(field):
    torch.testing.assert_close(crystal_field(mean_field(field)), field, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(unaveraged(averaged(field)), field, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(crystal_power(mean_field(field.abs()).square()), field.abs().square())


def test_averaging_is_self_adjoint_and_keeps_the_sum(field):
    first, second = field
    ahead = torch.vdot(averaged(first).flatten(), second.flatten())
    back = torch.vdot(first.flatten(), averaged(second).flatten())
    torch.testing.assert_close(ahead, back, rtol=1e-4, atol=1e-3)
    sums = [values.sum((-3, -2, -1)) for values in (averaged(field), field)]
    torch.testing.assert_close(*sums, rtol=1e-4, atol=1e-2)


def test_a_crystal_whose_pattern_is_cut_off_rings_and_its_means_do_not():
    body = crystal() != 0
    cut = to_corner(torch.from_numpy(crystal(finer=3)))
    ringing = torch.fft.ifftn(cut, norm="ortho")

    def beyond(density):
        power = to_centre(density).abs().square().numpy()
        return power[~body].sum() / power.sum()

    assert beyond(ringing) > 1e-3
    assert beyond(averaged(ringing)) < beyond(ringing) / 3


def test_means_over_larger_voxels_are_those_of_the_smaller():
    fine = to_corner(torch.from_numpy(crystal((64, 60, 72))))
    coarse = density_on(fine, SHAPE)

    def off(density):
        return 1 - quality.similarity(to_centre(density).numpy(), crystal())

    assert off(coarse) < 0.002
    # What the same frequencies show of the crystal itself rings.
    cut = torch.fft.ifftn(windowed(torch.fft.fftn(fine), SHAPE))
    assert off(coarse) < 0.7 * off(cut)


def test_a_measurement_asks_of_means_what_their_field_is(field):
    magnitude = field[0].abs() * 10
    measurement = Measurement(magnitude, averaged=True)
    torch.testing.assert_close(measurement.target, mean_field(magnitude))
    truth = mean_field(field[:1] * 10)
    torch.testing.assert_close(measurement.expected(truth.abs().square())[0], magnitude.square())
    assert float(measurement.chi2(truth.abs().square())) < 1e-10
    phases = field[1:] / field[1:].abs()
    imposed = measurement.impose(mean_field(magnitude * 3) * phases)
    torch.testing.assert_close(imposed, mean_field(magnitude) * phases, rtol=1e-4, atol=1e-4)
    assert measurement.power == pytest.approx(float(mean_field(magnitude).square().sum()))
    # The noise of the counts is the same, and so much less of it matters.
    assert measurement.noise * measurement.power < Measurement(magnitude).noise * magnitude.square().sum()
    smaller = measurement_window(measurement, (16, 16, 16))
    assert smaller.averaged
    torch.testing.assert_close(smaller.target, mean_field(smaller.magnitude))


@pytest.mark.parametrize("detection", [None, Detection(SHAPE, (0.4, 0.3, 0.5))], ids=["coherent", "blurred"])
def test_the_truth_means_fit_without_a_rest(field, detection):
    power = field[0].abs().square() * 100
    counts = power if detection is None else detection.expected(power)
    held = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) > 0.9
    measurement = Measurement(counts.sqrt(), ~held, held, detection=detection, averaged=True)
    means = averaged(torch.fft.ifftn(field[:1] * 10, norm="ortho"))
    assert held_out_deviance(power_of(Objects(means, means.abs(), torch.zeros(1)))[0], measurement) < 1e-3
    if detection is None:
        assert float(free_chi2(means, measurement)) < 1e-8
    there = torch.fft.fftn(means, dim=(-3, -2, -1), norm="ortho")
    # A count is added to both before their roots are compared, which leaves nothing of them here.
    torch.testing.assert_close(measurement.impose(there.clone()), there, rtol=1e-3, atol=1e-3)


def fitted_means(measurement, scale):
    """Return the means of the crystal, settled under a measurement of it."""
    density = to_corner(torch.from_numpy(crystal()))[None] * scale
    support = (averaged(density).abs() > 0.1 * density.abs().max()).float()
    objects = Objects(averaged(density) * support, support, torch.zeros(1))
    for _ in run([LBFGS(25)], objects, measurement):
        pass
    return objects


def test_a_pattern_that_is_folded_back_is_told_from_one_that_is_cut_off():
    quiet = []
    folded, scale = measured(np.abs(far_field(crystal())) ** 2, averaged=True)
    objects = fitted_means(folded, scale)
    whole, seen = as_it_scatters(objects, folded, quiet.append)
    assert not seen.averaged
    assert replace(seen, averaged=True).power == folded.power
    found = quality.compare(to_centre(whole.density[0]).numpy(), crystal())
    means = quality.compare(to_centre(unaveraged(objects.density[0])).numpy(), crystal())
    assert found.amplitude_nrmse < means.amplitude_nrmse
    cut, scale = measured(np.abs(crystal(finer=3)) ** 2, averaged=True)
    objects = fitted_means(cut, scale)
    kept, seen = as_it_scatters(objects, cut, quiet.append)
    assert kept is objects
    assert seen is cut
    assert len(quiet) > 30


def test_what_can_not_be_told_stays_as_it_is():
    measurement, scale = measured(np.abs(far_field(crystal())) ** 2, averaged=True)
    objects = fitted_means(measurement, scale)
    for unknown in (replace(measurement, held_out=None), replace(measurement, averaged=False)):
        assert as_it_scatters(objects, unknown, lambda o: None) == (objects, unknown)
