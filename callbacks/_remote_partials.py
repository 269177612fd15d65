"""Partial results that workers elsewhere make of a scan that runs, as Tiled shows them."""

import logging
import threading
from concurrent.futures import Future
from typing import Any

import httpx

from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.errors import IncompleteScan, NotFound, StoreUnavailable
from bluesky_cdinn.records import PartialResult

logger = logging.getLogger(__name__)

POLL_S = 1.0
# Nobody waits so long; a future that was forgotten must not be looked after for ever.
LONGEST_S = 3600.0


def watch_partials(catalog: Catalog, raw_uid: str, points: int, result: Future[Any]) -> Future[PartialResult]:
    """Return the first partial result of a scan to come that rests on so many points.

    Parameters
    ----------
    catalog
        Where workers write.
    raw_uid, points
        Of the scan.
    result
        Of the scan: once it is there, no partial result comes any more.
    """
    future: Future[PartialResult] = Future()
    threading.Thread(
        target=_watch, args=(catalog, raw_uid, points, result, future), name="cdinn-partials", daemon=True
    ).start()
    return future


def _watch(
    catalog: Catalog, raw_uid: str, points: int, result: Future[Any], future: Future[PartialResult]
) -> None:
    pause = threading.Event()
    for _ in range(int(LONGEST_S / POLL_S)):
        if future.cancelled():
            return
        over = result.done()
        found = _newest(catalog, raw_uid)
        if (over or (found is not None and found.points >= points)) and future.set_running_or_notify_cancel():
            if found is not None and found.points >= points:
                future.set_result(found)
            else:
                future.set_exception(IncompleteScan(f"scan {raw_uid} has ended"))
            return
        pause.wait(POLL_S)
    future.cancel()


def _newest(catalog: Catalog, raw_uid: str) -> PartialResult | None:
    try:
        partials = catalog.partials(raw_uid)
    except NotFound:
        return None
    except (StoreUnavailable, httpx.HTTPError) as error:
        logger.debug("partial results of %s can't be seen now: %s", raw_uid, error)
        return None
    except Exception:
        # It is written while it is read.
        logger.debug("partial results of %s could not be read", raw_uid, exc_info=True)
        return None
    return partials[-1] if partials else None
