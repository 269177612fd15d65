"""Which stored rocking scans are to be reconstructed, and why: from what Tiled's documents say alone.

The decision is made of pure functions; `orders` asks Tiled, a few hundred runs at a time. Nothing here
reads frames or computes: that is `bluesky_cdinn.backfill_job`, run by `bluesky_cdinn.backfill_campaign`.
"""

import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import version
from typing import Any

from tiled.queries import Comparison, Eq, In, KeyPresent, Like

from bluesky_cdinn.callbacks import is_rocking_curve
from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.documents import PURPOSE
from bluesky_cdinn.errors import NotFound
from bluesky_cdinn.listing import PAGE, listed
from bluesky_cdinn.staleness import Standard, fault

# What the server sends of each run; `stop` is null while a run isn't over.
RAW = (
    "{start: start.{uid: uid, time: time, scan_id: scan_id, sample: sample, purpose: purpose, "
    "motors: motors, cdi: cdi}, stop: stop.{exit_status: exit_status}}"
)
PROCESSED = (
    "{start: start.{uid: uid, time: time, raw_uid: raw_uid, status: status, reason: reason, "
    "versions: versions, weights: weights, parameters: parameters}, stop: stop.{exit_status: exit_status}}"
)

_NAMESPACE = uuid.UUID("5a7c2a44-6e0f-5c0f-9a53-0f6f1d7f3c11")


@dataclass(frozen=True)
class Wanted:
    """Which raw runs are looked at.

    Parameters
    ----------
    since, until
        When the scan began, the latter excluded.
    sample
        Exactly so, as the run names it.
    uids
        Of raw runs, or their first characters; all where there are none.
    limit
        At most so many are ordered, the newest.
    """

    since: datetime | None = None
    until: datetime | None = None
    sample: str | None = None
    uids: tuple[str, ...] = ()
    limit: int | None = None


@dataclass(frozen=True)
class Order:
    """One scan that is to be reconstructed.

    Parameters
    ----------
    raw_uid, scan_id, sample, time
        Of the scan.
    why
        As people read it.
    known
        uids of the reconstructions that it had when this was decided.
    processed_uid
        Of the reconstruction to be made. It follows from the scan, from what was known of it and from how it
        is to be reconstructed, so that whoever decides the same orders the same run, which is stored once.
    version
        Of the package that decided.
    """

    raw_uid: str
    processed_uid: str
    why: str
    known: tuple[str, ...] = ()
    scan_id: int | None = None
    sample: str = ""
    time: float = 0.0
    version: str = version("bluesky-cdinn")


@dataclass(frozen=True)
class Plan:
    """What a backfill has to do.

    Parameters
    ----------
    orders
        The newest scan first.
    left
        How many runs are left alone, by reason.
    """

    orders: tuple[Order, ...]
    left: Mapping[str, int]


def plan(catalog: Catalog, wanted: Wanted, standard: Standard) -> Plan:
    """Ask Tiled for the runs and decide; it takes a request for some hundreds of runs.

    Raises
    ------
    NotFound
        No raw run has a uid that is wanted.
    StoreUnavailable
        Tiled can't be reached.
    """
    raw = list(_raw_runs(catalog, wanted))
    made = _made(catalog, [run["start"]["uid"] for run in raw])
    return decide(raw, made, wanted, standard, catalog.settings.cdi)


