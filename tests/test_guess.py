import numpy as np
import pytest
import torch
from crystals import crystal_density

from bluesky_cdinn import quality
from bluesky_cdinn.forward import AXES, to_centre, to_corner
from bluesky_cdinn.guess import as_objects, continued, guessed_support, half_phased, recentred, scale_to
from bluesky_cdinn.refine import Measurement, Objects

SHAPE = (24, 32, 24)


@pytest.fixture(scope="module")
def truth() -> torch.Tensor:
    """A crystal with its origin at index 0, in counts."""
    return 50 * to_corner(torch.from_numpy(crystal_density(1, 2.0, SHAPE)))[None]


@pytest.fixture(scope="module")
def measurement(truth: torch.Tensor) -> Measurement:
    return Measurement(torch.fft.fftn(truth[0], norm="ortho").abs())


def test_a_guess_is_brought_to_the_scale_of_what_was_measured(truth: torch.Tensor, measurement: Measurement):
    assert scale_to(truth / 50, measurement).item() == pytest.approx(50, rel=1e-4)
    objects = as_objects(truth / 3, measurement)
    kept = (truth * objects.support).abs().sum() / truth.abs().sum()
    assert kept > 0.99
    assert torch.allclose(objects.density, truth * objects.support, atol=1e-2)


def test_only_what_was_measured_sets_the_scale(truth: torch.Tensor, measurement: Measurement):
    fitted = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) > 0.3
    partial = Measurement(measurement.magnitude * 1, fitted)
    partial.magnitude[~fitted] = 1e6
    assert scale_to(truth, Measurement(partial.magnitude, fitted)).item() == pytest.approx(1, rel=1e-4)


def test_the_support_of_a_guess_has_a_margin_and_does_not_depend_on_its_scale(truth: torch.Tensor):
    support = guessed_support(truth)
    inside = truth.abs() > 0.5 * truth.abs().max()
    assert (support[inside] == 1).all()
    assert 1 < support.sum() / inside.sum() < 3
    assert torch.equal(support, guessed_support(7 * truth))


@pytest.mark.parametrize("shift", [(0, 0, 0), (3, -5, 2), (-11, 15, 11)])
def test_recentring_undoes_any_shift(truth: torch.Tensor, shift: tuple[int, int, int]):
    support = (truth.abs() > 1).float()
    centred = recentred(Objects(truth, support, torch.zeros(1)))
    moved = recentred(Objects(truth.roll(shift, AXES), support.roll(shift, AXES), torch.zeros(1)))
    assert torch.equal(moved.density, centred.density)
    assert torch.equal(moved.support, centred.support)


def test_a_batch_is_phased_as_its_members_are_each_by_itself(measurement: Measurement):
    generator = torch.Generator().manual_seed(3)
    density = torch.randn((2, *SHAPE), generator=generator, dtype=torch.complex64)
    support = torch.rand((2, *SHAPE), generator=generator).gt(0.5).float()
    magnitude = torch.stack([measurement.magnitude, measurement.magnitude.flip(-1)])
    room = (900, 500)
    together = half_phased(Objects.start(density, support), Measurement(magnitude), 50, room)
    for i in range(2):
        alone = half_phased(
            Objects.start(density[i : i + 1], support[i : i + 1]),
            Measurement(magnitude[i]),
            50,
            room[i : i + 1],
        )
        assert torch.allclose(alone.density[0], together.density[i], atol=1e-2)
        assert alone.support.sum() <= room[i]


def test_iterations_bring_a_rough_guess_closer(truth: torch.Tensor, measurement: Measurement):
    generator = torch.Generator().manual_seed(1)
    noise = torch.exp(0.5j * torch.randn(truth.shape, generator=generator))
    rough = truth * noise
    better = continued(rough, measurement, 40)
    true = to_centre(truth[0]).numpy()

    def likeness(density: torch.Tensor) -> float:
        return quality.correlation(to_centre(density).numpy().astype(np.complex64), true)

    assert likeness(better.density[0] * better.support[0]) > max(0.97, likeness(rough[0]) + 0.02)
