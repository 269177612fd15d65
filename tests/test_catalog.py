"""The catalog on a real Tiled server: store, find, read back; outages, crashes, several processes."""

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime

import bluesky.plans as bp
import h5py
import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter
from event_model import compose_run
from ophyd.sim import det, motor
from test_documents import VARIANTS, assert_same, whole

from bluesky_cdinn.callbacks import stored_curve
from bluesky_cdinn.catalog import Catalog, connect
from bluesky_cdinn.clients import plain_client
from bluesky_cdinn.documents import reconstruction_documents
from bluesky_cdinn.embedded import Address
from bluesky_cdinn.errors import NotFound, StoreUnavailable
from bluesky_cdinn.records import FrameReference
from bluesky_cdinn.settings import Settings, TiledSettings
from bluesky_cdinn.spool import spooled_runs

# Tiled sorts times as text, which is right as long as they have ten digits.
MOMENT = 1_700_000_000.0
AWAY = TiledSettings(uri="http://127.0.0.1:9", api_key="secret-key")


def at(seconds, **changes):
    """Documents of a reconstruction made so many seconds after some moment."""
    start, *_, stop = reconstruction_documents(whole(**changes), time=MOMENT + seconds)
    # A search looks at no arrays, and they take long to store.
    return [start, stop]


def test_search(catalog):
    first = catalog.store_documents(at(100.0, raw_uid="a", chi2=0.01, confidence=0.5))
    second = catalog.store_documents(at(200.0, raw_uid="a", chi2=0.005, confidence=0.9))
    third = catalog.store_documents(at(300.0, raw_uid="b", metadata={"sample": "Pt"}, chi2=0.002))
    failed = catalog.store(VARIANTS["failed"])

    def found(*args, **limits):
        return [s.processed_uid for s in catalog.reconstructions(*args, **limits)]

    assert found() == [failed, third, second, first]
    assert found("a") == [second, first]
    assert found(sample="Pt") == [third]
    assert found(status="failed") == [failed]
    assert found("a", min_confidence=0.9) == [second]
    assert found(max_chi2=0.005) == [third, second]
    assert found(since=MOMENT + 200.0, until=MOMENT + 300.0) == [second]
    assert found(until=datetime.fromtimestamp(MOMENT + 150, UTC)) == [first]
    assert found(limit=2) == [failed, third]
    assert catalog.latest("a").processed_uid == second
    assert catalog.latest("a", max_chi2=0.1, since=0).chi2 == 0.005


def test_not_found_says_what_was_searched_and_what_there_is(catalog):
    with pytest.raises(NotFound, match="none at all"):
        catalog.latest()
    uid = catalog.store(whole(raw_uid="scan-one"))
    with pytest.raises(NotFound, match=rf"'raw_uid': 'other', 'sample': 'Pt'.*{uid[:8]} of scan scan-one"):
        catalog.latest("other", sample="Pt")
    with pytest.raises(NotFound, match=rf"no processed run 'nonsense'.*{uid}"):
        catalog.load("nonsense")
    with pytest.raises(NotFound, match=r"no raw run 'nonsense'.*none at all"):
        stored_curve(catalog, "nonsense")


def test_load_by_the_first_characters(catalog):
    uid = catalog.store(whole())
    assert catalog.flush(30)
    assert_same(catalog.load(uid[:8]), whole())


def test_what_waits_can_be_loaded_too_and_the_key_is_not_told(tmp_path, caplog):
    with connect(Settings(tiled=AWAY, spool=tmp_path)) as catalog:
        uid = catalog.store(whole())
        assert_same(catalog.load(uid[:8]), whole())
        assert not catalog.flush(10)
        with pytest.raises(StoreUnavailable, match="doesn't answer"):
            catalog.reconstructions()
        assert "secret-key" not in repr(catalog) + caplog.text + repr(catalog._connection._address)


def test_nothing_is_lost_or_doubled_by_an_outage(settings, tmp_path):
    spool = tmp_path / "spool"
    with Catalog(Settings(tiled=AWAY, spool=spool)) as away:
        first, second = away.store(whole(raw_uid="a")), away.store(whole(raw_uid="a"))
    assert [run.uid for run in spooled_runs(spool)] == [first, second]
    # The server went away in the middle of the first one.
    with Catalog(settings.model_copy(update={"spool": tmp_path / "other"})) as catalog:
        writer = TiledWriter(catalog.processed, max_array_size=0)
        for name, document in list(spooled_runs(spool)[0].documents())[:2]:
            writer(name, document)
        # And after the second one, before it was removed from the spool.
        writer = TiledWriter(catalog.processed, max_array_size=0)
        for name, document in spooled_runs(spool)[1].documents():
            writer(name, document)
    with Catalog(settings) as catalog:
        assert catalog.deliver_spooled() == 0
        assert sorted(catalog.processed) == sorted([first, second])
        assert_same(catalog.load(first), whole(raw_uid="a"))
    assert spooled_runs(spool) == []


