"""A bright crystal that needs no whole scan: real RunEngine, live callback, worker process and Tiled."""

import contextlib
import json

import numpy as np
import pytest

from bluesky_cdinn.callbacks import LiveReconstruction, stored_curve
from bluesky_cdinn.errors import CdinnError
from bluesky_cdinn.plans import rocking_scan_with_recon
from bluesky_cdinn.sim.detector_effects import random_detector
from bluesky_cdinn.sim.devices import simulated_beamline

POINTS, UPDATE_EVERY = 48, 4


class Pace:
    """Has a scan that takes no time wait for its updates, as a slow one would be overtaken by them."""

    def __init__(self, live):
        self.live = live

    def __call__(self, name, doc):
        if name == "start":
            self.uid = doc["uid"]
        if name == "event" and doc["seq_num"] >= POINTS // 2 and doc["seq_num"] % UPDATE_EVERY == 0:
            # Before the peak is in view there is none.
            with contextlib.suppress(CdinnError):
                self.live.partial(self.uid, doc["seq_num"]).result(timeout=120)


@pytest.mark.timeout(600)
def test_a_bright_weakly_strained_crystal_needs_no_whole_scan(RE, catalog):
    det, theta = simulated_beamline(
        detector=random_detector(np.random.default_rng(0), (64, 64), gap=False),
        phase_range_rad=1.0,
        peak_rate=1e6,
        time_scale=0.0,
        seed=3,
    )
    with LiveReconstruction(catalog) as live:
        for callback in (live, catalog.raw_writer(), Pace(live)):
            RE.subscribe(callback)
        plan = rocking_scan_with_recon(det, theta, -0.35, 0.35, POINTS, stop_early=True, live=live)
        summary = RE(plan).plan_result
        assert catalog.flush(120)
    assert summary.success
    run = catalog.raw[summary.raw_uid]
    start, stop = run.metadata["start"], run.metadata["stop"]
    taken = stop["num_events"]["primary"]
    assert 0.5 * POINTS <= taken <= 0.9 * POINTS
    assert stop["exit_status"] == "success"
    assert (start["num_points"], start["cdi"]["planned_deg"][2]) == (POINTS, POINTS)
    assert start["stop_rule"].startswith("UntilSteady(tolerance_rad=0.05")
    (why,) = run["steering"]["steering_reason"].read()
    assert "no more than the 0.05 rad" in str(why)
    (numbers,) = run["steering"]["steering_numbers"].read()
    seen = [partial.points for partial in catalog.partials(summary.raw_uid)]
    assert json.loads(str(numbers))["points"] == seen[-1] <= taken
    # What is stored is a whole scan of what was measured, and so is the result.
    assert len(stored_curve(catalog, summary.raw_uid).angles_deg) == taken
    result = summary.load()
    assert next(step for step in result.history if step["step"] == "assemble")["points"] == taken
    assert result.parameters["updates_at_points"][-1] >= seen[-1]
    assert summary.confidence > 0.7
