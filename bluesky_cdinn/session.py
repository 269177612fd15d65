"""A session: RunEngine, catalog, worker and live reconstruction put together, as a command needs them."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from bluesky import RunEngine
from bluesky.utils import MsgGenerator, RunEngineInterrupted

from bluesky_cdinn.callbacks import LiveReconstruction, ReconstructionSummary, stored_curve
from bluesky_cdinn.catalog import Catalog, connect
from bluesky_cdinn.errors import Cancelled, NotFound
from bluesky_cdinn.jobs import Curve
from bluesky_cdinn.records import Progress, Reconstruction
from bluesky_cdinn.report import RockingTotals
from bluesky_cdinn.settings import ReconstructionOptions, Settings
from bluesky_cdinn.volume import load_frames
from bluesky_cdinn.worker import ProgressCallback, ReconstructionWorker


@dataclass(frozen=True, eq=False)
class Session:
    """What a scan needs around it.

    Parameters
    ----------
    RE
        Runs plans, and returns what they return as ``plan_result``.
    catalog
        Gets the raw runs and the reconstructions.
    live
        Reconstructs each rocking scan.
    """

    RE: RunEngine
    catalog: Catalog
    live: LiveReconstruction

    def run(
        self, plan: MsgGenerator[ReconstructionSummary], on_point: Callable[[Progress], None] | None = None
    ) -> ReconstructionSummary:
        """Run a plan that ends with a reconstruction, and wait until Tiled holds both of its runs.

        Parameters
        ----------
        plan
            Such as `bluesky_cdinn.plans.rocking_scan_with_recon`; it must be given this session's `live`.
        on_point
            Told after each point of the scan how far it is.

        Raises
        ------
        Cancelled
            Ctrl-C paused the plan; it was aborted then, for a command has no prompt to resume it from.
        """
        watch = _PointCounter(on_point) if on_point is not None else None
        try:
            ended: Any = self.RE(plan, *(() if watch is None else (watch,)))
        except RunEngineInterrupted:
            self.RE.abort("interrupted")
            self.live.close(wait=False)
            raise Cancelled("interrupted; what was measured is stored, and can be reconstructed") from None
        self.catalog.flush()
        return ended.plan_result


@contextmanager
def open_session(
    settings: Settings,
    on_progress: ProgressCallback | None = None,
    *,
    metadata: MutableMapping[str, Any] | None = None,
    returns_result: bool = True,
) -> Iterator[Session]:
    """Open a session and close all of it at the end.

    Parameters
    ----------
    settings
        For the catalog, the worker and the reconstruction.
    on_progress
        Told, in the worker's thread, how far each reconstruction is.
    metadata
        The RunEngine's ``md``; None begins with an empty one.
    returns_result
        Whether the RunEngine returns what plans return, rather than their runs' uids alone.
    """
    with (
        connect(settings) as catalog,
        _WatchedWorker(settings, on_progress) as worker,
        LiveReconstruction(catalog, settings, worker) as live,
    ):
        md: Any = {} if metadata is None else metadata  # bluesky's annotation knows none but dict
        engine = RunEngine(md, call_returns_result=returns_result)
        engine.subscribe(catalog.raw_writer())
        engine.subscribe(live)
        yield Session(engine, catalog, live)


def reconstruct_stored(
    settings: Settings, raw_uid: str, on_progress: ProgressCallback | None = None
) -> ReconstructionSummary:
    """Reconstruct a stored raw run again, and store the result as another processed run.

    Parameters
    ----------
    settings
        Which catalog and worker, and how to reconstruct.
    raw_uid
        Of the raw run, or its first characters.
    on_progress
        Told, in the worker's thread, how far it is.

    Raises
    ------
    NotFound
        No raw run has that uid.
    IncompleteScan, InvalidInput, ReconstructionFailed
        It can't be reconstructed.
    """
    with connect(settings) as catalog, _WatchedWorker(settings, on_progress) as worker:
        worker.start()
        uid = catalog.store(worker.submit(stored_curve(catalog, raw_uid)).result())
        catalog.flush()
        return ReconstructionSummary.from_start(catalog.processed[uid].metadata["start"])


def rocking_totals(catalog: Catalog, raw_uid: str) -> RockingTotals | None:
    """Return the total counts of a stored scan's frames; None if it's gone."""
    try:
        curve = load_frames(stored_curve(catalog, raw_uid))
    except NotFound:
        return None
    scanned = "angle" if curve.geometry is None else curve.geometry.scanned
    return RockingTotals(
        curve.angles_deg, np.asarray(curve.frames).sum(axis=(1, 2), dtype=np.float64), scanned
    )


class _PointCounter:
    """Counts the events of a run against what its start document announces."""

    def __init__(self, tell: Callable[[Progress], None]) -> None:
        self._tell = tell
        self._expected = 0
        self._seen = 0

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        if name == "start":
            self._expected = doc.get("num_points", 0)
        elif name == "event":
            self._seen += 1
            self._tell(Progress("scanning", min(self._seen / max(self._expected, self._seen), 1.0)))
        elif name == "stop":
            self._tell(Progress("scanned", 1.0))


class _WatchedWorker(ReconstructionWorker):
    """A worker whose every job is watched."""

    def __init__(self, settings: Settings, on_progress: ProgressCallback | None) -> None:
        super().__init__(settings.worker, settings.reconstruction)
        self._on_progress = on_progress

    def submit(
        self,
        curve: Curve,
        options: ReconstructionOptions | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> Future[Reconstruction]:
        """Queue one reconstruction; see `ReconstructionWorker.submit`."""
        return super().submit(curve, options, on_progress or self._on_progress)
