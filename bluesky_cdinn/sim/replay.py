"""Plays a recorded rocking scan back, frame by frame, by where the rocking stage stands."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.records import Geometry
from bluesky_cdinn.sim.area_detector import SimulatedAreaDetector
from bluesky_cdinn.sim.delivery import DeliveryName
from bluesky_cdinn.sim.recording import Recording
from bluesky_cdinn.sim.stage import RockingStage

Outside = Literal["raise", "empty"]


class RecordedFrames:
    """A recording as something that a detector can look at.

    Parameters
    ----------
    recording
        What was recorded.
    outside
        What to see farther from the nearest recorded angle than half a step: "raise" an error, or an
        "empty" frame.
    """

    def __init__(self, recording: Recording, outside: Outside = "raise") -> None:
        if outside not in ("raise", "empty"):
            raise InvalidInput(f"outside must be 'raise' or 'empty', got {outside!r}")
        self.recording = recording
        self.outside = outside
        # A readback differs from its setpoint: half a step, and a tenth of one for that.
        self.tolerance_deg = 0.6 * recording.step_deg or np.inf

    @property
    def geometry(self) -> Geometry:
        """Of the measurement."""
        return self.recording.geometry

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of a frame."""
        _, rows, columns = self.recording.frames.shape
        return rows, columns

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a pixel."""
        return np.dtype(self.recording.frames.dtype)

    def frame(self, angle_deg: float, count_time_s: float) -> NDArray[Any]:
        """Return the frame recorded nearest to an angle; it has the exposure that it has.

        Raises
        ------
        InvalidInput
            If none was recorded near it, and empty frames weren't asked for.
        """
        angles = self.recording.angles_deg
        index = int(np.abs(angles - angle_deg).argmin())
        if abs(angles[index] - angle_deg) > self.tolerance_deg:
            if self.outside == "empty":
                return np.zeros(self.shape, self.dtype)
            raise InvalidInput(
                f"{self.recording.name} has no frame at {angle_deg:.5f} deg: it was recorded from "
                f"{angles.min():.5f} to {angles.max():.5f} deg, {len(angles)} frames about "
                f"{self.recording.step_deg:.5f} deg apart"
            )
        return np.asarray(self.recording.frames[index])


class ReplayDetector(SimulatedAreaDetector):
    """A detector that shows a recorded scan instead of measuring one.

    Parameters
    ----------
    recording
        What to show.
    stage
        Whose position picks the frame.
    outside
        At angles where nothing was recorded: "raise" fails the exposure, "empty" shows an empty frame.
        Where all were recorded with one exposure, ``count_time`` is that and can't be set; a scan of
        varied exposures wants them from the plan (``count_time=recording.count_time_s``).
    **kwargs
        As for `SimulatedAreaDetector`; exposures take no real time unless ``time_scale`` says so.
    """

    def __init__(
        self,
        prefix: str = "",
        *,
        name: str,
        recording: Recording,
        stage: RockingStage,
        outside: Outside = "raise",
        time_scale: float = 0.0,
        **kwargs: Any,
    ) -> None:
        exposures = recording.count_time_s
        uniform = exposures is not None and bool(np.allclose(exposures, exposures[0]))
        self.recording = recording
        super().__init__(
            prefix,
            name=name,
            source=RecordedFrames(recording, outside),
            stage=stage,
            fixed_count_time_s=float(exposures[0]) if exposures is not None and uniform else None,
            time_scale=time_scale,
            cdi=recording.cdi,
            **kwargs,
        )


def replay_beamline(
    recording: Recording,
    *,
    delivery: DeliveryName = "event",
    directory: Path | str | None = None,
    outside: Outside = "raise",
    time_scale: float = 0.0,
) -> tuple[ReplayDetector, RockingStage]:
    """Return a detector ``det`` and a stage ``theta`` that replay a recording.

    ``RE(rocking_scan(det, theta, *recording.scan_range))`` then measures it again.

    Parameters
    ----------
    recording
        What to show.
    delivery, directory
        How frames are handed over; see `SimulatedAreaDetector`.
    outside
        See `ReplayDetector`.
    time_scale
        Real seconds for each second of exposure and motion; 0 goes as fast as it can.
    """
    low, high = recording.angles_deg.min(), recording.angles_deg.max()
    margin = max(recording.step_deg, 1e-6) if outside == "raise" else max(high - low, 1.0)
    theta = RockingStage(
        name="theta",
        limits_deg=(low - margin, high + margin),
        initial_deg=recording.angles_deg[0],
        time_scale=time_scale,
    )
    det = ReplayDetector(
        name="det",
        recording=recording,
        stage=theta,
        outside=outside,
        delivery=delivery,
        directory=directory,
        time_scale=time_scale,
    )
    return det, theta
