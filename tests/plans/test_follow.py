"""A series under a real RunEngine: where the next scan is measured, and when there is none."""

import itertools
import math

import pytest
from bluesky import RunEngine
from ophyd import Signal
from spots import ScriptedLive, decisions, drifting, run_of, starts

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.plans import follow
from bluesky_cdinn.sim.devices import RockingStage, SimulatedAreaDetector
from bluesky_cdinn.steering import Decision

NUM = 31


class Bench:
    """A crystal whose peak is where a function of the frames taken says."""

    def __init__(self, centre, answer=lambda start: {}):
        self.theta = RockingStage(name="theta", settle_time_s=0.0, time_scale=0.0)
        self.source = drifting(centre)
        self.det = SimulatedAreaDetector(name="det", source=self.source, stage=self.theta, time_scale=0.0)
        self.live = ScriptedLive(answer)
        self.documents = []
        self.RE = RunEngine({}, call_returns_result=True)
        self.RE.subscribe(lambda name, doc: self.documents.append((name, doc)))

    def run(self, *more, **options):
        options = {"scans": 5, "live": self.live, **options}
        return self.RE(follow([self.det, *more], self.theta, -0.15, 0.15, NUM, **options)).plan_result

    @property
    def curves(self):
        return starts(self.documents, purpose="rocking_curve")

    @property
    def middles(self):
        return [(s["plan_args"]["start"] + s["plan_args"]["stop"]) / 2 for s in self.curves]


def test_each_scan_is_about_where_the_peak_will_be():
    bench = Bench(lambda frames: 0.002 * frames)
    known = bench.run()
    # It moves by 0.062 deg a scan, so that the first few lag behind; then it is foreseen.
    behind = [scan.centre_deg - middle for scan, middle in zip(known, bench.middles, strict=True)]
    assert behind[1] == pytest.approx(0.06, abs=0.02)
    assert abs(behind[3]) < 0.03
    assert behind[4] == pytest.approx(0.0, abs=0.01)
    assert all(start["steering_uid"] for start in bench.curves)


def test_each_reconstruction_starts_from_the_last():
    bench = Bench(lambda frames: 0.0)
    known = bench.run(scans=3)
    uids = [start["uid"] for start in bench.curves]
    assert [scan.raw_uid for scan in known] == uids
    assert [start["cdi"]["starts_from"] for start in bench.curves] == ["", *uids[:2]]


@pytest.mark.parametrize(("overlap", "scans"), [(True, 4), (False, 3)], ids=["overlapping", "waiting"])
def test_a_threshold_ends_the_series(overlap, scans):
    strains = itertools.count(1)
    bench = Bench(lambda frames: 0.0, lambda start: {"scalars": {"strain_rms": 2e-4 * next(strains)}})
    known = bench.run(thresholds={"strain_rms": [None, 5e-4]}, overlap=overlap)
    assert len(bench.curves) == len(known) == scans
    said = [reason for action, reason in decisions(bench.documents) if action == "stop"]
    assert said == ["strain_rms is 0.0006, over 0.0005"]


def test_any_reading_has_thresholds_whatever_the_reconstruction_is_worth():
    oven = Signal(name="oven", value=300.0)
    bench = Bench(lambda frames: oven.put(300.0 + frames) or 0.0, lambda start: {"status": "failed"})
    known = bench.run(oven, thresholds={"oven": [None, 350.0], "strain_rms": [None, 1e-9]}, overlap=False)
    assert len(known) == 2
    assert known[-1].readings["oven"] == pytest.approx(350.0, abs=15)


def test_what_cannot_be_trusted_crosses_nothing():
    bench = Bench(lambda frames: 0.0, lambda start: {"confidence": 0.1, "scalars": {"strain_rms": 1.0}})
    assert len(bench.run(thresholds={"strain_rms": [None, 1e-3]})) == 5


