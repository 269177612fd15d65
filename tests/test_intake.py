"""A worker's intake in a real Tiled: one scan's trouble is never another's, and no claim is left behind."""

import time
from concurrent.futures import Future

import pytest

from bluesky_cdinn import intake as intake_module
from bluesky_cdinn import leftovers
from bluesky_cdinn.claims import Claims
from bluesky_cdinn.errors import StoreUnavailable
from bluesky_cdinn.heartbeat import Heartbeat, PulseWatch
from bluesky_cdinn.intake import Intake
from bluesky_cdinn.metrics import WorkerMetrics
from bluesky_cdinn.summary import ReconstructionSummary


class Live:
    """Collects what a live callback would reconstruct."""

    def __init__(self):
        self.stops = {}
        self.results = {}

    def __call__(self, name, doc):
        if name == "start":
            self.results[doc["uid"]] = Future()
        elif name == "stop":
            self.stops[doc["run_start"]] = doc

    def result(self, raw_uid):
        return self.results[raw_uid]


class Worker:
    def __init__(self, catalog, name="a"):
        self.watch = PulseWatch(1e6)
        self.live = Live()
        self.claims = Claims(name, 1.0, self.watch, lambda: None)
        self.intake = Intake(catalog, self.live, self.claims, self.watch, WorkerMetrics())
        self.watch.look({name: Heartbeat(name, 1.0)})

    def take(self, *documents):
        for document in documents:
            self.intake.take(*document)

    def finish(self, uid, **said):
        self.live.results[uid].set_result(ReconstructionSummary(uid, f"processed-{uid}", **said))


def start(uid):
    return "start", {"uid": uid, "time": time.time(), "purpose": "rocking_curve", "motors": ["theta"]}


def stop(uid, points=0):
    said = {"uid": f"{uid}-stop", "run_start": uid, "time": time.time(), "exit_status": "success"}
    return "stop", said | {"num_events": {"primary": points} if points else {}}


@pytest.fixture
def catalog(catalog, settings):
    remote = {"claims": f"{settings.tiled.raw}-claims", "workers": f"{settings.tiled.raw}-workers"}
    catalog.settings = settings.model_copy(update={"remote": settings.remote.model_copy(update=remote)})
    return catalog


@pytest.fixture
def claims(catalog):
    return catalog.folder(catalog.settings.remote.claims)


@pytest.fixture
def store(catalog):
    def store(uid):
        write = catalog.raw_writer()
        for document in (start(uid), stop(uid)):
            write(*document)
        assert catalog.flush(60)

    return store


@pytest.fixture
def worker(catalog):
    return Worker(catalog)


def breaking(catalog, monkeypatch, bad, after=1):
    """Have the documents of one stored run end with an error."""
    whole = catalog.raw_documents

    def documents(uid):
        for number, document in enumerate(whole(uid)):
            if uid == bad and number >= after:
                raise KeyError("data_keys")
            yield document

    monkeypatch.setattr(catalog, "raw_documents", documents)


def test_a_claim_that_comes_to_nothing_is_given_back(worker, claims, store, monkeypatch):
    def hiccup(*arguments):
        raise StoreUnavailable("a hiccup")

    with monkeypatch.context() as patch:
        patch.setattr(intake_module, "listed", hiccup)
        worker.take(start("scan-x"))
    assert (list(claims), worker.intake.runs) == (["scan-x.1"], {})
    assert worker.intake.needs_sweep.is_set()
    worker.intake.sweep()
    assert (list(claims), worker.claims.held) == ([], {})
    store("scan-x")
    for _ in range(2):
        worker.intake.sweep()
    assert "scan-x" in worker.live.stops


def test_a_scan_that_cannot_be_released_holds_nobody_up(worker, claims, store, monkeypatch):
    worker.take(start("scan-x"), stop("scan-x"))
    worker.finish("scan-x", status="cancelled")
    release = worker.claims.release

    def refused(folder, uid):
        if uid == "scan-x":
            raise RuntimeError("this one can't be released")
        release(folder, uid)

    monkeypatch.setattr(worker.claims, "release", refused)
    store("scan-y")
    for _ in range(3):
        worker.intake.sweep()
    assert "scan-y" in worker.live.stops
    monkeypatch.undo()
    worker.intake.sweep()
    assert list(claims) == ["scan-y.1"]


