import numpy as np
import pytest
import torch

from bluesky_cdinn.sim.polyhedron import Polyhedron
from bluesky_cdinn.training.procedural import Bodies, Draw, Recipe, fine_side, procedural_crystals

WHOLE = Recipe(dislocation=0, domain=0, void=0)


def drawn(count=12, side=32, seed=0, recipe=WHOLE):
    return procedural_crystals(count, side, torch.Generator().manual_seed(seed), recipe)


def inside_of(density):
    return density.abs().numpy() > 0.5


def test_the_same_seed_gives_the_same_crystals():
    once, again, other = (drawn(2, seed=seed).density for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


@pytest.mark.parametrize("side", [32, 48])
def test_crystals_fill_their_share_of_the_box_and_are_whole_inside(side):
    crystals = drawn(side=side)
    assert crystals.density.shape == (12, *[fine_side(side)] * 3)
    assert crystals.density.abs().max() <= 1 + 1e-6
    for density, oversampling in zip(crystals.density, crystals.oversampling, strict=True):
        inside = inside_of(density)
        places = np.argwhere(inside)
        extent = np.ptp(places, axis=0) + 1
        assert fine_side(side) / extent.max() == pytest.approx(float(oversampling), rel=0.12)
        assert density.abs().numpy()[inside].mean() > 0.9
        np.testing.assert_allclose(places.mean(axis=0), fine_side(side) // 2, atol=1.0)


def test_the_phase_has_its_range_and_neither_offset_nor_ramp():
    crystals = drawn(20, recipe=Recipe((0.5, 2.5), dislocation=0, domain=0, void=0))
    for density, wanted in zip(crystals.density, crystals.phase_range_rad, strict=True):
        inside = inside_of(density)
        phase = np.angle(density.numpy()[inside])
        assert np.ptp(phase) == pytest.approx(float(wanted), rel=0.02)
        places = np.argwhere(inside) - np.argwhere(inside).mean(axis=0)
        design = np.column_stack([np.ones(len(places)), places / np.abs(places).max()])
        np.testing.assert_allclose(np.linalg.lstsq(design, phase, rcond=None)[0], 0, atol=0.02)


def test_a_dislocation_winds_once_and_a_void_is_a_hole():
    plain = drawn(6, seed=3)
    wound = drawn(6, seed=3, recipe=Recipe(WHOLE.phase_range_rad, dislocation=1, domain=0, void=0))
    holed = drawn(6, seed=3, recipe=Recipe(WHOLE.phase_range_rad, dislocation=0, domain=0, void=1))
    torch.testing.assert_close(plain.density.abs(), wound.density.abs())
    for before, after in zip(plain.density, wound.density, strict=True):
        inside = inside_of(before)
        turn = np.angle((after * before.conj()).numpy()[inside])
        # A full turn visits all angles.
        assert len(np.unique(np.floor(turn / 0.8))) >= 7
    lost = 1 - inside_of(holed.density).sum((1, 2, 3)) / inside_of(plain.density).sum((1, 2, 3))
    assert ((lost > 0.003) & (lost < 0.3)).all()


def test_bodies_are_the_polyhedra_they_say():
    bodies = Bodies.random(Draw(5, torch.Generator().manual_seed(7)))
    points = torch.rand(5, 400, 3) * 3 - 1.5
    depth = bodies.depths(points).amin(-1).numpy()
    for i in range(5):
        solid = Polyhedron(bodies.normals[i].double().numpy(), bodies.distances[i].double().numpy())
        covered = solid.coverage(points[i].double().numpy()) > 0
        np.testing.assert_array_equal(covered, depth[i] >= 0)
        corners = solid.vertices()
        np.testing.assert_allclose(bodies.extent[i], np.ptp(corners, axis=0), rtol=0.2)
        np.testing.assert_allclose(bodies.centre[i], solid.centroid(), atol=0.06)
        np.testing.assert_allclose(np.linalg.norm(bodies.normals[i], axis=1), 1, rtol=1e-5)


def test_rotations_rotate():
    rotations = Draw(50, torch.Generator().manual_seed(0)).rotations()
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3).expand(50, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(50))
    # Uniform ones have no preferred direction.
    assert rotations.mean(0).abs().max() < 0.3
