import numpy as np
import pytest
import torch

from bluesky_cdinn import quality
from bluesky_cdinn.forward import AXES, to_centre, to_corner
from bluesky_cdinn.guess import chi2_of
from bluesky_cdinn.network import NetworkConfig, build
from bluesky_cdinn.refine import Measurement
from bluesky_cdinn.training.measuring import Conditions, measure
from bluesky_cdinn.training.objective import aligned, correlation, objective, squared_error
from bluesky_cdinn.training.procedural import Recipe, procedural_crystals

SIDE = 24


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    crystals = procedural_crystals(3, SIDE, generator, Recipe(phase_range_rad=(1, 4)))
    return measure(crystals, SIDE, generator, Conditions(gap=1.0))


def twin(density):
    return density.conj().flip(AXES).roll((1, 1, 1), AXES)


def shifted(density, shift):
    turns = [torch.fft.fftfreq(n) for n in density.shape[-3:]]
    ramp = sum(s * t for s, t in zip(shift, torch.meshgrid(*turns, indexing="ij"), strict=True))
    field = torch.fft.fftn(density, dim=AXES) * torch.exp(-2j * torch.pi * ramp)
    return torch.fft.ifftn(field, dim=AXES)


@pytest.mark.parametrize("change", ["phase", "twin", "shift", "part of a voxel", "all"])
def test_what_diffraction_cannot_tell_costs_nothing(batch, change):
    truth = to_corner(batch.truth)
    guess = {
        "phase": truth * torch.exp(torch.tensor(2.1j)),
        "twin": twin(truth),
        "shift": truth.roll((3, -2, 5), AXES),
        "part of a voxel": shifted(truth, (0.3, -0.45, 0.2)),
        "all": shifted(twin(truth), (2.4, -1.3, 0.7)) * torch.exp(torch.tensor(-0.8j)),
    }[change]
    error = squared_error(guess, aligned(truth, guess))
    assert error.max() < 1e-5


def test_a_guess_of_nothing_is_compared_like_any_other(batch):
    truth = to_corner(batch.truth)
    target = aligned(truth, torch.zeros_like(truth))
    assert target.isfinite().all()
    torch.testing.assert_close(squared_error(torch.zeros_like(truth), target), torch.ones(len(truth)))


def test_another_crystal_costs_much(batch):
    truth = to_corner(batch.truth)
    other = truth.roll(1, 0)
    assert (correlation(other, aligned(truth, other)) < 0.95).all()
    assert (squared_error(other, aligned(truth, other)) > 0.1).all()


def test_aligning_agrees_with_the_comparison_that_judges_results(batch):
    truth = to_corner(batch.truth)
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(truth.shape, generator=generator, dtype=torch.complex64)
    guess = twin(truth.roll((2, 1, 0), AXES)) + 0.1 * noise
    ours = correlation(guess, aligned(truth, guess))
    for one, true, expected in zip(to_centre(guess), to_centre(truth), ours, strict=True):
        judged = quality.correlation(one.numpy(), true.numpy())
        assert float(expected) == pytest.approx(judged, abs=2e-3)


def test_the_truth_fits_its_own_measurement(batch):
    measurement = Measurement(batch.magnitude, batch.measured)
    misfit = chi2_of(to_corner(batch.truth), measurement)
    assert (misfit < 0.05).all()
    assert torch.allclose(misfit, chi2_of(100 * to_corner(batch.truth), measurement), atol=1e-6)


def test_chi2_is_the_sum_over_what_was_measured(batch):
    guess = to_corner(batch.truth) + 0.05
    measurement = Measurement(batch.magnitude, batch.measured)
    size = np.abs(np.fft.fftn(guess[0].numpy(), norm="ortho"))[batch.measured[0]]
    magnitude = batch.magnitude[0][batch.measured[0]].numpy()
    scale = (size @ magnitude) / (size @ size)
    expected = ((scale * size - magnitude) ** 2).sum() / (magnitude**2).sum()
    assert float(chi2_of(guess, measurement)[0]) == pytest.approx(expected, rel=1e-3)


def test_the_loss_falls_and_repeats(batch):
    torch.manual_seed(0)
    network = build(NetworkConfig(widths=(8, 16, 16), depths=(1, 1, 1), heads=2))
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss, scores = objective(network, batch, torch.Generator().manual_seed(5))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]
    assert set(scores) == {"correlation_1", "chi2_1", "correlation_2", "chi2_2"}
    again, _ = objective(network, batch, torch.Generator().manual_seed(5))
    once_more, _ = objective(network, batch, torch.Generator().manual_seed(5))
    assert torch.equal(again, once_more)
