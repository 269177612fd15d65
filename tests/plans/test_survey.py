"""A survey under a real RunEngine: what is skipped and why, what is measured, what is written down."""

import threading

import numpy as np
import pytest
from bluesky import RunEngine
from bluesky.utils import RunEngineInterrupted
from spots import ScriptedLive, Spots, decisions, run_of, starts

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.plans import survey
from bluesky_cdinn.sim.devices import RockingStage, SimulatedAreaDetector
from bluesky_cdinn.survey_ranking import grain_grid
from bluesky_cdinn.survey_table import table_from_documents

SAMPLE = {
    (0, 0): [(0.01, 30.0, 34.0, 1e4)],
    (1, 0): [],
    (2, 0): [(-0.02, 40.0, 30.0, 2e4)],
    (2, 1): [(0.03, 30.0, 30.0, 40.0)],
    (1, 1): [(0.0, 20.0, 20.0, 1e4), (0.0, 48.0, 48.0, 8e3)],
    (0, 1): [(0.0, 1.0, 32.0, 1e4)],
}
PLACES = grain_grid({"x": [0, 1, 2], "y": [0, 1]})


class Bench:
    """A sample, its motors, and what they did."""

    def __init__(self):
        self.theta, self.x, self.y, self.up, self.across = (
            RockingStage(name=name, settle_time_s=0.0, time_scale=0.0)
            for name in ("theta", "x", "y", "up", "across")
        )
        self.source = Spots(SAMPLE, (self.x, self.y))
        self.det = SimulatedAreaDetector(
            name="det", source=self.source, stage=self.theta, time_scale=0.0, count_time_s=0.1
        )
        self.documents = []
        self.RE = RunEngine({}, call_returns_result=True)
        self.RE.subscribe(lambda name, doc: self.documents.append((name, doc)))
        self.live = ScriptedLive(lambda start: {"confidence": 0.9})

    def survey(self, grains=PLACES, **options):
        options = {"glance_s": 2.0, "measure_s": 20.0, "best": 1, "live": self.live, **options}
        return survey(self.det, self.theta, [self.x, self.y], grains, -0.25, 0.25, 21, **options)

    def run(self, *args, **options):
        return self.RE(self.survey(*args, **options)).plan_result


@pytest.fixture
def bench():
    return Bench()


def test_the_best_is_measured_and_the_others_are_told_why_not(bench):
    table = bench.run()
    assert [grain.name for grain in table if grain.status == "measured"] == ["x 2, y 0"]
    assert [grain.name for grain in table if grain.status == "seen"] == ["x 0, y 0"]
    why = {grain.name: grain.reason for grain in table if grain.status == "skipped"}
    assert "no counts" in why["x 1, y 0"]
    assert "too weak" in why["x 2, y 1"]
    assert "two grains at once" in why["x 1, y 1"]
    assert "detector's edge" in why["x 0, y 1"]
    best = table[0]
    assert best.centre_deg == pytest.approx(-0.02, abs=0.003)
    assert (best.row_px, best.column_px) == pytest.approx((40.0, 30.0), abs=0.5)
    assert best.counts_s == pytest.approx(2e4, rel=0.2)
    assert best.positions == {"x": 2.0, "y": 0.0}
    actions = [action for action, _ in decisions(bench.documents)]
    assert sorted(actions) == ["keep"] * 2 + ["leave", "measure", "measured"] + ["skip"] * 4


def test_every_run_names_the_survey_and_the_table_comes_back_from_it(bench):
    table = bench.run()
    (own,) = starts(bench.documents, purpose="steering")
    assert own["plan_name"] == "survey"
    others = [start for start in starts(bench.documents) if start is not own]
    assert all(start["steering_uid"] == own["uid"] and start["grain"] for start in others)
    assert {start["survey_step"] for start in others} == {"look", "glance", "measure"}
    assert {s["purpose"] for s in others if s["survey_step"] == "look"} == {"alignment"}
    again = table_from_documents(run_of(bench.documents, own["uid"]))
    assert str(again) == str(table)
    assert again[0].raw_uid == starts(bench.documents, survey_step="measure")[0]["uid"]


def test_a_failed_reconstruction_is_a_reason_and_the_next_best_takes_its_turn(bench):
    def answer(start):
        if start["survey_step"] == "measure" and start["grain"] == "x 2, y 0":
            return {"status": "failed", "reason": "no beam"}
        return {"confidence": 0.9}

    bench.live = ScriptedLive(answer)
    table = bench.run()
    assert [grain.name for grain in table if grain.status == "measured"] == ["x 0, y 0"]
    (failed,) = (grain for grain in table if grain.name == "x 2, y 0")
    assert failed.status == "skipped"
    assert "no beam" in failed.reason
    assert failed.raw_uid


