import os
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
from crystals import crystal_and_counts, far_field, volume_of

import bluesky_cdinn
from bluesky_cdinn import quality
from bluesky_cdinn.errors import Cancelled, CdinnError, IncompleteScan, InvalidInput, WeightsError
from bluesky_cdinn.facets import facets, facets_of_table
from bluesky_cdinn.geometry import bragg_vector, d_spacing
from bluesky_cdinn.pipeline import reconstruct, reconstruct_curve
from bluesky_cdinn.records import RockingCurve
from bluesky_cdinn.settings import ReconstructionOptions
from bluesky_cdinn.sim.crystal import random_crystal, sample
from bluesky_cdinn.sim.devices import gold_geometry
from bluesky_cdinn.sim.diffraction import Diffraction
from bluesky_cdinn.strain import equivalent_diameter_nm, strain_field
from bluesky_cdinn.watch import ENDS

SCAN = "aps34idc_scan54.h5"
# A volume that any reconstruction of takes about a second.
SMALL = (40, 40, 40)


def scan_file():
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("CDINN_DATA", beside)) / SCAN


def chi2_of(result, counts, valid):
    """Compute chi2 as its definition says, in plain NumPy, on the volume's own grid."""
    residual = np.abs(far_field(result.density)) - np.sqrt(np.where(valid, counts, 0))
    return float((residual[valid] ** 2).sum() / counts[valid].sum(dtype=float))


def assert_found(result, density, phase_rmse=0.1):
    found = quality.compare(result.density, density)
    assert found.phase_rmse < phase_rmse
    assert found.iou > 0.95
    assert found.correlation > 0.99


@pytest.fixture(scope="module")
def small():
    return crystal_and_counts(21, 1.5, SMALL)


@pytest.fixture(scope="module")
def result(small):
    return reconstruct(volume_of(small[1]))


@pytest.mark.parametrize(
    ("seed", "phase_range", "shape", "cycles", "start"),
    [
        (1, 0.5, (48, 48, 48), (0, 0, 0), "auto"),
        (2, 5.0, (64, 64, 64), (0, 0, 0), "auto"),
        (3, 2.0, (45, 64, 50), (0, 0, 0), "auto"),
        (4, 3.0, (48, 48, 48), (11.3, -14.0, 9.6), "auto"),
        (8, 2.5, (47, 40, 53), (-20.2, 15.1, 22.0), "auto"),
        (8, 2.5, (47, 40, 53), (-20.2, 15.1, 22.0), "autocorrelation"),
    ],
    ids=["weak", "strong", "odd", "off centre", "odd and across the edge", "from the autocorrelation"],
)
def test_crystals_are_found_wherever_their_peak_lies(seed, phase_range, shape, cycles, start):
    density, counts = crystal_and_counts(seed, phase_range, shape, cycles=cycles)
    found = reconstruct(volume_of(counts), ReconstructionOptions(start=start))
    assert found.density.shape == found.support.shape == shape
    assert found.density.dtype == np.complex64
    assert found.support.dtype == np.bool_
    assert_found(found, density)
    assert found.chi2 == pytest.approx(chi2_of(found, counts, np.ones(shape, dtype=bool)), rel=1e-4)
    assert found.chi2 < 0.005
    assert 0.9 < found.free_llk < 2
    assert found.confidence > 0.5
    assert found.status == "success"
    support = quality.half_level_support(found.density)
    assert (found.support & support).sum() > 0.95 * support.sum()


def test_a_peak_off_the_centre_is_a_ramp_of_the_phase_and_nothing_else(small, result):
    _, counts = small
    roll = (7, -12, 4)
    moved = reconstruct(volume_of(np.roll(counts, roll, (0, 1, 2))))
    centre = result.density * quality.ramp(SMALL, roll)
    assert quality.similarity(moved.density, centre) > 0.995
    assert moved.chi2 == pytest.approx(result.chi2, rel=0.05)


