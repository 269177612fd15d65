"""What each worker says of itself in Tiled, and whether it still lives.

Whether a worker lives is judged by its heartbeat's number growing, timed by the clock of who looks: clocks of
other machines, and times that go backwards, don't matter.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from bluesky_cdinn.clients import plain_client


@dataclass(frozen=True)
class Heartbeat:
    """A worker at one moment.

    Parameters
    ----------
    name
        Of the worker; at any time one worker has it.
    since
        When this worker started, seconds since 1970; another process of the same name has another.
    host, pid, version
        Where it runs, and of which version of this package.
    device
        Where it computes, as far as it knows.
    beat
        Rises with each heartbeat.
    time
        Of this heartbeat, seconds since 1970, by the worker's clock.
    waiting
        Scans that have ended and wait for their reconstruction.
    runs
        uids of the raw runs that it has claimed and not done.
    done, failed
        Reconstructions since it started.
    updates
        Partial results that it published.
    last_error
        Why the last reconstruction that failed did; empty if none has.
    pids
        Where its process's number means something; empty if that isn't known.
    """

    name: str
    since: float
    host: str = ""
    pid: int = 0
    version: str = ""
    device: str = ""
    beat: int = 0
    time: float = 0.0
    waiting: int = 0
    runs: tuple[str, ...] = ()
    done: int = 0
    failed: int = 0
    updates: int = 0
    last_error: str = ""
    pids: str = ""

    @property
    def idle(self) -> bool:
        """Whether it has nothing to do."""
        return not self.runs

    @classmethod
    def read(cls, metadata: Mapping[str, Any]) -> "Heartbeat":
        """Return what a stored heartbeat says; what isn't known here is ignored."""
        known = {field.name: metadata[field.name] for field in fields(cls) if field.name in metadata}
        return cls(**{**known, "runs": tuple(known.get("runs", ()))})


def post(workers: Any, heartbeat: Heartbeat) -> None:
    """Write a worker's heartbeat over its last one.

    Parameters
    ----------
    workers
        Tiled client of the container of all workers.
    heartbeat
        What the worker is now.
    """
    said = {**asdict(heartbeat), "runs": list(heartbeat.runs)}
    try:
        workers[heartbeat.name].replace_metadata(said, drop_revision=True)
    except KeyError:
        workers.create_container(heartbeat.name, metadata=said)


def read_all(workers: Any) -> dict[str, Heartbeat]:
    """Return the heartbeats of all workers that didn't say goodbye, by name."""
    return {name: Heartbeat.read(node.metadata) for name, node in plain_client(workers).items()}


def withdraw(workers: Any, name: str) -> None:
    """Say goodbye: what the worker had claimed is free from now on."""
    workers.delete_contents([name])


class PulseWatch:
    """Tells who lives, from heartbeats seen one after the other.

    Parameters
    ----------
    silent_s
        A worker whose heartbeat hasn't changed for so long is taken for dead.
    clock
        Seconds, never going back.
    """

    def __init__(self, silent_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._silent_s = silent_s
        self._clock = clock
        self._looked: float | None = None
        self._changed: dict[tuple[str, float], tuple[int, float]] = {}
        self.heartbeats: Mapping[str, Heartbeat] = {}

    def look(self, heartbeats: Mapping[str, Heartbeat]) -> None:
        """Take what was just read."""
        now = self._clock()
        # After a time in which Tiled could not be asked nobody is blamed for it.
        gap = self._looked is not None and now - self._looked > self._silent_s / 2
        changed = {}
        for heartbeat in heartbeats.values():
            who = (heartbeat.name, heartbeat.since)
            beat, since = self._changed.get(who, (None, now))
            same = beat == heartbeat.beat and not gap
            changed[who] = (heartbeat.beat, since if same else now)
        self._changed = changed
        self._looked = now
        self.heartbeats = dict(heartbeats)

    def silence_s(self, name: str, since: float) -> float:
        """Seconds that a worker has been silent; infinite when it isn't there (any more)."""
        _, changed = self._changed.get((name, since), (0, -float("inf")))
        return self._clock() - changed

    def lives(self, name: str, since: float) -> bool:
        """Whether a worker is there, or was a moment ago."""
        return self.silence_s(name, since) <= self._silent_s

    def idle_besides(self, name: str) -> bool:
        """Whether another worker than `name` lives and has nothing to do."""
        others = (heartbeat for heartbeat in self.heartbeats.values() if heartbeat.name != name)
        return any(heartbeat.idle and self.lives(heartbeat.name, heartbeat.since) for heartbeat in others)


def next_beat(heartbeat: Heartbeat, **changes: Any) -> Heartbeat:
    """Return the next heartbeat of the same worker."""
    return replace(heartbeat, beat=heartbeat.beat + 1, time=time.time(), **changes)
