"""Adaptive scans: real RunEngine, a simulated peak, partial results from a script."""

import json
from concurrent.futures import Future

import numpy as np
import pytest
from event_model import DocumentNames, schema_validators

from bluesky_cdinn.callbacks import ReconstructionSummary, RockingCurveAssembler
from bluesky_cdinn.errors import IncompleteScan, InvalidInput, NotFound, ReconstructionFailed
from bluesky_cdinn.plans import adaptive_rocking_scan
from bluesky_cdinn.records import PartialResult
from bluesky_cdinn.sim.devices import RockingStage, SimulatedAreaDetector, gold_geometry
from bluesky_cdinn.steering import Decision, Pass

NOTHING = np.zeros((3, 1, 1), np.float32)
BUDGET_S = 60.0


class Peak:
    """A Gaussian peak with fringes enough to look at."""

    geometry = gold_geometry((32, 32))
    shape = (32, 32)
    dtype = np.dtype("uint32")

    def __init__(self, rate=1e4, centre=0.05, width=0.03):
        self.rate, self.centre, self.width = rate, centre, width
        self._rng = np.random.default_rng(1)

    def frame(self, angle_deg, count_time_s):
        rows, columns = np.indices(self.shape) - 16
        away = (rows**2 + columns**2) / 8 + ((angle_deg - self.centre) / self.width) ** 2
        return self._rng.poisson(self.rate * count_time_s * np.exp(-away / 2)).astype(np.uint32)


class Scripted:
    """A live callback whose partial results are written down beforehand."""

    def __init__(self, *results):
        self.documents, self.asked = [], []
        self._script = list(results)
        self._results = {}

    def __call__(self, name, doc):
        if name == "start":
            self._uid = doc["uid"]
            self._results[self._uid] = Future()
        if name == "stop":
            self._results[self._uid].set_result(ReconstructionSummary(self._uid))

    def result(self, raw_uid):
        if raw_uid not in self._results:
            raise NotFound(raw_uid)
        return self._results[raw_uid]

    def partial(self, raw_uid, points):
        assert raw_uid == self._uid
        self.asked.append(points)
        future, outcome = Future(), self._script.pop(0)
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        elif outcome is not None:
            future.set_result(outcome)
        return future


class Documents:
    def __init__(self):
        self.all = []

    def __call__(self, name, doc):
        schema_validators[DocumentNames[name]].validate(doc)
        self.all.append((name, doc))

    def named(self, name):
        return [doc for kind, doc in self.all if kind == name]

    def events(self, run, stream):
        streams = {
            d["uid"] for d in self.named("descriptor") if d["run_start"] == run and d["name"] == stream
        }
        return [doc["data"] for doc in self.named("event") if doc["descriptor"] in streams]

    def decisions(self, run):
        return [
            (d["steering_action"], d["steering_reason"], json.loads(d["steering_numbers"]))
            for d in self.events(run, "steering")
        ]


def result(resolution_nm=15.0, confidence=0.9, spread=0.05):
    scalars = {"resolution_nm": resolution_nm, "phase_spread_rad": spread}
    return PartialResult(60, 1.0, NOTHING, NOTHING, chi2=0.01, confidence=confidence, scalars=scalars)


def devices(**peak):
    theta = RockingStage(name="theta", time_scale=0.0)
    return SimulatedAreaDetector(name="det", source=Peak(**peak), stage=theta, time_scale=0.0), theta


def run(RE, live, *, peak=None, **kwargs):
    det, theta = devices(**(peak or {}))
    documents = Documents()
    given = {"resolution_nm": 30.0, **kwargs}
    summary = RE(
        adaptive_rocking_scan(det, theta, -0.3, 0.3, BUDGET_S, live=live, **given), documents
    ).plan_result
    return summary, documents, theta


def the_scan(documents):
    (start,) = [doc for doc in documents.named("start") if doc["purpose"] == "rocking_curve"]
    return start


def test_measures_until_the_aim_is_reached_and_writes_down_why(RE):
    live = Scripted(result(resolution_nm=65.0), result(confidence=0.4), result())
    summary, documents, _ = run(RE, live, resolution_nm=60.0)
    start = the_scan(documents)
    assert summary.raw_uid == start["uid"]
    assert start["plan_name"] == "adaptive_rocking_scan"
    decisions = documents.decisions(start["uid"])
    assert [action for action, _, _ in decisions] == ["measure", "measure", "measure", "stop"]
    assert decisions[-1][1] == "the aim is reached"
    assert decisions[1][2]["resolution_nm"] == 65.0
    passes = [Pass(**numbers["scan"]) for _, _, numbers in decisions[:-1]]
    points = documents.events(start["uid"], "primary")
    assert live.asked == np.cumsum([scan.num for scan in passes]).tolist()
    assert len(points) == live.asked[-1]
    exposures = np.repeat([scan.count_time for scan in passes], [scan.num for scan in passes])
    assert [point["det_count_time"] for point in points] == pytest.approx(exposures)
    angles = [point["theta"] for point in points]
    assert angles[0] == pytest.approx(passes[0].start)
    # Back and forth.
    assert angles[passes[0].num] == pytest.approx(passes[1].stop)
    assert np.mean(angles) == pytest.approx(0.05, abs=0.01)


def test_frames_of_all_passes_are_one_curve(RE):
    live, assembler = Scripted(result(resolution_nm=50.0), result()), RockingCurveAssembler()
    token = RE.subscribe(
        lambda name, doc: assembler(name, doc) if name != "start" or "rocking" in doc["purpose"] else None
    )
    _, documents, _ = run(RE, live)
    RE.unsubscribe(token)
    curve = assembler.curve()
    assert len(curve.frames) == live.asked[-1]
    assert len(np.unique(curve.count_time_s)) == 2
    assert list(curve.planned_deg[[0, -1]]) == pytest.approx(the_scan(documents)["cdi"]["planned_deg"][:2])


