"""Runs on disk on their way to Tiled: one folder a run, its documents as JSON lines, its arrays as npy files.

A run is written here document by document while it is measured or computed, and removed once Tiled holds it,
so that neither a Tiled outage nor the death of this process loses any of it. Nothing is pickled.
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import IO, Any, Literal

import numpy as np

from bluesky_cdinn.documents import Document
from bluesky_cdinn.errors import InvalidInput

logger = logging.getLogger(__name__)

Kind = Literal["raw", "processed"]

_DOCUMENTS = "documents.jsonl"
_ARRAY = "$npy"
_GROWING = ".part"
_RUNNING = ".running"
_REJECTED = ".rejected"
_NOT_READY = (_GROWING, _RUNNING, _REJECTED)
ABANDONED = "the process that ran it ended before the run did"
# The year 5138: what twenty digits of nanoseconds hold.
_LATEST_S = 1e11
_NAME = re.compile(r"(?P<time>\d{20})-(?P<kind>raw|processed)-(?P<uid>[\w.:-]{1,200})")


class SpooledRun:
    """One run in the spool; its folder's name holds its turn, kind and uid, so that names sort by age.

    Parameters
    ----------
    path
        Its folder.
    """

    def __init__(self, path: Path) -> None:
        match = _NAME.match(path.name)
        if match is None:
            raise InvalidInput(f"{path} is not the folder of a spooled run")
        self.path = path
        self.kind: Kind = "raw" if match["kind"] == "raw" else "processed"
        self.uid = match["uid"]
        for suffix in _NOT_READY:
            self.uid = self.uid.removesuffix(suffix)

    def documents(self) -> Iterator[Document]:
        """Yield the documents, arrays included; a last line that was cut short is left out."""

        def restored(value: dict[str, Any]) -> Any:
            if set(value) != {_ARRAY}:
                return value
            return np.load(self.path / PurePath(value[_ARRAY]).name, allow_pickle=False)

        with (self.path / _DOCUMENTS).open() as lines:
            for line in lines:
                if not line.endswith("\n"):
                    return
                name, document = json.loads(line, object_hook=restored)
                yield name, document

    def remove(self) -> None:
        """Delete it: Tiled holds it now."""
        shutil.rmtree(self.path)

    def reject(self) -> None:
        """Keep it, out of the way: Tiled is there but doesn't take it."""
        aside = self.path.with_name(self.path.name + _REJECTED)
        self.path.rename(aside)
        logger.error("it is kept in %s: take %r off the name to have it tried again", aside, _REJECTED)


class HeldRun:
    """One whole run in memory, because the spool could not be written.

    Parameters
    ----------
    kind
        What it is.
    documents
        From start to stop.
    among
        The runs that are held; it removes itself from them.
    """

    def __init__(self, kind: Kind, documents: Iterable[Document], among: list["HeldRun"]) -> None:
        self.kind: Kind = kind
        self._documents = list(documents)
        self.uid: str = self._documents[0][1]["uid"]
        self._among = among

    def documents(self) -> Iterator[Document]:
        """Yield the documents."""
        return iter(self._documents)

    def remove(self) -> None:
        """Forget it: Tiled holds it now."""
        self._among.remove(self)

    def reject(self) -> None:
        """Forget it though Tiled doesn't take it: there is nowhere left."""
        logger.critical("%s run %s is lost: neither the spool nor Tiled takes it", self.kind, self.uid)
        self._among.remove(self)


class RunJournal:
    """Writes one run into the spool as its documents come.

    The folder has a provisional name until the stop document; a lock on its file tells a run that is being
    written from one whose process died.

    Parameters
    ----------
    spool
        The folder.
    kind
        What the run is.
    start
        Its start document.
    running
        Whether this is written in place of a whole run that is still to come: only if that never comes, since
        the process died, does this go to Tiled.
    """

    def __init__(self, spool: Path, kind: Kind, start: Mapping[str, Any], *, running: bool = False) -> None:
        name = f"{_turn(spool, start.get('time')):020d}-{kind}-{start['uid']}"
        if _NAME.fullmatch(name) is None:
            raise InvalidInput(
                f"a run's uid must be made of letters, digits, '.', ':' and '-', got {start['uid']!r}"
            )
        self._path = spool / (name + (_RUNNING if running else _GROWING))
        self._arrays = 0
        # Under a name that nobody looks for until it is locked, lest it be taken for abandoned.
        unlocked = spool / f".{self._path.name}"
        unlocked.mkdir(parents=True)
        self._lines: IO[str] = (unlocked / _DOCUMENTS).open("w")
        fcntl.flock(self._lines, fcntl.LOCK_EX)
        unlocked.rename(self._path)
        try:
            self.append("start", start)
        except OSError:
            self.withdraw()
            raise

    def append(self, name: str, document: Mapping[str, Any]) -> None:
        """Write one document, arrays first, so that a line never points to what isn't there."""
        try:
            line = json.dumps([name, dict(document)], default=self._encode)
        except TypeError:
            line = json.dumps([name, _with_text_keys(document)], default=self._encode)
        self._lines.write(line + "\n")
        self._lines.flush()

    def complete(self) -> SpooledRun:
        """Give the folder its final name after the stop document; what has that name is complete."""
        final = self._path.with_name(self._path.name.removesuffix(_GROWING))
        self._path.rename(final)
        self._lines.close()
        return SpooledRun(final)

    def withdraw(self) -> list[Document]:
        """Give up writing this run: return what has been written, and remove it."""
        written = list(SpooledRun(self._path).documents())
        self.discard()
        return written

    def discard(self) -> None:
        """Remove what has been written."""
        with contextlib.suppress(OSError):
            self._lines.close()
        shutil.rmtree(self._path, ignore_errors=True)

    def _encode(self, value: Any) -> Any:
        if isinstance(value, np.ndarray) and value.dtype != object:
            name = f"{self._arrays:06d}.npy"
            np.save(self._path / name, value, allow_pickle=False)
            self._arrays += 1
            return {_ARRAY: name}
        if isinstance(value, np.ndarray | np.generic):
            return value.tolist()
        if isinstance(value, Mapping):
            return dict(value)
        if isinstance(value, set | frozenset):
            return sorted(value)
        return str(value)


