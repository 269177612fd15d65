"""The callback that sends a session's documents to workers elsewhere, without ever holding a scan up."""

import logging
import threading
import weakref
from collections import deque
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from bluesky_cdinn.errors import CdinnError
from bluesky_cdinn.settings import Settings
from bluesky_cdinn.transport import Sender, open_sender

logger = logging.getLogger(__name__)

MAX_WAITING_BYTES = 1_000_000_000
"""What waits to be sent never takes more memory; documents past it are dropped, and done from Tiled later."""

_OVERHEAD_BYTES = 2_000
_READY_S = 1.0
_CLOSE_TIMEOUT_S = 10.0

_Item = tuple[str, Mapping[str, Any], int]


class DocumentBroadcast:
    """Send every document to a 0MQ proxy or a Kafka broker: ``RE.subscribe(DocumentBroadcast())``.

    Taking a document costs microseconds and never raises: it is queued by reference, and a thread of its own
    serialises and sends it. While nobody is there to send to documents wait, up to `MAX_WAITING_BYTES`; what
    is dropped then is logged, and workers do the scans concerned from Tiled.

    Parameters
    ----------
    settings
        Its ``remote.publish`` says where to; None reads the settings file and the environment.
    sender
        Used instead of the settings' own; closed with this object.

    Raises
    ------
    InvalidInput
        The address is wrong, or on another machine though the settings don't allow that.
    """

    def __init__(self, settings: Settings | None = None, *, sender: Sender | None = None) -> None:
        self._queue = _Queue()
        self._thread = threading.Thread(
            target=_send_all,
            args=(self._queue, sender or open_sender((settings or Settings()).remote)),
            name="cdinn-broadcast",
            daemon=True,
        )
        self._thread.start()
        # The thread doesn't hold this object: forgetting it ends the thread.
        self._finalizer = weakref.finalize(self, _finish, self._queue, self._thread)

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Queue one document."""
        self._queue.put(name, doc)

    @property
    def waiting(self) -> int:
        """Documents that are still to be sent."""
        return len(self._queue.items)

    @property
    def dropped(self) -> int:
        """Documents that were given up, all together."""
        return self._queue.dropped

    def close(self) -> None:
        """Send what waits, if somebody is there, and end the thread; may be called more than once."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class _Queue:
    """What waits to be sent; bounded by memory rather than by number, since frames differ so."""

    def __init__(self) -> None:
        self.items: deque[_Item] = deque()
        self.changed = threading.Condition()
        self.closed = False
        self.dropped = 0
        self._bytes = 0
        self._dropping = False

    def put(self, name: str, doc: Mapping[str, Any]) -> None:
        size = _OVERHEAD_BYTES + _array_bytes(doc)
        with self.changed:
            if self.closed or self._bytes + size > MAX_WAITING_BYTES:
                self._drop(name)
                return
            self._dropping = False
            self._bytes += size
            self.items.append((name, doc, size))
            self.changed.notify()

    def get(self) -> _Item | None:
        """Wait for the next one without taking it out; None when closed and empty."""
        with self.changed:
            while not self.items and not self.closed:
                self.changed.wait()
            return self.items[0] if self.items else None

    def done(self) -> None:
        """Take out the one that `get` gave."""
        with self.changed:
            _, _, size = self.items.popleft()
            self._bytes -= size

    def _drop(self, name: str) -> None:
        self.dropped += 1
        if not self._dropping:
            self._dropping = True
            why = "it was closed" if self.closed else f"{len(self.items)} wait, and nobody takes them"
            logger.error("documents aren't sent any more, from a %s on: %s", name, why)


def _array_bytes(doc: Mapping[str, Any]) -> int:
    data = doc.get("data") if isinstance(doc, Mapping) else None
    if not isinstance(data, Mapping):
        return 0
    return sum(value.nbytes for value in data.values() if isinstance(value, np.ndarray))


def _send_all(queue: _Queue, sender: Sender) -> None:
    listened = True
    while (item := queue.get()) is not None:
        name, doc, _ = item
        if sender.wait_ready(_READY_S) and _send(sender, name, doc):
            if not listened:
                logger.info("documents are taken again")
            listened = True
            queue.done()
        elif queue.closed:
            logger.error("%d documents were not sent: nobody took them", len(queue.items))
            break
        elif listened:
            logger.warning("nobody takes documents (remote.publish); they wait")
            listened = False
        # An idle thread must not keep the last frame.
        del item, doc
    sender.close()


def _send(sender: Sender, name: str, doc: Mapping[str, Any]) -> bool:
    """Whether that is done with, be it that the document can't be sent at all."""
    try:
        return sender.send(name, doc)
    except (CdinnError, OSError) as error:
        logger.error("a %s document could not be sent: %s", name, error)
    except Exception:
        logger.exception("a %s document could not be sent", name)
    return True


def _finish(queue: _Queue, thread: threading.Thread) -> None:
    with queue.changed:
        queue.closed = True
        queue.changed.notify()
    if thread is not threading.current_thread():
        thread.join(_CLOSE_TIMEOUT_S)