def test_all_exposure_stays_within_the_budget(RE):
    worse = [result(confidence=0.1, spread=1 / n) for n in range(1, 9)]
    _, documents, _ = run(RE, Scripted(*worse))
    spent = [point["det_count_time"] for point in documents.events(the_scan(documents)["uid"], "primary")]
    assert 0.8 * BUDGET_S < sum(spent) <= BUDGET_S
    assert "the budget is spent" in documents.decisions(the_scan(documents)["uid"])[-1][1]


def test_without_a_peak_nothing_is_measured_and_that_is_written_down(RE):
    summary, documents, _ = run(RE, Scripted(), peak={"rate": 0.0})
    assert summary.status == "failed"
    assert "nothing to measure" in summary.reason
    purposes = [start["purpose"] for start in documents.named("start")]
    assert purposes == ["alignment", "alignment", "steering"]
    ((action, reason, _),) = documents.decisions(documents.named("start")[-1]["uid"])
    assert (action, reason) == ("stop", summary.reason)
    with pytest.raises(ReconstructionFailed, match="nothing to measure"):
        run(RE, Scripted(), peak={"rate": 0.0}, on_failure="raise")


@pytest.mark.parametrize(
    ("outcome", "said"), [(IncompleteScan("the peak isn't in view"), 3), (None, 3)], ids=["refused", "late"]
)
def test_goes_on_without_a_partial_result_but_not_for_ever(RE, outcome, said):
    summary, documents, _ = run(RE, Scripted(*[outcome] * 5), timeout=0.2)
    decisions = documents.decisions(the_scan(documents)["uid"])
    assert len(decisions) <= said + 1
    assert decisions[-1][0] == "stop"
    assert summary.success


def test_a_rule_of_ones_own_decides(RE):
    def twice(so_far):
        if len(so_far.passes) == 2:
            return Decision("stop", "two will do", {"peak_deg": so_far.look.peak.centre_deg})
        return Decision("measure", "once more", scan=Pass(-0.1, 0.2, 12, 0.1))

    _, documents, _ = run(RE, Scripted(result(), result()), rule=twice)
    decisions = documents.decisions(the_scan(documents)["uid"])
    assert [reason for _, reason, _ in decisions] == ["once more", "once more", "two will do"]
    assert decisions[-1][2]["peak_deg"] == pytest.approx(0.05, abs=0.01)


def test_a_rule_that_fails_ends_the_scan_but_loses_nothing(RE):
    def broken(so_far):
        if so_far.passes:
            raise ZeroDivisionError("oh")
        return Decision("measure", "first", scan=Pass(-0.1, 0.2, 12, 0.1))

    summary, documents, _ = run(RE, Scripted(result()), rule=broken)
    assert summary.success
    assert documents.decisions(the_scan(documents)["uid"])[-1][1] == "the rule failed: ZeroDivisionError: oh"
    assert {stop["exit_status"] for stop in documents.named("stop")} == {"success"}


def test_relative_angles_are_counted_from_where_the_motor_stands(RE):
    det, theta = devices(centre=0.35)
    theta.set(0.3).wait(5)
    documents = Documents()
    plan = adaptive_rocking_scan(
        det, theta, -0.3, 0.3, BUDGET_S, resolution_nm=30.0, relative=True, live=Scripted(result())
    )
    RE(plan, documents)
    angles = [point["theta"] for point in documents.events(the_scan(documents)["uid"], "primary")]
    assert np.mean(angles) == pytest.approx(0.35, abs=0.01)
    assert theta.position == pytest.approx(0.3)


def test_passes_go_no_further_than_the_motor(RE):
    det, theta = devices(rate=1e6, width=0.1)

    def check_value(value, **kwargs):
        if not -0.3 <= value <= 0.35:
            raise ValueError("beyond the limits")

    theta.check_value = check_value
    documents = Documents()
    RE(adaptive_rocking_scan(det, theta, -0.3, 0.3, BUDGET_S, live=Scripted(*[result()] * 9)), documents)
    angles = [point["theta"] for point in documents.events(the_scan(documents)["uid"], "primary")]
    assert -0.3 <= min(angles) < max(angles) <= 0.35
    assert "as far as the motor goes" in documents.decisions(the_scan(documents)["uid"])[0][1]


def test_a_detector_that_fails_closes_the_run_as_failed(RE):
    det, theta = devices()
    frames = det.source.frame
    det.source.frame = lambda angle, time: frames(angle, time) if len(seen) < 40 else 1 / 0
    seen, documents = [], Documents()
    with pytest.raises(Exception):  # noqa: B017 - whatever the detector's status raises
        RE(
            adaptive_rocking_scan(det, theta, -0.3, 0.3, BUDGET_S, live=Scripted(*[result()] * 9)),
            lambda name, doc: (documents(name, doc), seen.append(doc) if name == "event" else None),
        )
    stops = {stop["run_start"]: stop["exit_status"] for stop in documents.named("stop")}
    assert stops[the_scan(documents)["uid"]] == "fail"


@pytest.mark.parametrize("nonsense", [{"resolution_nm": -1.0}, {"confidence": 2.0}, {"on_failure": "ignore"}])
def test_refuses_nonsense_before_anything_moves(RE, nonsense):
    documents = Documents()
    det, theta = devices()
    with pytest.raises(InvalidInput):
        RE(adaptive_rocking_scan(det, theta, -0.3, 0.3, BUDGET_S, live=Scripted(), **nonsense), documents)
    assert not documents.all
