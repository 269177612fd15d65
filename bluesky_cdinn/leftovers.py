"""Which stored scans nobody has done, as a worker sees it that looks again and again."""

import math
import time
from collections import Counter
from datetime import UTC, datetime

from bluesky_cdinn.backfill import Wanted, plan
from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.staleness import Standard

ATTEMPTS = 3
"""A scan that can't be read from Tiled is left to others after so many."""


class Leftovers:
    """Scans of the last time that are over and have no reconstruction.

    Parameters
    ----------
    catalog
        Where scans and reconstructions are. ``remote.look_back_s`` of its settings says what the last time
        is; a scan that waits is looked at for as long as it takes.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._standard = Standard(catalog.settings.reconstruction)
        self._look_back_s = catalog.settings.remote.look_back_s
        self._since = time.time() - self._look_back_s
        self._outstanding: frozenset[str] = frozenset()
        self._settled: set[str] = set()
        self._failures: Counter[str] = Counter()

    def settle(self, raw_uid: str) -> None:
        """Have a scan left alone: what failed will not do for a backfill, but here once is enough."""
        self._settled.add(raw_uid)

    def failed(self, raw_uid: str) -> None:
        """Take note that a scan couldn't be read."""
        self._failures[raw_uid] += 1

    def look(self) -> list[str]:
        """Return their uids, the newest first; of those only that were there at the last look too.

        Raises
        ------
        StoreUnavailable
            Tiled can't be reached.
        """
        now, since = time.time(), datetime.fromtimestamp(self._since, UTC)
        orders = [
            order
            for order in plan(self._catalog, Wanted(since=since), self._standard).orders
            if order.raw_uid not in self._settled and self._failures[order.raw_uid] < ATTEMPTS
        ]
        # What is older than the oldest of them needs no second look.
        oldest = min((order.time for order in orders), default=math.inf)
        self._since = max(self._since, min(oldest - 1.0, now - self._look_back_s))
        # What ended a moment ago is on its way to somebody.
        known = [order.raw_uid for order in orders if order.raw_uid in self._outstanding]
        self._outstanding = frozenset(order.raw_uid for order in orders)
        return known
