"""Documents almost of the event model: nothing is raised, everything is told, each run has a result."""

import copy
import logging
import os
from contextlib import contextmanager

import numpy as np
import pytest
from event_model import compose_run
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bluesky_cdinn.callbacks import LiveReconstruction
from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.settings import Settings, TiledSettings
from bluesky_cdinn.spool import spooled_runs
from bluesky_cdinn.worker import ReconstructionWorker

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))
"""The same ones each time, unless more are asked for."""

POINTS = 9
SHAPE = (6, 5)
HERE = __file__.rsplit("/", 2)[0]


def scan_documents(kind):
    """A rocking scan as (name, document): frames in events, in pages, or in files."""
    cdi = {"detector": "cam", "rocking_motor": "th"}
    run = compose_run(
        metadata={"purpose": "rocking_curve", "motors": ["th"], "cdi": cdi, "num_points": POINTS}
    )
    image = {"source": "", "dtype": "array", "shape": list(SHAPE), "dtype_numpy": "<u2"}
    if kind in ("datum", "stream"):
        image["external"] = "STREAM:" if kind == "stream" else "FILESTORE:"
    keys = {"cam": image, "th": {"source": "", "dtype": "number", "shape": [], "units": "deg"}}
    stream = run.compose_descriptor(
        name="primary", data_keys=keys, object_keys={"cam": ["cam"], "th": ["th"]}
    )
    yield "start", run.start_doc
    yield "descriptor", stream.descriptor_doc
    frames = np.random.default_rng(0).integers(0, 99, (POINTS, *SHAPE)).astype(np.uint16)
    if kind == "stream":
        resource = run.compose_stream_resource(
            data_key="cam",
            mimetype="application/x-hdf5",
            uri="file://localhost/nowhere.h5",
            parameters={"dataset": "data", "chunk_shape": (1, *SHAPE)},
        )
        yield "stream_resource", resource.stream_resource_doc
    if kind == "datum":
        resource = run.compose_resource(
            spec="AD_HDF5",
            root="/",
            resource_path="nowhere.h5",
            resource_kwargs={"frame_per_point": 1},
        )
        yield "resource", resource.resource_doc
    for point in range(POINTS):
        data = {"th": 0.1 * point}
        if kind in ("event", "page"):
            data["cam"] = frames[point]
        if kind == "datum":
            datum = resource.compose_datum(datum_kwargs={"point_number": point})
            yield "datum", datum
            data["cam"] = datum["datum_id"]
        event = stream.compose_event(data=data, timestamps=dict.fromkeys(data, 0.0), validate=False)
        if kind == "page":
            one = ("uid", "time", "seq_num")
            page = {key: [event[key]] for key in one} | {"descriptor": event["descriptor"], "filled": {}}
            page |= {key: {k: [v] for k, v in event[key].items()} for key in ("data", "timestamps")}
            yield "event_page", page
        else:
            yield "event", event
        if kind == "stream":
            datum = resource.compose_stream_datum(
                indices={"start": point, "stop": point + 1},
                seq_nums={"start": point + 1, "stop": point + 2},
                descriptor=stream.descriptor_doc,
            )
            yield "stream_datum", datum
    yield "stop", run.compose_stop()


def nested(value, depth):
    for _ in range(depth):
        value = {"in": [value]}
    return value


DEEP = "deeper than hypothesis can print"

JUNK = st.one_of(
    st.sampled_from(
        [None, True, -1, 0, 10**400, float("nan"), float("inf"), -1e308, "", "x" * 100_000, b"\0"]
    ),
    st.sampled_from(
        [np.float64("nan"), np.zeros((0, 3)), np.array(["a", None], object), np.arange(7), {1, 2}]
    ),
    st.sampled_from([nested(0, 50), DEEP, {("a", 1): {np.int64(3): object()}}, [[]], {}, lambda: 0]),
    st.integers(),
    st.text(max_size=5),
    st.lists(st.integers() | st.none(), max_size=4),
    st.dictionaries(st.sampled_from(["uid", "data", "shape", "cam", "th"]), st.integers(), max_size=3),
)
PLACE = st.integers(0, 60)
CHANGE = st.one_of(
    st.tuples(st.just("drop"), PLACE),
    st.tuples(st.just("repeat"), PLACE),
    st.tuples(st.just("swap"), PLACE, PLACE),
    st.tuples(st.just("rename"), PLACE, st.sampled_from(["start", "event", "stop", "datum", "bulk", ""])),
    st.tuples(st.just("lack"), PLACE, PLACE, PLACE),
    st.tuples(st.just("spoil"), PLACE, PLACE, PLACE, JUNK),
    st.tuples(st.just("replace"), PLACE, JUNK),
    st.tuples(st.just("cut"), PLACE),
)


def changed(documents, change):
    """Apply one change to a list of documents; places count modulo its length."""
    kind, place, *rest = change
    documents = list(documents)
    place %= max(len(documents), 1)
    if not documents:
        return documents
    name, doc = documents[place]
    if kind == "drop":
        del documents[place]
    elif kind == "repeat":
        documents.insert(place, (name, doc))
    elif kind == "swap":
        other = rest[0] % len(documents)
        documents[place], documents[other] = documents[other], documents[place]
    elif kind == "rename":
        documents[place] = (rest[0], doc)
    elif kind == "cut":
        del documents[place:]
    elif kind == "replace":
        documents[place] = (name, rest[0])
    elif isinstance(doc, dict) and doc:
        documents[place] = (name, _spoilt(copy.copy(doc), *rest))
    return documents


