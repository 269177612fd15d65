import dataclasses

import numpy as np
import pytest
import torch
from crystals import crystal_and_counts
from torch import nn

from bluesky_cdinn import quality
from bluesky_cdinn.errors import WeightsError
from bluesky_cdinn.forward import to_centre, to_corner
from bluesky_cdinn.network import CDINN, NORMALISATION, NetworkConfig
from bluesky_cdinn.network_start import LEAST, MULTIPLE, NetworkStart, network_start, seen_shape
from bluesky_cdinn.refine import Measurement
from bluesky_cdinn.weights import Weights, save_weights, shipped_weights
from bluesky_cdinn.windows import windowed

SMALL = NetworkConfig(widths=(8, 16, 16), depths=(1, 1, 1), heads=2)
LABEL = {"name": "test", "sha256": ""}


class Oracle(nn.Module):
    """Answers with the truth, on whatever grid it is asked, and remembers what it was shown."""

    def __init__(self, truth):
        super().__init__()
        self.field = torch.fft.fftn(to_corner(torch.from_numpy(truth)), norm="ortho")
        self.seen = []

    def forward(self, magnitude, measured, density, support):
        self.seen.append((magnitude, measured, density, support))
        own = torch.fft.ifftn(windowed(self.field, density.shape[1:]), norm="ortho")
        return (own / own.abs().max()).expand(density.shape).clone()


def case(shape=(64, 64, 64), seed=4, phase_range=3.0):
    truth, counts = crystal_and_counts(seed, phase_range, shape)
    return truth, Measurement(to_corner(torch.from_numpy(np.sqrt(counts))))


def likeness(objects, truth, which=0):
    return quality.correlation(to_centre(objects.density)[which].numpy(), truth)


@pytest.mark.parametrize("shape", [(64, 64, 64), (40, 48, 36), (32, 32, 32)])
def test_a_guess_comes_back_on_the_measurements_own_grid_and_scale(shape):
    truth, measurement = case(shape)
    oracle = Oracle(truth)
    objects = NetworkStart(oracle, LABEL)(measurement, 3, torch.Generator().manual_seed(0))
    assert objects.density.shape == objects.support.shape == (3, *shape)
    assert likeness(objects, truth) > 0.97
    power = float(objects.density[0].abs().square().sum())
    assert power == pytest.approx(measurement.power, rel=0.1)
    assert (objects.chi2 < 0.05).all()


def test_the_network_sees_the_coarse_centre_of_a_large_measurement():
    truth, measurement = case()
    oracle = Oracle(truth)
    start = NetworkStart(oracle, LABEL, looks=3)
    start(measurement, 2, torch.Generator().manual_seed(0))
    assert len(oracle.seen) == 3
    for magnitude, measured, density, support in oracle.seen:
        assert magnitude.shape == measured.shape == density.shape == support.shape
        assert max(magnitude.shape[1:]) < 64
        assert all(n % MULTIPLE == 0 for n in magnitude.shape[1:])
        assert measured.all()
    assert seen_shape(measurement) == tuple(oracle.seen[0][0].shape[1:])


@pytest.mark.parametrize("shape", [(4, 32, 32), (10, 24, 32), (16, 16, 16)])
def test_small_measurements_are_seen_on_the_least_grid_that_was_trained_on(shape):
    _, measurement = case(shape, phase_range=1.0)
    oracle = Oracle(case((32, 32, 32))[0])
    objects = NetworkStart(oracle, LABEL)(measurement, 1, torch.Generator().manual_seed(0))
    assert seen_shape(measurement) == tuple(max(LEAST, n) for n in shape)
    assert objects.density.shape[1:] == shape
    assert objects.density.isfinite().all()


def test_what_is_held_out_of_the_fit_is_hidden_from_the_network():
    truth, measurement = case((32, 32, 32))
    fitted = torch.rand(32, 32, 32, generator=torch.Generator().manual_seed(1)) > 0.1
    hidden = Measurement(measurement.magnitude, fitted, ~fitted, measurement.magnitude.square())
    oracle = Oracle(truth)
    NetworkStart(oracle, LABEL)(hidden, 1, torch.Generator().manual_seed(0))
    magnitude, measured, _, _ = oracle.seen[0]
    assert torch.equal(measured[0], fitted)
    assert (magnitude[0][~fitted] == 0).all()


def test_each_guess_has_random_phases_of_its_own_and_a_seed_repeats_them():
    truth, measurement = case((32, 32, 32))
    oracle = Oracle(truth)
    start = NetworkStart(oracle, LABEL, looks=1)
    for seed in (5, 5, 6):
        start(measurement, 2, torch.Generator().manual_seed(seed))
    once, again, other = (seen[2] for seen in oracle.seen)
    assert torch.equal(once, again)
    assert not torch.allclose(once, other)
    assert not torch.allclose(once[0], once[1])


@pytest.fixture
def weights_file(tmp_path):
    def write(config=SMALL, normalisation=NORMALISATION, **changes):
        torch.manual_seed(0)
        state = {**CDINN(SMALL).state_dict(), **changes}
        path = tmp_path / "some.safetensors"
        save_weights(path, Weights({**dataclasses.asdict(config)}, state, normalisation, {}))
        return path

    return write


def test_a_file_of_weights_makes_a_start(weights_file):
    start = network_start(weights_file())
    assert start.weights["name"] == "some"
    assert len(start.weights["sha256"]) == 64
    _, measurement = case((32, 32, 32))
    assert start(measurement, 1, torch.Generator().manual_seed(0)).density.isfinite().all()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"config": dataclasses.replace(SMALL, architecture="other")}, "architecture"),
        ({"config": dataclasses.replace(SMALL, version=99)}, "version"),
        ({"config": dataclasses.replace(SMALL, widths=(8, 16, 32))}, "must be"),
        ({"normalisation": "maximum"}, "normalisation"),
        ({"extra": torch.zeros(3)}, "unknown"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights_file, how, says):
    with pytest.raises(WeightsError, match=says):
        network_start(weights_file(**how))


def test_a_start_is_kept_until_its_file_changes(weights_file):
    path = weights_file()
    before = network_start(path)
    assert network_start(path) is before
    state = CDINN(SMALL).state_dict()
    name = next(iter(state))
    again = network_start(weights_file(**{name: state[name] + 1}))
    assert again.weights["sha256"] != before.weights["sha256"]


def test_no_weights_no_start(tmp_path):
    with pytest.raises(WeightsError, match="file"):
        network_start(tmp_path / "absent.safetensors")


def test_the_shipped_weights_guess_better_than_what_they_are_shown():
    assert shipped_weights() is not None
    start = network_start()
    for seed, phase_range in ((61, 1.0), (62, 2.5), (63, 5.0)):
        truth, measurement = case(seed=seed, phase_range=phase_range)
        objects = start(measurement, 2, torch.Generator().manual_seed(seed))
        assert max(likeness(objects, truth, which) for which in range(2)) > 0.95
