"""One order of a backfill, in the process that does it: read the scan, reconstruct it, store the result.

Only here is torch needed, and imported late: a session that orders reconstructions never loads it.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import httpx
from tiled.queries import Eq

from bluesky_cdinn.backfill import Order
from bluesky_cdinn.callbacks import stored_curve
from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.documents import reconstruction_documents
from bluesky_cdinn.errors import Cancelled, CdinnError, InvalidInput, StoreUnavailable, WeightsError
from bluesky_cdinn.failure import failed_reconstruction, reason_of
from bluesky_cdinn.listing import listed
from bluesky_cdinn.records import Reconstruction, RockingCurve
from bluesky_cdinn.settings import ReconstructionOptions

logger = logging.getLogger(__name__)

READ_AGAIN_S = (2.0, 10.0, 60.0)
"""Waits before what Tiled doesn't answer is asked again."""

_DELIVERY_S = 120.0
# What they warn of is stored with the result; among a campaign's lines nobody could tell whose it is.
_STORED_TOO = [logging.getLogger(f"bluesky_cdinn.{name}") for name in ("doubts", "seen", "sampling")]
# torch's threads are set for the whole process, and two volumes need twice the memory.
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Outcome:
    """How an order ended.

    Parameters
    ----------
    raw_uid, processed_uid
        Of the scan and of its reconstruction; the latter empty where nothing was stored.
    status
        "success" and "failed" are stored as processed runs; "skipped": somebody else has made one, or has
        been at it for too long; "error": the scan couldn't be read or begun, and is left for the next time.
    reason
        Empty for a success.
    chi2, confidence, seconds
        As in `Reconstruction`.
    warnings
        How many are stored with it.
    delivered
        Whether Tiled holds it; otherwise it waits in the spool of the machine that made it.
    """

    raw_uid: str
    status: Literal["success", "failed", "skipped", "error"]
    processed_uid: str = ""
    reason: str = ""
    chi2: float = math.nan
    confidence: float = 0.0
    seconds: float = math.nan
    warnings: int = 0
    delivered: bool = True


def carry_out(catalog: Catalog, order: Order) -> Outcome:
    """Reconstruct one scan and store the result, good or not; what can't be done is an outcome, no error."""
    with _one_at_a_time:
        try:
            return _carried_out(catalog, order)
        except (StoreUnavailable, httpx.HTTPError, WeightsError) as error:
            # Not the scan's fault: nothing is written down that says it failed.
            logger.warning("scan %s is left as it is: %s", order.raw_uid, error)
            return Outcome(order.raw_uid, "error", reason=" ".join(str(error).split()))


def store_failure(catalog: Catalog, order: Order, reason: str) -> Outcome:
    """Store that an order failed, where the process that tried it can't."""
    start = _raw_start(catalog, order)
    return _store(catalog, order, failed_reconstruction(start, reason, parameters=_tried_with(catalog)))


def _carried_out(catalog: Catalog, order: Order) -> Outcome:
    if order.version != version("bluesky-cdinn"):
        mine = version("bluesky-cdinn")
        return Outcome(
            order.raw_uid, "error", reason=f"version {order.version} is required, this process has {mine}"
        )
    try:
        result = _reconstruct(catalog, order)
    except (StoreUnavailable, httpx.HTTPError, WeightsError):
        raise
    except Exception as error:
        return store_failure(catalog, order, reason_of(error))
    return _store(catalog, order, result)


def patiently(ask: Callable[[], Any]) -> Any:
    """Ask Tiled, and again a few times while it is away.

    Raises
    ------
    StoreUnavailable, httpx.HTTPError
        It stays away.
    """
    for wait_s in READ_AGAIN_S:
        try:
            return ask()
        except (StoreUnavailable, httpx.HTTPError) as error:
            logger.warning("%s; asked again in %g s", error, wait_s)
            time.sleep(wait_s)
    return ask()


def _reconstruct(catalog: Catalog, order: Order) -> Reconstruction:
    curve = patiently(lambda: stored_curve(catalog, order.raw_uid))
    timeout_s = catalog.settings.worker.timeout_s
    try:
        return _computed(curve, catalog.settings.reconstruction, time.monotonic() + timeout_s)
    except Cancelled:
        raise CdinnError(f"it took longer than {timeout_s:g} s (worker.timeout_s)") from None


def _computed(curve: RockingCurve, options: ReconstructionOptions, deadline: float) -> Reconstruction:
    from bluesky_cdinn.fallback import within_memory
    from bluesky_cdinn.pipeline import reconstruct_curve

    def compute(allowed: ReconstructionOptions) -> Reconstruction:
        return reconstruct_curve(curve, allowed, cancelled=lambda: time.monotonic() > deadline)

    for talkative in _STORED_TOO:
        talkative.setLevel(logging.ERROR)
    try:
        return within_memory(compute, options)
    finally:
        for talkative in _STORED_TOO:
            talkative.setLevel(logging.NOTSET)


def _store(catalog: Catalog, order: Order, result: Reconstruction) -> Outcome:
    try:
        documents = list(reconstruction_documents(result, uid=order.processed_uid))
    except InvalidInput as error:
        return store_failure(catalog, order, str(error))
    catalog.store_documents(documents)
    return Outcome(
        order.raw_uid,
        "success" if result.status == "success" else "failed",
        order.processed_uid,
        result.reason,
        result.chi2,
        result.confidence,
        result.seconds,
        len(result.warnings),
        delivered=catalog.flush(_DELIVERY_S),
    )


def _raw_start(catalog: Catalog, order: Order) -> Mapping[str, Any]:
    """Return the raw run's start document; what the order says of it where Tiled doesn't."""
    said = {"uid": order.raw_uid, "scan_id": order.scan_id, "sample": order.sample, "time": order.time}
    try:
        return next(listed(catalog.raw, "start", Eq("start.uid", order.raw_uid)), said)
    except StoreUnavailable:
        return said


def _tried_with(catalog: Catalog) -> dict[str, Any]:
    # Which weights the network would have had is not known: maybe it was never asked.
    return {**catalog.settings.reconstruction.model_dump(mode="json"), "weights": None}