def test_a_run_that_tiled_refuses_does_not_hold_up_the_others(settings, tmp_path, caplog):
    documents = list(reconstruction_documents(VARIANTS["bare"]))
    documents[1][1]["data_keys"]["density"]["shape"] = "not a shape"
    with Catalog(settings) as catalog:
        bad = catalog.store_documents(documents)
        good = catalog.store(whole())
        for _ in range(4):
            catalog.deliver_spooled()
        assert_same(catalog.load(good), whole())
    assert bad in caplog.text
    assert [p.name.endswith(".rejected") for p in settings.spool.iterdir() if bad in p.name] == [True]


def test_a_measured_run_is_in_the_catalog_when_one_looks(RE, catalog):
    RE.subscribe(catalog.raw_writer())
    uid = RE(bp.scan([det], motor, 0, 1, 5)).run_start_uids[0]
    assert catalog.raw[uid].metadata["stop"]["num_events"] == {"primary": 5}
    assert list(plain_client(catalog.raw[uid])["primary/internal"].read()["motor"]) == pytest.approx(
        [0, 0.25, 0.5, 0.75, 1]
    )


def rocking_documents(frames, path=None):
    """A rocking scan, its frames in the events or in a file."""
    run = compose_run(metadata={"purpose": "rocking_curve", "motors": ["th"], "cdi": {"detector": "cam"}})
    image = {
        "source": "",
        "dtype": "array",
        "shape": list(frames.shape[1:]),
        "dtype_numpy": frames.dtype.str,
    }
    keys = {"cam": image, "th": {"source": "", "dtype": "number", "shape": [], "units": "deg"}}
    if path is not None:
        image["external"] = "STREAM:"
    stream = run.compose_descriptor(
        name="primary", data_keys=keys, object_keys={"cam": ["cam"], "th": ["th"]}
    )
    yield "start", run.start_doc
    yield "descriptor", stream.descriptor_doc
    if path is not None:
        resource = run.compose_stream_resource(
            data_key="cam",
            mimetype="application/x-hdf5",
            uri=f"file://localhost{path}",
            parameters={"dataset": "/entry/data", "chunk_shape": (1, *frames.shape[1:])},
        )
        yield "stream_resource", resource.stream_resource_doc
    for index, frame in enumerate(frames):
        data = {"th": 0.1 * index} | ({"cam": frame} if path is None else {})
        yield "event", stream.compose_event(data=data, timestamps=dict.fromkeys(data, 0.0), validate=False)
        if path is not None:
            datum = resource.compose_stream_datum(
                indices={"start": index, "stop": index + 1},
                seq_nums={"start": index + 1, "stop": index + 2},
                descriptor=stream.descriptor_doc,
            )
            yield "stream_datum", datum
    yield "stop", run.compose_stop()


@pytest.mark.parametrize("dtype", ["<u2", "<i4", "<f4"])
def test_a_stored_scan_gives_its_rocking_curve_again(catalog, dtype):
    frames = np.random.default_rng(1).integers(0, 60000, (7, 16, 12)).astype(dtype)
    for name, document in rocking_documents(frames):
        uid = document["uid"] if name == "start" else uid  # noqa: F821
        catalog.raw_writer()(name, document)
    curve = stored_curve(catalog, uid)
    assert curve.raw_uid == uid
    assert np.asarray(curve.frames).dtype == frames.dtype
    np.testing.assert_array_equal(np.asarray(curve.frames).reshape(frames.shape), frames)
    np.testing.assert_allclose(curve.angles_deg, 0.1 * np.arange(7))


def test_a_large_scan_is_written_in_parts(catalog):
    frames = np.random.default_rng(1).integers(0, 99, (5, 2048, 2000)).astype("<u2")
    for name, document in rocking_documents(frames):
        uid = document["uid"] if name == "start" else uid  # noqa: F821
        catalog.raw_writer()(name, document)
    stored = plain_client(catalog.raw[uid])["primary/cam"]
    assert stored.chunks[0] == (1, 1, 1, 1, 1)
    np.testing.assert_array_equal(stored[3], frames[3])


