"""How remote reconstruction is doing: the workers, what they do, what waits, and what needs a person."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.claims import MAX_CLAIMS, Claim, holders
from bluesky_cdinn.errors import StoreUnavailable
from bluesky_cdinn.heartbeat import Heartbeat, read_all
from bluesky_cdinn.settings import Settings
from bluesky_cdinn.spool import rejected_runs, spooled_runs


@dataclass(frozen=True)
class Health:
    """What was found.

    Parameters
    ----------
    tiled
        Its address, empty if it can't be reached.
    fault
        Why it can't be.
    waiting
        Runs in the spool on their way to Tiled.
    put_aside
        Folders in the spool of runs that Tiled refused.
    workers
        Each one's last heartbeat.
    ages_s
        How old that is, by name, s; by the clocks of two machines.
    claims
        Scans that are being reconstructed.
    """

    tiled: str
    fault: str
    waiting: int
    put_aside: tuple[Path, ...]
    workers: tuple[Heartbeat, ...] = ()
    ages_s: Mapping[str, float] | None = None
    claims: tuple[Claim, ...] = ()


def examine(settings: Settings) -> Health:
    """Look at Tiled and at the spool; nothing is changed."""
    waiting, put_aside = len(spooled_runs(settings.spool)), tuple(rejected_runs(settings.spool))
    with Catalog(settings) as catalog:
        try:
            beats = read_all(catalog.folder(settings.remote.workers))
            held = holders(catalog.folder(settings.remote.claims))
            uri = catalog.uri
        except (StoreUnavailable, httpx.HTTPError) as error:
            return Health("", " ".join(str(error).split()), waiting, put_aside)
    ages = {name: time.time() - beat.time for name, beat in beats.items()}
    return Health(uri, "", waiting, put_aside, tuple(beats.values()), ages, tuple(held.values()))


def troubles(health: Health, silent_s: float) -> list[str]:
    """Return what needs a person, a line each."""
    return [*_troubles(health, silent_s)]


def _troubles(health: Health, silent_s: float) -> Iterable[str]:
    if health.fault:
        yield f"Tiled can't be reached: {health.fault}"
    for path in health.put_aside:
        yield f"Tiled refused a run: look at {path}, take .rejected off its name to have it tried again"
    ages = health.ages_s or {}
    silent = {beat.name for beat in health.workers if ages[beat.name] > silent_s}
    for name in sorted(silent):
        yield (
            f"worker {name} has been silent for {ages[name]:.0f} s: start it again, "
            f"or have it forgotten with cdinn status --forget {name}"
        )
    living = {beat.name for beat in health.workers} - silent
    orphans = [claim for claim in health.claims if claim.worker not in living]
    if orphans and not living:
        yield f"{len(orphans)} scans were begun and no worker is there to end them: start one"
    for claim in orphans:
        if claim.turn >= MAX_CLAIMS:
            yield f"scan {claim.raw_uid} is left alone, {claim.turn} workers died of it: look at their logs"