def test_a_gap_and_bad_pixels_are_free():
    density, counts = crystal_and_counts(6, 2.0, (48, 48, 48))
    valid = np.ones(counts.shape, dtype=bool)
    valid[:, :, 29:32] = False
    valid[:, 20, 11] = valid[:, 26, 25] = False
    # Nonsense of every kind where nothing is trusted.
    spoilt = counts.copy()
    spoilt[~valid] = np.resize(np.array([np.nan, -5, 1e9, np.inf], dtype=np.float32), (~valid).sum())
    found = reconstruct(volume_of(spoilt, valid))
    assert_found(found, density)
    assert found.chi2 == pytest.approx(chi2_of(found, counts, valid), rel=1e-4)
    unspoilt = reconstruct(volume_of(counts, valid))
    np.testing.assert_array_equal(found.density, unspoilt.density)


def test_negative_counts_of_a_subtracted_background_do_no_harm(small):
    density, counts = small
    noise = np.random.default_rng(0).normal(0, 0.5, counts.shape).astype(np.float32)
    assert_found(reconstruct(volume_of(counts + noise)), density)


def test_few_photons_still_show_the_crystal():
    density, counts = crystal_and_counts(8, 1.5, SMALL, peak=1e4)
    found = quality.compare(reconstruct(volume_of(counts)).density, density)
    assert found.phase_rmse < 0.25
    assert found.iou > 0.85


def test_same_seed_same_bytes_and_another_seed_the_same_crystal(small, result):
    again = reconstruct(volume_of(small[1]))
    assert again.density.tobytes() == result.density.tobytes()
    assert again.support.tobytes() == result.support.tobytes()
    assert again.chi2 == result.chi2
    other = reconstruct(volume_of(small[1]), ReconstructionOptions(seed=5))
    assert other.density.tobytes() != result.density.tobytes()
    assert quality.correlation(other.density, result.density) > 0.99
    # Both are in the canonical form: the same twin and phase, centred to the nearest voxel.
    offset, overlap = quality.best_shift(other.density, result.density)
    assert max(abs(step) for step in offset) <= 1
    assert abs(np.angle(overlap)) < 0.1
    assert quality.correlation(other.density, result.density, twins=False) > 0.99


def test_the_volume_is_left_as_it_was(small):
    counts = small[1].copy()
    counts.setflags(write=False)
    valid = np.ones(SMALL, dtype=bool)
    valid.setflags(write=False)
    reconstruct(volume_of(counts, valid), ReconstructionOptions(starts=2))
    np.testing.assert_array_equal(counts, small[1])


def test_result_says_what_it_depends_on_and_how_long_it_took(small, result):
    for name, value in ReconstructionOptions().model_dump(mode="json", exclude={"device", "weights"}).items():
        assert result.parameters[name] == value
    assert result.parameters["device"] in ("cpu", "cuda")
    assert result.parameters["version"] == bluesky_cdinn.__version__
    assert result.parameters["levels"][-1] == result.parameters["working_shape"]
    assert set(result.timings_s) == set(ENDS)
    assert sum(result.timings_s.values()) == pytest.approx(result.seconds)
    assert result.cpu_s > 0
    assert result.history[-1] == {"step": "reconstruct", "roll": [0, 0, 0], "warnings": []}
    assert result.progress is not None
    assert result.progress.dtype == np.float32
    assert result.resolution_curve is not None
    assert result.resolution_curve.shape[0] == 2
    assert 0.9 < result.scalars["agreement"] <= 1 + 1e-6
    assert 0 <= result.scalars["phase_spread_rad"] < 0.3


