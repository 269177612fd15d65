"""Frames and rocking angles -> a diffraction volume on a regular grid, filling as frames come.

What a slice holds is an estimate of the counts at one common exposure, ``E sum(w c) / sum(w e)``, from the
counts c and exposures e of the frames that fall on it: repeated frames add up as one longer exposure would,
and the maximum-likelihood rate of Poisson counts is just this ratio.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bluesky_cdinn.errors import IncompleteScan, InvalidInput
from bluesky_cdinn.frame_files import load_frames
from bluesky_cdinn.records import DiffractionVolume, Geometry, RockingCurve
from bluesky_cdinn.rocking_grid import frame_shares, planned_grid

__all__ = ["VolumeBuilder", "assemble", "load_frames"]

# A frame with less than this part of the usual exposure was taken without beam.
BEAM_LOST = 0.02

NO_COUNT = 10**15
"""Nothing counts this far: such a number is memory that was never written."""


def assemble(curve: RockingCurve) -> DiffractionVolume:
    """Put the frames of a rocking curve on a regular grid of rising angles.

    Parameters
    ----------
    curve
        In any order, with repeats and gaps; references to frames are read.

    Returns
    -------
    DiffractionVolume
        Slices that no frame fell on are not valid. Repeated points are added, every slice is scaled to
        one exposure.

    Raises
    ------
    IncompleteScan
        If there are fewer than three different angles.
    InvalidInput
        If frames are not stacked 2D arrays of real numbers, or angles are no rocking curve.
    """
    curve = load_frames(curve)
    frames = np.asarray(curve.frames)
    if frames.ndim == 4 and frames.shape[1] == 1:
        frames = frames[:, 0]
    # A scan that has ended is what it is, whatever it was to be.
    planned = curve.planned_deg if curve.exit_status == "unfinished" else None
    builder = VolumeBuilder(geometry=curve.geometry, planned_deg=planned)
    count_time, monitor = (
        np.full(len(frames), np.nan) if values is None else values
        for values in (curve.count_time_s, curve.monitor)
    )
    for frame, angle, seconds, flux in zip(frames, curve.angles_deg, count_time, monitor, strict=True):
        builder.add(frame, angle, count_time_s=seconds, monitor=flux)
    lost = curve.metadata.get("unreadable_points", ())
    volume = builder.volume(unreadable_points=len(lost))
    if not volume.valid.any():
        raise InvalidInput(
            "frames must hold counts, got none: every pixel of every frame is no number, negative, or at the "
            "largest number of its type, as a saturated one is"
        )
    return volume


class VolumeBuilder:
    """Takes frames one by one, in any order, and gives the volume as far as it is measured.

    Parameters
    ----------
    geometry
        Of the measurement.
    planned_deg
        Angles that the plan will go to: the grid then covers them from the start, and what hasn't been
        measured yet is not valid.
    """

    def __init__(self, *, geometry: Geometry | None = None, planned_deg: ArrayLike | None = None) -> None:
        self._geometry = geometry
        self._planned = np.asarray([] if planned_deg is None else planned_deg, dtype=float).ravel()
        self._frames: list[NDArray[Any]] = []
        self._readings: list[tuple[float, float, float]] = []

    def __len__(self) -> int:
        """Return how many frames there are."""
        return len(self._frames)

    def add(
        self,
        frame: NDArray[Any],
        angle_deg: float,
        *,
        count_time_s: float = math.nan,
        monitor: float = math.nan,
    ) -> None:
        """Take one frame, by reference.

        Parameters
        ----------
        frame
            Counts, any real dtype, (row, column).
        angle_deg
            Rocking angle.
        count_time_s, monitor
            Exposure and incident flux, NaN where not known.

        Raises
        ------
        InvalidInput
            If the frame isn't 2D, real and of the others' shape, or the angle isn't finite.
        """
        frame = np.asarray(frame)
        if frame.ndim != 2 or frame.size == 0 or frame.dtype.kind not in "buif":
            raise InvalidInput(
                f"a frame must be a 2D array of real numbers, got shape {frame.shape} of type {frame.dtype}"
            )
        if self._frames and frame.shape != self._frames[0].shape:
            raise InvalidInput(
                f"all frames must have one shape, got {frame.shape} after {self._frames[0].shape}"
            )
        if not math.isfinite(angle_deg):
            raise InvalidInput(f"a rocking angle must be finite, got {angle_deg}")
        self._frames.append(frame)
        self._readings.append((float(angle_deg), float(count_time_s), float(monitor)))

    def volume(self, **noted: Any) -> DiffractionVolume:
        """Return the volume that the frames so far make.

        Parameters
        ----------
        noted
            Numbers to be recorded with the step beside its own.

        Raises
        ------
        IncompleteScan
            If there are fewer than three different angles.
        InvalidInput
            If the angles are no rocking curve.
        """
        angles, count_time, monitor = np.array(self._readings, dtype=float).reshape(-1, 3).T
        exposure, normalised_by = _exposures(count_time, monitor)
        lit = np.flatnonzero(exposure > 0)
        if not len(lit):
            raise IncompleteScan(f"a volume needs frames taken with beam, got none among {len(self)}")
        first, step, n = planned_grid(angles[lit], self._planned)
        shares = frame_shares((angles[lit] - first) / step, n, exposure[lit])
        flagged = self._always_negative(lit)
        intensity = np.zeros((n, *self._frames[0].shape), np.float32)
        valid = np.zeros(intensity.shape, np.bool_)
        usual = _usual_exposure(shares, exposure[lit])
        scales, negative = [], 0
        unit = "keV" if self._geometry is not None and self._geometry.scanned == "energy" else "deg"
        for index, share in enumerate(shares):
            if share:
                frames = [
                    (self._frames[lit[i]], weight, float(exposure[lit[i]])) for i, weight in share.items()
                ]
                slice_ = _slice(frames, usual, flagged)
                intensity[index], valid[index] = slice_.counts, slice_.valid
                scales.append(slice_.scale)
                negative += slice_.negative
        return DiffractionVolume(
            intensity=intensity,
            valid=valid,
            angles_deg=first + step * np.arange(n, dtype=np.float64),
            geometry=self._geometry,
            history=(
                {
                    "step": "assemble",
                    "points": len(self._frames),
                    "points_without_beam": len(self._frames) - len(lit),
                    "slices": n,
                    f"first_{unit}": first,
                    f"step_{unit}": step,
                    "merged_points": sum(len(share) - 1 for share in shares if _is_direct(share)),
                    "interpolated_slices": sum(bool(share) and not _is_direct(share) for share in shares),
                    "unmeasured_slices": sum(not share for share in shares),
                    "normalised_by": normalised_by,
                    "scale_lowest": min(scales, default=1.0),
                    "scale_highest": max(scales, default=1.0),
                    "negative_clamped": negative,
                    "untrusted_voxels": int(valid.size - np.count_nonzero(valid)),
                    **noted,
                },
            ),
        )

    def _always_negative(self, places: NDArray[np.intp]) -> NDArray[np.bool_] | None:
        """Pixels that are negative in every frame: detectors flag gaps and dead pixels so; None for none."""
        if not len(places) or all(self._frames[i].dtype.kind in "bu" for i in places):
            return None
        flagged = self._frames[places[0]] < 0
        for i in places[1:]:
            if not flagged.any():
                return None
            flagged &= self._frames[i] < 0
        return flagged


def _is_direct(share: Mapping[int, float]) -> bool:
    return bool(share) and all(weight == 1 for weight in share.values())


def _exposures(
    count_time: NDArray[np.float64], monitor: NDArray[np.float64]
) -> tuple[NDArray[np.float64], str]:
    """Return each frame's exposure relative to the usual one, 0 without beam, and what tells it."""
    exposure, names = np.ones(len(count_time)), []
    for name, values in (("count_time", count_time), ("monitor", monitor)):
        good = np.isfinite(values) & (values > 0)
        if not good.any():
            continue
        usual = np.median(values[good])
        # A reading that is no number says nothing; one of zero or less says that there was no beam.
        exposure *= np.where(np.isfinite(values), np.clip(values / usual, 0, None), 1.0)
        names.append(name)
    exposure[exposure < BEAM_LOST] = 0
    return exposure, ", ".join(names)


