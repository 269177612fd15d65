"""A reconstruction survives the way to documents, to Tiled and back, field by field."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from event_model import DocumentNames, schema_validators
from hypothesis import given
from hypothesis import strategies as st

from bluesky_cdinn.documents import (
    plain,
    reconstruction_documents,
    reconstruction_from_documents,
    reconstruction_from_run,
)
from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.records import Reconstruction
from bluesky_cdinn.settings import ReconstructionOptions


def whole(shape=(5, 6, 7), **changes):
    """Make a reconstruction with every field filled by something that is not its default."""
    rng = np.random.default_rng(3)
    support = rng.random(shape) > 0.5
    density = (support * rng.random(shape) * np.exp(1j * rng.normal(size=shape))).astype(np.complex64)
    hollow = np.where(support, rng.normal(size=shape), np.nan).astype(np.float32)
    every = Reconstruction(
        density=density,
        support=support,
        chi2=0.0051,
        free_llk=1.07,
        confidence=0.93,
        seconds=12.5,
        cpu_s=11.25,
        timings_s={"prepare": 1.5, "polish": 11.0},
        direct_basis=rng.normal(size=(3, 3)),
        reciprocal_basis=rng.normal(size=(3, 3)),
        q_vector=rng.normal(size=3),
        displacement=hollow,
        strain=hollow * np.float32(1e-4),
        phase_sd=np.abs(hollow),
        strain_sd=np.abs(hollow) * np.float32(2e-5),
        facet_table=rng.normal(size=(4, 13)),
        scalars={"resolution_nm": 12.25, "size_nm": 310.0},
        resolution_curve=rng.random((2, 9)).astype(np.float32),
        progress=rng.random(40).astype(np.float32),
        raw_uid="6f7d1e0a-0000-4000-8000-000000000000",
        scan_id=54,
        parameters={"seed": 7, "device": "cpu", "weights": {"name": "none", "sha256": "00"}, "starts": 4},
        history=({"step": "dark", "level": 1.25}, {"step": "crop", "window": [0, 3, 5]}),
        metadata={"sample": "gold", "plan_name": "rocking_scan", "plan_args": {"num": 201}},
    )
    return replace(every, **changes)


def assert_same(one, other):
    for field in fields(Reconstruction):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, np.ndarray):
            assert (a.dtype, a.shape) == (b.dtype, b.shape), field.name
            np.testing.assert_array_equal(a, b, field.name)
        elif isinstance(a, float) and math.isnan(a):
            assert math.isnan(b), field.name
        else:
            assert a == b, field.name


VARIANTS = {
    "everything": whole(),
    "voxel units, one start": whole(
        direct_basis=None,
        reciprocal_basis=None,
        q_vector=None,
        displacement=None,
        strain=None,
        phase_sd=None,
        strain_sd=None,
        facet_table=None,
        resolution_curve=None,
        scan_id=None,
    ),
    "bare": Reconstruction(density=np.ones((2, 3, 4), np.complex64), support=np.ones((2, 3, 4), bool)),
    "failed": Reconstruction(
        density=np.zeros((0, 0, 0), np.complex64),
        support=np.zeros((0, 0, 0), bool),
        raw_uid="raw",
        metadata={"sample": "gold"},
        status="failed",
        reason="3 points, 9 needed",
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_round_trip_by_documents(name):
    assert_same(reconstruction_from_documents(reconstruction_documents(VARIANTS[name])), VARIANTS[name])


@pytest.mark.parametrize("name", VARIANTS)
def test_round_trip_by_tiled(catalog, name):
    uid = catalog.store(VARIANTS[name])
    assert_same(reconstruction_from_run(catalog.processed[uid]), VARIANTS[name])


@pytest.mark.parametrize("name", VARIANTS)
def test_documents_are_valid_and_plain(name):
    for kind, document in reconstruction_documents(VARIANTS[name]):
        schema_validators[DocumentNames[kind]].validate(document)
        if kind != "event":
            json.dumps(document, allow_nan=False)


def test_start_document_says_what_a_search_and_a_repetition_need():
    (_, start), *_ = reconstruction_documents(whole(), uid="mine", time=12.0)
    assert (start["uid"], start["time"], start["purpose"]) == ("mine", 12.0, "reconstruction")
    assert (start["raw_uid"], start["raw_scan_id"]) == (whole().raw_uid, 54)
    assert (start["sample"], start["device"], start["status"]) == ("gold", "cpu", "success")
    assert start["weights"] == {"name": "none", "sha256": "00"}
    assert start["scalars"]["chi2"] == 0.0051
    assert start["scalars"]["resolution_nm"] == 12.25
    assert "bluesky-cdinn" in start["versions"]
    assert start["tiled_specs"] == ["CDIReconstruction"]


def test_sample_is_found_in_the_cdi_mapping_too():
    (_, start), *_ = reconstruction_documents(whole(metadata={"cdi": {"sample": "Pt"}}))
    assert start["sample"] == "Pt"


def test_unknown_numbers_are_absent_rather_than_null():
    (_, start), (_, descriptor), (_, event), _ = reconstruction_documents(VARIANTS["bare"])
    assert start["scalars"] == {"confidence": 0.0}
    assert "chi2" not in descriptor["data_keys"]
    assert "strain" not in event["data"]
    assert event["data"]["phase"].dtype == event["data"]["amplitude"].dtype == np.float32


def test_a_failure_is_a_run_without_arrays_that_says_why():
    (_, start), (name, stop) = reconstruction_documents(VARIANTS["failed"])
    assert (start["status"], start["reason"]) == ("failed", "3 points, 9 needed")
    assert (name, stop["exit_status"], stop["reason"]) == ("stop", "fail", "3 points, 9 needed")
    assert stop["num_events"] == {}


def test_names_must_not_clash():
    with pytest.raises(InvalidInput, match="strain"):
        list(reconstruction_documents(whole(scalars={"strain": 1.0})))


def test_other_runs_are_no_reconstructions():
    with pytest.raises(InvalidInput, match="got 'rocking_curve'"):
        reconstruction_from_documents([("start", {"uid": "u", "purpose": "rocking_curve"})])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": np.float32(0.5), "b": math.nan, "c": np.float64("inf")}, {"a": 0.5}),
        ([1.0, math.nan, (2, 3)], [1.0, None, [2, 3]]),
        (np.arange(3), [0, 1, 2]),
        (np.bool_(True), True),
        ({1: Path("a/b")}, {"1": "a/b"}),
        (ReconstructionOptions(seed=3), ReconstructionOptions(seed=3).model_dump(mode="json")),
        (None, None),
    ],
)
def test_plain(value, expected):
    assert plain(value) == expected


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()


@given(st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_plain_is_always_json_and_settled(value):
    once = plain(value)
    json.dumps(once, allow_nan=False)
    assert plain(once) == once
