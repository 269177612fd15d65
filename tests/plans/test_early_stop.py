"""Scans that end when a rule says so: a real RunEngine, partial results from a script."""

import json
from concurrent.futures import Future

import numpy as np
import pytest
from event_model import DocumentNames, schema_validators

from bluesky_cdinn.callbacks import ReconstructionSummary, RockingCurveAssembler
from bluesky_cdinn.errors import InvalidInput, NotFound
from bluesky_cdinn.plans import rocking_scan_with_recon
from bluesky_cdinn.records import PartialResult
from bluesky_cdinn.sim.devices import RockingStage, SimulatedAreaDetector, gold_geometry
from bluesky_cdinn.steering import Decision

NOTHING = np.zeros((3, 1, 1), np.float32)


def partial(points, planned):
    return PartialResult(points, points / planned, NOTHING, NOTHING, chi2=0.001, scalars={"change_rad": 0.01})


class Blank:
    geometry = gold_geometry((8, 8))
    shape = (8, 8)
    dtype = np.dtype("int32")

    def frame(self, angle_deg, count_time_s):
        return np.full(self.shape, 100, np.int32)


class Silent:
    """A live callback that answers at once, and shows nothing of a scan that runs."""

    def __init__(self):
        self.documents = []
        self._results = {}

    def __call__(self, name, doc):
        self.documents.append((name, doc))
        if name == "start":
            self._uid = doc["uid"]
            self._results[self._uid] = Future()
        if name == "stop":
            self._results[self._uid].set_result(ReconstructionSummary(self._uid))

    def result(self, raw_uid):
        if raw_uid not in self._results:
            raise NotFound(raw_uid)
        return self._results[raw_uid]

    def named(self, name):
        return [doc for kind, doc in self.documents if kind == name]

    def events(self, stream):
        streams = {doc["uid"] for doc in self.named("descriptor") if doc["name"] == stream}
        return [doc for doc in self.named("event") if doc["descriptor"] in streams]


class Scripted(Silent):
    """Has a partial result after every third point."""

    def partials(self, raw_uid):
        assert raw_uid == self._uid
        seen = len(self.events("primary"))
        return tuple(self._partials.setdefault(n, partial(n, 12)) for n in range(6, seen + 1, 3))

    def __init__(self):
        super().__init__()
        self._partials = {}


class At:
    """Stops once so many points have been seen, and remembers what it was shown."""

    def __init__(self, points):
        self.points = points
        self.shown = []

    def __repr__(self):
        return f"At({self.points})"

    def __call__(self, partials):
        self.shown.append([p.points for p in partials])
        if partials[-1].points < self.points:
            return None
        return Decision("stop", "seen enough", {"points": np.int64(partials[-1].points)})


@pytest.fixture
def theta():
    return RockingStage(name="theta", settle_time_s=0.0, time_scale=0.0, initial_deg=0.5)


@pytest.fixture
def det(theta):
    return SimulatedAreaDetector(name="det", source=Blank(), stage=theta, time_scale=0.0)


def test_the_scan_ends_there_and_its_documents_say_why(RE, det, theta):
    live, rule = Scripted(), At(9)
    summary = RE(rocking_scan_with_recon(det, theta, -0.3, 0.3, 12, stop_rule=rule, live=live)).plan_result
    for name, doc in live.documents:
        schema_validators[DocumentNames[name]].validate(doc)
    assert summary.success
    assert len(live.events("primary")) == 9
    start, (stop,) = live.documents[0][1], live.named("stop")
    assert stop["exit_status"] == "success"
    assert stop["num_events"] == {"primary": 9, "steering": 1}
    assert start["num_points"] == 12
    assert start["cdi"]["planned_deg"] == [-0.3, 0.3, 12]
    assert start["stop_rule"] == "At(9)"
    (said,) = live.events("steering")
    assert (said["data"]["steering_action"], said["data"]["steering_reason"]) == ("stop", "seen enough")
    assert json.loads(said["data"]["steering_numbers"]) == {"points": 9}
    # Each partial result once, with those before it.
    assert rule.shown == [[6], [6, 9]]


