"""The orders of a backfill given out: each claimed first, and tried again where its process died.

Who carries them out asks for the next one when it has a hand free, or is about to. So a stop has at most one
order to take back: what runs is finished, the rest was never begun.
"""

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import httpx

from bluesky_cdinn.backfill import Order, made_meanwhile
from bluesky_cdinn.backfill_claims import BackfillClaims
from bluesky_cdinn.backfill_job import Outcome, carry_out, patiently, store_failure
from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.errors import StoreUnavailable, WorkerDied
from bluesky_cdinn.staleness import Standard

logger = logging.getLogger(__name__)

Stop = Callable[[], bool]

LOOK_AGAIN_S = 2.0
"""Between looks at scans that somebody else is at."""

POLL_S = 0.5
"""Between looks for something to do."""


class Campaign:
    """The orders of a backfill, given out one by one, each to be claimed first.

    What somebody else is at goes behind the rest, and is looked at again until it is done or given up.

    Parameters
    ----------
    catalog
        Where the scans are and the results go; its settings say how to reconstruct.
    orders
        Given out in turn.
    standard
        By which they were ordered.
    stop
        Asked all the time; once it says True no order is given out.
    """

    def __init__(self, catalog: Catalog, orders: Sequence[Order], standard: Standard, stop: Stop) -> None:
        self.catalog = catalog
        self._standard = standard
        self._stop = stop
        self._waiting = deque(orders)
        self._others: deque[Order] = deque()
        self._look_again = 0.0
        self._patience = math.inf
        self._deaths: Counter[str] = Counter()
        self._claims = BackfillClaims(catalog)

    def __enter__(self) -> Self:
        self._claims.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._claims.__exit__(*exc_info)

    @property
    def stopped(self) -> bool:
        """Whether nothing is to be begun any more."""
        return self._stop()

    @property
    def over(self) -> bool:
        """Whether no order will be given out any more."""
        return self.stopped or not (self._waiting or self._others)

    def next(self) -> Order | Outcome | None:
        """Return an order to be carried out, how one ended that needs no carrying out, or None for now."""
        if not self._waiting and time.monotonic() >= self._look_again:
            self._look_again = time.monotonic() + LOOK_AGAIN_S
            self._waiting, self._others = self._others, deque()
        while self._waiting and not self.over:
            order = self._waiting.popleft()
            given = self._claimed(order)
            if given is not None:
                return given
        return None

    def ended(self, outcome: Outcome) -> Outcome:
        """Take note that an order has ended, and return how."""
        self._patience = math.inf
        if outcome.delivered:
            self._claims.release(outcome.raw_uid)
        return outcome

    def put_back(self, order: Order) -> None:
        """Take back an order that nobody has begun, and let go of its scan."""
        self._claims.release(order.raw_uid)
        self._waiting.appendleft(order)

    def died(self, order: Order) -> Outcome | None:
        """Take note that the process died which carried an order out; None if it is tried again."""
        self._deaths[order.raw_uid] += 1
        if self._deaths[order.raw_uid] < self.catalog.settings.worker.attempts:
            self._claims.release(order.raw_uid)
            self._waiting.append(order)
            return None
        attempts = self._deaths[order.raw_uid]
        reason = f"the process that reconstructed it died, {attempts} times of {attempts}"
        return self.ended(store_failure(self.catalog, order, reason))

    def _claimed(self, order: Order) -> Order | Outcome | None:
        try:
            if not patiently(lambda: self._claims.take(order.raw_uid)):
                return self._put_off(order)
            there = patiently(lambda: made_meanwhile(self.catalog, order, self._standard))
        except (StoreUnavailable, httpx.HTTPError, WorkerDied) as error:
            return self.ended(Outcome(order.raw_uid, "error", reason=" ".join(str(error).split())))
        if there is None:
            return order
        return self.ended(Outcome(order.raw_uid, "skipped", there, "reconstructed meanwhile"))

    def _put_off(self, order: Order) -> Outcome | None:
        timeout_s = self.catalog.settings.worker.timeout_s
        if time.monotonic() > self._patience:
            return Outcome(
                order.raw_uid, "skipped", reason=f"another one is at it for more than {timeout_s:g} s"
            )
        if math.isinf(self._patience):
            self._patience = time.monotonic() + timeout_s
        self._others.append(order)
        return None


def one_by_one(campaign: Campaign) -> Iterator[Outcome]:
    """Carry orders out in this process."""
    while not campaign.over:
        match campaign.next():
            case Order() as order:
                yield campaign.ended(carry_out(campaign.catalog, order))
            case Outcome() as outcome:
                yield outcome
            case None:
                time.sleep(POLL_S)