def test_a_geometry_by_which_the_scan_sweeps_nothing_leaves_voxel_units(caplog):
    away = np.indices((24, 24, 24)) - 12
    counts = np.round(1e4 * np.exp(-(away**2).sum(axis=0) / 8)).astype(np.float32)
    ahead = replace(gold_geometry((24, 24)), detector_angles_deg=(0.0, 0.0), beam_centre_px=(12.0, 12.0))
    curve = RockingCurve(counts, np.linspace(-0.1, 0.1, 24), geometry=ahead)
    result = reconstruct_curve(curve, ReconstructionOptions(starts=1, refine=False))
    assert result.direct_basis is None
    told = next(step for step in result.history if step["step"] == "geometry")
    assert "check rocking_axis and detector_angles_deg" in told["warnings"][0]
    assert "stays on it" in caplog.text


def test_without_a_geometry_the_result_stays_in_voxels(result):
    assert result.direct_basis is None
    assert result.strain is None
    assert "size_nm" not in result.scalars


def test_progress_never_falls_and_names_each_stage(small):
    seen = []
    reconstruct(volume_of(small[1]), ReconstructionOptions(starts=2), progress=seen.append)
    fractions = [p.fraction for p in seen]
    assert all(0 <= a <= b <= 1 for a, b in pairwise(fractions))
    assert fractions[0] == 0
    assert fractions[-1] == 1
    assert list(dict.fromkeys(p.stage for p in seen)) == list(ENDS)
    assert len(seen) > 100
    assert np.isnan(seen[0].chi2)
    assert seen[-1].chi2 < 0.05


@pytest.mark.parametrize("after", [0, 1, 30])
def test_a_cancelled_reconstruction_ends_at_once(small, after):
    asked = []

    def cancelled():
        asked.append(1)
        return len(asked) > after

    with pytest.raises(Cancelled, match="on request"):
        reconstruct(volume_of(small[1]), cancelled=cancelled)
    assert len(asked) == after + 1


def test_cancelling_late_works_in_every_stage(small):
    for wanted in ("projections", "polish", "judge", "strain"):
        stages = []
        with pytest.raises(Cancelled, match=wanted):
            reconstruct(
                volume_of(small[1]),
                ReconstructionOptions(starts=1),
                progress=lambda p, stages=stages: stages.append(p.stage),
                cancelled=lambda stages=stages, wanted=wanted: bool(stages) and stages[-1] == wanted,
            )


def test_an_exception_of_the_reporter_is_the_callers(small):
    def broken(progress):
        raise RuntimeError("window closed")

    with pytest.raises(RuntimeError, match="window closed"):
        reconstruct(volume_of(small[1]), progress=broken)


def test_one_start_alone_is_sure_of_nothing(small):
    found = reconstruct(volume_of(small[1]), ReconstructionOptions(starts=1))
    assert found.confidence == 0.5
    assert found.resolution_curve is None
    assert "agreement" not in found.scalars
    assert np.isfinite(found.chi2)


def test_random_start_needs_nothing_but_the_sampling(small):
    found = reconstruct(volume_of(small[1]), ReconstructionOptions(start="random"))
    assert_found(found, small[0])
    assert found.parameters["start"] == "random"


def test_without_refinement_the_start_is_the_result(small, result):
    seen = []
    found = reconstruct(volume_of(small[1]), ReconstructionOptions(refine=False), progress=seen.append)
    assert found.density.shape == SMALL
    assert found.chi2 > 2 * result.chi2
    # One start alone tells nothing of how sure it is.
    assert found.confidence <= 0.5
    assert "projections" not in {p.stage for p in seen}
    assert seen[-1].fraction == 1


def test_without_refinement_a_classical_start_explains_nothing(small):
    options = ReconstructionOptions(start="autocorrelation", refine=False)
    found = reconstruct(volume_of(small[1]), options)
    # Which needs no second start to be seen.
    assert found.confidence == 0