def test_frames_in_a_file_stay_there(catalog, tmp_path):
    frames = np.arange(4 * 6 * 5, dtype="<u2").reshape(4, 1, 6, 5)
    path = tmp_path / "frames.h5"
    with h5py.File(path, "w") as file:
        file["/entry/data"] = frames.reshape(4, 6, 5)
    for name, document in rocking_documents(frames, path):
        uid = document["uid"] if name == "start" else uid  # noqa: F821
        catalog.raw_writer()(name, document)
    curve = stored_curve(catalog, uid)
    assert curve.frames == tuple(FrameReference(path, "/entry/data", index) for index in range(4))
    stored = plain_client(catalog.raw[uid])["primary/cam"].read()
    np.testing.assert_array_equal(stored.reshape(frames.shape), frames)


def test_databroker_reads_both(RE, catalog):
    databroker = pytest.importorskip("databroker")
    pytest.importorskip("databroker.v1", exc_type=ImportError)
    RE.subscribe(catalog.raw_writer())
    raw_uid = RE(bp.scan([det], motor, 0, 1, 5)).run_start_uids[0]
    processed_uid = catalog.store(whole(raw_uid=raw_uid))
    raw = databroker.Broker(catalog.raw)
    assert list(raw[raw_uid].table()["motor"]) == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert raw(scan_id=1)
    processed = databroker.Broker(catalog.processed)
    header = processed[processed_uid]
    assert header.start["raw_uid"] == raw_uid
    assert header.table("reconstruction")["chi2"].iloc[0] == 0.0051
    density = np.asarray(next(iter(header.data("density", stream_name="reconstruction"))))
    np.testing.assert_array_equal(density, whole().density)
    # databroker changes the layout of Tiled's clients in this process; ours read on.
    assert_same(catalog.load(processed_uid), whole(raw_uid=raw_uid))
    assert next(iter(catalog.raw_documents(raw_uid)))[1]["uid"] == raw_uid


def test_a_run_whose_process_died_is_ended_and_kept(tmp_path, settings):
    script = textwrap.dedent(
        """
        import os, sys
        from pathlib import Path
        import numpy as np
        from bluesky_cdinn.spool import RunJournal
        journal = RunJournal(Path(sys.argv[1]), "raw", {"uid": "died-here", "time": 5.0})
        keys = {"cam": {"source": "", "dtype": "array", "shape": [2, 9], "dtype_numpy": "<i8"}}
        journal.append("descriptor", {"uid": "d", "run_start": "died-here", "name": "primary", "time": 5.0,
                                      "data_keys": keys, "configuration": {}, "hints": {}})
        journal.append("event", {"uid": "e", "descriptor": "d", "seq_num": 1, "time": 6.0, "filled": {},
                                 "data": {"cam": np.arange(18).reshape(2, 9)}, "timestamps": {"cam": 6.0}})
        journal._lines.write('["event", {"uid": "cut sh')
        journal._lines.flush()
        os.kill(os.getpid(), 9)
        """
    )
    subprocess.run([sys.executable, "-c", script, str(settings.spool)], check=False, timeout=60)
    assert spooled_runs(settings.spool) == []
    with Catalog(settings) as catalog:
        run = catalog.raw["died-here"]
        assert run.metadata["stop"]["exit_status"] == "fail"
        assert "ended before the run did" in run.metadata["stop"]["reason"]
        np.testing.assert_array_equal(plain_client(run)["primary/cam"].read()[0], np.arange(18).reshape(2, 9))


def test_the_embedded_server_is_shared_and_comes_back(tmp_path):
    tiled = TiledSettings(directory=tmp_path / "tiled")
    first = Catalog(Settings(tiled=tiled, spool=tmp_path / "one"))
    uid = first.store(VARIANTS["failed"])
    assert first.flush(60)
    published = tmp_path / "tiled" / "server.json"
    assert stat.S_IMODE(published.stat().st_mode) == 0o600
    where = json.loads(published.read_text())
    assert Address(where["uri"], where["api_key"]).answers()

    # A server that was killed is replaced when it is needed again.
    os.kill(first._connection._embedded.pid, signal.SIGKILL)
    time.sleep(0.1)
    assert first.latest().processed_uid == uid
    killed, where = where, json.loads(published.read_text())
    assert where["uri"] != killed["uri"]

    # Another process joins the server; its reading works while the first still serves.
    script = textwrap.dedent(
        """
        import sys
        from bluesky_cdinn.catalog import connect
        with connect() as catalog:
            print(catalog.uri, catalog.latest().processed_uid)
        """
    )
    environment = {
        **os.environ,
        "CDINN_TILED__DIRECTORY": str(tiled.directory),
        "CDINN_SPOOL": str(tmp_path / "two"),
    }

    def elsewhere():
        command = [sys.executable, "-c", script]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120
        ).stdout.split()

    assert elsewhere() == [first.uri, uid]
    first.close()
    assert not published.exists()
    # After it has ended, the data are still there for a server of one's own.
    uri, found = elsewhere()
    assert found == uid
    assert uri != where["uri"]
