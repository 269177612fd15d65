import numpy as np
import pytest
import torch
from crystals import crystal_and_counts, crystal_density, far_field

from bluesky_cdinn import quality
from bluesky_cdinn.forward import AXES, to_centre, to_corner
from bluesky_cdinn.grid import window_on_grid
from bluesky_cdinn.refine import Measurement, Objects
from bluesky_cdinn.windows import measurement_window, objects_on, windowed


def crystals_field(density):
    """Return the far field of a crystal from its means over voxels, in plain NumPy."""
    factors = [np.sinc((np.arange(n) - n // 2) / n) for n in density.shape]
    return far_field(density) / (factors[0][:, None, None] * factors[1][:, None] * factors[2])


@pytest.mark.parametrize("shape", [(8, 8, 8), (16, 20, 12), (30, 6, 13)])
def test_a_window_keeps_what_both_grids_have_about_the_origin(shape):
    values = torch.randn(2, 12, 15, 13)
    window = windowed(values, shape)
    assert window.shape == (2, *shape)
    assert torch.equal(window[:, 0, 0, 0], values[:, 0, 0, 0])
    reach = [min(n, m) // 2 for n, m in zip(shape, (12, 15, 13), strict=True)]
    for index in np.ndindex(3, 3, 3):
        place = tuple(i - 1 for i in index)
        assert all(r > 1 for r in reach)
        assert torch.equal(window[(slice(None), *place)], values[(slice(None), *place)])
    assert window.abs().sum() <= values.abs().sum() + 1e-3


def test_the_same_window_is_the_same_array():
    values = torch.randn(4, 5, 6)
    assert windowed(values, (4, 5, 6)) is values
    measurement = Measurement(values.abs())
    assert measurement_window(measurement, (4, 5, 6)) is measurement


def test_beyond_what_was_measured_nothing_is_known():
    magnitude = torch.rand(8, 8, 8) + 1
    larger = measurement_window(Measurement(magnitude), (8, 12, 8))
    assert larger.fitted is not None
    assert larger.fitted.sum() == magnitude.numel()
    assert (larger.magnitude[~larger.fitted] == 0).all()
    assert larger.power == pytest.approx(float(magnitude.square().sum()))
    smaller = measurement_window(Measurement(magnitude), (6, 8, 6))
    assert smaller.fitted is None


def test_every_array_of_a_measurement_is_cut_alike():
    magnitude = torch.rand(8, 8, 8)
    fitted = torch.rand(8, 8, 8) > 0.3
    full = Measurement(magnitude, fitted, ~fitted, magnitude.square())
    part = measurement_window(full, (6, 6, 4))
    assert part.fitted is not None
    assert part.held_out is not None
    assert part.filled is not None
    assert torch.equal(part.held_out, ~part.fitted)
    assert torch.equal(part.filled, part.magnitude.square())


def test_an_object_seen_finer_and_coarser_again_is_as_it_was():
    density = to_corner(torch.from_numpy(crystal_density(3, 2.0, (16, 16, 20))))[None]
    objects = Objects(density, (density.abs() > 0).float(), torch.tensor([0.25]))
    finer = objects_on(objects, (24, 32, 20))
    assert finer.chi2 == objects.chi2
    again = objects_on(finer, (16, 16, 20))
    # Lengths that are doubled or whole keep all; the field's outermost plane may lie half outside else.
    torch.testing.assert_close(again.density, density, atol=1e-5, rtol=0)


def test_a_coarser_object_is_the_low_frequencies_of_the_finer():
    density = crystal_density(3, 2.0, (24, 24, 24))
    corner = to_corner(torch.from_numpy(density))[None]
    coarse = objects_on(Objects(corner, torch.ones_like(corner.real), torch.zeros(1)), (16, 16, 16))
    expected = crystals_field(density)[4:20, 4:20, 4:20]
    found = crystals_field(to_centre(coarse.density)[0].numpy())
    np.testing.assert_allclose(found, expected, atol=1e-4 * abs(expected).max())


def test_the_support_follows_the_object():
    density = to_corner(torch.from_numpy(crystal_density(5, 1.0, (24, 24, 24))))[None]
    objects = Objects(density, torch.ones_like(density.real), torch.zeros(1))
    finer = objects_on(objects, (48, 48, 48))
    share = finer.support.sum(AXES) / (48**3)
    assert share == pytest.approx(float((density.abs() > 0.3).float().mean()), rel=0.7)
    assert share < 0.3


@pytest.mark.parametrize(("coarse", "fine"), [((16, 16, 16), (32, 32, 32)), ((18, 16, 20), (31, 45, 20))])
def test_resampling_keeps_the_field_and_adds_nothing(coarse, fine):
    density, _ = crystal_and_counts(1, 2.0, coarse)
    corner = to_corner(torch.from_numpy(density))[None]
    objects = Objects(corner, torch.ones_like(corner.real), torch.tensor([0.5]))
    finer = objects_on(objects, fine)
    assert finer.density.shape == finer.support.shape == (1, *fine)
    field, expected = crystals_field(to_centre(finer.density[0]).numpy()), crystals_field(density)
    window = window_on_grid(fine, coarse)
    np.testing.assert_allclose(field[window], expected, atol=1e-3 * abs(field).max())
    field[window] = 0
    assert abs(field).max() < 1e-4 * abs(expected).max()
    assert finer.chi2 == objects.chi2
    finer.chi2[0] = 0
    assert objects.chi2 == 0.5


def test_resampled_support_is_the_same_crystal_seen_finer():
    density, _ = crystal_and_counts(1, 1.0, (24, 24, 24), oversampling=2)
    corner = to_corner(torch.from_numpy(density))[None]
    finer = objects_on(Objects(corner, (corner.abs() > 0).float(), torch.zeros(1)), (48, 48, 48))
    size = np.count_nonzero(quality.half_level_support(density))
    assert 4 < float(finer.support.sum()) / size < 16
