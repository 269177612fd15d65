"""bluesky-adaptive's own plan and optimisers over rocking curves: asserted on the documents."""

import math
from collections import Counter
from concurrent.futures import Future
from itertools import count

import pytest
from bluesky_adaptive.plans import optimize, sample_suggestions
from bluesky_adaptive.protocols import AcquisitionPlan, EvaluationFunction, OptimizationProblem, Optimizer
from bluesky_adaptive.scipy import Objective, RangeDOF, Scipy
from bluesky_adaptive.scipy.configs import SCP, ScipyCFG
from ophyd.sim import SynAxis

from bluesky_cdinn.adaptive import ID, Resilient, RockingTrials, StoredOutcomes, at_dose, outcome
from bluesky_cdinn.callbacks import LiveReconstruction
from bluesky_cdinn.errors import InvalidInput, NotFound
from bluesky_cdinn.sim.detector_effects import DetectorModel
from bluesky_cdinn.sim.devices import gold_geometry, simulated_beamline
from bluesky_cdinn.steering import Pass
from bluesky_cdinn.summary import ReconstructionSummary

DOSE_S = 1.6


class Bowl:
    """A live callback whose crystals are sharpest where 40 angles are measured; with fewer than 20, none."""

    def __init__(self):
        self._results = {}

    def __call__(self, name, doc):
        if name == "start" and doc.get("purpose") == "rocking_curve":
            self._results[doc["uid"]] = future = Future()
            num = doc["num_points"]
            scalars = {"resolution_nm": 10 + (num / 40 - 1) ** 2, "confidence": 0.8}
            status, reason = ("success", "") if num >= 20 else ("failed", "no peak")
            future.set_result(
                ReconstructionSummary(doc["uid"], "p", status=status, reason=reason, scalars=scalars)
            )

    def result(self, raw_uid):
        if raw_uid not in self._results:
            raise NotFound(raw_uid)
        return self._results[raw_uid]


class Listed:
    """Suggests what it was given, in turn, and remembers what it is told."""

    def __init__(self, *parameters):
        self._parameters = list(parameters)
        self._numbers = count()
        self.told, self.failed = [], []

    def suggest(self, num_points=None):
        return [{ID: next(self._numbers), **self._parameters.pop(0)} for _ in range(num_points or 1)]

    def ingest(self, points):
        self.told.extend(points)

    def register_failures(self, suggestions):
        self.failed.extend(trial[ID] for trial in suggestions)

    def get_best_points(self):
        return []


@pytest.fixture
def beamline():
    detector = DetectorModel(shape=(16, 16))
    return simulated_beamline(geometry=gold_geometry((16, 16)), detector=detector, time_scale=0)


def nelder_mead(*dofs, **options):
    objective = Objective(name="resolution_nm", minimize=True)
    config = ScipyCFG(dofs=dofs, objective=objective, optimizer=SCP.NELDER_MEAD, max_iter=None, **options)
    return Scipy([], config, lambda uid, suggestions: [], timeout=60).optimizer


def problem_of(optimizer, trials, det, actuators=()):
    return OptimizationProblem(
        optimizer=optimizer,
        actuators=actuators,
        sensors=[det],
        evaluation_function=trials.evaluate,
        acquisition_plan=trials.acquire,
    )


def ran(RE, plan):
    """Run a plan, and return the start documents by uid and the events of the optimisation's own run."""
    starts, own, events = {}, set(), []

    def note(name, doc):
        if name == "start":
            starts[doc["uid"]] = doc
        elif name == "descriptor" and "run_key" in starts[doc["run_start"]]:
            own.add(doc["uid"])
        elif name == "event" and doc["descriptor"] in own:
            events.append(doc["data"])

    RE(plan, note)
    return starts, events


def test_the_shapes_are_those_that_are_asked_for(beamline):
    trials = RockingTrials(beamline[1], at_dose(DOSE_S))
    assert isinstance(trials.acquire, AcquisitionPlan)
    assert isinstance(trials.evaluate, EvaluationFunction)
    assert isinstance(Resilient(Listed()), Optimizer)


def test_an_optimiser_finds_the_best_scan_and_all_of_it_is_in_documents(RE, beamline):
    det, theta = beamline
    trials = RockingTrials(theta, at_dose(DOSE_S), ["resolution_nm", "confidence"], live=Bowl())
    dofs = [
        RangeDOF(name="num", bounds=(20, 60), parameter_type="float"),
        RangeDOF(name="half_range", bounds=(0.1, 0.3), parameter_type="float"),
    ]
    with nelder_mead(*dofs, initial=[26, 0.2]) as optimizer:
        problem = problem_of(Resilient(optimizer, {"resolution_nm": 50.0}), trials, det)
        starts, events = ran(RE, optimize(problem, iterations=16))
    best = min(events, key=lambda event: event["resolution_nm"])
    assert best["resolution_nm"] < events[0]["resolution_nm"] - 0.1
    assert abs(best["num"] - 40) < 4
    for event in events:
        scan = starts[event["acquisition_uid"]]
        assert scan["trial"]["parameters"] == {name: event[name] for name in ("num", "half_range")}
        assert str(scan["trial"]["id"]) == event["suggestion_ids"]
        assert scan["num_points"] == round(event["num"])
        assert event["confidence"] == 0.8
    assert Counter(start["plan_name"] for start in starts.values()) == {
        "optimize": 1,
        "rocking_scan": len(events),
    }


