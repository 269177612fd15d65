import pytest
import torch

from bluesky_cdinn.support_box import SupportBox, span

SHAPE = (6, 7, 9)


@pytest.mark.parametrize("seed", range(20))
def test_span_is_the_shortest_periodic_run(seed):
    generator = torch.Generator().manual_seed(seed)
    n = 5 + seed
    occupied = torch.rand(n, generator=generator) < 0.25
    occupied[seed % n] = True
    first, length = span(occupied)
    assert occupied.roll(-first)[:length].sum() == occupied.sum()
    shorter = [int(occupied.roll(-start)[: length - 1].sum()) for start in range(n)]
    assert max(shorter) < occupied.sum()


def test_span_of_all_and_of_none():
    assert span(torch.ones(7, dtype=torch.bool)) == (0, 7)
    assert span(torch.zeros(7, dtype=torch.bool)) == (0, 1)


def two_supports(place):
    support = torch.zeros(2, *SHAPE)
    support[0, 1:3, 2:5, 3:4] = 1
    support[1, 2:4, 2:4, 3:6] = 1
    return support.roll(place, (1, 2, 3))


@pytest.mark.parametrize("place", [(0, 0, 0), (4, 0, -4), (-2, -3, 5)])
def test_box_holds_all_supports_wherever_they_lie(place):
    support = two_supports(place)
    grid = torch.randn(2, *SHAPE, dtype=torch.complex64)
    box = SupportBox.of(support)
    inside = box.cut(grid)
    expected = grid.roll([-s for s in place], (1, 2, 3))[:, 1:4, 2:5, 3:6]
    assert torch.equal(inside, expected)
    assert box.cut(support).sum() == support.sum()


def test_pasting_undoes_cutting_and_leaves_the_rest():
    support = two_supports((-2, -3, 5))
    grid = torch.randn(2, *SHAPE, dtype=torch.complex64)
    box = SupportBox.of(support)
    other = torch.zeros_like(grid)
    box.paste(box.cut(grid), other)
    held = torch.zeros(2, *SHAPE)
    box.paste(torch.ones(2, 3, 3, 3), held)
    assert torch.equal(other, grid * held)
    assert held.sum() == 2 * 27


def test_box_serves_any_of_the_starts():
    box = SupportBox.of(two_supports((0, 0, 0)))
    grid = torch.randn(2, *SHAPE)
    second = grid[1:]
    assert torch.equal(box.cut(second), box.cut(grid)[1:])
    box.paste(torch.zeros(1, 3, 3, 3), second)
    assert (grid[1, 1:4, 2:5, 3:6] == 0).all()
    assert (grid[0] != 0).all()


def test_box_of_an_empty_support_is_a_voxel():
    assert SupportBox.of(torch.zeros(3, *SHAPE)).places.shape == (3, 1, 1, 1)
