"""A backfill's place among those who reconstruct: it claims each scan, as `cdinn worker` does, and lives.

The claims are those of `bluesky_cdinn.claims`, so that no scan is reconstructed by two backfills at once, nor
by a backfill and a worker that follows documents.
"""

import contextlib
import itertools
import logging
import os
import socket
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import httpx

from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.claims import Claims
from bluesky_cdinn.errors import StoreUnavailable
from bluesky_cdinn.heartbeat import Heartbeat, PulseWatch, next_beat, post, read_all, withdraw

logger = logging.getLogger(__name__)

_KIND = "backfill"
_JOIN_S = 10.0
# One process may run several, one after the other or at once.
_numbers = itertools.count(1)


class BackfillClaims:
    """Claims of one backfill, which hold as long as its heart beats: inside a ``with`` block.

    Parameters
    ----------
    catalog
        Where claims and heartbeats are; its settings name the containers and say how often a heart beats.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._settings = catalog.settings.remote
        host = socket.gethostname()
        self._heartbeat = Heartbeat(
            f"{_KIND}-{host}-{os.getpid()}-{next(_numbers)}",
            since=time.time(),
            host=host,
            pid=os.getpid(),
            version=version("bluesky-cdinn"),
            device=catalog.settings.reconstruction.device,
            pids=_pids(),
        )
        self._watch = PulseWatch(self._settings.silent_s)
        self._claims = Claims(
            self._heartbeat.name, self._heartbeat.since, self._watch, self._look, blames=False
        )
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="cdinn-heartbeat", daemon=True)

    def take(self, raw_uid: str) -> bool:
        """Claim a scan; False when somebody who lives has it.

        Raises
        ------
        StoreUnavailable, httpx.HTTPError
            Tiled is away, or refuses.
        WorkerDied
            The scan is left alone.
        """
        return self._claims.take(self._catalog.folder(self._settings.claims), raw_uid)

    def release(self, raw_uid: str) -> None:
        """Give a scan back; while Tiled is away it stays claimed until this backfill ends."""
        try:
            self._claims.release(self._catalog.folder(self._settings.claims), raw_uid)
        except (StoreUnavailable, httpx.HTTPError) as error:
            logger.warning("the claim on scan %s stays for now: %s", raw_uid, error)

    def __enter__(self) -> Self:
        self._bury()
        self._beat()
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join(_JOIN_S)
        try:
            withdraw(self._workers(), self._heartbeat.name)
        except (StoreUnavailable, httpx.HTTPError) as error:
            logger.warning("no goodbye while Tiled is away: %s", error)

    def _workers(self) -> Any:
        return self._catalog.folder(self._settings.workers)

    def _bury(self) -> None:
        """Withdraw backfills of this machine whose process is gone: why wait for their silence."""
        for name, other in read_all(self._workers()).items():
            here = bool(other.pids) and other.pids == self._heartbeat.pids
            if here and name.startswith(f"{_KIND}-") and not _runs(other.pid):
                withdraw(self._workers(), name)

    def _keep_beating(self) -> None:
        while not self._over.wait(self._settings.heartbeat_s):
            try:
                self._beat()
            except (StoreUnavailable, httpx.HTTPError) as error:
                logger.info("no heartbeat while Tiled is away: %s", error)
            except Exception:
                # Without a heart the claims would be others', and the backfill go on.
                logger.exception("no heartbeat this time")

    def _beat(self) -> None:
        self._heartbeat = next_beat(self._heartbeat, runs=tuple(self._claims.held))
        post(self._workers(), self._heartbeat)
        self._look()

    def _look(self) -> None:
        self._watch.look(read_all(self._workers()))


def _pids() -> str:
    """Return what only processes share that know each other by number; a host's name containers share too."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