def test_a_failed_reconstruction_is_a_failed_trial(RE, beamline):
    det, theta = beamline
    trials = RockingTrials(theta, at_dose(DOSE_S), ["resolution_nm"], live=Bowl())
    optimizer = Listed(*({"num": num, "half_range": 0.2} for num in (30, 12, 40)))
    _, events = ran(RE, optimize(problem_of(Resilient(optimizer), trials, det), iterations=3))
    assert optimizer.failed == [1]
    assert [trial[ID] for trial in optimizer.told] == [0, 2]
    assert [math.isnan(event["resolution_nm"]) for event in events] == [False, True, False]


def test_the_worst_may_stand_for_a_failed_trial(RE, beamline):
    det, theta = beamline
    trials = RockingTrials(theta, at_dose(DOSE_S), ["resolution_nm"], live=Bowl())
    optimizer = Listed({"num": 12, "half_range": 0.2})
    _, (event,) = ran(
        RE, optimize(problem_of(Resilient(optimizer, {"resolution_nm": 50.0}), trials, det), iterations=1)
    )
    assert optimizer.told == [{ID: 0, "resolution_nm": 50.0}]
    assert math.isnan(event["resolution_nm"])


def test_several_trials_at_once_move_what_they_are_named_after(RE, beamline):
    det, theta = beamline
    filters = SynAxis(name="filters")
    seen = []

    def scan(parameters):
        seen.append(filters.position)
        return Pass(-0.2, 0.2, parameters["num"], 0.01)

    trials = RockingTrials(theta, scan, ["resolution_nm"], live=Bowl())
    optimizer = Listed({"num": 24, "filters": 2}, {"num": 30, "filters": 5})
    starts, events = ran(RE, optimize(problem_of(optimizer, trials, det, [filters]), n_points=2))
    assert [trial[ID] for trial in optimizer.told] == [0, 1]
    assert filters.position == 5
    assert [event["filters"] for event in events] == [2, 5]
    uids = [uid for uid, start in starts.items() if "trial" in start]
    assert list(events[0]["acquisition_uid"]) == uids


def test_a_point_by_hand(RE, beamline):
    det, theta = beamline
    trials = RockingTrials(theta, at_dose(DOSE_S), ["resolution_nm"], live=Bowl())
    optimizer = Listed()
    by_hand = [{ID: "mine", "num": 40, "half_range": 0.2}]
    starts, _ = ran(RE, sample_suggestions(problem_of(Resilient(optimizer), trials, det), by_hand))
    assert optimizer.told == [{ID: "mine", "resolution_nm": 10.0}]
    assert [start["trial"]["id"] for start in starts.values() if "trial" in start] == ["mine"]


def test_more_angles_are_shorter_ones():
    scan = at_dose(2.0, centre=1.0)({"half_range": 0.25, "num": 39.6})
    assert scan == Pass(0.75, 1.25, 40, 0.05)
    assert scan.exposure_s == pytest.approx(2.0)


def test_a_number_that_is_missing_makes_a_failed_trial():
    summary = ReconstructionSummary("raw", scalars={"resolution_nm": 9.0})
    assert outcome(summary, ["resolution_nm"]) == {"resolution_nm": 9.0}
    assert all(map(math.isnan, outcome(summary, ["resolution_nm", "confidence"]).values()))


def test_an_outcome_may_be_any_function_of_the_summary():
    summary = ReconstructionSummary("raw", confidence=0.9)
    assert outcome(summary, {"doubt": lambda found: 1 - found.confidence}) == pytest.approx({"doubt": 0.1})


def test_what_makes_no_sense_is_told(beamline, catalog):
    with pytest.raises(InvalidInput, match="names of scalars"):
        RockingTrials(beamline[1], at_dose(1.0), "resolution_nm")
    with pytest.raises(InvalidInput, match="give worst"):
        Resilient(object())
    with pytest.raises(InvalidInput, match="each suggestion must have a run"):
        StoredOutcomes(catalog)("uid", [])


@pytest.mark.timeout(600)
def test_real_reconstructions_told_here_and_read_by_another_process(RE, catalog):
    detector = DetectorModel(shape=(40, 40))
    det, theta = simulated_beamline(
        geometry=gold_geometry((40, 40)), detector=detector, peak_rate=1e6, time_scale=0, seed=1
    )
    RE.subscribe(catalog.raw_writer())
    dof = RangeDOF(name="num", bounds=(24, 36), parameter_type="float")
    with LiveReconstruction(catalog) as live, nelder_mead(dof, initial=[30]) as optimizer:
        wanted = ["resolution_nm"]
        trials = RockingTrials(theta, lambda p: at_dose(DOSE_S)({"half_range": 0.3, **p}), wanted, live=live)
        problem = problem_of(Resilient(optimizer, {"resolution_nm": 99.0}), trials, det)
        starts, events = ran(RE, optimize(problem, iterations=2))
        catalog.flush()
    assert events
    assert all(5 < event["resolution_nm"] < 99 for event in events)
    suggestions = [{ID: n} for n in range(len(events))]
    uids = [event["acquisition_uid"] for event in events]
    read = StoredOutcomes(catalog, wanted)(uids, suggestions)
    assert read == [{ID: n, "resolution_nm": event["resolution_nm"]} for n, event in enumerate(events)]
    assert math.isnan(StoredOutcomes(catalog, timeout_s=0.0)("no such", [{ID: 0}])[0]["confidence"])
    assert [start["trial"]["parameters"]["num"] for start in starts.values() if "trial" in start] == [
        event["num"] for event in events
    ]