def test_what_cannot_be_trusted_is_skipped(bench):
    doubtful = {"x 2, y 0": {"confidence": 0.1}, "x 0, y 0": {"status": "failed", "reason": "noise"}}
    bench.live = ScriptedLive(lambda start: doubtful[start["grain"]])
    table = bench.run()
    why = {grain.name: grain.reason for grain in table}
    assert {grain.status for grain in table} == {"skipped"}
    assert "confidence 0.10" in why["x 2, y 0"]
    assert "noise" in why["x 0, y 0"]


def test_one_grains_trouble_ends_nothing(bench):
    beyond = {"name": "beyond", "positions": {"x": 99.0, "y": 0.0}}
    table = bench.run([beyond, *PLACES[:3]])
    why = {grain.name: grain.reason for grain in table if grain.status == "skipped"}
    assert "LimitError" in why["beyond"]
    assert table[0].status == "measured"

    frame = bench.source.frame

    def fails_at_one(angle_deg, count_time_s):
        if round(bench.x.position) == 2:
            raise ValueError("the shutter sticks")
        return frame(angle_deg, count_time_s)

    bench.source.frame = fails_at_one
    table = bench.run(PLACES[:3])
    why = {grain.name: grain.reason for grain in table if grain.status == "skipped"}
    assert "shutter sticks" in why["x 2, y 0"]
    assert table[0].name == "x 0, y 0"
    assert table[0].status == "measured"


def test_abort_ends_it_and_leaves_what_was_decided(bench):
    frame = bench.source.frame
    paused = threading.Event()

    def pauses_at_the_third(angle_deg, count_time_s):
        if round(bench.x.position) == 2 and not paused.is_set():
            paused.set()
            threading.Thread(target=bench.RE.request_pause).start()
        return frame(angle_deg, count_time_s)

    bench.source.frame = pauses_at_the_third
    with pytest.raises(RunEngineInterrupted):
        bench.RE(bench.survey())
    bench.RE.abort("enough")
    (own,) = starts(bench.documents, purpose="steering")
    documents = run_of(bench.documents, own["uid"])
    assert documents[-1][0] == "stop"
    assert documents[-1][1]["exit_status"] == "abort"
    table = table_from_documents(documents)
    assert [grain.name for grain in table if grain.status == "skipped"] == ["x 1, y 0"]
    assert bench.det._staged.value == "no"


@pytest.mark.parametrize("known", [True, False], ids=["known effect", "measured effect"])
def test_two_motors_bring_each_peak_to_the_middle(bench, known):
    bench.source.arm = (bench.up, bench.across)
    effect = [[-10.0, 1.0], [0.0, 10.0]] if known else None
    table = bench.run(
        [PLACES[0], PLACES[2]],
        detector_motors=[bench.up, bench.across],
        pixels_per_unit=effect,
        test_move=0.5,
    )
    for grain in table:
        assert (grain.row_px, grain.column_px) == pytest.approx((32.0, 32.0), abs=2.0)
    # Where the detector stood for a grain is part of where it is.
    best = table[0]
    assert {"up", "across"} <= best.positions.keys()
    assert bench.up.position == pytest.approx(best.positions["up"])


def test_a_ranking_of_ones_own(bench):
    table = bench.run(ranking=lambda grain: -grain.counts_s, glance_s=0.0)
    assert table[0].name == "x 0, y 0"
    assert table[0].score < 0
    assert np.isfinite(table[0].confidence)
    assert not starts(bench.documents, survey_step="glance")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"grains": []}, "one or more"),
        ({"grains": [{"name": "a", "positions": {"z": 1}}]}, "of x, y"),
        ({"grains": [{"name": "a", "positions": {}}] * 2}, "a name of its own"),
        ({"best": 1.5}, "best"),
        ({"glance_s": -1.0}, "glance_s"),
        ({"weights": {"beauty": 1.0}}, "size, counts, strain, confidence"),
        ({"detector_motors": ["one"]}, "two motors"),
    ],
)
def test_bad_arguments_move_nothing(bench, options, complaint):
    with pytest.raises(InvalidInput, match=complaint):
        bench.run(**options)
    assert not bench.documents


def test_each_grain_is_looked_for_from_where_the_detector_stood(bench):
    bench.source.arm = (bench.up, bench.across)
    where = {}
    bench.RE.subscribe(
        lambda _, doc: where.setdefault(doc.get("grain"), (bench.up.position, bench.across.position)), "start"
    )
    bench.run(
        [PLACES[0], PLACES[2], PLACES[4]],
        detector_motors=[bench.up, bench.across],
        pixels_per_unit=[[-10.0, 1.0], [0.0, 10.0]],
    )
    assert {place for grain, place in where.items() if grain} == {(0.0, 0.0)}


@pytest.mark.parametrize("options", [{"count_time": -1.0}, {"weights": {"size": "two"}}])
def test_what_cannot_be_measured_is_said_before_anything_moves(bench, options):
    with pytest.raises((InvalidInput, ValueError)):
        bench.run(**options)
    assert not bench.documents