def _spoilt(doc, field, deeper, *junk):
    key = sorted(doc, key=str)[field % len(doc)]
    inner = doc[key]
    if isinstance(inner, dict) and inner and deeper % 2:
        doc[key] = _spoilt(dict(inner), deeper // 2, 0, *junk)
    elif junk:
        doc[key] = nested(0, 5000) if junk[0] is DEEP else junk[0]
    else:
        del doc[key]
    return doc


@contextmanager
def logged():
    """Collect what the package says at warning level and above."""
    said = []

    class Collect(logging.Handler):
        def emit(self, record):
            said.append(record.getMessage())

    handler, package = Collect(logging.WARNING), logging.getLogger("bluesky_cdinn")
    package.addHandler(handler)
    try:
        yield said
    finally:
        package.removeHandler(handler)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """A recorder, a live callback and a warm worker whose Tiled is away."""
    tiled = TiledSettings(uri="http://127.0.0.1:9", api_key="none")
    settings = Settings(tiled=tiled, spool=tmp_path_factory.mktemp("spool"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{HERE}/faults")
        with (
            Catalog(settings) as catalog,
            ReconstructionWorker(entry="fault_jobs:anything") as worker,
            LiveReconstruction(catalog, worker=worker) as live,
        ):
            yield catalog, live


def results_due(documents):
    """Uids of the runs that are rocking scans and have stopped."""
    begun, due = set(), []
    for name, doc in documents:
        if not isinstance(doc, dict):
            continue
        uid = doc.get("uid" if name == "start" else "run_start")
        if name == "start" and isinstance(uid, str) and doc.get("purpose") == "rocking_curve":
            begun.add(uid)
        elif name == "stop" and isinstance(uid, str) and uid in begun:
            due.append(uid)
    return due


@settings(
    max_examples=EXAMPLES, derandomize=EXAMPLES == 150, deadline=None, suppress_health_check=list(HealthCheck)
)
@given(
    kind=st.sampled_from(["event", "page", "datum", "stream"]),
    changes=st.lists(CHANGE, min_size=1, max_size=4),
)
@example(kind="event", changes=[("repeat", 0)])
@example(kind="event", changes=[("repeat", -1)])
@example(kind="event", changes=[("spoil", 0, 0, 0, True)])
@example(kind="event", changes=[("spoil", 0, 0, 0, DEEP)])
@example(kind="event", changes=[("spoil", 0, 0, 0, {("a", 1): {np.int64(3): 0}})])
@example(kind="stream", changes=[("spoil", 2, 3, 3, "http://elsewhere/frames.h5")])
def test_documents_gone_wrong(session, kind, changes):
    catalog, live = session
    documents = list(scan_documents(kind))
    for change in changes:
        documents = changed(documents, change)
    with logged() as said:
        for name, doc in documents:
            live(name, doc)
            catalog.raw_writer()(name, doc)
        summaries = [live.result(uid).result(30) for uid in results_due(documents)]
        assert catalog.raw_writer().flush(30)
        live.wait(30)
    for summary in summaries:
        assert summary.status in ("success", "failed")
        if summary.status == "failed":
            assert summary.reason
            assert any(summary.reason in line for line in said)
            assert catalog.load(summary.processed_uid).reason == summary.reason


@pytest.mark.parametrize("kind", ["event", "page", "datum", "stream"])
def test_documents_as_they_should_be(session, kind):
    """What the others are spoilt from is good, and nothing is said of it."""
    catalog, live = session
    documents = list(scan_documents(kind))
    with logged() as said:
        for name, doc in documents:
            live(name, doc)
            catalog.raw_writer()(name, doc)
        summary = live.result(documents[0][1]["uid"]).result(30)
        assert catalog.raw_writer().flush(30)
    assert summary.status == "success"
    assert summary.scalars["points"] == POINTS
    assert [line for line in said if "Tiled" not in line] == []
    recorded = next(run for run in spooled_runs(catalog.settings.spool) if run.uid == summary.raw_uid)
    assert [name for name, _ in recorded.documents()] == [name for name, _ in documents]


def test_metadata_with_keys_that_json_does_not_know_is_recorded(session):
    catalog, _ = session
    documents = list(scan_documents("event"))
    documents[0] = ("start", {**documents[0][1], "sample": {1.5: {("a", 1): 2}, np.int64(3): np.arange(2)}})
    for name, doc in documents:
        catalog.raw_writer()(name, doc)
    assert catalog.raw_writer().flush(30)
    recorded = next(run for run in spooled_runs(catalog.settings.spool) if run.uid == documents[0][1]["uid"])
    (_, start), *_ = recorded.documents()
    assert start["sample"]["1.5"] == {"('a', 1)": 2}
    np.testing.assert_array_equal(start["sample"]["3"], [0, 1])


def test_a_scan_that_never_stops_is_given_up_with_a_result(session):
    """So many newer ones were begun meanwhile that its session must have died."""
    _, live = session
    documents = list(scan_documents("event"))[:-1]
    with logged() as said:
        for name, doc in documents:
            live(name, doc)
        for _ in range(40):
            live(*next(scan_documents("event")))
            # Each that is given up is reconstructed, and only so many may wait.
            assert live.wait(30)
        summary = live.result(documents[0][1]["uid"]).result(30)
    assert summary.status == "success"
    assert summary.load().metadata
    assert any("never stopped" in line for line in said)
