"""Who reconstructs which scan, when several workers follow the same documents.

A claim is a node in Tiled whose key follows from the scan: of several workers that want to make it Tiled lets
one. A dead worker's claim stays; whoever takes the scan over makes the next one, ``<uid>.2`` after
``<uid>.1``, so that again one of several succeeds. The highest holds.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tiled.client.utils import ClientError

from bluesky_cdinn.clients import plain_client
from bluesky_cdinn.heartbeat import PulseWatch

logger = logging.getLogger(__name__)

MAX_CLAIMS = 5
"""A scan that so many workers died of is left alone: a person should look at it."""

_CONFLICT = 409


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
    """

    raw_uid: str
    turn: int
    worker: str
    since: float
    time: float = 0.0

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

    Attributes
    ----------
    worker, since
        As given.
    held
        What this worker has claimed and not released, by the scan's uid; may be read from any thread.
    """

    def __init__(self, worker: str, since: float, watch: PulseWatch, look: Callable[[], None]) -> None:
        self.held: dict[str, Claim] = {}
        self.worker = worker
        self.since = since
        self._watch = watch
        self._look = look
        self._one_at_a_time = threading.Lock()

    def take(self, claims: Any, raw_uid: str) -> bool:
        """Claim a scan; False when another worker that lives has it, or this one has it already.

        Parameters
        ----------
        claims
            Tiled client of the container of all claims.
        raw_uid
            Of the scan.
        """
        with self._one_at_a_time:
            if raw_uid in self.held:
                return False
            for turn in range(1, MAX_CLAIMS + 1):
                claim = Claim(raw_uid, turn, self.worker, self.since, time.time())
                if _make(claims, claim):
                    self.held = {**self.held, raw_uid: claim}
                    if turn > 1:
                        logger.warning("scan %s is taken over from a worker that died", raw_uid)
                    return True
                holder = _read(claims, claim.key)
                # Released in this moment, so that it is done.
                if holder is None or self._lives(holder):
                    return False
            logger.error("scan %s is left alone: %d workers died of it", raw_uid, MAX_CLAIMS)
            return False

    def release(self, claims: Any, raw_uid: str) -> None:
        """Give a claim back, once the scan's reconstruction is in Tiled."""
        with self._one_at_a_time:
            claim = self.held.get(raw_uid)
            if claim is not None:
                claims.delete_contents([f"{raw_uid}.{turn}" for turn in range(1, claim.turn + 1)])
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


def _make(claims: Any, claim: Claim) -> bool:
    said = {"worker": claim.worker, "since": claim.since, "time": claim.time}
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
    return Claim(raw_uid, int(turn), metadata["worker"], metadata["since"], metadata["time"])
