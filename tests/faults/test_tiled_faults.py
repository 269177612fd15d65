"""Tiled goes away, breaks, refuses, hangs: nothing is lost, nothing is twice, the order stays."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import count

import pytest
from scans import assert_whole, rocking, watch
from tiled.client import utils as tiled_utils
from valve import Valve

from bluesky_cdinn import connection, delivery, embedded
from bluesky_cdinn.callbacks import LiveReconstruction
from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.embedded import SERVER_FILE, Address, EmbeddedServer
from bluesky_cdinn.errors import StoreUnavailable
from bluesky_cdinn.failure import failed_reconstruction
from bluesky_cdinn.settings import Settings, TiledSettings
from bluesky_cdinn.spool import spooled_runs


@pytest.fixture
def valve(tiled_server, monkeypatch):
    monkeypatch.setattr(delivery, "RETRY_S", 0.2)
    # Its client tries for most of a minute by itself.
    monkeypatch.setattr(tiled_utils, "TILED_RETRY_ATTEMPTS", 1)
    valve = Valve(tiled_server.address().uri)
    yield valve
    valve.close()


@pytest.fixture
def through(settings, valve):
    """The test's settings, with the valve before the server."""
    tiled = settings.tiled.model_copy(update={"uri": valve.uri})
    return settings.model_copy(update={"tiled": tiled})


def broken(method, path, body):
    return "error"


def read_only(method, path, body):
    return "pass" if method in ("GET", "HEAD") else "error"


def set_aside(settings):
    return [path.name for path in settings.spool.iterdir() if path.name.endswith(".rejected")]


@pytest.mark.parametrize(
    ("when", "trouble"),
    [("before", "down"), ("during", "down"), ("during", broken), ("after", "down"), ("after", read_only)],
    ids=["down before", "down during", "500 during", "down after", "500 for writes after"],
)
def test_tiled_in_trouble_around_a_scan(RE, through, valve, make_worker, when, trouble):
    """What was measured meanwhile is delivered by itself, in order, once."""

    def begin():
        if trouble == "down":
            valve.shut()
        else:
            valve.verdict = trouble

    with Catalog(through) as catalog, LiveReconstruction(catalog, worker=make_worker()) as live:
        watch(RE, live)
        if when == "before":
            begin()
        first = RE(rocking(begin if when == "during" else lambda: None)).plan_result
        if when == "after":
            begin()
        scans = [first, RE(rocking()).plan_result]
        results = [live.result(uid).result(60) for uid in scans]
        # Also while Tiled is away the plan has its results, arrays included.
        assert [result.load().raw_uid for result in results] == scans
        # Time enough for a delivery to fail.
        time.sleep(0.5)
        assert spooled_runs(through.spool)
        assert set_aside(through) == []
        valve.verdict = lambda *_: "pass"
        if trouble == "down":
            valve.open()
        assert catalog.flush(60)
        assert spooled_runs(through.spool) == []
        assert list(catalog.raw) == scans
        assert list(catalog.processed) == [result.processed_uid for result in results]
        for uid in scans:
            assert_whole(catalog, uid)


def test_tiled_breaks_at_each_write_of_a_delivery(RE, through, valve):
    """The write was done but its answer lost: the run is there once and whole all the same."""
    with Catalog(through) as catalog:
        assert catalog.flush(30)
        RE.subscribe(catalog.raw_writer())
        broken_at = []
        for place in count(1):
            numbers = count(1)

            def at_place(method, path, body, numbers=numbers, place=place):
                hit = method not in ("GET", "HEAD") and next(numbers) == place
                if hit:
                    broken_at.append(place)
                return "lose" if hit else "pass"

            valve.verdict = at_place
            uid = RE(rocking()).plan_result
            assert catalog.flush(30)
            valve.verdict = lambda *_: "pass"
            assert_whole(catalog, uid)
            if place not in broken_at:
                break
        assert len(broken_at) >= 4
        assert len(catalog.raw) == place
        assert set_aside(through) == []


def test_a_run_that_breaks_tiled_holds_the_others_up_for_a_while_only(
    RE, through, valve, monkeypatch, caplog
):
    with Catalog(through) as catalog:
        assert catalog.flush(30)
        RE.subscribe(catalog.raw_writer())
        valve.verdict = lambda method, path, body: "error" if b"poison" in body else "pass"
        bad = RE(rocking(sample="poison")).plan_result
        good = RE(rocking()).plan_result
        assert not catalog.flush(1)
        assert [run.uid for run in spooled_runs(through.spool)] == [bad, good]
        monkeypatch.setattr(delivery, "PATIENCE_S", 0.0)
        assert catalog.flush(30)
        assert_whole(catalog, good)
        assert len(set_aside(through)) == 1
        assert bad in set_aside(through)[0]
    assert f"Tiled refused run {bad}" in caplog.text


