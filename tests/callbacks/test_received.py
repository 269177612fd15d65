"""Whether all of a run has come, and where its files are on this machine."""

from pathlib import Path

import numpy as np
import pytest
from event_model import compose_run

from bluesky_cdinn.callbacks import ReceivedRun, mapped
from bluesky_cdinn.files import located

NUMBER = {"source": "", "dtype": "number", "shape": []}
IMAGE = {"source": "", "dtype": "array", "shape": [2, 2], "dtype_numpy": "<u2"}


def inline(points=4):
    run = compose_run(metadata={"purpose": "rocking_curve"})
    stream = run.compose_descriptor(name="primary", data_keys={"th": NUMBER, "cam": IMAGE})
    yield "start", run.start_doc
    yield "descriptor", stream.descriptor_doc
    for point in range(points):
        data = {"th": point, "cam": np.zeros((2, 2), "u2")}
        yield "event", stream.compose_event(data=data, timestamps=dict.fromkeys(data, 0.0), validate=False)
    yield "stop", run.compose_stop()


def in_file(path, points=4, events=True):
    run = compose_run(metadata={"purpose": "rocking_curve"})
    keys = {"cam": {**IMAGE, "external": "STREAM:"}} | ({"th": NUMBER} if events else {})
    stream = run.compose_descriptor(name="primary", data_keys=keys)
    yield "start", run.start_doc
    yield "descriptor", stream.descriptor_doc
    resource = run.compose_stream_resource(
        data_key="cam", mimetype="application/x-hdf5", uri=f"file://localhost{path}", parameters={}
    )
    yield "stream_resource", resource.stream_resource_doc
    for point in range(points):
        if events:
            yield "event", stream.compose_event(data={"th": point}, timestamps={"th": 0.0}, validate=False)
        yield (
            "stream_datum",
            resource.compose_stream_datum(
                indices={"start": point, "stop": point + 1},
                seq_nums={"start": point + 1, "stop": point + 2},
                descriptor=stream.descriptor_doc,
            ),
        )
    yield "stop", {**run.compose_stop(), "num_events": {"primary": points}}


def received(documents, without=()):
    documents = list(documents)
    run = ReceivedRun(documents[0][1])
    for place, (name, doc) in enumerate(documents[1:], start=1):
        if place not in without:
            try:
                run(name, doc)
            except KeyError:
                assert without
    return run


def test_all_that_was_announced(tmp_path):
    path = tmp_path / "frames.h5"
    path.touch()
    for documents in (inline(), in_file(path), in_file(path, events=False)):
        assert received(documents).lost() == ""


@pytest.mark.parametrize(
    ("without", "said"),
    [
        ([3], "1 of 4 points of the stream 'primary'"),
        ([2, 5], "2 of 4 points"),
        ([1], "4 of 4 points"),
    ],
)
def test_events_that_got_lost(without, said):
    assert said in received(inline(), without).lost()


@pytest.mark.parametrize("without", [[2], [3], [4]])
def test_parts_of_a_file_s_documents_that_got_lost(tmp_path, without):
    path = tmp_path / "frames.h5"
    path.touch()
    assert "of 4 points" in received(in_file(path), without).lost()


def test_a_file_that_is_not_here(tmp_path):
    assert received(in_file(tmp_path / "frames.h5")).lost().endswith("frames.h5 can't be reached from here")


def test_datums_that_got_lost(tmp_path):
    run = compose_run()
    stream = run.compose_descriptor(name="primary", data_keys={"cam": {**IMAGE, "external": "FILESTORE:"}})
    resource = run.compose_resource(spec="AD_HDF5", root=str(tmp_path), resource_path="", resource_kwargs={})
    datums = [resource.compose_datum(datum_kwargs={"point_number": n}) for n in range(3)]
    events = [
        stream.compose_event(
            data={"cam": datum["datum_id"]}, timestamps={"cam": 0.0}, filled={"cam": False}, validate=False
        )
        for datum in datums
    ]
    stop = run.compose_stop()
    for without, said in ((None, ""), (1, "1 datum documents didn't come")):
        whole = ReceivedRun(run.start_doc)
        whole("descriptor", stream.descriptor_doc)
        whole("resource", resource.resource_doc)
        for number, (datum, event) in enumerate(zip(datums, events, strict=True)):
            if number != without:
                whole("datum", datum)
            whole("event", event)
        whole("stop", stop)
        assert whole.lost() == said


@pytest.mark.parametrize("number", [None, {}, "many"])
def test_what_the_stop_document_does_not_say_is_not_missed(number):
    run = received(inline(), without=[3])
    run("stop", {**run.stop, "num_events": number})
    assert run.lost() == ""


PATHS = {"/ioc/data": "/mnt/data", "/ioc/data/fast": "/ssd"}


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ("/ioc/data/a/b.h5", "/mnt/data/a/b.h5"),
        ("/ioc/data/fast/b.h5", "/ssd/b.h5"),
        ("/ioc/database/b.h5", "/ioc/database/b.h5"),
        ("/other/b.h5", "/other/b.h5"),
    ],
)
def test_files_where_this_machine_sees_them(there, here):
    assert located(Path(there), PATHS) == Path(here)
    stream = mapped("stream_resource", {"uri": f"file://ioc{there}"}, PATHS)
    assert stream["uri"] == f"file://localhost{here}"
    old = mapped("resource", {"root": "/", "resource_path": there.lstrip("/")}, PATHS)
    assert Path(old["root"]) / old["resource_path"] == Path(here)


def test_other_documents_are_left_as_they_are():
    doc = {"uid": "x"}
    assert mapped("event", doc, PATHS) is doc
    assert mapped("resource", doc, {}) is doc
