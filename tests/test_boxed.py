"""Objects cut out of their grids, and whole again."""

import pytest
import torch

from bluesky_cdinn.boxed import Boxed
from bluesky_cdinn.refine import Objects


@pytest.fixture
def objects():
    """Return two objects, across the grid's edge."""
    support = torch.zeros(2, 24, 20, 22)
    support[:, :4, 2:8, -3:] = support[:, -3:, 2:8, -3:] = 1
    density = support * torch.randn(support.shape, generator=torch.Generator().manual_seed(1)).to(
        torch.complex64
    )
    return Objects(density, support, torch.tensor([0.5, 0.25]))


@pytest.mark.parametrize("number", [0, 1])
def test_boxed_objects_are_whole_again(objects, number):
    boxed = Boxed.of(objects)
    assert boxed.density[0].numel() < objects.density[0].numel() / 4
    whole = boxed.whole(number, 2.0)
    torch.testing.assert_close(whole.density[0], 2 * objects.density[number])
    torch.testing.assert_close(whole.support[0], objects.support[number])
    assert whole.chi2 == objects.chi2[number]


def test_all_are_whole_at_once_and_apart_from_what_is_kept(objects):
    boxed = Boxed.of(objects)
    whole = boxed.all_whole()
    for name in ("density", "support", "chi2"):
        torch.testing.assert_close(getattr(whole, name), getattr(objects, name))
    whole.density.zero_()
    whole.chi2.zero_()
    torch.testing.assert_close(boxed.all_whole().density, objects.density)
    torch.testing.assert_close(boxed.all_whole().chi2, objects.chi2)
