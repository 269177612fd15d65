"""Messages between processes arrive as they were sent, or not at all."""

import socket
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from bluesky_cdinn.channel import receive, send

DTYPES = st.sampled_from(["?", "u1", "<u2", ">i4", "<f4", ">f8", "<c8"]).map(np.dtype)


@pytest.fixture
def ends():
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def passed(message):
    """Send a message through a socket pair; a large one needs somebody at the other end."""
    one, other = socket.socketpair()
    with one, other:
        sender = threading.Thread(target=send, args=(one, message))
        sender.start()
        try:
            return receive(other)
        finally:
            sender.join()


@given(arrays(DTYPES, array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5)))
def test_any_array(array):
    (came,) = passed((array,))
    assert (came.dtype, came.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(came, array)


@given(st.recursive(st.none() | st.text() | st.binary(), lambda inner: st.lists(inner, max_size=4)))
def test_any_plain_message(message):
    assert passed(message) == message


@pytest.mark.parametrize("view", [np.s_[::2], np.s_[:, ::-1], np.s_[0:0]])
def test_views(view):
    array = np.arange(120.0).reshape(10, 12)
    np.testing.assert_array_equal(passed({"a": array[view]})["a"], array[view])
    np.testing.assert_array_equal(passed(array.T), array.T)


def test_several_large_arrays_arrive_writable():
    sent = [np.random.default_rng(n).random((100, 1000, 10)) for n in range(2)]
    for came, array in zip(passed(sent), sent, strict=True):
        np.testing.assert_array_equal(came, array)
        came += 1


def test_messages_keep_their_order(ends):
    one, other = ends
    for number in range(5):
        send(one, (number, np.full(number, number)))
    assert [receive(other)[0] for _ in range(5)] == [0, 1, 2, 3, 4]


def test_the_end_of_the_other_side_is_told(ends):
    one, other = ends
    one.close()
    with pytest.raises(EOFError):
        receive(other)


def test_half_a_message_is_none(ends):
    one, other = ends
    one.sendall(b"\x01\x00\x00\x00\xff")
    one.close()
    with pytest.raises(EOFError):
        receive(other)
