"""What a session says with every run, kept in a JSON file that people and other sessions can read."""

import fcntl
import json
import logging
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bluesky_cdinn.documents import plain
from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.files import replacing

logger = logging.getLogger(__name__)


class SavedMetadata(MutableMapping[str, Any]):
    """A mapping that is the same in the next session, and in another one that is open: ``RE.md``.

    A prompt and a queueserver that share the file share the numbers of scans too. What is changed inside of
    an item, ``md["sample"]["name"] = "7"``, is written at the next access. A disk that takes nothing costs a
    line in the log, and never a scan.

    Parameters
    ----------
    path
        The file; it and its folder are made when there is something to write.

    Raises
    ------
    InvalidInput
        The file holds no JSON object.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()
        self._stamp = self._file_stamp()
        self._items = self._read()
        # What the file is known to hold: what it didn't take is tried again at the next access.
        self._saved = _text(self._items)
        self._complained = False

    def __getitem__(self, key: str) -> Any:
        return self._refreshed()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        checked = _checked(key, value)
        with self._changing() as items:
            items[key] = checked

    def __delitem__(self, key: str) -> None:
        with self._changing() as items:
            del items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._refreshed()))

    def __len__(self) -> int:
        return len(self._refreshed())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._path}: {self._refreshed()!r}>"

    def save(self) -> None:
        """Write what was changed inside of items since the last access."""
        self._refreshed()

    def _refreshed(self) -> dict[str, Any]:
        """Return the items as they are now, here and in the file."""
        if _text(self._items) != self._saved:
            with self._changing():
                pass
        elif self._file_stamp() != self._stamp:
            self._reload()
        return self._items

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        """Give the items to change, with what another process wrote meanwhile; then write them."""
        with self._lock() as locked:
            if self._file_stamp() != self._stamp:
                self._reload()
            yield self._items
            if locked:
                self._write(_text(self._items))

    @contextmanager
    def _lock(self) -> Iterator[bool]:
        """Keep other processes from writing meanwhile; gives False where nothing can be written at all."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lock = self._path.with_name(f".{self._path.name}.lock").open("w")
        except OSError as error:
            self._complain(error)
            yield False
            return
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError as error:
                # Some file systems know no locks: better written without one than not at all.
                logger.debug("%s can't be locked: %s", self._path, error)
            yield True

    def _write(self, text: str) -> None:
        try:
            with replacing(self._path) as stream:
                stream.write(text.encode())
        except OSError as error:
            self._complain(error)
        else:
            self._saved, self._stamp, self._complained = text, self._file_stamp(), False

    def _reload(self) -> None:
        """Take what another process wrote, but for items that were changed inside here."""
        before = json.loads(self._saved)
        mine = {key: value for key, value in self._items.items() if plain(value) != before.get(key)}
        try:
            # A file that has gone, with its file system perhaps, takes nothing with it.
            theirs = self._read() if self._path.exists() else before
        except (InvalidInput, OSError) as error:
            logger.warning("%s; this session goes on with what it knows", error)
            theirs = before
        self._stamp, self._saved = self._file_stamp(), _text(theirs)
        self._items = {**theirs, **mine}

    def _read(self) -> dict[str, Any]:
        try:
            read = json.loads(self._path.read_text())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise InvalidInput(
                f"{self._path} must hold a JSON object ({error}): mend it, or move it away"
            ) from None
        if not isinstance(read, dict):
            raise InvalidInput(
                f"{self._path} must hold a JSON object, got {read!r}: mend it, or move it away"
            )
        return read

    def _file_stamp(self) -> tuple[int, int] | None:
        """Return what tells one version of the file from another: each is a file of its own."""
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def _complain(self, error: OSError) -> None:
        if self._complained:
            return
        self._complained = True
        logger.error("%s can't be written (%s); metadata last for this session only", self._path, error)


def _text(items: dict[str, Any]) -> str:
    return json.dumps(plain(items), indent=2) + "\n"


def _checked(key: str, value: Any) -> Any:
    """Return a value as JSON gives it back.

    Raises
    ------
    InvalidInput
        JSON can't hold it.
    """
    if not isinstance(key, str):
        raise InvalidInput(f"a key of the metadata must be text, got {key!r}")
    try:
        return json.loads(json.dumps(value, default=_array_as_list, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"the metadata {key!r} must be numbers, text, lists or mappings of them, got {value!r} ({error})"
        ) from None


def _array_as_list(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is none of these")
