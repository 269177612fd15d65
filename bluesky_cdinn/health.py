"""How remote reconstruction is doing: the workers, what they do, what waits, and what needs a person."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.claims import MAX_DEATHS, Claim, holders
from bluesky_cdinn.errors import StoreUnavailable
from bluesky_cdinn.heartbeat import Heartbeat, read_all
from bluesky_cdinn.settings import RemoteSettings, Settings
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
        How old that is, by name, s, by the clocks of two machines; 0 for who was seen to beat.
    silent
        Names of those whose heart doesn't beat.
    claims
        Scans that are being reconstructed.
    """

    tiled: str
    fault: str
    waiting: int
    put_aside: tuple[Path, ...]
    workers: tuple[Heartbeat, ...] = ()
    ages_s: Mapping[str, float] = field(default_factory=dict)
    silent: frozenset[str] = frozenset()
    claims: tuple[Claim, ...] = ()


def examine(settings: Settings) -> Health:
    """Look at Tiled and at the spool.

    As wherever a catalog is opened, an embedded server is started if the settings name no other, and Tiled is
    given what waits in the spool.
    """
    waiting, put_aside = len(spooled_runs(settings.spool)), tuple(rejected_runs(settings.spool))
    with Catalog(settings) as catalog:
        try:
            workers = catalog.folder(settings.remote.workers)
            beats = read_all(workers)
            ages, silent = pulses(beats, lambda: read_all(workers), settings.remote)
            held = holders(catalog.folder(settings.remote.claims))
            uri = catalog.uri
        except (StoreUnavailable, httpx.HTTPError) as error:
            return Health("", " ".join(str(error).split()), waiting, put_aside)
    return Health(uri, "", waiting, put_aside, tuple(beats.values()), ages, silent, tuple(held.values()))


def pulses(
    beats: Mapping[str, Heartbeat], look: Callable[[], Mapping[str, Heartbeat]], remote: RemoteSettings
) -> tuple[dict[str, float], frozenset[str]]:
    """Return how old heartbeats are, s, and the names of who is silent.

    Who seems silent by its clock, or ahead of the time, is looked at for two heartbeats more: clocks of other
    machines may be wrong.

    Parameters
    ----------
    beats
        Read just now.
    look
        Reads them again.
    remote
        Says how often hearts beat, and how long they may be silent.
    """
    ages = {name: time.time() - beat.time for name, beat in beats.items()}
    silent = {name for name, age in ages.items() if not -remote.heartbeat_s <= age <= remote.silent_s}
    deadline = time.monotonic() + 2.5 * remote.heartbeat_s
    while silent and time.monotonic() < deadline:
        time.sleep(remote.heartbeat_s / 4)
        now = look()
        # Who said goodbye in the meantime isn't silent either.
        alive = {name for name in silent if name not in now or now[name].beat != beats[name].beat}
        silent -= alive
        ages |= dict.fromkeys(alive, 0.0)
    return {name: max(0.0, age) for name, age in ages.items()}, frozenset(silent)


def troubles(health: Health) -> list[str]:
    """Return what needs a person, a line each."""
    return [*_troubles(health)]


def _troubles(health: Health) -> Iterable[str]:
    if health.fault:
        yield f"Tiled can't be reached: {health.fault}"
    for path in health.put_aside:
        yield f"Tiled refused a run: look at {path}, take .rejected off its name to have it tried again"
    for name in sorted(health.silent):
        yield (
            f"worker {name} has been silent for {health.ages_s[name]:.0f} s: start it again, "
            f"or have it forgotten with cdinn status --forget {name}"
        )
    living = {beat.name for beat in health.workers} - health.silent
    orphans = [claim for claim in health.claims if claim.worker not in living]
    if orphans and not living:
        yield f"{len(orphans)} scans were begun and no worker is there to end them: start one"
    for claim in orphans:
        if claim.deaths >= MAX_DEATHS:
            yield (
                f"scan {claim.raw_uid} is left alone, {claim.deaths} workers died of it: look at their logs, "
                f"then have it tried again with cdinn status --retry {claim.raw_uid}"
            )
