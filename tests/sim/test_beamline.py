"""The simulated beamline as a whole: the physics that its defaults promise, seen through the devices."""

from dataclasses import replace

import numpy as np
import pytest
from bluesky import RunEngine

from bluesky_cdinn.callbacks import RockingCurveAssembler
from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.geometry import bragg_vector, d_spacing, reciprocal_basis, volume_bases
from bluesky_cdinn.plans import rocking_scan
from bluesky_cdinn.sim.crystal import random_crystal
from bluesky_cdinn.sim.detector_effects import DetectorModel
from bluesky_cdinn.sim.devices import gold_geometry, simulated_beamline
from bluesky_cdinn.volume import assemble, load_frames

SCAN = (-0.35, 0.35, 64)


@pytest.fixture(scope="module")
def beamline():
    return simulated_beamline(time_scale=0.0)


@pytest.mark.parametrize(
    ("energy", "gamma", "shape"), [(9.0, 12.0, (128, 128)), (12.0, 0.0, (256, 128)), (8.0, -20.0, (64, 64))]
)
def test_the_middle_of_the_detector_sees_gold_111(energy, gamma, shape):
    geometry = gold_geometry(shape, energy_keV=energy, gamma_deg=gamma)
    assert d_spacing(bragg_vector(geometry)) == pytest.approx(0.40782 / np.sqrt(3), rel=1e-9)


def test_an_arm_that_is_too_high_is_refused():
    with pytest.raises(InvalidInput, match="can't be reached"):
        gold_geometry(gamma_deg=80.0)


def test_the_default_crystal_is_sampled_as_promised(beamline):
    det, _ = beamline
    basis = reciprocal_basis(det.source.geometry, (SCAN[1] - SCAN[0]) / (SCAN[2] - 1))
    for seed in range(10):
        crystal = random_crystal(np.random.default_rng([seed, 0]), 400.0, 3.0)
        oversampling = 2 * np.pi / np.ptp(crystal.body.vertices() @ basis, axis=0)
        assert 2.5 < oversampling.min() <= oversampling.max() < 4.1


def test_the_same_seed_is_the_same_measurement():
    first, same, other = (simulated_beamline(seed=seed)[0].source.frame(0.01, 1.0) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


def test_counts_grow_with_the_exposure(beamline):
    det, _ = beamline
    short, long = (det.source.frame(0.0, t).sum(dtype=float) for t in (0.1, 10.0))
    assert long / short == pytest.approx(100, rel=0.01)


def test_a_scan_gives_the_peak_and_its_geometry(beamline):
    """Through the RunEngine and the assembler: the peak is where the geometry says."""
    det, theta = beamline
    documents = RockingCurveAssembler()
    RE = RunEngine({})
    RE(rocking_scan(det, theta, *SCAN), documents)
    curve = load_frames(documents.curve())
    frames = np.asarray(curve.frames)
    assert curve.geometry == det.source.geometry
    assert curve.missing == ()
    assert curve.count_time_s.tolist() == [1.0] * 64
    assert curve.metadata["cdi"]["sample"] == "simulated gold nanocrystal 0"
    slice_, row, column = np.unravel_index(frames.argmax(), frames.shape)
    assert abs(curve.angles_deg[slice_]) < 0.02
    assert abs(row - 64) <= 1
    assert abs(column - 64) <= 1
    assert 5e5 < frames.max() <= 1.1e6
    central = frames[:, 32:96, 32:96]
    assert central.sum() > 0.98 * frames.sum()


def test_saturation_shows():
    detector = DetectorModel((128, 128), dtype=np.uint16, saturation=20_000)
    det, _ = simulated_beamline(detector=detector)
    frame = det.source.frame(0.0, 1.0)
    assert frame.dtype == np.uint16
    assert (frame == 20_000).sum() > 4


def scanned(geometry, limits, points=5):
    """Return what a scan of a small crystal says."""
    detector = DetectorModel((32, 32))
    crystal = random_crystal(np.random.default_rng(2), 150.0, 1.0)
    det, stage = simulated_beamline(geometry=geometry, detector=detector, crystal=crystal, time_scale=0.0)
    documents = RockingCurveAssembler()
    RunEngine({})(rocking_scan(det, stage, *limits, points), documents)
    return documents.curve()


def test_any_detector_s_directions_go_through_the_documents():
    axes = ((0.0, 0.0, 1.0), (0.0, -1.0, 0.0), (1.0, 0.0, 0.0))
    geometry = replace(
        gold_geometry((32, 32)),
        detector_axes=axes,
        detector_angles_deg=(90.0, 0.0),
        rocking_axis=(0.0, 0.6, 0.8),
    )
    curve = scanned(geometry, (-0.1, 0.1))
    assert curve.geometry == geometry
    assert curve.missing == ()


def test_an_energy_scan_is_measured_with_a_monochromator():
    geometry = replace(gold_geometry((32, 32)), scanned="energy")
    curve = scanned(geometry, (8.96, 9.04), 9)
    assert curve.geometry == geometry
    np.testing.assert_allclose(curve.angles_deg, np.linspace(8.96, 9.04, 9), atol=1e-6)
    np.testing.assert_allclose(curve.planned_deg, curve.angles_deg, atol=1e-6)
    counts = np.asarray(curve.frames).sum(axis=(1, 2), dtype=float)
    assert counts.argmax() == 4
    volume = assemble(curve)
    assert volume.history[0]["step_keV"] == pytest.approx(0.01)
    reciprocal, _, q = volume_bases(volume)
    np.testing.assert_allclose(q, bragg_vector(geometry, (16, 16)), rtol=1e-6)
    np.testing.assert_allclose(reciprocal[:, 0], 0.01 / 9.0 * q, rtol=1e-6)
