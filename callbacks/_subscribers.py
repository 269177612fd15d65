"""Who is told the documents of processed runs, each of them in the order that a run has."""

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

from bluesky_cdinn.documents import Document

logger = logging.getLogger(__name__)

ProcessedCallback = Callable[[str, Mapping[str, Any]], object]


class Subscribers:
    """Callbacks for documents; one that fails on a run gets no more of it."""

    def __init__(self) -> None:
        self._tokens = count()
        self._callbacks: dict[int, ProcessedCallback] = {}
        # (token, uid) of the runs that have begun -> whether the callback still follows.
        self._following: dict[tuple[int, str], bool] = {}

    def add(self, callback: ProcessedCallback) -> int:
        """Have a callback called; return a token."""
        token = next(self._tokens)
        self._callbacks[token] = callback
        return token

    def remove(self, token: int) -> None:
        """Call it no more."""
        self._callbacks.pop(token, None)

    def tell(self, uid: str, documents: Sequence[Document], head: Sequence[Document] = ()) -> None:
        """Pass documents of a run on.

        Parameters
        ----------
        uid
            Of the processed run.
        documents
            The next ones.
        head
            What the run began with, for callbacks that came later than that.
        """
        for token, callback in list(self._callbacks.items()):
            if (token, uid) not in self._following:
                missed = head if documents[0][0] != "start" else ()
                self._following[token, uid] = _call(callback, [*missed, *documents])
            elif self._following[token, uid]:
                self._following[token, uid] = _call(callback, documents)
        if documents[-1][0] == "stop":
            self._following = {key: follows for key, follows in self._following.items() if key[1] != uid}


def _call(callback: ProcessedCallback, documents: Sequence[Document]) -> bool:
    for name, document in documents:
        try:
            callback(name, document)
        except Exception:
            logger.exception("a callback for processed documents failed on a %s document", name)
            return False
    return True
