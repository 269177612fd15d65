import numpy as np
import pytest
from scipy import ndimage

from bluesky_cdinn.dislocations import dislocation_lines
from bluesky_cdinn.strain import strain_along, strain_field
from bluesky_cdinn.unwrapping import branch_cut, unwrapped_phase

SHAPE = (32, 30, 28)
Q = np.array([0.0, 0.0, 20.0])
VOXEL = 5.0 * np.eye(3)


def _places():
    return np.meshgrid(*(np.arange(n) - n // 2 for n in SHAPE), indexing="ij")


def _ball(radius=10.0):
    return sum(x**2 for x in _places()) < radius**2


def _screw(core=0.0):
    """A screw along the third axis, which is Q's: u_Q = b theta / 2 pi; its tunnel is not in the support."""
    x, y, _ = _places()
    x, y = x + 0.5, y + 0.5
    support = _ball() & (np.hypot(x, y) > core)
    return (support * np.exp(1j * np.arctan2(y, x))).astype(np.complex64), support, np.hypot(x, y)


@pytest.mark.parametrize("core", [0.0, 1.0, 2.0])
def test_a_screw_is_found_along_its_line_and_nowhere_else(core):
    density, support, radius = _screw(core)
    lines = dislocation_lines(density, support)
    assert lines.any(axis=(0, 1)).sum() >= support.any(axis=(0, 1)).sum() - 4
    assert radius[lines].max() < core + 2.5


def test_a_smooth_phase_has_none_however_often_it_wraps():
    x, y, z = _places()
    support = _ball()
    phase = 0.06 * x**2 + 0.04 * y * z + 0.5 * z
    density = (support * np.exp(1j * phase)).astype(np.complex64)
    assert np.ptp(phase[support]) > 4 * np.pi
    assert not dislocation_lines(density, support).any()
    assert not branch_cut(unwrapped_phase(density, support)).any()


def test_the_displacement_has_no_value_at_the_cut_and_the_strain_no_seam():
    density, support, radius = _screw(core=1.0)
    field = strain_field(density, support, VOXEL, Q)
    assert field.scalars["dislocation_voxels"] > 10
    unknown = support & np.isnan(field.displacement)
    assert 0 < unknown.sum() < 0.2 * support.sum()
    # Whatever is known has no jump: it is the screw's own steepness, and half a turn nowhere.
    for axis in range(3):
        steps = np.abs(np.diff(field.displacement, axis=axis)) * 20.0
        assert np.nanmax(steps) < np.pi
    # A screw moves the lattice across its line's direction alone: nothing changes along it.
    strain = strain_along(density, support, VOXEL, Q)
    inner = ndimage.binary_erosion(support, np.ones((3, 3, 3)))
    assert np.nanmax(np.abs(strain[inner])) < 1e-6
    # Across it, the slope is 1 / radius, also where the displacement is cut.
    across = strain_along(density, support, VOXEL, np.array([20.0, 0.0, 0.0]))
    far = support & (radius > 5)
    assert np.nanmax(np.abs(across[far])) < 1.2 / (4 * 5.0) / 20.0


def test_a_line_at_the_arrays_edge_is_no_error():
    density = np.ones((4, 4, 4), dtype=np.complex64)
    assert not dislocation_lines(density, np.ones((4, 4, 4), dtype=bool)).any()
