import numpy as np
import pytest
from scipy.spatial import ConvexHull

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.sim.polyhedron import (
    FCC_FAMILIES,
    Polyhedron,
    family,
    half_space_fraction,
    random_polyhedron,
)

CUBE = Polyhedron(family((1, 0, 0)), np.full(6, 10.0))
OBLIQUE = np.array([[2.0, 0.5, -1.0], [0.3, 3.0, 0.8], [-0.6, 0.2, 2.5]])


@pytest.mark.parametrize(("indices", "count"), list(zip(FCC_FAMILIES, (6, 12, 8, 24, 24, 24), strict=True)))
def test_families_have_their_multiplicity(indices, count):
    normals = family(indices)
    assert len(normals) == count
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1.0)
    np.testing.assert_allclose(normals.sum(axis=0), 0.0, atol=1e-12)


def test_a_cube_has_the_corners_of_a_cube():
    assert {tuple(np.abs(corner)) for corner in CUBE.vertices()} == {(10.0, 10.0, 10.0)}
    assert len(CUBE.vertices()) == 8
    assert CUBE.diameter() == pytest.approx(20 * np.sqrt(3))
    np.testing.assert_allclose(CUBE.moved(np.array([1.0, 2.0, 3.0])).centroid(), [1, 2, 3], atol=1e-9)


@pytest.mark.parametrize("depth", [-2.0, -0.7, 0.0, 0.4, 1.9, 9.0])
@pytest.mark.parametrize("normal", [(1.0, 0.0, 0.0), (0.6, 0.0, 0.8), (0.48, 0.64, -0.6)])
def test_half_space_fraction_is_the_part_of_random_points_below(depth, normal):
    points = np.random.default_rng(0).uniform(-0.5, 0.5, size=(200_000, 3)) @ OBLIQUE.T
    below = np.mean(points @ normal <= depth)
    fraction = half_space_fraction(np.array([depth]), np.array(normal) @ OBLIQUE)
    assert fraction[0] == pytest.approx(below, abs=4e-3)


def test_half_space_fraction_of_a_voxel_along_the_plane():
    # Two edges lie in the plane: the fraction rises linearly.
    depth = np.array([-0.6, -0.25, 0.0, 0.25, 0.6])
    fraction = half_space_fraction(depth, np.array([1.0, 0.0, 0.0]))
    np.testing.assert_allclose(fraction, [0, 0.25, 0.5, 0.75, 1], atol=6e-3)


def test_coverage_adds_up_to_the_volume():
    body = random_polyhedron(np.random.default_rng(3), 40.0)
    indices = np.stack(np.meshgrid(*[np.arange(-24, 25)] * 3, indexing="ij"), axis=-1)
    centres = indices @ OBLIQUE.T
    volume = ConvexHull(body.vertices()).volume
    for splits, tolerance in ((0, 0.04), (1, 0.01), (2, 0.0025)):
        covered = body.coverage(centres, OBLIQUE, splits=splits).sum() * np.linalg.det(OBLIQUE)
        assert covered == pytest.approx(volume, rel=tolerance)


def test_coverage_without_a_voxel_is_inside_or_outside():
    points = np.array([[0.0, 0, 0], [9.9, 0, 0], [10.1, 0, 0]])
    np.testing.assert_array_equal(CUBE.coverage(points), [1, 1, 0])


@pytest.mark.parametrize("seed", range(20))
def test_random_bodies_are_centred_and_as_large_as_asked(seed):
    body = random_polyhedron(np.random.default_rng(seed), 250.0)
    np.testing.assert_allclose(body.centroid(), 0.0, atol=1e-6)
    assert body.diameter() == pytest.approx(250.0)
    again = random_polyhedron(np.random.default_rng(seed), 250.0)
    np.testing.assert_array_equal(body.normals, again.normals)


def test_a_body_without_the_origin_has_no_corners():
    with pytest.raises(InvalidInput, match="must hold the origin"):
        CUBE.moved(np.array([20.0, 0, 0])).vertices()