def _with_text_keys(value: Any) -> Any:
    """Return a value whose mappings have the keys that JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): _with_text_keys(item) for key, item in value.items()}
    return [_with_text_keys(item) for item in value] if isinstance(value, list | tuple) else value


def _turn(spool: Path, started: Any) -> int:
    """Return a run's place in the queue, ns: its start's time, but behind all others anyhow."""
    plausible = isinstance(started, int | float) and 0 <= started < _LATEST_S
    names = (_NAME.match(path.name) for path in spool.glob("*"))
    last = max((int(match["time"]) for match in names if match), default=-1)
    return max(int((started if plausible else time.time()) * 1e9), last + 1)


def spooled_runs(spool: Path) -> list[SpooledRun]:
    """Return the runs that are complete and wait for Tiled, oldest first."""
    if not spool.is_dir():
        return []
    # While Tiled is away there may be thousands: scandir needs not look at each.
    with os.scandir(spool) as entries:
        names = [entry.name for entry in entries if _NAME.match(entry.name) and entry.is_dir()]
    return [SpooledRun(spool / name) for name in sorted(names) if not name.endswith(_NOT_READY)]


def running_runs(spool: Path) -> list[SpooledRun]:
    """Return the processed runs whose scans still run, as far as they are, oldest first."""
    if not spool.is_dir():
        return []
    return [SpooledRun(path) for path in sorted(spool.glob(f"*{_RUNNING}")) if _NAME.match(path.name)]


def rejected_runs(spool: Path) -> list[Path]:
    """Return the folders of runs that Tiled refused, oldest first."""
    return sorted(spool.glob(f"*{_REJECTED}")) if spool.is_dir() else []


def recover_abandoned(spool: Path) -> None:
    """Complete, with a stop document that says so, runs whose process died while it wrote them."""
    if not spool.is_dir():
        return
    for path in sorted([*spool.glob(f"*{_GROWING}"), *spool.glob(f"*{_RUNNING}")]):
        # A folder that is just being made has no such name yet.
        if _NAME.match(path.name) is None:
            continue
        try:
            # What a power cut leaves need not be text.
            with (path / _DOCUMENTS).open("r+", errors="replace") as lines:
                fcntl.flock(lines, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _end_abandoned(path, lines)
        except (BlockingIOError, FileNotFoundError):
            continue
        except OSError:
            logger.exception("the unfinished run %s can't be completed now; the others go on", path)


def _end_abandoned(path: Path, lines: IO[str]) -> None:
    final = path.with_name(path.name.removesuffix(_GROWING).removesuffix(_RUNNING))
    run = SpooledRun(path)
    if any((other.kind, other.uid) == (run.kind, run.uid) for other in spooled_runs(path.parent)):
        # The whole run is there already: its process died before it took this away.
        shutil.rmtree(path)
        return
    written: list[Document] = []
    end = 0
    for line in lines.read().splitlines(keepends=True):
        try:
            written.append(json.loads(line if line.endswith("\n") else ""))
        except ValueError:
            break
        end += len(line.encode())
    lines.seek(end)
    lines.truncate()
    if not written:
        shutil.rmtree(path)
        return
    if written[-1][0] != "stop":
        stop = {
            "uid": str(uuid.uuid4()),
            "time": os.stat(lines.fileno()).st_mtime,
            "run_start": written[0][1]["uid"],
            "exit_status": "fail",
            "reason": ABANDONED,
            "num_events": {},
        }
        lines.write(json.dumps(["stop", stop]) + "\n")
        lines.flush()
        if run.kind == "processed":
            _call_failed(path / _DOCUMENTS)
    path.rename(final)
    logger.warning("run %s was left unfinished by a process that died; it goes to Tiled as it is", path.name)


def _call_failed(file: Path) -> None:
    """Correct the start document of a processed run that has no result: a search goes by it."""
    first, *rest = file.read_text(errors="replace").splitlines(keepends=True)
    name, start = json.loads(first)
    start |= {"status": "failed", "reason": ABANDONED}
    corrected = file.with_suffix(".corrected")
    corrected.write_text("".join([json.dumps([name, start]) + "\n", *rest]))
    corrected.replace(file)


@contextlib.contextmanager
def sole_delivery(spool: Path) -> Iterator[bool]:
    """Yield whether this thread, of all threads and processes, is the one that may deliver now."""
    try:
        spool.mkdir(parents=True, exist_ok=True)
        lock = (spool / ".lock").open("w")
    except OSError as error:
        logger.error("nothing can be spooled in %s: %s", spool, error)
        yield False
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
