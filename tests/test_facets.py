from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.facets import facet_table, facets, facets_of_table, find_facets
from bluesky_cdinn.lattice_orientation import name_families
from bluesky_cdinn.records import Reconstruction
from bluesky_cdinn.sim.crystal import Crystal, SmoothField, sample
from bluesky_cdinn.sim.polyhedron import Polyhedron, family

SHEARED = np.array([[-9.0, 0.5, -3.8], [-2.0, 10.0, -0.2], [-4.8, 0.0, 9.2]])
SHAPE = (64, 60, 64)
Q = 26.7 * np.array([0.48, 0.6, 0.64])


def _body(seed=2):
    """A truncated octahedron of 300 nm whose [111] lies along Q, and each face's family."""
    rng = np.random.default_rng(seed)
    families = [(1, 1, 1)] * 8 + [(1, 0, 0)] * 6
    normals = np.concatenate([family((1, 1, 1)), family((1, 0, 0))])
    first = Rotation.align_vectors((Q / np.linalg.norm(Q))[None], np.ones((1, 3)))[0]
    turn = Rotation.from_rotvec(rng.uniform(0, 6) * Q / np.linalg.norm(Q)) * first
    reach = np.where(np.arange(14) < 8, 130.0, 145.0) * rng.uniform(0.96, 1.04, 14)
    body = Polyhedron(turn.apply(normals), reach)
    return body.moved(-body.centroid()), families


@pytest.fixture(scope="module")
def crystal():
    return _body()


@pytest.fixture(scope="module")
def result(crystal):
    still = SmoothField(100.0, np.zeros(20), np.zeros((0, 3)), np.zeros(0), np.zeros(0))
    density = sample(Crystal(crystal[0], still), SHEARED, SHAPE)
    support = np.abs(density) > 0.5
    points = np.stack(np.meshgrid(*(np.arange(n) - n // 2 for n in SHAPE), indexing="ij"), -1) @ SHEARED.T
    return Reconstruction(
        density=density,
        support=support,
        direct_basis=SHEARED,
        q_vector=Q,
        strain=np.where(support, 1e-5 * points[..., 0], np.nan).astype(np.float32),
        displacement=np.where(support, 1e-3 * points[..., 1], np.nan).astype(np.float32),
        parameters={"reflection": [1, 1, 1], "lattice_nm": 0.408},
    )


@pytest.fixture(scope="module")
def found(result):
    return facets(result)


def _partner(facet, body):
    cosines = body.normals @ np.array(facet.normal)
    return int(cosines.argmax()), float(np.degrees(np.arccos(min(1.0, cosines.max()))))


def test_every_face_is_found_once_with_its_normal_area_and_place(found, crystal):
    body, _ = crystal
    partners, angles = zip(*(_partner(facet, body) for facet in found), strict=True)
    assert sorted(partners) == list(range(14))
    assert np.median(angles) < 0.6
    assert max(angles) < 2.5
    for facet, partner in zip(found, partners, strict=True):
        assert facet.distance_nm == pytest.approx(body.distances[partner], abs=4.0)
    assert [facet.area_nm2 for facet in found] == sorted((f.area_nm2 for f in found), reverse=True)


def test_faces_are_named_by_the_reflection_and_by_nothing_else(found, crystal, result):
    body, families = crystal
    for facet in found:
        assert facet.family == families[_partner(facet, body)[0]]
    unknown = facets(replace(result, parameters={}))
    assert {facet.family for facet in unknown} == {(0, 0, 0)}


def test_what_lies_on_a_facet_is_averaged_there(found):
    for facet in found:
        # Of a map that is linear in x, a face's mean is that at its middle, which its plane bounds.
        assert abs(facet.strain_mean) <= 1e-5 * 160.0
        assert facet.voxels > 10
        assert facet.strain_sd > 0
    right = max(found, key=lambda facet: facet.normal[0])
    left = min(found, key=lambda facet: facet.normal[0])
    assert right.strain_mean > 5e-4 > -5e-4 > left.strain_mean
    top = max(found, key=lambda facet: facet.normal[1])
    assert top.displacement_mean_nm > 0.05


def test_a_table_gives_its_facets_back(found):
    assert facets_of_table(facet_table(found)) == found
    assert facet_table(()) is None
    assert facets_of_table(None) == ()


def test_families_go_by_angles_to_q_and_to_one_another():
    body, families = _body(5)
    named = name_families(body.normals, np.ones(14), Q, (1, 1, 1))
    assert named == families
    # A direction far from any low-index plane has no name.
    odd = np.vstack([body.normals, body.normals[:3].sum(axis=0) + 0.8 * body.normals[8]])
    odd[-1] /= np.linalg.norm(odd[-1])
    assert name_families(odd, np.append(np.ones(14), 0.01), Q, (1, 1, 1))[:14] == families


def test_a_ball_is_no_polyhedron(result):
    points = np.stack(np.meshgrid(*(np.arange(n) - n // 2 for n in SHAPE), indexing="ij"), -1) @ SHEARED.T
    density = (np.linalg.norm(points, axis=-1) < 130).astype(np.complex64)
    ball = replace(result, density=density, support=density != 0, strain=None, displacement=None)
    area = sum(facet.area_nm2 for facet in facets(ball))
    # What it finds, if anything, is small: nothing on a ball stands out.
    assert max((facet.area_nm2 for facet in facets(ball)), default=0) < 0.15 * 4 * np.pi * 130**2
    assert area <= 4 * np.pi * 132**2


def test_voxel_units_and_nothing_are_refused(result):
    with pytest.raises(InvalidInput, match="physical units"):
        facets(replace(result, direct_basis=None))
    with pytest.raises(InvalidInput, match="no voxel"):
        facets(replace(result, support=np.zeros(SHAPE, dtype=bool)))


@pytest.mark.parametrize("long", [1.0, 20.0])
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 1, 3), (1, 12, 12), (2, 2, 2)])
def test_a_crystal_of_a_few_voxels_has_no_facets_and_is_no_error(size, long):
    support = np.zeros((24, 20, 22), dtype=bool)
    support[tuple(slice(8, 8 + n) for n in size)] = True
    density = 100 * support.astype(np.complex64)
    assert find_facets(density, support, np.diag([3.0, 3.0, 3.0 * long]), Q) == ()