def spoilt(value, share=1.0):
    counts = np.zeros(SMALL, dtype=np.float32)
    counts[np.random.default_rng(0).random(SMALL) < share] = value
    return counts


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        (np.zeros(SMALL, dtype=np.float32), "counts"),
        (np.full(SMALL, -3, dtype=np.float32), "counts"),
        (spoilt(np.nan, 0.01), "counts"),
        (spoilt(np.inf, 0.01), "counts"),
        (spoilt(1e5, 1e-4), "peak"),
        (np.ones((40, 40, 5), dtype=np.float32), "voxels a side"),
        (np.ones((0, 40, 40), dtype=np.float32), "voxels a side"),
    ],
    ids=["empty", "negative", "NaN", "infinite", "single voxels", "flat", "no slices"],
)
def test_volumes_without_a_crystal_are_refused_with_a_reason(counts, says):
    with pytest.raises(InvalidInput, match=says):
        reconstruct(volume_of(counts))


@pytest.mark.parametrize("nonsense", [np.nan, np.inf])
def test_a_valid_voxel_that_holds_no_number_is_refused(small, nonsense):
    counts = small[1].copy()
    counts[3, 4, 5] = nonsense
    with pytest.raises(InvalidInput, match="must not be valid"):
        reconstruct(volume_of(counts))


def test_a_volume_of_which_nothing_is_valid_is_refused(small):
    with pytest.raises(InvalidInput, match="valid"):
        reconstruct(volume_of(small[1], np.zeros(SMALL, dtype=bool)))


@pytest.mark.parametrize("counts", ["flat", "noise", "spot", "plane"])
def test_patterns_that_are_no_crystals_do_not_break_it(counts):
    rng = np.random.default_rng(0)
    patterns = {
        "flat": np.full((24, 24, 24), 100.0),
        "noise": rng.poisson(20.0, (24, 24, 24)),
        "spot": 1e4 * (np.indices((24, 24, 24)) // 3 == 4).all(axis=0),
        "plane": 1e3 * (np.indices((24, 24, 24))[0] == 12),
    }
    found = reconstruct(volume_of(patterns[counts].astype(np.float32)))
    assert np.isfinite(found.density).all()
    assert 0 <= found.confidence <= 1


@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 40, 11)])
def test_the_smallest_volumes_are_reconstructed(shape):
    density, counts = crystal_and_counts(9, 0.5, shape)
    found = reconstruct(volume_of(counts))
    assert np.isfinite(found.density).all()
    assert quality.correlation(found.density, density) > 0.8


def test_the_result_says_what_network_it_began_with(small, result):
    density, _ = small
    assert result.parameters["found_from"] == "network"
    assert result.parameters["weights"].keys() == {"name", "sha256"}
    assert 0 < result.scalars["guess_chi2"] < 0.1
    assert_found(result, density)


def test_a_classical_start_asks_no_network(small):
    density, counts = small
    options = ReconstructionOptions(start="autocorrelation", weights=Path("unused.safetensors"))
    found = reconstruct(volume_of(counts), options)
    assert found.parameters["found_from"] == "classical"
    assert found.parameters["weights"] is None
    assert "guess_chi2" not in found.scalars
    assert_found(found, density)


def test_the_networks_guess_alone_is_near(small):
    density, counts = small
    guess = reconstruct(volume_of(counts), ReconstructionOptions(start="network", refine=False))
    assert quality.compare(guess.density, density).correlation > 0.93
    assert 0 < guess.scalars["guess_chi2"] < 0.1


def test_weights_that_are_not_there_are_an_error_and_not_another_start(small, tmp_path):
    options = ReconstructionOptions(weights=tmp_path / "absent.safetensors")
    with pytest.raises(WeightsError, match="absent"):
        reconstruct(volume_of(small[1]), options)


def test_reconstructions_may_run_side_by_side(small, result):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(reconstruct(volume_of(small[1])))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [f.density.tobytes() for f in found] == [result.density.tobytes()] * 2


POINTS, STEP_DEG, PIXELS = 48, 0.012, (96, 96)


