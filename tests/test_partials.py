"""Partial results survive the way to documents and back, and make one valid run with the crystal."""

import math
from dataclasses import replace

import numpy as np
import pytest
from event_model import DocumentNames, schema_validators

from bluesky_cdinn.documents import reconstruction_from_documents
from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.failure import failed_reconstruction
from bluesky_cdinn.partials import partials_from_documents
from bluesky_cdinn.processed_run import ProcessedRun
from bluesky_cdinn.records import PartialResult, Reconstruction

RAW_START = {"uid": "raw", "scan_id": 7, "time": 1.0, "sample": "gold"}


def partial(points, **scalars):
    rng = np.random.default_rng(points)
    return PartialResult(
        points=points,
        fraction=points / 10,
        amplitude=rng.random((3, 6, 6), np.float32),
        phase=rng.random((3, 6, 6), np.float32),
        chi2=0.1 / points,
        confidence=0.5,
        seconds=0.25,
        scalars=scalars,
    )


def crystal(**scalars):
    support = np.ones((2, 3, 4), bool)
    return Reconstruction(support.astype(np.complex64), support, chi2=0.01, raw_uid="raw", scalars=scalars)


def assert_same(one, other):
    np.testing.assert_array_equal(one.amplitude, other.amplitude)
    np.testing.assert_array_equal(one.phase, other.phase)
    names = ("points", "fraction", "chi2", "free_llk", "confidence", "seconds")
    np.testing.assert_equal([getattr(one, n) for n in names], [getattr(other, n) for n in names])
    assert one.scalars == other.scalars


def test_a_run_holds_partial_results_and_the_crystal():
    run = ProcessedRun(RAW_START)
    results = [partial(4, size_nm=90.0), partial(6, size_nm=91.0, change=0.2, agreement=0.9)]
    told = [document for result in results for document in run.update(result)]
    whole, rest = run.end(crystal(size_nm=92.0))
    assert [name for name, _ in told] == ["start", "descriptor", "event", "event"]
    assert [name for name, _ in rest] == ["descriptor", "event", "stop"]
    assert whole[1:] == [*told[1:], *rest]
    for name, document in [*told, *whole]:
        schema_validators[DocumentNames[name]].validate(document)
    begun, start = told[0][1], whole[0][1]
    assert (begun["status"], start["status"]) == ("running", "success")
    assert begun["raw_uid"] == start["raw_uid"] == "raw"
    assert (begun["uid"], begun["time"], begun["sample"]) == (start["uid"], start["time"], "gold")
    assert start["scalars"]["size_nm"] == 92.0
    assert rest[-1][1]["num_events"] == {"partial": 2, "reconstruction": 1}
    for found, result in zip(partials_from_documents(whole), results, strict=True):
        assert_same(found, result)
    assert reconstruction_from_documents(whole).chi2 == 0.01
    assert run.head == told[:2]


def test_a_failure_keeps_what_was_known():
    run = ProcessedRun(RAW_START)
    run.update(partial(4))
    whole, rest = run.end(failed_reconstruction(RAW_START, "the beam went away"))
    assert [name for name, _ in rest] == ["stop"]
    assert (whole[0][1]["status"], whole[-1][1]["exit_status"]) == ("failed", "fail")
    assert len(partials_from_documents(whole)) == 1
    assert reconstruction_from_documents(whole).reason == "the beam went away"


def test_without_partial_results_all_comes_at_the_end():
    run = ProcessedRun(RAW_START)
    assert run.head == []
    whole, rest = run.end(crystal())
    assert whole == rest
    assert whole[0][1]["uid"] == run.uid
    assert partials_from_documents(whole) == []


def test_a_result_that_cannot_be_told_leaves_the_run_as_it_was():
    run = ProcessedRun(RAW_START)
    with pytest.raises(InvalidInput, match=r"names of their own.*chi2"):
        run.update(partial(4, chi2=1.0))
    assert run.head == []
    run.update(partial(4))
    wider = replace(partial(5), phase=np.zeros((3, 8, 8), np.float32))
    with pytest.raises(InvalidInput, match="must all have the shape"):
        run.update(wider)
    with pytest.raises(InvalidInput, match=r"names of their own.*density"):
        run.end(crystal(density=1.0))
    whole, _ = run.end(failed_reconstruction(RAW_START, "a name was taken"))
    assert [result.points for result in partials_from_documents(whole)] == [4]


def test_numbers_that_are_not_there_are_absent_again():
    run = ProcessedRun(RAW_START)
    first = run.update(partial(4, change=math.nan, of_mine=3.0))
    later = run.update(partial(5, of_yours=4.0))
    keys = first[1][1]["data_keys"]
    assert "of_mine" in keys
    assert first[2][1]["data"].keys() == later[0][1]["data"].keys() == keys.keys()
    found = partials_from_documents([*first, *later])
    assert [dict(result.scalars) for result in found] == [{"of_mine": 3.0}, {}]
    assert math.isnan(found[0].free_llk)


def test_a_run_that_still_grows_is_no_reconstruction():
    with pytest.raises(InvalidInput, match="still runs"):
        reconstruction_from_documents(ProcessedRun(RAW_START).update(partial(4)))
