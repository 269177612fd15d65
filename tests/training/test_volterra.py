from itertools import product

import numpy as np
import pytest

from bluesky_cdinn.training.volterra import Dislocation, random_dislocation

CELL, POISSON = 0.408, 0.42


@pytest.fixture(params=[True, False], ids=["edge", "screw"])
def line(request: pytest.FixtureRequest) -> Dislocation:
    rng = np.random.default_rng(3)
    return random_dislocation(rng, request.param, CELL, np.array([0.1, 0.0, 0.2]), 3.0, POISSON)


def burgers(line: Dislocation) -> np.ndarray:
    return line.burgers_nm * line.frame[0 if line.edge else 2]


def test_burgers_vector_joins_two_lattice_sites(line):
    halves = burgers(line) / (CELL / 2)
    np.testing.assert_allclose(np.sort(np.abs(halves)), [0, 1, 1], atol=1e-12)


def test_glide_plane_is_a_111_plane_that_holds_line_and_burgers_vector(line):
    np.testing.assert_allclose(np.abs(line.frame[1]), 1 / np.sqrt(3), atol=1e-12)
    np.testing.assert_allclose(line.frame @ line.frame.T, np.eye(3), atol=1e-12)
    assert burgers(line) @ line.frame[1] == pytest.approx(0, abs=1e-12)


def test_line_runs_midway_between_two_layers_of_atoms(line):
    layer = (line.point_nm - [0.1, 0.0, 0.2]) @ line.frame[1] / (CELL / np.sqrt(3))
    assert layer % 1 == pytest.approx(0.5)


def test_circuit_round_the_line_closes_but_for_the_burgers_vector(line):
    # From just above the cut, theta = pi, counterclockwise to just below it.
    angles = np.linspace(-np.pi + 1e-9, np.pi - 1e-9, 50)
    circle = np.stack([np.cos(angles), np.sin(angles), np.zeros_like(angles)], axis=-1) @ line.frame
    moved = line.displacement(line.point_nm + circle)
    np.testing.assert_allclose(moved[-1] - moved[0], burgers(line), atol=1e-8)


def test_field_is_in_elastic_equilibrium(line):
    """Navier's equation without forces: (1 - 2 nu) laplace(u) + grad(div u) = 0."""
    step, place = 1e-3 * np.eye(3), line.point_nm + np.array([0.7, 0.9, 0.1]) @ line.frame
    second = np.empty((3, 3, 3))
    for i, j in product(range(3), repeat=2):
        ends = [
            a * b * line.displacement(place + a * step[i] + b * step[j]) for a in (1, -1) for b in (1, -1)
        ]
        second[i, j] = sum(ends) / 4e-6
    laplace, grad_div = np.einsum("iik->k", second), np.einsum("ijj->i", second)
    scale = np.abs(second).max()
    assert np.abs((1 - 2 * POISSON) * laplace + grad_div).max() < 1e-4 * scale


def test_field_is_the_same_at_every_size(line):
    """Its angles don't change with size, and an edge's logarithm only moves the whole crystal."""
    rng = np.random.default_rng(0)
    away = rng.normal(loc=1.0, size=(20, 3))
    near, far = (line.displacement(line.point_nm + k * away) for k in (1, 10))
    change = far - near
    np.testing.assert_allclose(change, np.broadcast_to(change[0], change.shape), atol=1e-12)
