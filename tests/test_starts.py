import numpy as np
import pytest
import torch
from crystals import crystal_and_counts

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.forward import to_centre, to_corner
from bluesky_cdinn.refine import Measurement
from bluesky_cdinn.starts import autocorrelation_start, random_start, start_named
from bluesky_cdinn.support import autocorrelation_support


@pytest.fixture(scope="module")
def measurement():
    _, counts = crystal_and_counts(1, 2.0, (24, 27, 30))
    return Measurement(to_corner(torch.from_numpy(np.sqrt(counts))))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("start", [autocorrelation_start, random_start])
def test_starts_are_independent_confined_and_as_strong_as_the_counts(measurement, start):
    objects = start(measurement, 3, generator())
    assert objects.density.shape == objects.support.shape == (3, 24, 27, 30)
    assert objects.density.dtype == torch.complex64
    assert objects.support.dtype == torch.float32
    assert objects.chi2.isnan().all()
    assert (objects.density[objects.support == 0] == 0).all()
    power = objects.density.abs().square().sum((1, 2, 3))
    torch.testing.assert_close(power, torch.full((3,), measurement.power), rtol=1e-4, atol=0)
    first, second = objects.density[0].flatten(), objects.density[1].flatten()
    assert abs(torch.vdot(first, second)) < 0.2 * measurement.power


@pytest.mark.parametrize("start", [autocorrelation_start, random_start])
def test_same_seed_same_start(measurement, start):
    once, again, other = (start(measurement, 2, generator(seed)) for seed in (7, 7, 8))
    assert torch.equal(once.density, again.density)
    assert not torch.equal(once.density, other.density)


@pytest.mark.parametrize("start", [autocorrelation_start, random_start])
def test_each_start_may_change_its_own_support(measurement, start):
    objects = start(measurement, 2, generator())
    before = objects.support[1].clone()
    objects.support[0] = 0
    assert torch.equal(objects.support[1], before)


def test_autocorrelation_start_lies_in_the_autocorrelations_support(measurement):
    objects = autocorrelation_start(measurement, 1, generator())
    support = autocorrelation_support(measurement.magnitude.square())
    assert torch.equal(objects.support[0] > 0, support)


def test_random_start_takes_the_central_half(measurement):
    support = to_centre(random_start(measurement, 1, generator()).support)[0]
    places = support.nonzero()
    for axis, n in enumerate(support.shape):
        along = places[:, axis]
        assert int(along.min()) == n // 4
        assert int(along.max()) - int(along.min()) + 1 == n // 2


def test_names_of_the_settings_name_starts():
    assert start_named("auto") is start_named("autocorrelation") is autocorrelation_start
    assert start_named("random") is random_start
    with pytest.raises(InvalidInput, match="'guess'"):
        start_named("guess")