def decide(
    raw: Iterable[Mapping[str, Any]],
    made: Iterable[Mapping[str, Any]],
    wanted: Wanted,
    standard: Standard,
    defaults: Mapping[str, Any] | None = None,
) -> Plan:
    """Decide from the documents of raw and of processed runs, each a mapping of ``start`` and ``stop``.

    Parameters
    ----------
    raw, made
        In any order; ``stop`` is None while a run isn't over.
    wanted, standard
        What to look at and what will do.
    defaults
        The settings' ``cdi``, for the sample of runs that don't name it.
    """
    ended: dict[str, list[Mapping[str, Any]]] = {}
    for run in made:
        if run["stop"] is not None:
            ended.setdefault(run["start"]["raw_uid"], []).append(run)
    orders: list[Order] = []
    left: Counter[str] = Counter()
    for run in sorted(raw, key=lambda run: -_when(run["start"])):
        start = {key: value for key, value in run["start"].items() if value is not None}
        sample = _sample(start, defaults or {})
        reconstructions = ended.get(start["uid"], [])
        if not is_rocking_curve(start):
            left["no rocking curve"] += 1
        elif not _when(start):
            left["without a time"] += 1
        elif wanted.sample is not None and sample != wanted.sample:
            left["another sample"] += 1
        elif run["stop"] is None:
            left["still measured"] += 1
        elif (why := fault(reconstructions, standard)) is None:
            left["current"] += 1
        elif wanted.limit is not None and len(orders) >= wanted.limit:
            left["over the limit"] += 1
        else:
            orders.append(_order(start, sample, why, reconstructions, standard))
    return Plan(tuple(orders), dict(left))


def made_meanwhile(catalog: Catalog, order: Order, standard: Standard) -> str | None:
    """Return the uid of a reconstruction that makes an order needless, made since; None: there is none.

    Raises
    ------
    StoreUnavailable
        Tiled can't be reached.
    """
    kept = replace(standard, keep_failed=True)
    for run in _made(catalog, [order.raw_uid]):
        new = run["stop"] is not None and run["start"]["uid"] not in order.known
        if new and fault([run], kept) is None:
            return run["start"]["uid"]
    return None


def _order(
    start: Mapping[str, Any],
    sample: str,
    why: str,
    reconstructions: Sequence[Mapping[str, Any]],
    standard: Standard,
) -> Order:
    known = tuple(sorted(run["start"]["uid"] for run in reconstructions))
    how = standard.options.model_dump_json(exclude={"device", "threads"})
    uid = uuid.uuid5(_NAMESPACE, "\n".join((start["uid"], *known, how, standard.version)))
    return Order(
        raw_uid=start["uid"],
        processed_uid=str(uid),
        why=why,
        known=known,
        scan_id=start.get("scan_id"),
        sample=sample,
        time=float(start["time"]),
        version=standard.version,
    )


def _when(start: Mapping[str, Any]) -> float:
    """Return when a scan began; 0 where its start document doesn't say it as it must."""
    time = start.get("time")
    return float(time) if isinstance(time, int | float) else 0.0


def _sample(start: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    cdi = start.get("cdi")
    said = cdi.get("sample") if isinstance(cdi, Mapping) else None
    return str(start.get("sample") or said or defaults.get("sample") or "")


def _raw_runs(catalog: Catalog, wanted: Wanted) -> Iterator[Mapping[str, Any]]:
    raw = catalog.raw
    limits = [("ge", wanted.since), ("lt", wanted.until)]
    when = [Comparison(sign, "start.time", at.timestamp()) for sign, at in limits if at is not None]
    if not wanted.uids:
        yield from listed(raw, RAW, Eq("start.purpose", "rocking_curve"), *when)
        # What no plan of ours measured says nothing of its purpose.
        yield from listed(
            catalog.raw, RAW, KeyPresent("start.purpose", False), KeyPresent("start.cdi"), *when
        )
    seen = set()
    for beginning in wanted.uids:
        found = list(listed(raw, RAW, Like("start.uid", f"{beginning}%"), *when))
        if not found:
            raise NotFound(f"no raw run {beginning!r} in {catalog.uri} that began in the time asked for")
        yield from (run for run in found if run["start"]["uid"] not in seen)
        seen.update(run["start"]["uid"] for run in found)


def _made(catalog: Catalog, raw_uids: list[str]) -> Iterator[Mapping[str, Any]]:
    processed = catalog.processed
    for first in range(0, len(raw_uids), PAGE):
        among = In("start.raw_uid", raw_uids[first : first + PAGE])
        yield from listed(processed, PROCESSED, Eq("start.purpose", PURPOSE), among)
