"""Documents by bluesky's 0MQ proxy, as its own Publisher and RemoteDispatcher put them into messages.

Those two are not used themselves: the one copies and serialises in the RunEngine's thread, the other ends
with the first document whose name it doesn't know, and takes messages of any size.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.wire import MAX_BYTES, pack, unpack

logger = logging.getLogger(__name__)

SETTLE_S = 0.5
"""Those who follow a proxy that has come (back) need so long to find it; what it gets before is lost."""

_CAME, _WENT = zmq.EVENT_HANDSHAKE_SUCCEEDED, zmq.EVENT_DISCONNECTED
_POLL_MS = 100
_LINGER_MS = 2000
# Messages that may wait in a socket, large frames perhaps: the others wait where bytes are counted.
_SEND_QUEUE = 4
_SEND_MS = 1000
# What is more waits at the proxy, which drops what is too much for it.
_RECEIVE_QUEUE = 50
# A connection that says nothing for so long is made again: a cable that was pulled says nothing at all.
_HEARTBEAT_MS = 5000
# One who follows and is busy for long, with a full socket, doesn't hear the proxy either.
_DEAF_MS = 60_000


class ProxySender:
    """Sends documents to a proxy's in-address.

    Parameters
    ----------
    hosts
        "host:port" of the proxy.
    """

    def __init__(self, hosts: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self._socket.setsockopt(zmq.SNDHWM, _SEND_QUEUE)
        self._socket.setsockopt(zmq.SNDTIMEO, _SEND_MS)
        # By default it drops what comes while its queue is full.
        self._socket.setsockopt(zmq.XPUB_NODROP, 1)
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
        # The socket itself takes whatever it is given, and drops it where nobody is connected.
        self._monitor = self._socket.get_monitor_socket(_CAME | _WENT)
        _connect(self._socket, hosts)
        self._connected = False

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until the proxy is there, and a moment more; False when it isn't within the time."""
        deadline = time.monotonic() + timeout_s
        while True:
            wait_ms = 0 if self._connected else round(1000 * max(0.0, deadline - time.monotonic()))
            if not self._monitor.poll(wait_ms):
                return self._connected
            came = parse_monitor_message(self._monitor.recv_multipart())["event"] == _CAME
            if came:
                time.sleep(SETTLE_S)
            self._connected = came

    def send(self, name: str, doc: Mapping[str, Any]) -> bool:
        """Send one document; False when none is taken for a second, `InvalidInput` if it can't travel."""
        message = b" ".join((b"", name.encode(), pack(doc)))
        try:
            self._socket.send(message)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        """Send what is under way, for two seconds at most."""
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()
        self._context.term()


class ProxyFeed:
    """Follows a proxy's out-address; when the proxy is restarted it is found again.

    Parameters
    ----------
    hosts
        "host:port" of the proxy.
    """

    def __init__(self, hosts: str) -> None:
        self._hosts = hosts

    def follow(self, take: Callable[[str, Mapping[str, Any]], object], stopping: threading.Event) -> None:
        """Call `take` with each document until `stopping` is set."""
        with zmq.Context() as context, context.socket(zmq.SUB) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RCVHWM, _RECEIVE_QUEUE)
            socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
            socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _DEAF_MS)
            socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES + 1000)
            socket.setsockopt(zmq.SUBSCRIBE, b"")
            _connect(socket, self._hosts)
            while not stopping.is_set():
                if socket.poll(_POLL_MS):
                    _hand_on(socket.recv(), take)


def _connect(socket: zmq.Socket[bytes], hosts: str) -> None:
    # Where a name has both kinds of address, a proxy listens at the old kind.
    socket.setsockopt(zmq.IPV6, hosts.startswith("["))
    socket.connect(f"tcp://{hosts}")


def _hand_on(message: bytes, take: Callable[[str, Mapping[str, Any]], object]) -> None:
    try:
        _, name, content = message.split(b" ", 2)
        doc = unpack(content)
        if not isinstance(doc, dict):
            raise InvalidInput(f"a document must be a mapping, got {type(doc).__name__}")
        take(name.decode(), doc)
    except ValueError as error:
        logger.warning("a message of %d bytes is no document and is left out: %s", len(message), error)
