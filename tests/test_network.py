import pytest
import torch
from crystals import crystal_density, far_field

from bluesky_cdinn.forward import AXES, to_corner
from bluesky_cdinn.network import CDINN, NetworkConfig, build, centre_box, into_box, standardised

SMALL = NetworkConfig(widths=(8, 16, 16), depths=(1, 1, 1), heads=2)


@pytest.fixture(scope="module")
def network() -> CDINN:
    """A network whose every part takes part: those that start at zero are given something to say."""
    torch.manual_seed(0)
    network = CDINN(SMALL)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return network.eval()


def look(shape=(32, 32, 32), seeds=(1, 2)):
    objects = torch.stack([torch.from_numpy(crystal_density(seed, 3.0, shape)) for seed in seeds])
    magnitude = 1000 * to_corner(torch.from_numpy(abs(far_field(objects.numpy()))).float())
    density = to_corner(objects).to(torch.complex64)
    return magnitude, torch.ones_like(magnitude, dtype=torch.bool), density, (density.abs() > 0.2).float()


def assert_alike(first, second):
    """Compare as wholes: where a direction is all but zero, rounding turns it."""
    assert (first - second).norm() < 1e-3 * second.norm()


@pytest.mark.parametrize("shape", [(32, 32, 32), (32, 40, 24), (48, 48, 48)])
def test_a_guess_has_the_shape_of_the_measurement_and_lies_in_the_central_half(network, shape):
    with torch.no_grad():
        guess = network(*look(shape))
    assert guess.shape == (2, *shape)
    assert guess.dtype == torch.complex64
    outside = guess - into_box(centre_box(guess), guess.shape)
    assert not outside.any()
    assert guess.any()


def test_neither_scale_nor_global_phase_of_the_state_matter(network):
    magnitude, measured, density, support = look()
    with torch.no_grad():
        guess = network(magnitude, measured, density, support)
        turned = network(magnitude, measured, density * 17 * torch.exp(torch.tensor(1.3j)), support)
    assert_alike(guess, turned)


def test_each_crystal_of_a_batch_is_seen_by_itself(network):
    arguments = look()
    with torch.no_grad():
        together = network(*arguments)
        alone = network(*(values[1:] for values in arguments))
    assert_alike(together[1:], alone)


def test_what_was_not_measured_is_not_looked_at(network):
    magnitude, measured, density, support = look()
    measured[:, 5:8] = False
    other = torch.where(measured, magnitude, 1e5)
    with torch.no_grad():
        assert torch.allclose(
            network(magnitude * measured, measured, density, support),
            network(other * measured, measured, density, support),
        )


def test_every_weight_learns():
    network = build(SMALL)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    guess = network(*look())
    guess.abs().square().sum().add(guess.real.sum()).backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


def test_an_untrained_network_keeps_the_phase_that_it_is_shown():
    torch.manual_seed(0)
    network = build(SMALL)
    magnitude, measured, density, support = look()
    with torch.no_grad():
        guess = network(magnitude, measured, density, support)
    inside = support > 0
    product = (guess * density.conj())[inside]
    likeness = product.abs().sum() / (guess[inside].abs() * density[inside].abs()).sum()
    assert likeness == pytest.approx(1, abs=1e-5)
    assert product.sum().abs() / product.abs().sum() > 0.7


def test_the_central_half_can_be_cut_out_and_put_back():
    values = torch.randn(2, 12, 16, 20)
    box = centre_box(values)
    assert box.shape == (2, 6, 8, 10)
    assert torch.equal(box[:, 3, 4, 5], values[:, 0, 0, 0])
    again = into_box(box, values.shape)
    assert torch.equal(centre_box(again), box)
    assert again.count_nonzero() == box.count_nonzero()


def test_feedback_that_grew_is_bounded():
    _, _, density, support = look()
    wild = density + 50 * (1 - support) * density.abs().amax(AXES, keepdim=True)
    assert standardised(wild, support).abs().max() <= 2.001
