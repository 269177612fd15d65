"""Objects on oblique voxels come out in the lab as they are: shape, volume, phase, maps, in any frame."""

from dataclasses import replace

import finufft
import numpy as np
import pytest
from crystals import far_field
from scipy import ndimage

from bluesky_cdinn import quality
from bluesky_cdinn.crystal_frame import axes_along_q
from bluesky_cdinn.errors import InvalidInput, MissingMetadata
from bluesky_cdinn.lab_frame import LabObject, resampled, to_lab_frame
from bluesky_cdinn.records import Reconstruction
from bluesky_cdinn.sim.crystal import Crystal, random_crystal, sample

# As APS 34-ID-C gives them: the steps of the rocking axis are three times as long as the others, 14 deg off.
OBLIQUE = np.array([[-11.1, 12.4, 0.8], [-8.0, 0.3, -12.9], [-34.0, -3.8, 2.1]])
SHAPE = (36, 56, 60)
Q = np.array([14.0, 6.0, -8.0])


def positions(basis: np.ndarray, shape: tuple[int, ...], origin: np.ndarray | None = None) -> np.ndarray:
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return (indices - np.array(shape) // 2) @ basis.T if origin is None else indices @ basis.T + origin


def ball(radius: float = 200.0, phase_per_nm: tuple[float, float, float] = (0, 0, 0)) -> Reconstruction:
    points = positions(OBLIQUE, SHAPE)
    support = np.linalg.norm(points, axis=-1) < radius
    density = np.where(support, np.exp(1j * points @ np.array(phase_per_nm)), 0).astype(np.complex64)
    return Reconstruction(density=density, support=support, direct_basis=OBLIQUE, q_vector=Q)


def resolved(crystal: Crystal, finer: int = 2) -> np.ndarray:
    """Return a crystal as a measurement of this extent resolves it: its transform cut off."""
    fine = far_field(sample(crystal, OBLIQUE / finer, tuple(finer * n for n in SHAPE)))
    box = tuple(slice(finer * n // 2 - n // 2, finer * n // 2 - n // 2 + n) for n in SHAPE)
    axes = (0, 1, 2)
    back = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(fine[box], axes), norm="ortho"), axes)
    return (back / finer**1.5).astype(np.complex64)


def strained(seed: int = 1, phase_range: float = 6.0) -> tuple[Crystal, Reconstruction]:
    crystal = random_crystal(np.random.default_rng(seed), 500.0, phase_range)
    density = resolved(crystal)
    support = quality.half_level_support(density)
    return crystal, Reconstruction(density=density, support=support, direct_basis=OBLIQUE, q_vector=Q)


def phase_error(lab: LabObject, crystal: Crystal, where: np.ndarray) -> np.ndarray:
    points = positions(lab.basis, lab.support.shape, lab.origin_nm)[where]
    expected = crystal.phase(points) - points @ lab.ramp_per_nm
    left = lab.density[where] * np.exp(-1j * expected)
    return np.angle(left / left.mean())


def inner(support: np.ndarray, by: int = 3) -> np.ndarray:
    return ndimage.binary_erosion(support, iterations=by)


@pytest.mark.parametrize("axes", [None, axes_along_q(Q)])
def test_a_ball_on_oblique_voxels_is_a_ball_in_the_lab(axes: np.ndarray | None) -> None:
    lab = to_lab_frame(ball(200.0), axes=axes)
    points = positions(lab.basis, lab.support.shape, lab.origin_nm)
    extents = np.ptp(points[lab.support] @ lab.axes.T, axis=0) + lab.voxel_nm
    np.testing.assert_allclose(extents, 400.0, atol=35.0)  # an oblique voxel is 36 nm long
    moments = np.cov((points[lab.support] @ lab.axes.T).T)
    np.testing.assert_allclose(moments, 200.0**2 / 5 * np.eye(3), atol=0.03 * 200**2 / 5)
    np.testing.assert_allclose(points[lab.support].mean(axis=0), 0, atol=2.0)


@pytest.mark.parametrize("voxel_nm", [None, 7.0, 25.0])
def test_volume_is_conserved_and_the_whole_support_kept(voxel_nm: float | None) -> None:
    result = ball(200.0)
    moved = replace(result, density=np.roll(result.density, 9, 1), support=np.roll(result.support, 9, 1))
    lab = to_lab_frame(moved, voxel_nm)
    volume = lab.support.sum() * abs(np.linalg.det(lab.basis))
    assert volume == pytest.approx(result.support.sum() * abs(np.linalg.det(OBLIQUE)), rel=0.01)
    assert lab.voxel_nm == pytest.approx(voxel_nm or np.linalg.norm(OBLIQUE, axis=0).min())
    assert not any(np.take(lab.support, [0, -1], axis).any() for axis in range(3))
    edge = 2 * max(np.linalg.norm(OBLIQUE, axis=0))
    points = positions(lab.basis, lab.support.shape, lab.origin_nm)[lab.support]
    np.testing.assert_allclose(points.mean(axis=0), OBLIQUE[:, 1] * 9, atol=3)
    assert np.linalg.norm(points - OBLIQUE[:, 1] * 9, axis=-1).max() < 200 + edge


@pytest.mark.parametrize("turns", [(0.0, 0.0, 0.0), (0.45, -0.3, 0.48)])
def test_a_plane_wave_is_taken_out_whole_however_steep(turns: tuple[float, ...]) -> None:
    # Almost half a turn a voxel: left in, neighbours would cancel.
    wave = np.linalg.solve(OBLIQUE.T, 2 * np.pi * np.array(turns))
    lab = to_lab_frame(ball(200.0, tuple(wave)))
    np.testing.assert_allclose(lab.ramp_per_nm, wave, atol=1e-5)
    assert np.abs(lab.phase[lab.support]).max() < 0.01
    np.testing.assert_allclose(lab.amplitude[inner(lab.support, 5)], 1, atol=0.1)
    assert lab.amplitude[inner(lab.support, 5)].mean() == pytest.approx(1, abs=0.01)


def test_phase_and_amplitude_of_a_strained_crystal_are_kept() -> None:
    crystal, result = strained()
    lab = to_lab_frame(result)
    deep = inner(lab.support)
    error = phase_error(lab, crystal, deep)
    assert np.sqrt(np.mean(error**2)) < 0.02
    assert lab.amplitude[deep].mean() == pytest.approx(1, abs=0.01)


def test_cubic_splines_come_close_to_fourier_interpolation_and_lines_do_not() -> None:
    _, result = strained(phase_range=8.0)
    lab = to_lab_frame(result)
    deep = inner(lab.support)
    points = positions(lab.basis, lab.support.shape, lab.origin_nm)[deep]
    spectrum = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(result.density.astype(complex))))
    turns = np.linalg.solve(OBLIQUE, points.T) * (2 * np.pi / np.array(SHAPE))[:, None]
    exact = finufft.nufft3d2(*turns, spectrum, isign=1, eps=1e-9) / np.prod(SHAPE)
    to_index = np.linalg.solve(OBLIQUE, points.T) + np.array(SHAPE)[:, None] // 2
    linear = ndimage.map_coordinates(result.density, to_index, order=1)
    cubic = lab.density[deep] * np.exp(1j * points @ lab.ramp_per_nm)

    def distance(values: np.ndarray) -> float:
        """Return the rms difference from the exact one, up to a global phase."""
        turned = values * np.exp(-1j * np.angle(np.vdot(exact, values)))
        return float(np.sqrt(np.mean(np.abs(turned - exact) ** 2) / np.mean(np.abs(exact) ** 2)))

    assert distance(cubic) < 0.03
    assert distance(cubic) < 0.6 * distance(linear)
    assert np.abs(linear).mean() < 0.985 < np.abs(cubic).mean()


