"""Who reconstructs which scan, when several workers follow the same documents.

A claim is a node in Tiled whose key follows from the scan: of several workers that want to make it Tiled lets
one. A dead worker's claim stays; whoever takes the scan over makes the next one, ``<uid>.2`` after
``<uid>.1``, so that again one of several succeeds. The highest holds.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tiled.client.utils import ClientError

from bluesky_cdinn.clients import plain_client
from bluesky_cdinn.errors import InvalidInput, NotFound, WorkerDied
from bluesky_cdinn.heartbeat import Heartbeat, PulseWatch

logger = logging.getLogger(__name__)

MAX_DEATHS = 5
"""A scan that so many workers died of is left alone: a person should look at it."""

_SAID = ("worker", "since", "time", "deaths")
_NOT_FOUND, _CONFLICT = 404, 409


@dataclass(frozen=True)
class Claim:
    """One worker's claim on one scan.

    Parameters
    ----------
    raw_uid
        Of the scan.
    turn
        1 for the first one who claimed it, more for those who took it over.
    worker, since
        Who: the name, and when that worker started.
    time
        When it was claimed, seconds since 1970, by the worker's clock.
    deaths
        How many workers will have died of the scan if this one does.
    """

    raw_uid: str
    turn: int
    worker: str
    since: float
    time: float = 0.0
    deaths: int = 1

    @property
    def key(self) -> str:
        """Of the node in Tiled."""
        return f"{self.raw_uid}.{self.turn}"


class Claims:
    """One worker's claims.

    Parameters
    ----------
    worker, since
        Who claims.
    watch
        Tells whether other claimants still live.
    look
        Has `watch` look again, now: whoever has come since it last did must not be taken for dead.
    blames
        Whether the scan is blamed if this worker dies. What people start and kill says nothing of the scan.

    Attributes
    ----------
    worker, since
        As given.
    held
        What this worker has claimed and not released, by the scan's uid; may be read from any thread.
    """

    def __init__(
        self,
        worker: str,
        since: float,
        watch: PulseWatch,
        look: Callable[[], None],
        *,
        blames: bool = True,
    ) -> None:
        self.held: dict[str, Claim] = {}
        self.worker = worker
        self.since = since
        self._watch = watch
        self._look = look
        self._blames = blames
        self._one_at_a_time = threading.Lock()

    def take(self, claims: Any, raw_uid: str) -> bool:
        """Claim a scan; False when another worker that lives has it, or this one has it already.

        Parameters
        ----------
        claims
            Tiled client of the container of all claims.
        raw_uid
            Of the scan.

        Raises
        ------
        WorkerDied
            So many workers died of it that it is left alone.
        """
        with self._one_at_a_time:
            if raw_uid in self.held:
                return False
            turn, deaths = 1, 0
            while True:
                claim = Claim(raw_uid, turn, self.worker, self.since, time.time(), deaths + self._blames)
                holder = claim if _make(claims, claim) else _read(claims, claim.key)
                # Released in this moment, so that it is done.
                if holder is None:
                    return False
                # It may have been made by a request whose answer got lost.
                if (holder.worker, holder.since) == (self.worker, self.since):
                    break
                if self._lives(holder):
                    return False
                turn, deaths = turn + 1, _bearable(holder)
            self.held = {**self.held, raw_uid: holder}
        if turn > 1:
            logger.warning("scan %s is taken over from a worker that died", raw_uid)
        return True

    def release(self, claims: Any, raw_uid: str) -> None:
        """Give a claim back: once the scan's reconstruction is in Tiled, or when another one may make it."""
        with self._one_at_a_time:
            claim = self.held.get(raw_uid)
            if claim is None:
                return
            # Where another one took this worker for dead it clears up, and then this claim may be gone.
            if f"{raw_uid}.{claim.turn + 1}" not in claims and _read(claims, claim.key) == claim:
                _delete(claims, raw_uid, claim.turn)
            self.held = {uid: held for uid, held in self.held.items() if uid != raw_uid}

    def _lives(self, holder: Claim) -> bool:
        if not self._watch.lives(holder.worker, holder.since):
            self._look()
        return self._watch.lives(holder.worker, holder.since)


def holders(claims: Any) -> dict[str, Claim]:
    """Return the claim that holds, for each scan that is claimed."""
    nodes = plain_client(claims).items()
    return highest(_claim(key, node.metadata) for key, node in nodes)


def highest(claims: Iterable[Claim]) -> dict[str, Claim]:
    """Return of each scan's claims the last one."""
    last: dict[str, Claim] = {}
    for claim in sorted(claims, key=lambda claim: claim.turn):
        last[claim.raw_uid] = claim
    return last


def is_claimed(claims: Any, raw_uid: str) -> bool:
    """Whether anybody has claimed a scan."""
    return f"{raw_uid}.1" in claims


def pardon(claims: Any, workers: Mapping[str, Heartbeat], raw_uid: str) -> None:
    """Let workers try a scan again that is left alone.

    Parameters
    ----------
    claims
        Tiled client of the container of all claims.
    workers
        Those who didn't say goodbye, by name.
    raw_uid
        Of the scan.

    Raises
    ------
    NotFound
        Nobody has claimed it.
    InvalidInput
        It is not left alone, or the last one who tried it may live.
    """
    claim = holders(claims).get(raw_uid)
    if claim is None:
        raise NotFound(f"nobody has claimed the scan {raw_uid!r}; give its whole uid")
    if claim.deaths < MAX_DEATHS:
        raise InvalidInput(f"scan {raw_uid} is not left alone: worker {claim.worker}, or the next, does it")
    holder = workers.get(claim.worker)
    if holder is not None and holder.since == claim.since:
        raise InvalidInput(
            f"worker {holder.name} may be at scan {raw_uid} still; if it is dead, first have it forgotten "
            f"with cdinn status --forget {holder.name}"
        )
    _delete(claims, raw_uid, claim.turn)


def _bearable(holder: Claim) -> int:
    """Return how many workers died of a scan whose holder is dead.

    Raises
    ------
    WorkerDied
        Too many.
    """
    if holder.deaths >= MAX_DEATHS:
        raise WorkerDied(
            f"scan {holder.raw_uid} is left alone, {holder.deaths} workers died of it: look at their logs, "
            f"then have it tried again with cdinn status --retry {holder.raw_uid}"
        )
    return holder.deaths


def _delete(claims: Any, raw_uid: str, last: int) -> None:
    for turn in range(1, last + 1):
        try:
            claims.delete_contents(f"{raw_uid}.{turn}")
        except ClientError as error:
            if error.response.status_code != _NOT_FOUND:
                raise


def _make(claims: Any, claim: Claim) -> bool:
    said = {name: getattr(claim, name) for name in _SAID}
    try:
        claims.create_container(claim.key, metadata=said)
    except ClientError as error:
        if error.response.status_code != _CONFLICT:
            raise
        return False
    return True


def _read(claims: Any, key: str) -> Claim | None:
    try:
        return _claim(key, claims[key].metadata)
    except KeyError:
        return None


def _claim(key: str, metadata: Any) -> Claim:
    raw_uid, _, turn = key.rpartition(".")
    said = {name: metadata[name] for name in _SAID}
    return Claim(raw_uid, int(turn), **said)