def test_a_tiled_that_takes_nothing_for_long_has_nothing_put_aside(RE, through, valve, monkeypatch):
    monkeypatch.setattr(delivery, "PATIENCE_S", 0.0)
    with Catalog(through) as catalog:
        assert catalog.flush(30)
        RE.subscribe(catalog.raw_writer())
        valve.verdict = read_only
        scans = [RE(rocking()).plan_result for _ in range(3)]
        for _ in range(6):
            assert catalog.deliver_spooled() == 3
        valve.verdict = lambda *_: "pass"
        assert catalog.flush(30)
        assert list(catalog.raw) == scans


def test_a_tiled_that_hangs_holds_up_no_scan(RE, through, valve, make_worker):
    valve.verdict = lambda *_: "hang"
    catalog = Catalog(through)
    with LiveReconstruction(catalog, worker=make_worker()) as live:
        watch(RE, live)
        began = time.monotonic()
        uid = RE(rocking()).plan_result
        assert live.result(uid).result(60).status == "success"
        assert time.monotonic() - began < 10
        with pytest.raises(StoreUnavailable):
            catalog.uri  # noqa: B018
    began = time.monotonic()
    catalog.close()
    assert time.monotonic() - began < 30
    assert len(spooled_runs(through.spool)) == 2


def test_tiled_is_not_asked_time_and_again_whether_it_is_there(through, valve, monkeypatch):
    asked = []

    def note(method, path, body):
        asked.append((method, path.partition("?")[0]))
        return "pass"

    monkeypatch.setattr(connection, "TRUST_S", 60.0)
    with Catalog(through) as catalog:
        assert len(catalog.processed) == len(catalog.raw) == 0
        valve.verdict = note
        uid = catalog.store(failed_reconstruction({"uid": "a", "time": 1.0}, "no peak"))
        assert catalog.flush(60)
        # Is it there, make it, end it, close its stream.
        assert [method for method, _ in asked] == ["GET", "POST", "PATCH", "DELETE"]
        assert {path.rpartition("/")[2] for method, path in asked if method != "POST"} == {uid}
        assert uid in catalog.processed
        # Each gets one of its own: how many there are a client remembers for a while.
        assert len(catalog.processed) == 1
        valve.shut()
        with pytest.raises(StoreUnavailable):
            catalog.processed  # noqa: B018
        valve.open()
        assert uid in catalog.processed


def test_whoever_reads_is_told_at_once_of_a_tiled_that_has_just_stopped_answering(
    through, valve, monkeypatch
):
    """As one does that is being killed: its port is open for another moment."""
    monkeypatch.setattr(connection, "TRUST_S", 60.0)
    with Catalog(through) as catalog:
        assert len(catalog.processed) == 0
        valve.verdict = lambda *_: "hang"
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            catalog.latest()
        assert time.monotonic() - began < 20
        valve.verdict = lambda *_: "pass"
        assert len(catalog.processed) == 0


def test_what_is_behind_a_proxy_is_not_knocked_at(monkeypatch):
    monkeypatch.setattr(embedded.socket, "create_connection", lambda *_: pytest.fail("a way that isn't"))
    monkeypatch.setenv("http_proxy", "http://proxy.invalid:3128")
    monkeypatch.setenv("no_proxy", "")
    assert not Address("http://tiled.invalid:8000").listens()


class Stranger(BaseHTTPRequestHandler):
    """Some other service, friendly to everybody."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"[]")

    def log_message(self, format, *args):
        pass


@pytest.fixture
def stranger():
    server = HTTPServer(("127.0.0.1", 0), Stranger)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_port_that_another_service_took_is_not_taken_for_the_server(stranger, tmp_path):
    """What a killed server left behind names a port that may be anybody's by now."""
    (tmp_path / SERVER_FILE).write_text(json.dumps({"uri": stranger, "api_key": "stale", "pid": 1}))
    server = EmbeddedServer(tmp_path)
    try:
        address = server.address()
        assert address.uri != stranger
        assert address.lets_in()
    finally:
        server.close()


def test_another_tiled_is_not_taken_for_the_server(tiled_server):
    uri = tiled_server.address().uri
    assert Address(uri, "stale").answers()
    assert not Address(uri, "stale").lets_in()


def test_a_service_that_is_no_tiled_is_told(stranger, tmp_path):
    with (
        Catalog(Settings(tiled=TiledSettings(uri=stranger), spool=tmp_path)) as catalog,
        pytest.raises(StoreUnavailable, match=stranger),
    ):
        catalog.uri  # noqa: B018
