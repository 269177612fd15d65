"""A recorded scan measured again, through everything that a live one meets."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.plans import rocking_scan_with_recon
from bluesky_cdinn.records import Progress
from bluesky_cdinn.session import open_session
from bluesky_cdinn.settings import Settings
from bluesky_cdinn.sim.delivery import DeliveryName
from bluesky_cdinn.sim.recording import Recording
from bluesky_cdinn.sim.replay import replay_beamline
from bluesky_cdinn.summary import ReconstructionSummary


def replay_scan(
    recording: Recording,
    settings: Settings,
    *,
    delivery: DeliveryName = "event",
    time_scale: float = 0.0,
    on_point: Callable[[Progress], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> ReconstructionSummary:
    """Run a recorded scan through a RunEngine, the live callback, the worker and Tiled.

    Parameters
    ----------
    recording
        What the detector shows.
    settings
        Which catalog and worker, and how to reconstruct.
    delivery
        How frames are handed over: "event", or "resource" and "stream" for HDF5 files, which go to the first
        folder of ``tiled.readable_storage``.
    time_scale
        Real seconds for each second of exposure and motion; 0 goes as fast as it can.
    on_point, on_progress
        Told how far the scan is, and the reconstruction.

    Returns
    -------
    ReconstructionSummary
        Of the processed run, which Tiled holds by now; successful or not.

    Raises
    ------
    InvalidInput
        Frames are to go to a file, and no folder is there that the Tiled server may read.
    """
    frames = None if delivery == "event" else _frame_directory(settings)
    det, theta = replay_beamline(recording, delivery=delivery, directory=frames, time_scale=time_scale)
    with open_session(settings, on_progress) as session:
        plan = rocking_scan_with_recon(
            det,
            theta,  # pyright: ignore[reportArgumentType] - ophyd's devices are not annotated as movable
            *recording.scan_range,
            count_time=_varied_exposures(recording),
            live=session.live,
            timeout=settings.worker.timeout_s,
        )
        return session.run(plan, on_point)


def _frame_directory(settings: Settings) -> Path:
    if not settings.tiled.readable_storage:
        raise InvalidInput(
            "frames in files need a folder that the Tiled server may read: set tiled.readable_storage, "
            "or give --directory"
        )
    folder = settings.tiled.readable_storage[0]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _varied_exposures(recording: Recording) -> list[float] | None:
    """Return the exposure of each point for the plan; None where there is but one, or none is known."""
    exposures = recording.count_time_s
    if exposures is None or np.allclose(exposures, exposures[0]):
        return None
    return [float(exposure) for exposure in exposures]