def test_a_plan_of_ones_own_is_carried_out_and_the_series_goes_on():
    seen = []

    def cool(decision):
        seen.append(decision.reason)
        yield from ()
        return len(seen) < 2

    bench = Bench(lambda frames: 0.0)
    rule = lambda scans: Decision("cool", f"after {len(scans)}") if len(scans) % 2 == 0 else None  # noqa: E731
    assert len(bench.run(scans=8, rule=rule, on_crossing=cool, overlap=False)) == 4
    assert seen == ["after 2", "after 4"]


def test_a_peak_that_jumped_is_looked_for_and_found():
    bench = Bench(lambda frames: 0.0 if frames < 2 * NUM else 0.4)
    known = bench.run()
    assert len(known) == 5
    assert math.isnan(known[2].centre_deg)
    assert known[3].centre_deg == pytest.approx(0.4, abs=0.01)
    assert bench.middles[3] == pytest.approx(0.4, abs=0.02)
    looked = [reason for action, reason in decisions(bench.documents) if action == "look"]
    assert any("0.3 deg" in reason for reason in looked)


def test_a_cut_peak_is_centred_again():
    bench = Bench(lambda frames: 0.0 if frames < NUM else 0.14)
    known = bench.run(scans=3)
    assert known[-1].centre_deg == pytest.approx(0.14, abs=0.01)
    assert bench.middles[-1] == pytest.approx(0.14, abs=0.02)


def test_a_peak_lost_for_good_ends_the_series():
    bench = Bench(lambda frames: 0.0 if frames < 2 * NUM else math.nan)
    assert len(bench.run()) == 3
    action, reason = decisions(bench.documents)[-2]
    assert (action, "the peak is lost" in reason) == ("stop", True)
    (own,) = starts(bench.documents, purpose="steering")
    assert run_of(bench.documents, own["uid"])[-1][1]["exit_status"] == "success"


def test_a_motors_limit_ends_the_series():
    bench = Bench(lambda frames: 4.7 + 0.002 * frames)
    known = bench.RE(follow(bench.det, bench.theta, 4.55, 4.85, NUM, scans=20, live=bench.live)).plan_result
    assert 2 < len(known) < 20
    assert any("limits" in reason for action, reason in decisions(bench.documents) if action == "stop")


def test_time_is_a_limit_too():
    bench = Bench(lambda frames: 0.0)
    assert len(bench.run(duration_s=1e-9)) == 0
    assert decisions(bench.documents) == [("stop", "time is up after 0 scans")]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"scans": 0}, "scans"),
        ({"duration_s": -1.0}, "duration_s"),
        ({"thresholds": {"strain_rms": [2, 1]}}, "range of strain_rms"),
        ({"thresholds": {"strain_rms": 5e-4}}, "range of strain_rms"),
        ({"thresholds": {"strain_rms": [None, 1]}, "rule": lambda scans: None}, "one of the two"),
    ],
)
def test_bad_arguments_move_nothing(options, complaint):
    bench = Bench(lambda frames: 0.0)
    with pytest.raises(InvalidInput, match=complaint):
        bench.run(**options)
    assert not bench.documents


@pytest.mark.parametrize("overlap", [True, False])
def test_the_last_scan_is_judged_too(overlap):
    strains = itertools.count(1)
    bench = Bench(lambda frames: 0.0, lambda start: {"scalars": {"strain_rms": 2e-4 * next(strains)}})
    known = bench.run(scans=3, thresholds={"strain_rms": [None, 5e-4]}, overlap=overlap)
    assert len(known) == 3
    assert ("stop", "strain_rms is 0.0006, over 0.0005") in decisions(bench.documents)


@pytest.mark.parametrize("angles", [(0.1, 0.1), (-200.0, 200.0)])
def test_a_first_scan_that_cannot_be_is_an_error(angles):
    bench = Bench(lambda frames: 0.0)
    with pytest.raises(InvalidInput):
        bench.RE(follow([bench.det], bench.theta, *angles, NUM, scans=3, live=bench.live))
