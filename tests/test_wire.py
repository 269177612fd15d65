"""Documents to bytes and back: everything a document holds, and nothing that it must not."""

import pickle
import struct
import subprocess
import sys
from collections import ChainMap
from contextlib import suppress
from pathlib import Path

import msgpack
import numpy as np
import pytest
from bluesky.callbacks.zmq import Publisher, RemoteDispatcher
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.wire import MAX_BYTES, pack, unpack

dtypes = st.one_of(
    npst.boolean_dtypes(),
    npst.integer_dtypes(endianness="?"),
    npst.floating_dtypes(endianness="?"),
    npst.complex_number_dtypes(endianness="?"),
    npst.datetime64_dtypes(endianness="?"),
    npst.unicode_string_dtypes(endianness="?", max_len=4),
    npst.byte_string_dtypes(max_len=4),
)
arrays = dtypes.flatmap(lambda t: npst.arrays(t, npst.array_shapes(min_dims=1, min_side=0, max_side=4)))
plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(),
    st.binary(max_size=20),
    arrays,
)
documents = st.dictionaries(
    st.text(),
    st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8),
)


def assert_same(one, other):
    if isinstance(one, np.ndarray):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes()
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key, value in one.items():
            assert_same(value, other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other or (one != one and other != other)


@given(documents)
def test_what_is_sent_comes(document):
    assert_same(document, unpack(pack(document)))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_document_or_an_error_of_ours(noise):
    with suppress(InvalidInput):
        unpack(noise)


@given(documents, st.data())
def test_a_damaged_message_is_a_document_or_an_error_of_ours(document, data):
    message = bytearray(pack(document))
    for _ in range(3):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    with suppress(InvalidInput):
        unpack(bytes(message))


def test_what_numpy_and_bluesky_put_into_documents():
    frame = np.arange(12, dtype="<u2").reshape(3, 4)
    sent = {
        "scalar": np.int64(3),
        "flag": np.bool_(True),
        "complex": 1 + 2j,
        "strided": frame[:, ::2],
        "fortran": np.asfortranarray(frame),
        "chain": ChainMap({"a": 1}, {"b": 2}),
        "set": {3, 1, 2},
        "tuple": (1, 2),
        "path": Path("/data"),
        "number": np.array(2.5),
        "huge": 2**70,
    }
    came = unpack(pack(sent))
    assert came["scalar"] == 3
    assert came["flag"].dtype == bool
    assert came["complex"] == 1 + 2j
    np.testing.assert_array_equal(came["strided"], frame[:, ::2])
    np.testing.assert_array_equal(came["fortran"], frame)
    assert came["chain"] == {"a": 1, "b": 2}
    assert (came["set"], came["tuple"], came["path"], came["number"]) == ([1, 2, 3], [1, 2], "/data", 2.5)
    assert came["huge"] == str(2**70)
    assert not came["strided"].flags.writeable


@pytest.mark.parametrize("value", [np.array([{}], object), np.zeros(2, "f4,i4"), "\ud800"])
def test_what_does_not_travel_is_refused(value):
    with pytest.raises(InvalidInput):
        pack({"a": value})


def test_an_array_without_bytes_travels():
    assert unpack(pack({"a": np.zeros((0, 8000, 8000), np.uint16)}))["a"].shape == (0, 8000, 8000)
    assert unpack(pack({"a": np.zeros((3, 0))}))["a"].tolist() == [[], [], []]


def test_what_comes_is_bounded(monkeypatch):
    monkeypatch.setattr("bluesky_cdinn.wire.MAX_BYTES", 1000)
    with pytest.raises(InvalidInput, match="1,000 bytes"):
        pack({"frame": np.zeros(1000)})
    with pytest.raises(InvalidInput, match="1,000 bytes"):
        unpack(bytes(1001))
    assert MAX_BYTES > 4 * 8000 * 8000 - 1


def array_message(name=b"<f8", shape=(2,), data=bytes(16)):
    head = struct.pack(f"<BB{len(name)}s{len(shape)}Q", len(name), len(shape), name, *shape)
    return msgpack.Packer().pack({"a": msgpack.ExtType(1, head + data)})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": b"|O"}, "numbers, times or text"),
        ({"name": b"<f8,<i4"}, "numbers, times or text"),
        ({"name": b"<f7"}, "type and shape"),
        ({"shape": (3,)}, "can't have 16 bytes"),
        ({"shape": (2**62, 4)}, "can't have"),
        ({"data": b""}, "can't have 0 bytes"),
        ({"name": b"<U0", "shape": (10**12,), "data": b""}, "no bytes"),
        ({"name": b"|S0", "shape": (10**6, 10**6), "data": b""}, "no bytes"),
        ({"shape": (10**12, 0), "data": b""}, "no bytes"),
    ],
)
def test_an_array_that_lies_is_refused(changed, said):
    assert unpack(array_message())["a"].tolist() == [0.0, 0.0]
    with pytest.raises(InvalidInput, match=said):
        unpack(array_message(**changed))


def test_no_pickle_is_loaded_even_after_bluesky_kafka_was_imported():
    """Importing it patches msgpack to unpickle arrays of objects."""
    code = """
import pickle, bluesky_kafka, msgpack
from bluesky_cdinn import wire
class Trap:
    def __reduce__(self):
        return print, ("sprung",)
trap = {b"nd": True, b"kind": b"O", b"type": "O", b"shape": [1], b"data": pickle.dumps(Trap())}
print(type(wire.unpack(wire.pack({"a": 1, "trap": trap}))["trap"]).__name__)
"""
    pytest.importorskip("bluesky_kafka")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["dict"]
    with pytest.raises(InvalidInput):
        unpack(pickle.dumps({"uid": "x"}))


def test_it_is_what_bluesky_takes_for_its_own_classes():
    publisher = Publisher("127.0.0.1:1", serializer=pack)
    publisher("start", {"uid": "x", "frame": np.zeros(3)})
    publisher.close()
    assert RemoteDispatcher("127.0.0.1:1", deserializer=unpack)._deserializer(pack({"uid": "x"})) == {
        "uid": "x"
    }
