"""A running scan's frames cross to the child once each, and arrive whole whatever came before."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bluesky_cdinn.growing import MAX_HELD, CurveInPieces, GrowingFrames, HeldScans, SentScans, known_frames
from bluesky_cdinn.records import FrameReference, RockingCurve

SHAPE = (4, 5)


def frames(*values, dtype=np.uint16):
    return tuple(np.full(SHAPE, value, dtype) for value in values)


def pieces(these, uid="a"):
    return CurveInPieces(these, {"angles_deg": np.arange(float(len(these))), "raw_uid": uid})


@pytest.fixture
def sent():
    return SentScans()


@pytest.fixture
def held():
    return HeldScans()


def test_each_frame_is_sent_once(sent, held):
    came = frames(*range(10))
    for points, new in ((3, 3), (4, 1), (4, 0), (9, 5)):
        increment = sent.increment(pieces(came[:points]), keep=True)
        assert len(increment.frames) == new
        curve = held.curve(increment)
        np.testing.assert_array_equal(curve.frames, came[:points])
        assert (curve.raw_uid, len(curve.angles_deg)) == ("a", points)
    last = sent.increment(pieces(came), keep=False)
    assert len(last.frames) == 1
    np.testing.assert_array_equal(held.curve(last).frames, came)
    assert len(held) == 0


def test_what_was_given_out_stays_as_it_was(sent, held):
    came = frames(*range(20))
    early = held.curve(sent.increment(pieces(came[:3]), keep=True)).frames
    with pytest.raises(ValueError, match="read-only"):
        early[0] = 7
    for points in range(4, 20):
        held.curve(sent.increment(pieces(came[:points]), keep=True))
    again = (*came[:2], *frames(99), *came[3:])
    held.curve(sent.increment(pieces(again), keep=True))
    np.testing.assert_array_equal(early, came[:3])


def test_points_measured_again_are_all_sent_anew(sent, held):
    came = frames(*range(6))
    held.curve(sent.increment(pieces(came), keep=True))
    again = (*came[:4], *frames(40, 50, 60))
    increment = sent.increment(pieces(again), keep=True)
    assert (increment.known, len(increment.frames)) == (0, 7)
    np.testing.assert_array_equal(held.curve(increment).frames, again)
    assert len(held) == 1


def test_the_last_one_leaves_nothing_held_even_when_all_is_sent_anew(sent, held):
    held.curve(sent.increment(pieces(frames(1, 2, 3)), keep=True))
    held.curve(sent.increment(pieces(frames(1, 2, 3)), keep=False))
    assert len(held) == 0


def test_few_scans_are_held_and_a_forgotten_one_is_let_go(sent, held):
    came = {f"scan {n}": frames(*range(n, n + 3)) for n in range(MAX_HELD + 2)}
    for _ in range(2):
        for uid, these in came.items():
            curve = held.curve(sent.increment(pieces(these, uid), keep=True))
            np.testing.assert_array_equal(curve.frames, these)
            assert len(held) <= MAX_HELD + 1
    for uid in came:
        sent.forget(uid)
    held.curve(sent.increment(pieces(frames(1)), keep=False))
    assert len(held) == 0


def test_references_are_sent_as_they_are(sent, held):
    references = tuple(FrameReference(Path("/data/a.h5"), "d", n) for n in range(5))
    for points in (3, 5):
        increment = sent.increment(pieces(references[:points]), keep=True)
        assert held.curve(increment).frames == references[:points]
    assert len(held) == 0


def test_a_whole_curve_is_sent_as_one_array(sent, held):
    whole = RockingCurve(np.arange(40).reshape(2, 4, 5)[:, ::-1], np.arange(2.0), raw_uid="a", scan_id=3)
    increment = sent.increment(whole, keep=False)
    assert increment.frames.flags.c_contiguous
    curve = held.curve(increment)
    np.testing.assert_array_equal(curve.frames, whole.frames)
    assert (curve.scan_id, curve.raw_uid) == (3, "a")


def test_a_child_that_holds_less_than_it_should_says_so(sent, held):
    came = frames(1, 2, 3, 4)
    sent.increment(pieces(came[:3]), keep=True)
    with pytest.raises(LookupError, match="3 frames of scan a"):
        held.curve(sent.increment(pieces(came), keep=True))


def test_pieces_join_to_the_curve():
    came = frames(1, 2, 3)
    curve = pieces(came).joined()
    assert isinstance(curve, RockingCurve)
    np.testing.assert_array_equal(curve.frames, came)
    references = tuple(FrameReference(Path("a"), "d", n) for n in range(3))
    assert pieces(references).joined().frames == references


@given(st.lists(st.lists(st.sampled_from(["u1", "<u2", "<f4", "<i8"]), max_size=4), max_size=6))
def test_a_growing_array_is_the_stack_of_all(batches):
    growing, came = GrowingFrames(), []
    for batch in batches:
        new = [np.full(SHAPE, len(came) + place, dtype) for place, dtype in enumerate(batch)]
        came += new
        growing.extend(new)
        if came:
            np.testing.assert_array_equal(growing.array(), np.stack(came))
            assert growing.array().dtype == np.result_type(*came)


def test_known_frames_go_by_identity():
    one, other, equal = object(), object(), object()
    assert known_frames((), (one,)) == 0
    assert known_frames((one,), (one, other)) == 1
    assert known_frames((one, other), (one, equal)) == 0
    assert known_frames((one, other), (one,)) == 0