def _usual_exposure(shares: list[Mapping[int, float]], exposure: NDArray[np.float64]) -> float:
    totals = [sum(weight * exposure[i] for i, weight in share.items()) for share in shares if share]
    return float(np.median(totals)) if totals else 1.0


@dataclass(frozen=True, eq=False)
class _Slice:
    counts: NDArray[np.float32]
    valid: NDArray[np.bool_]
    scale: float
    negative: int


def _slice(
    frames: list[tuple[NDArray[Any], float, float]], usual: float, flagged: NDArray[np.bool_] | None
) -> _Slice:
    """Make one slice of its frames, each with its weight and exposure."""
    shape = frames[0][0].shape
    counts, exposures, everywhere = np.zeros(shape), np.zeros(shape), np.ones(shape, np.bool_)
    for frame, weight, exposure in frames:
        good = trusted(frame)
        counts += np.where(good, weight * frame, 0.0)
        exposures += (weight * exposure) * good
        everywhere &= good
    # Between two slices both are needed; of repeats one will do.
    valid = everywhere if any(weight != 1 for _, weight, _ in frames) else exposures > 0
    valid = valid if flagged is None else valid & ~flagged
    scaled = np.divide(usual * counts, exposures, out=np.zeros(shape), where=valid)
    negative = int(np.count_nonzero(scaled < 0))
    scale = usual / sum(weight * exposure for _, weight, exposure in frames)
    return _Slice(np.maximum(scaled, 0).astype(np.float32), valid, scale, negative)


def trusted(frame: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where a frame holds a measurement.

    Not where it isn't finite, or larger than any count, and not at the largest number of an integer type,
    which stands for saturation and, on hybrid pixel detectors, for gaps and masked pixels.
    """
    if frame.dtype.kind == "b":
        return np.ones(frame.shape, np.bool_)
    if frame.dtype.kind == "f":
        return np.isfinite(frame) & (np.abs(frame) <= min(float(np.finfo(frame.dtype).max), NO_COUNT))
    return frame < min(np.iinfo(frame.dtype).max, NO_COUNT)
