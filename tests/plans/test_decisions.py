"""Decisions in the documents: real RunEngine, valid documents."""

import json
import math
import threading
from collections import defaultdict

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np
import pytest
from bluesky.utils import RunEngineInterrupted
from event_model import DocumentNames, schema_validators

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.plans._decisions import DecisionLog, record, steering_run
from bluesky_cdinn.steering import Decision, Pass

DECISION = Decision("measure", "the peak is there", {"fwhm_deg": np.float64(0.1)}, Pass(-0.1, 0.1, 21, 0.5))


class Documents:
    def __init__(self):
        self.by_name = defaultdict(list)

    def __call__(self, name, doc):
        schema_validators[DocumentNames[name]].validate(doc)
        self.by_name[name].append(doc)

    def decisions(self, run):
        streams = {
            d["uid"] for d in self.by_name["descriptor"] if d["run_start"] == run and d["name"] == "steering"
        }
        return [e["data"] for e in self.by_name["event"] if e["descriptor"] in streams]


def test_a_decision_is_an_event_of_the_run_that_is_open(RE):
    documents = Documents()

    @bpp.run_decorator()
    def plan():
        log = DecisionLog()
        yield from record(log, DECISION)
        yield from record(log, Decision("stop", "done"))

    (uid,) = RE(plan(), documents).run_start_uids
    first, second = documents.decisions(uid)
    assert (first["steering_action"], first["steering_reason"]) == ("measure", "the peak is there")
    numbers = json.loads(first["steering_numbers"])
    assert numbers == {
        "fwhm_deg": 0.1,
        "scan": {"start": -0.1, "stop": 0.1, "num": 21, "count_time": 0.5},
    }
    assert (second["steering_action"], json.loads(second["steering_numbers"])) == ("stop", {})


def test_what_is_no_number_is_null(RE):
    documents = Documents()
    seen = {"deg": math.nan, "grain": {"nm": np.float32(np.inf), "at": (1, np.int64(2))}}
    plan = steering_run("follow", {}, lambda note, uid: note(Decision("heed", "a scan", seen)))
    (uid,) = RE(plan, documents).run_start_uids
    (said,) = documents.decisions(uid)
    assert json.loads(said["steering_numbers"], parse_constant=pytest.fail) == {
        "deg": None,
        "grain": {"nm": None, "at": [1, 2]},
    }


def test_decisions_are_not_repeated_after_a_pause(RE):
    def body(note, uid):
        yield from note(Decision("heed", "a scan"))
        yield from note(Decision("stop", "too hot"))
        threading.Thread(target=RE.request_pause).start()
        yield from bps.sleep(2.0)

    documents = Documents()
    with pytest.raises(RunEngineInterrupted):
        RE(steering_run("follow", {}, body), documents)
    RE.resume()
    (uid,) = [start["uid"] for start in documents.by_name["start"]]
    assert [d["steering_action"] for d in documents.decisions(uid)] == ["heed", "stop"]


def several_runs(fail=False):
    def body(note, steering_uid):
        yield from note(DECISION)
        yield from bpp.run_wrapper(bps.null(), md={"steering_uid": steering_uid})
        if fail:
            raise RuntimeError("the motor is stuck")
        yield from note(Decision("stop", "all done"))
        return "result"

    return steering_run("survey", {"sample": "gold"}, body)


def test_a_plan_of_several_runs_keeps_its_decisions_in_one_of_its_own(RE):
    documents = Documents()
    result = RE(several_runs(), documents)
    steering, child = documents.by_name["start"]
    assert result.plan_result == "result"
    assert (steering["plan_name"], steering["purpose"], steering["sample"]) == ("survey", "steering", "gold")
    assert child["steering_uid"] == steering["uid"]
    assert [d["steering_action"] for d in documents.decisions(steering["uid"])] == ["measure", "stop"]
    assert {stop["exit_status"] for stop in documents.by_name["stop"]} == {"success"}


def test_the_run_of_decisions_ends_with_its_plan(RE):
    documents = Documents()
    with pytest.raises(RuntimeError, match="stuck"):
        RE(several_runs(fail=True), documents)
    steering = documents.by_name["start"][0]["uid"]
    stops = {stop["run_start"]: stop for stop in documents.by_name["stop"]}
    assert (stops[steering]["exit_status"], stops[steering]["reason"]) == ("fail", "the motor is stuck")
    assert len(documents.decisions(steering)) == 1


@pytest.mark.parametrize(
    "nonsense", [(0.1, 0.1, 5, 1.0), (0, 1, 1, 1.0), (0, 1, 5, 0.0), (0, float("nan"), 5, 1.0)]
)
def test_a_pass_must_lead_somewhere(nonsense):
    with pytest.raises(InvalidInput):
        Pass(*nonsense)


def test_a_pass_knows_its_step_and_exposure():
    scan = Pass(0.2, -0.2, 41, 0.5)
    assert scan.step_deg == pytest.approx(0.01)
    assert scan.exposure_s == pytest.approx(20.5)