def test_there_and_back_again() -> None:
    _, result = strained()
    lab = to_lab_frame(result, voxel_nm=9.0)
    # What it is on its own cubic grid, its centre where a reconstruction's is.
    centre = np.array(lab.support.shape) // 2 @ lab.basis.T + lab.origin_nm
    orthogonal = Reconstruction(density=lab.density, support=lab.support, direct_basis=lab.basis)
    first = OBLIQUE @ -(np.array(SHAPE) // 2) - centre
    back = resampled(orthogonal, OBLIQUE, first, SHAPE)
    assert quality.similarity(back.density * result.support, result.density * result.support) > 0.998
    assert (back.support == result.support)[ndimage.binary_dilation(result.support)].mean() > 0.97


def test_maps_are_interpolated_from_where_they_are_known() -> None:
    result = ball(200.0)
    points = positions(OBLIQUE, SHAPE)
    strain = 1e-6 * points[..., 1] + 1e-8 * points[..., 0] ** 2
    known = result.support.copy()
    known[:, :, : SHAPE[2] // 2 - 8] = False
    sd = np.random.default_rng(0).gamma(0.5, 1e-4, SHAPE)
    maps = {"strain": strain, "strain_sd": sd, "displacement": points[..., 2] * 0 + 3.0}
    with_maps = replace(
        result, **{name: np.where(known, values, np.nan).astype(np.float32) for name, values in maps.items()}
    )
    lab = to_lab_frame(with_maps)
    assert set(lab.maps) == {"strain", "strain_sd", "displacement"}
    there = np.isfinite(lab.maps["strain"])
    assert not there[~ndimage.binary_dilation(lab.support)].any()
    assert 0.5 < there.sum() / lab.support.sum() < 0.95
    at = positions(lab.basis, lab.support.shape, lab.origin_nm)
    expected = 1e-6 * at[..., 1] + 1e-8 * at[..., 0] ** 2
    deep = inner(there, 5)
    np.testing.assert_allclose(lab.maps["strain"][deep], expected[deep], atol=2e-6)
    np.testing.assert_allclose(lab.maps["displacement"][there], 3.0, rtol=1e-5)
    assert (lab.maps["strain_sd"][there] >= 0).all()


def test_the_same_crystal_in_the_frame_along_q() -> None:
    crystal, result = strained()
    along = to_lab_frame(result, axes=axes_along_q(Q))
    np.testing.assert_allclose(along.axes[2], Q / np.linalg.norm(Q), atol=1e-12)
    assert along.axes[0] @ [0, 1, 0] == pytest.approx(0)
    np.testing.assert_allclose(np.linalg.det(along.axes), 1)
    assert np.sqrt(np.mean(phase_error(along, crystal, inner(along.support)) ** 2)) < 0.02


def test_what_cannot_be_done_is_said() -> None:
    result = ball()
    with pytest.raises(MissingMetadata, match="voxel units"):
        to_lab_frame(replace(result, direct_basis=None))
    with pytest.raises(InvalidInput, match="empty"):
        to_lab_frame(replace(result, support=np.zeros(SHAPE, bool)))
    with pytest.raises(InvalidInput, match="above 0"):
        to_lab_frame(result, voxel_nm=-1)
    with pytest.raises(InvalidInput, match="times as large"):
        to_lab_frame(result, voxel_nm=0.1)
    with pytest.raises(InvalidInput, match="orthogonal"):
        to_lab_frame(result, axes=np.ones((3, 3)))


def test_a_crystal_that_fills_its_grid_keeps_its_outer_voxels() -> None:
    support = np.ones((8, 8, 8), bool)
    filled = Reconstruction(support.astype(np.complex64), support, direct_basis=np.eye(3) * 7.3)
    lab = to_lab_frame(filled)
    assert lab.support.sum() == 512
    np.testing.assert_allclose(lab.amplitude[lab.support], 1, atol=1e-5)
