import numpy as np
import pytest
import torch
from crystals import crystal_and_counts

from bluesky_cdinn import quality
from bluesky_cdinn.forward import propagate, to_centre, to_corner
from bluesky_cdinn.refine import Measurement
from bluesky_cdinn.training.batch import Batch
from bluesky_cdinn.training.paper_network import (
    PaperNetwork,
    normalised,
    paper_objective,
    paper_start,
)
from bluesky_cdinn.windows import windowed


@pytest.fixture
def network():
    torch.manual_seed(0)
    return PaperNetwork()


def batch_of(seeds=(1, 2), twin=False, phase_range=2.0):
    """Return crystals of amplitude 1 and their noisy patterns."""
    magnitudes, truths = [], []
    for seed in seeds:
        density, counts = crystal_and_counts(seed, phase_range, (32,) * 3, peak=1e6)
        truths.append(quality.twin(density) if twin else density)
        magnitudes.append(np.sqrt(counts))
    truth = torch.from_numpy(np.stack(truths))
    truth = truth / truth.abs().amax((1, 2, 3), keepdim=True)
    magnitude = to_corner(torch.from_numpy(np.stack(magnitudes)))
    return Batch(magnitude, torch.ones(magnitude.shape, dtype=torch.bool), truth)


class Answering(torch.nn.Module):
    """Gives the same answer to everything."""

    def __init__(self, density):
        super().__init__()
        self.density = density

    def forward(self, magnitude):
        return self.density.abs(), self.density.angle()


def test_it_has_as_many_parameters_as_the_published_one(network):
    assert sum(p.numel() for p in network.parameters()) == 3_459_938


def test_amplitude_and_phase_come_in_the_box_of_the_magnitudes(network):
    amplitude, phase = network(torch.rand(2, 32, 32, 32))
    assert amplitude.shape == phase.shape == (2, 32, 32, 32)
    assert ((amplitude >= 0) & (amplitude <= 1)).all()
    assert (phase.abs() <= torch.pi).all()


def test_its_last_layers_are_awake_when_training_begins(network):
    loss, _ = paper_objective(network, batch_of(), torch.Generator())
    loss.backward()
    for decoder in (network.amplitude, network.phase):
        assert decoder[-1].weight.grad.abs().sum() > 0


def test_the_truth_in_any_disguise_costs_no_more_than_noise():
    batch = batch_of()
    disguised = torch.exp(torch.tensor(1.2j)) * batch_of(twin=True).truth.roll((2, -3, 1), (1, 2, 3))
    for answer in (batch.truth, disguised):
        _, scores = paper_objective(Answering(answer), batch, torch.Generator())
        assert scores["correlation"] == pytest.approx(1, abs=1e-4)
        assert 0 < scores["chi2"] < 0.01


def test_what_is_not_measured_costs_nothing():
    batch = batch_of()
    measured = batch.measured.clone()
    measured[:, 3:6] = False
    blind = Batch(batch.magnitude * measured, measured, batch.truth)
    _, scores = paper_objective(Answering(batch.truth), blind, torch.Generator())
    assert scores["chi2"] < 0.01


def test_it_learns(network):
    batch = batch_of(seeds=(1,))
    optimiser = torch.optim.Adam(network.parameters(), 3e-4)
    losses = []
    for _ in range(6):
        optimiser.zero_grad()
        loss, _ = paper_objective(network, batch, torch.Generator())
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("shape", [(64, 64, 64), (32, 40, 28)])
def test_a_start_is_what_the_network_says_on_any_grid(shape):
    density, counts = crystal_and_counts(3, 1.0, shape, peak=1e6)
    window = windowed(to_corner(propagate(torch.from_numpy(density))), (32,) * 3)
    coarse = to_centre(torch.fft.ifftn(window, norm="ortho"))
    measurement = Measurement(to_corner(torch.from_numpy(np.sqrt(counts))))
    objects = paper_start(Answering(coarse[None]))(measurement, 2, torch.Generator())
    assert objects.density.shape == objects.support.shape == (2, *shape)
    assert objects.density.dtype == torch.complex64
    found = to_centre(objects.density[1]).numpy()
    assert quality.correlation(found, density) > 0.97
    # In the scale of the counts.
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(density), rel=0.05)


def test_a_start_sees_gaps_filled_and_leaves_the_network_as_it_was():
    network = Listening()
    counts = torch.rand(48, 48, 48)
    fitted = torch.rand(48, 48, 48) > 0.1
    network.train()
    paper_start(network)(Measurement(counts.sqrt() * fitted, fitted, filled=counts), 1, torch.Generator())
    expected = normalised(to_centre(windowed(counts, (32,) * 3)).sqrt())
    torch.testing.assert_close(network.heard[0], expected)
    assert network.training


class Listening(torch.nn.Module):
    """Remembers what it was asked."""

    def forward(self, magnitude):
        self.heard = magnitude
        return torch.ones_like(magnitude), torch.zeros_like(magnitude)