@pytest.fixture(scope="module")
def beamline():
    """Return a gold crystal, what the detector saw of it, and the true strain field."""
    crystal = random_crystal(np.random.default_rng(4), 400.0, 2.0)
    geometry = gold_geometry(PIXELS)
    offsets = (np.arange(POINTS) - POINTS // 2) * STEP_DEG
    diffraction = Diffraction(crystal, geometry, PIXELS, half_range_deg=float(np.abs(offsets).max()))
    expected = 1e6 * diffraction.frames(offsets) + 0.05
    frames = np.random.default_rng(0).poisson(expected).astype(np.uint32)
    curve = RockingCurve(
        frames=frames,
        angles_deg=20 + offsets,
        count_time_s=np.ones(POINTS),
        geometry=geometry,
        raw_uid="raw-1",
        scan_id=7,
        metadata={"sample": "gold"},
        missing=("monitor",),
    )
    return crystal, curve


@pytest.fixture(scope="module")
def measured(beamline):
    return reconstruct_curve(beamline[1])


def test_a_rocking_curve_gives_a_crystal_in_physical_units(beamline, measured):
    crystal, curve = beamline
    assert measured.direct_basis is not None
    assert measured.reciprocal_basis is not None
    shape = measured.density.shape
    np.testing.assert_allclose(
        measured.direct_basis.T @ (measured.reciprocal_basis * shape) / (-2 * np.pi), np.eye(3), atol=1e-9
    )
    truth = sample(crystal, measured.direct_basis, shape)
    found = quality.compare(measured.density, truth)
    assert found.phase_rmse < 0.1
    assert found.iou > 0.93
    support = np.abs(truth) > 0.5
    true = strain_field(truth, support, measured.direct_basis, bragg_vector(curve.geometry)).scalars
    scalars = measured.scalars
    assert scalars["size_nm"] == pytest.approx(
        equivalent_diameter_nm(support, measured.direct_basis), rel=0.03
    )
    assert scalars["d_spacing_nm"] == pytest.approx(d_spacing(bragg_vector(curve.geometry)), rel=2e-4)
    assert scalars["strain_rms"] == pytest.approx(true["strain_rms"], rel=0.2)
    voxel = abs(np.linalg.det(measured.direct_basis)) ** (1 / 3)
    assert voxel * 0.99 < scalars["resolution_nm"] < 3 * voxel
    assert measured.confidence > 0.3


def test_maps_are_known_inside_the_crystal_only(measured):
    assert measured.displacement is not None
    assert measured.strain is not None
    assert np.isnan(measured.displacement[~measured.support]).all()
    assert np.isfinite(measured.displacement[measured.support]).all()
    assert np.isnan(measured.strain[~measured.support]).all()
    assert np.isfinite(measured.strain[measured.support]).mean() > 0.95
    for sigma, values in ((measured.phase_sd, measured.phase), (measured.strain_sd, measured.strain)):
        assert sigma.dtype == np.float32
        assert np.isnan(sigma[~measured.support]).all()
        known = measured.support & np.isfinite(values)
        assert (sigma[known] > 0).all()
    assert 0.005 < measured.scalars["phase_sd_rad"] < 0.2
    assert measured.scalars["dislocation_voxels"] == 0


def test_facets_are_stored_with_the_result_and_found_again_from_it(measured):
    assert facets(measured) == facets_of_table(measured.facet_table)
    assert len(measured.facet_table) > 5
    lattice = measured.scalars["lattice_parameter_nm"]
    assert lattice == pytest.approx(measured.parameters["lattice_nm"], rel=2e-3)


def test_a_single_start_knows_no_sigma(beamline):
    alone = reconstruct_curve(beamline[1], ReconstructionOptions(starts=1))
    assert alone.phase_sd is None
    assert alone.strain_sd is None
    assert alone.strain is not None


def test_a_result_names_its_run_and_its_steps(beamline, measured):
    assert measured.raw_uid == "raw-1"
    assert measured.scan_id == 7
    assert measured.metadata == {"sample": "gold"}
    assert measured.parameters["missing_metadata"] == ["monitor"]
    steps = [step["step"] for step in measured.history]
    assert steps[-1] == "reconstruct"
    assert "crop" in steps


def test_the_order_of_points_does_not_matter(beamline, measured):
    curve = beamline[1]
    order = np.random.default_rng(1).permutation(POINTS)
    shuffled = replace(curve, frames=curve.frames[order], angles_deg=curve.angles_deg[order])
    again = reconstruct_curve(shuffled, ReconstructionOptions(starts=1))
    assert quality.correlation(again.density, measured.density) > 0.95


def test_max_shape_bounds_the_work(beamline):
    options = ReconstructionOptions(max_shape=(32, 36, 40), starts=2)
    assert reconstruct_curve(beamline[1], options).density.shape == (32, 36, 40)


@pytest.mark.parametrize("points", [0, 1, 2, 5])
def test_too_few_points_are_an_incomplete_scan(beamline, points):
    curve = beamline[1]
    short = replace(
        curve,
        frames=curve.frames[:points],
        angles_deg=curve.angles_deg[:points],
        count_time_s=np.ones(points),
        exit_status="abort",
    )
    with pytest.raises(IncompleteScan):
        reconstruct_curve(short)


def test_a_scan_without_a_count_is_refused(beamline):
    with pytest.raises(CdinnError):
        reconstruct_curve(replace(beamline[1], frames=np.zeros((POINTS, *PIXELS), dtype=np.uint16)))


def test_a_scan_of_background_alone_gets_no_confidence(beamline):
    frames = np.random.default_rng(0).poisson(0.05, (POINTS, *PIXELS)).astype(np.uint16)
    assert reconstruct_curve(replace(beamline[1], frames=frames)).confidence < 0.1


@pytest.fixture(scope="module")
def real_volume():
    if not scan_file().is_file():
        pytest.skip(f"needs the recorded scan {SCAN}")
    with h5py.File(scan_file()) as file:
        window = (slice(67, 131), slice(94, 158), slice(95, 159))
        frames = file["frames"][window].astype(np.float32)
        dark, white = (file[name][:256, :256] for name in ("dark", "whitefield"))
    good = (dark == 0) & (white > 0)
    gain = np.where(good, np.median(white[good]) / np.where(good, white, 1), 0).astype(np.float32)
    valid = np.broadcast_to(good[window[1:]], frames.shape).copy()
    return volume_of(frames * gain[window[1:]], valid)


def test_a_measured_crystal_is_the_same_from_any_seed(real_volume):
    first, second = (reconstruct(real_volume, ReconstructionOptions(seed=seed)) for seed in (0, 1))
    for found in (first, second):
        assert found.chi2 <= 0.0070
        assert 0 < found.confidence < 1
        # What the detector counts is blurred: as a coherent beam's it would fit worse.
        assert found.scalars["coherence_sigma_row"] > 0.3
        assert found.chi2 < chi2_of(found, real_volume.intensity, real_volume.valid)
    assert quality.correlation(first.density, second.density) > 0.95


def test_large_frames_give_the_crystal_of_small_ones():
    truth, counts = crystal_and_counts(4, 2.0, (32, 32, 32))
    angles = np.linspace(-0.2, 0.2, 32)
    whole = np.random.default_rng(0).poisson(0.01, (32, 400, 300)).astype(np.float32)
    whole[:, 310:342, 30:62] += counts
    options = ReconstructionOptions(max_shape=(32, 32, 32))
    large = reconstruct_curve(RockingCurve(frames=whole, angles_deg=angles), options)
    crop = next(step for step in large.history if step["step"] == "crop")
    assert large.density.shape == truth.shape
    # In the box's own voxels: the box begins at row 144.
    assert crop["peak"][1] == pytest.approx(310 + 16 - 144, abs=2)
    assert quality.compare(large.density, truth).phase_rmse < 0.05
