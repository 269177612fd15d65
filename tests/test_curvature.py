"""The lattice that curved frames are brought to, against the transform at its points."""

from dataclasses import replace

import numpy as np
import pytest

from bluesky_cdinn.crop import crop_around_peak
from bluesky_cdinn.curvature import cropped_flat, curvature, flattened, measured_at, places_on_lattice
from bluesky_cdinn.geometry import scattering_vectors, volume_bases, voxel_q
from bluesky_cdinn.records import DiffractionVolume
from bluesky_cdinn.sim.crystal import random_crystal
from bluesky_cdinn.sim.devices import gold_geometry
from bluesky_cdinn.sim.diffraction import Diffraction

SHAPE, STEP = (64, 64), 0.09
# A small crystal close to the detector: frames are bent by several slices.
CLOSE = gold_geometry(SHAPE, energy_keV=6.5, gamma_deg=15.0, detector_distance_m=0.06)
BENT = replace(CLOSE, beam_centre_px=(33.0, 30.0))
ENERGY = replace(BENT, scanned="energy")


def volume_of(geometry, intensity=None):
    offsets = (np.arange(48) - 24) * (STEP if geometry.scanned == "angle" else 0.01)
    shape = (48, *SHAPE)
    intensity = np.ones(shape, np.float32) if intensity is None else intensity
    centre = 3.0 if geometry.scanned == "angle" else geometry.energy_keV
    return DiffractionVolume(intensity, np.ones(shape, bool), angles_deg=centre + offsets, geometry=geometry)


@pytest.mark.parametrize("geometry", [BENT, ENERGY])
def test_places_are_where_the_lattice_s_points_were_measured(geometry):
    volume = volume_of(geometry)
    places, about = places_on_lattice(volume)
    assert about == (volume.angles_deg[24], 32.0, 32.0)
    step = volume.angles_deg[1] - volume.angles_deg[0]
    slices, rows, columns = places
    q = measured_at(geometry, (slices - 24) * step, rows, columns)
    lattice = voxel_q(replace(volume, flat_about=about))
    reciprocal, _, _ = volume_bases(volume)
    off = np.abs((q - lattice) @ np.linalg.inv(reciprocal).T)
    assert off.max() < 0.03
    as_it_is = np.abs((voxel_q(volume) - lattice) @ np.linalg.inv(reciprocal).T)
    assert as_it_is.max() > 1


def test_measured_at_is_the_map_of_whole_frames():
    offsets = np.array([-0.3, 0.0, 0.4])
    q = scattering_vectors(BENT, offsets, 5.0, 7.0)
    np.testing.assert_allclose(measured_at(BENT, offsets, np.full(3, 5.0), np.full(3, 7.0)), q, atol=1e-12)


def test_flattened_frames_are_the_transform_on_the_lattice():
    crystal = random_crystal(np.random.default_rng(11), 60.0, 1.5)
    diffraction = Diffraction(crystal, BENT, SHAPE, half_range_deg=30 * STEP)
    curved = volume_of(BENT, 1e6 * diffraction.frames((np.arange(48) - 24) * STEP))
    flat = flattened(curved)
    assert flat.flat_about == (3.0, 32.0, 32.0)
    # The crystal's own frame is the lab's at its curve's centre, as the volume's is.
    q = voxel_q(flat) - diffraction.bragg
    ideal = 1e6 * np.abs(diffraction._sampled.transform(q)) ** 2 / diffraction.peak
    inside = np.zeros(ideal.shape, bool)
    inside[6:-6, 6:-6, 6:-6] = True
    inside &= flat.valid

    def error(intensity):
        return ((np.sqrt(intensity) - np.sqrt(ideal))[inside] ** 2).sum() / ideal[inside].sum()

    assert error(flat.intensity) < 0.1 * error(curved.intensity)
    assert error(flat.intensity) < 2e-4


def test_what_is_not_surrounded_by_measurement_is_not_valid():
    volume = volume_of(BENT)
    valid = volume.valid.copy()
    valid[20] = False
    flat = flattened(replace(volume, valid=valid), matters=0.0)
    assert not flat.valid[20, 32, 32]
    assert flat.valid[24, 32, 32]
    assert (~flat.valid).sum() > (~valid).sum()
    assert (flat.intensity[~flat.valid] == 0).all()


def test_a_frame_that_is_flat_enough_is_left_alone():
    geometry = gold_geometry(SHAPE)
    volume = replace(volume_of(BENT), geometry=geometry)
    intensity = np.zeros_like(volume.intensity)
    intensity[20:28, 28:36, 28:36] = 100
    volume = replace(volume, intensity=intensity, angles_deg=0.011 * np.arange(48))
    same = flattened(volume)
    assert same.flat_about is None
    assert same.intensity is intensity
    assert same.history[-1]["flattened"] is False
    assert same.history[-1]["curvature_voxels"] == pytest.approx(
        curvature(volume, places_on_lattice(volume)[0])
    )
    box = cropped_flat(volume, (16, 16, 16))
    np.testing.assert_array_equal(box.intensity, crop_around_peak(volume, (16, 16, 16)).intensity)
    assert [step["step"] for step in box.history] == ["flatten", "crop"]


def test_a_volume_in_voxels_is_left_alone():
    volume = replace(volume_of(BENT), geometry=None)
    assert flattened(volume) is volume


def test_bases_follow_the_lattice_through_crops():
    volume = volume_of(BENT)
    intensity = volume.intensity * np.exp(
        -(((np.indices(volume.intensity.shape).T - [20, 30, 34]) / 8) ** 2).sum(-1).T
    )
    flat = cropped_flat(replace(volume, intensity=1e4 * intensity.astype(np.float32)), (24, 32, 32))
    assert flat.flat_about is not None
    reciprocal, direct, q = volume_bases(flat)
    moved = crop_around_peak(flat, (16, 24, 20), (10, 15, 17))
    again, _, there = volume_bases(moved)
    # Three slices on the frame is turned by as much, and the peak lies where the lattice says.
    turn = np.linalg.inv(reciprocal) @ again
    np.testing.assert_allclose(turn, np.eye(3), atol=5e-3)
    offset = np.array([10 - 12, 15 - 16, 17 - 16])
    np.testing.assert_allclose(np.linalg.norm(there), np.linalg.norm(q + reciprocal @ offset), rtol=1e-9)
    np.testing.assert_allclose(direct.T @ reciprocal * [24, 32, 32], -2 * np.pi * np.eye(3), atol=1e-9)
