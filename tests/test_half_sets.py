"""Half-sets: counts dealt out fairly."""

import numpy as np
import pytest
import torch

from bluesky_cdinn.boxed import Boxed
from bluesky_cdinn.half_sets import Counted, half_sets, thinned
from bluesky_cdinn.refine import Measurement, Objects


def crystals(shape=(24, 20, 22), starts=2):
    """Two blocks of one smooth phase, across the grid's edge, and their measurement."""
    support = torch.zeros(starts, *shape)
    support[:, :4, 2:8, -3:] = support[:, -3:, 2:8, -3:] = 1
    generator = torch.Generator().manual_seed(1)
    phase = torch.rand(starts, *shape, generator=generator)
    density = support * torch.polar(torch.full_like(phase, 30.0), phase)
    power = torch.fft.fftn(density[0], norm="ortho").abs().square()
    counts = torch.poisson(power, generator=generator)
    fitted = torch.rand(shape, generator=generator) > 0.02
    return Objects(density, support, torch.zeros(starts)), Measurement(counts.sqrt(), fitted)


def test_halves_add_up_to_the_counts_and_are_poisson_again():
    counts = np.random.default_rng(1).poisson(50, (30, 31, 32)).astype(np.float32)
    first, second = thinned(counts, np.random.default_rng(2))
    np.testing.assert_array_equal(first + second, counts)
    assert first.mean() == pytest.approx(25, rel=0.01)
    assert first.var() == pytest.approx(25, rel=0.05)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.03


def test_counts_that_are_not_whole_are_rounded_by_chance():
    first, second = thinned(np.full((40, 40, 40), 0.3, np.float32), np.random.default_rng(3))
    assert set(np.unique(first + second)) == {0.0, 1.0}
    assert (first + second).mean() == pytest.approx(0.3, rel=0.03)


def test_half_sets_hold_what_was_measured_in_the_volume_alone():
    objects, measurement = crystals()
    kept = objects.density.clone(), measurement.magnitude.clone()
    halves = half_sets(Boxed.of(objects), Counted.of(measurement), (1.0, 0.5, 1.0), 5)
    assert halves.fields.shape == (2, 24, 10, 22)
    assert halves.counts.shape == (24, 10, 22)
    window = torch.fft.fftshift(measurement.fitted)[:, 5:15].numpy()
    assert not halves.fields[:, ~window].any()
    expected = torch.fft.fftshift(measurement.target.square())[:, 5:15].numpy()
    np.testing.assert_allclose(halves.counts, expected, rtol=1e-5)
    torch.testing.assert_close(objects.density, kept[0])
    torch.testing.assert_close(measurement.magnitude, kept[1])
    again = half_sets(Boxed.of(objects), Counted.of(measurement), (1.0, 0.5, 1.0), 5)
    np.testing.assert_array_equal(again.fields, halves.fields)