def test_a_scan_stopped_early_is_a_whole_curve_of_what_was_measured(RE, det, theta):
    live, assembler = Scripted(), RockingCurveAssembler()
    RE.subscribe(assembler)
    RE(rocking_scan_with_recon(det, theta, -0.3, 0.3, 12, stop_rule=At(9), live=live))
    curve = assembler.curve()
    assert curve.exit_status == "success"
    np.testing.assert_allclose(curve.angles_deg, np.linspace(-0.3, 0.3, 12)[:9])
    assert assembler.done


def test_repeats_about_where_the_motor_stands_with_exposures_of_their_own(RE, det, theta):
    live = Scripted()
    RE(
        rocking_scan_with_recon(
            det,
            theta,
            -0.2,
            0.2,
            8,
            relative=True,
            repeats=3,
            count_time=np.linspace(0.1, 0.8, 8),
            stop_rule=At(12),
            live=live,
        )
    )
    events = live.events("primary")
    there = np.linspace(0.3, 0.7, 8)
    np.testing.assert_allclose([e["data"]["theta"] for e in events], [*there, *there[:3:-1]])
    np.testing.assert_allclose([e["data"]["det_count_time"] for e in events][7:9], [0.8, 0.8])
    assert live.documents[0][1]["num_points"] == 24
    assert theta.position == 0.5


@pytest.mark.parametrize("arguments", [{}, {"stop_early": True}, {"stop_early": 0.02}], ids=str)
def test_without_a_reason_all_is_measured(RE, det, theta, arguments):
    """Without being asked, and where the rule isn't content: here nothing says how far it can be believed."""
    live = Scripted()
    RE(rocking_scan_with_recon(det, theta, -0.3, 0.3, 12, live=live, **arguments))
    assert len(live.events("primary")) == 12
    assert not live.events("steering")
    assert ("stop_rule" in live.documents[0][1]) == bool(arguments)


def test_after_the_last_point_nothing_is_decided(RE, det, theta):
    live = Scripted()
    RE(rocking_scan_with_recon(det, theta, -0.3, 0.3, 12, stop_rule=At(12), live=live))
    assert len(live.events("primary")) == 12
    assert not live.events("steering")


def test_a_rule_that_fails_costs_no_point(RE, det, theta, caplog):
    asked = []

    def broken(partials):
        asked.append(len(partials))
        return partials[0].scalars["no such number"]

    live = Scripted()
    summary = RE(rocking_scan_with_recon(det, theta, -0.3, 0.3, 12, stop_rule=broken, live=live)).plan_result
    assert summary.success
    assert len(live.events("primary")) == 12
    assert asked == [1]
    assert live.documents[0][1]["stop_rule"].endswith("test_a_rule_that_fails_costs_no_point.<locals>.broken")
    assert "is measured whole" in caplog.text


def test_a_rule_that_returns_no_decision_costs_no_point(RE, det, theta, caplog):
    live = Scripted()
    RE(rocking_scan_with_recon(det, theta, -0.3, 0.3, 12, stop_rule=lambda partials: True, live=live))
    assert len(live.events("primary")) == 12
    assert "must return a Decision or None, got True" in caplog.text


def test_where_nothing_is_shown_the_scan_is_measured_whole(RE, det, theta, caplog):
    live = Silent()
    RE(rocking_scan_with_recon(det, theta, -0.3, 0.3, 12, stop_early=True, live=live))
    assert len(live.events("primary")) == 12
    assert "will not be stopped early" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"stop_early": True, "stop_rule": At(9)}, "one of the two"),
        ({"stop_early": -0.1}, "positive"),
        ({"stop_early": float("nan")}, "positive"),
    ],
)
def test_nonsense_is_refused_before_anything_moves(RE, det, theta, arguments, says):
    live = Scripted()
    with pytest.raises(InvalidInput, match=says):
        RE(rocking_scan_with_recon(det, theta, -0.3, 0.3, 12, live=live, **arguments))
    assert not live.documents
    assert theta.position == 0.5