def test_a_stored_scan_that_cannot_be_read_is_done_with_what_came(
    worker, catalog, store, monkeypatch, caplog
):
    monkeypatch.setattr(intake_module, "PATIENCE_S", 0.0)
    breaking(catalog, monkeypatch, "scan-bad")
    for uid in ("scan-bad", "scan-good"):
        store(uid)
        worker.take(start(uid), stop(uid, points=3))
    for _ in range(2):
        worker.intake.sweep()
    assert set(worker.live.stops) == {"scan-bad", "scan-good"}
    assert "scan scan-bad can't be completed" in caplog.text


def test_one_that_nobody_did_and_nobody_can_read_is_left_to_others(
    worker, catalog, claims, store, monkeypatch
):
    breaking(catalog, monkeypatch, "scan-bad", after=0)
    store("scan-good")
    store("scan-bad")
    for _ in range(leftovers.ATTEMPTS + 3):
        worker.intake.sweep()
    assert list(worker.live.stops) == ["scan-good"]
    assert list(claims) == ["scan-good.1"]


def test_patience_is_for_when_tiled_is_there(worker, monkeypatch):
    monkeypatch.setattr(intake_module, "PATIENCE_S", 0.0)
    worker.take(start("scan-x"), stop("scan-x", points=3))
    worker.intake.sweep()

    def away(*arguments):
        raise StoreUnavailable("Tiled is away")

    with monkeypatch.context() as patch:
        patch.setattr(worker.intake._catalog, "folder", away)
        patch.setattr(intake_module, "listed", away)
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                worker.intake.sweep()
    worker.intake.sweep()
    assert worker.live.stops == {}
    worker.intake.sweep()
    assert worker.live.stops["scan-x"]["uid"] == "scan-x-stop"


def test_sweeps_in_a_row_cost_no_patience(worker):
    worker.take(start("scan-x"), stop("scan-x", points=3))
    for _ in range(8):
        worker.intake.sweep()
    assert worker.live.stops == {}


def test_scans_without_an_end_hold_nobody_up(worker, claims, store, monkeypatch):
    endless = [f"endless{n}" for n in range(9)]
    worker.take(*map(start, endless))
    assert set(worker.intake.runs) == set(endless)
    store("missed")
    for _ in range(2):
        worker.intake.sweep()
    assert "missed" in worker.live.stops
    monkeypatch.setattr(intake_module, "SILENCE_S", 0.0)
    worker.intake.sweep()
    worker.intake.sweep()
    assert all(worker.live.results[uid].cancelled() for uid in endless)
    assert (set(worker.intake.runs), list(claims)) == ({"missed"}, ["missed.1"])
    # It only paused: what comes now is of no use, the whole of it is when Tiled has it.
    worker.live.stops.clear()
    worker.finish("missed", status="success")
    worker.take(stop("endless0"))
    store("endless0")
    for _ in range(2):
        worker.intake.sweep()
    assert list(worker.live.stops) == ["endless0"]
    assert not worker.live.results["endless0"].cancelled()


def test_a_result_that_tiled_does_not_take_is_not_made_again(worker, claims, store):
    store("scan-x")
    worker.take(start("scan-x"), stop("scan-x"))
    worker.finish("scan-x", status="success")
    worker.live.stops.clear()
    for _ in range(3):
        worker.intake.sweep()
    assert (worker.intake.runs, list(claims), worker.live.stops) == ({}, [], {})


def test_who_is_closed_gives_all_back_and_completes_nothing(worker, claims, store):
    store("scan-x")
    worker.take(start("scan-x"), stop("scan-x", points=3), start("running"))
    worker.intake.close()
    assert (worker.intake.runs, list(claims), worker.live.stops) == ({}, [], {})


def test_what_is_done_is_not_listed_again(worker, store, monkeypatch):
    asked = []
    plan = leftovers.plan
    monkeypatch.setattr(
        leftovers, "plan", lambda catalog, wanted, by: asked.append(wanted.since) or plan(catalog, wanted, by)
    )
    looking = leftovers.Leftovers(worker.intake._catalog)
    looking._look_back_s = 0.0
    store("scan-x")
    assert looking.look() == []
    assert looking.look() == ["scan-x"]
    # As long as it waits it is looked at.
    assert looking.look() == ["scan-x"]
    assert asked[2] == asked[1]
    looking.settle("scan-x")
    assert looking.look() == looking.look() == []
    assert asked[-1] > asked[2]
