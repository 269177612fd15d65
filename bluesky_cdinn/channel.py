"""Messages with large arrays between a process and its own child, over one stream socket.

Arrays travel as out-of-band buffers of pickle protocol 5: they are never copied into the pickle, and both
`socket.sendall` and `socket.recv_into` work without the interpreter's lock, so that a hundred megabytes
pass without another thread noticing. Only for a private socket pair whose two ends are both this package:
what comes is unpickled.
"""

import pickle
import socket
import struct
from typing import Any

import numpy as np

_COUNT = struct.Struct("<I")


def send(channel: socket.socket, message: Any) -> None:
    """Send one message whole.

    Raises
    ------
    OSError
        The other side is gone.
    """
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    parts = [memoryview(head), *(buffer.raw() for buffer in buffers)]
    sizes = struct.pack(f"<{len(parts)}Q", *(part.nbytes for part in parts))
    channel.sendall(_COUNT.pack(len(parts)) + sizes)
    for part in parts:
        channel.sendall(part)


def receive(channel: socket.socket) -> Any:
    """Return the next message; its arrays are writable and own their memory.

    Raises
    ------
    EOFError
        The other side closed, or died, with or without half a message sent.
    OSError
        The connection broke.
    """
    (count,) = _COUNT.unpack(_receive_exactly(channel, _COUNT.size))
    sizes = struct.unpack(f"<{count}Q", _receive_exactly(channel, 8 * count))
    head, *buffers = [_receive_exactly(channel, size) for size in sizes]
    return pickle.loads(head, buffers=buffers)


def _receive_exactly(channel: socket.socket, size: int) -> memoryview:
    # numpy's memory is not zeroed first, unlike a bytearray's.
    view = np.empty(size, np.uint8).data
    filled = 0
    while filled < size:
        came = channel.recv_into(view[filled:])
        if came == 0:
            raise EOFError("the other side closed the channel")
        filled += came
    return view
