"""What is asked of Tiled by those who wait for reconstructions made elsewhere."""

import threading
from concurrent.futures import Future

import numpy as np
import pytest

from bluesky_cdinn.callbacks import _remote_partials
from bluesky_cdinn.callbacks._remote import _Expected
from bluesky_cdinn.callbacks._remote_partials import watch_partials
from bluesky_cdinn.errors import IncompleteScan, NotFound, StoreUnavailable
from bluesky_cdinn.records import PartialResult


def processed(catalog, raw_uid, status, stop):
    start = {"uid": f"of-{raw_uid}", "time": 1.7e9, "raw_uid": raw_uid, "status": status}
    start |= {"purpose": "reconstruction", "scalars": {"chi2": 0.5}, "sample": "gold"}
    catalog.processed.create_container(start["uid"], metadata={"start": start, "stop": stop})


def test_all_scans_without_a_result_are_asked_for_at_once(catalog, monkeypatch):
    expected = _Expected(catalog)
    for number in range(100):
        expected.add(f"scan-{number}")
    processed(catalog, "scan-3", "success", {"exit_status": "success"})
    processed(catalog, "scan-4", "running", None)
    processed(catalog, "another", "success", {"exit_status": "success"})
    asked = []
    client = catalog.processed.context.http_client
    monkeypatch.setitem(client.event_hooks, "request", [*client.event_hooks["request"], asked.append])
    expected.look()
    assert len([request for request in asked if "/search/" in str(request.url)]) == 1
    summary = expected.future("scan-3").result(0)
    assert (summary.status, summary.chi2, summary.sample) == ("success", 0.5, "gold")
    assert "scan-3" not in expected.waiting()
    assert len(expected.waiting()) == 99


def shown(points):
    return PartialResult(points, points / 10, np.zeros((3, 1, 1)), np.zeros((3, 1, 1)))


class Shows:
    """A catalog in which partial results turn up one by one."""

    def __init__(self, *results):
        self._results = list(results)
        self.asked = 0

    def partials(self, raw_uid):
        self.asked += 1
        found = self._results.pop(0) if len(self._results) > 1 else self._results[0]
        if isinstance(found, Exception):
            raise found
        return [shown(points) for points in found]


def test_a_partial_result_made_elsewhere_is_there_once_tiled_shows_it(monkeypatch):
    monkeypatch.setattr(_remote_partials, "POLL_S", 0.01)
    catalog = Shows(NotFound("none"), StoreUnavailable("away"), [], [4], [4, 6], [4, 6, 9])
    assert watch_partials(catalog, "scan", 5, Future()).result(10).points == 6


def test_no_partial_result_comes_after_the_result(monkeypatch):
    monkeypatch.setattr(_remote_partials, "POLL_S", 0.01)
    ended = Future()
    ended.set_result(None)
    with pytest.raises(IncompleteScan, match="has ended"):
        watch_partials(Shows([4]), "scan", 5, ended).result(10)
    assert watch_partials(Shows([4, 5]), "scan", 5, ended).result(10).points == 5


def test_nobody_looks_for_a_partial_result_that_is_no_longer_wanted(monkeypatch):
    monkeypatch.setattr(_remote_partials, "POLL_S", 0.01)
    catalog = Shows([4])
    future = watch_partials(catalog, "scan", 5, Future())
    future.cancel()
    asked = catalog.asked
    (thread,) = [t for t in threading.enumerate() if t.name == "cdinn-partials"] or [None]
    if thread is not None:
        thread.join(10)
        assert not thread.is_alive()
    assert catalog.asked <= asked + 1
