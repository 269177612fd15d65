"""A survey and a series the whole way: real RunEngine, simulated crystals, worker process and Tiled."""

from dataclasses import replace

import numpy as np
import pytest

from bluesky_cdinn.callbacks import LiveReconstruction
from bluesky_cdinn.plans import follow, survey
from bluesky_cdinn.sim.area_detector import SimulatedAreaDetector
from bluesky_cdinn.sim.crystal import SmoothField, random_crystal
from bluesky_cdinn.sim.detector_effects import DetectorModel
from bluesky_cdinn.sim.devices import RockingStage, gold_geometry
from bluesky_cdinn.sim.grains import DriftingCrystal, Grain, sample_beamline
from bluesky_cdinn.survey_ranking import grain_grid
from bluesky_cdinn.survey_table import survey_table
from bluesky_cdinn.worker import ReconstructionWorker

SHAPE = (48, 48)
DETECTOR = DetectorModel(SHAPE, dtype=np.int32, background=0.01)
NUM = 32


@pytest.fixture(scope="module")
def worker():
    with ReconstructionWorker() as worker:
        worker.start()
        yield worker


@pytest.fixture
def live(catalog, worker):
    with LiveReconstruction(catalog, worker=worker) as live:
        yield live


@pytest.fixture(scope="module")
def crystal():
    return random_crystal(np.random.default_rng(3), 400.0, 1.5)


def test_a_survey_is_in_tiled_with_its_reasons(RE, catalog, live, crystal):
    RE.subscribe(catalog.raw_writer())
    beamline = sample_beamline(
        [Grain("good", crystal, (10.0, 0.0), 0.02, (3.0, -2.0), 1e5)], detector=DETECTOR
    )
    places = grain_grid({"x": [0, 10]})
    plan = survey(
        beamline.det,
        beamline.theta,
        [beamline.x, beamline.y],
        places,
        -0.3,
        0.3,
        glance_s=4.0,
        measure_s=10.0,
        live=live,
    )
    table = RE(plan).plan_result
    catalog.flush()
    best, empty = table
    assert (best.name, best.status, empty.status) == ("x 10", "measured", "skipped")
    assert best.size_nm == pytest.approx(400.0, rel=0.4)
    assert catalog.latest(best.raw_uid).confidence == pytest.approx(best.confidence)
    own = catalog.raw[best.raw_uid].metadata["start"]["steering_uid"]
    assert str(survey_table(catalog, own)) == str(table)


def test_a_series_starts_each_reconstruction_from_the_last_while_the_strain_grows(RE, catalog, live, crystal):
    def older(seconds):
        grown = 1 + seconds / NUM
        field: SmoothField = crystal.field
        return replace(
            crystal,
            field=replace(field, coefficients=grown * field.coefficients, heights=grown * field.heights),
        )

    theta = RockingStage(name="theta", settle_time_s=0.0, time_scale=0.0)
    source = DriftingCrystal(
        older, lambda seconds: 0.001 * seconds, gold_geometry(SHAPE), DETECTOR, each_s=NUM, peak_rate=1e5
    )
    det = SimulatedAreaDetector(name="det", source=source, stage=theta, time_scale=0.0)
    RE.subscribe(catalog.raw_writer())
    plan = follow(det, theta, -0.2, 0.2, NUM, count_time=1.0, scans=3, live=live)
    known = RE(plan).plan_result
    catalog.flush()
    assert [scan.status for scan in known] == ["success"] * 3
    strains = [scan.numbers["strain_rms"] for scan in known]
    assert strains[0] < strains[1] < strains[2]
    results = [catalog.latest(scan.raw_uid).load() for scan in known]
    started = [result.parameters.get("started_from") for result in results]
    assert started == [None, known[0].raw_uid, known[1].raw_uid]
    # Either at the end of the scan or, through an update, in its middle.
    assert all(r.parameters["found_from"] in ("scan before", "running scan") for r in results[1:])
