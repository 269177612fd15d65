"""Running scans as anybody with access to Tiled sees them: a new list of partial results at each update."""

import time
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

import httpx

from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.documents import RUNNING
from bluesky_cdinn.errors import NotFound
from bluesky_cdinn.records import PartialResult
from bluesky_cdinn.summary import ReconstructionSummary


@dataclass(frozen=True, eq=False)
class Sight:
    """What is known of one scan at one time.

    Parameters
    ----------
    summary
        Of the processed run: its status is "running" until the result is there.
    partials
        In their order.
    """

    summary: ReconstructionSummary
    partials: list[PartialResult]

    @property
    def ended(self) -> bool:
        """Whether the result is there."""
        return self.summary.status != RUNNING


def sights(catalog: Catalog, raw_uid: str | None = None, *, interval_s: float = 1.0) -> Iterator[Sight]:
    """Look at Tiled again and again, and yield whatever is new.

    Parameters
    ----------
    catalog
        Where workers write, on this machine or another.
    raw_uid
        The scan to watch until its result is there; None watches all, without an end.
    interval_s
        Between looks.

    Raises
    ------
    StoreUnavailable
        Tiled can't be reached.
    """
    seen: dict[str, tuple[int, int]] = {}
    while True:
        running = catalog.reconstructions(raw_uid, status=RUNNING)
        for summary in running:
            partials = _partials(catalog, summary.processed_uid)
            # A run that Tiled lost in part begins anew there, with its newest alone.
            newest = (len(partials), partials[-1].points if partials else 0)
            if partials and newest != seen.get(summary.processed_uid):
                yield Sight(summary, partials)
            seen[summary.processed_uid] = newest
        ended = _ended(catalog, raw_uid, seen, {summary.processed_uid for summary in running})
        for summary in ended:
            seen.pop(summary.processed_uid, None)
            yield Sight(summary, _partials(catalog, summary.processed_uid))
        if ended and raw_uid is not None:
            return
        time.sleep(interval_s)


def _ended(
    catalog: Catalog, raw_uid: str | None, seen: Mapping[str, Any], running: Set[str]
) -> list[ReconstructionSummary]:
    """Return the results of scans that were seen running and don't any more, or of the one asked for."""
    if raw_uid is not None:
        return [] if running else catalog.reconstructions(raw_uid, limit=1)
    gone = seen.keys() - running
    return [summary for summary in catalog.reconstructions() if summary.processed_uid in gone] if gone else []


def _partials(catalog: Catalog, processed_uid: str) -> list[PartialResult]:
    try:
        return catalog.partials(processed_uid)
    except (NotFound, FileNotFoundError, KeyError, httpx.HTTPError):
        # The whole run is just taking the place of the one that grew.
        return []
