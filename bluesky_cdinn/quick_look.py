"""What a fast, coarse rocking curve tells of a crystal before it is measured properly."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn.errors import CdinnError
from bluesky_cdinn.frame_files import load_frames
from bluesky_cdinn.peak import find_peak
from bluesky_cdinn.preprocess import prepare
from bluesky_cdinn.records import DiffractionVolume, RockingCurve
from bluesky_cdinn.region import box_around_peak, cut
from bluesky_cdinn.rocking_peak import RockingPeak, rocking_peak
from bluesky_cdinn.volume import assemble

# Half the side of the square about the peak whose counts make the profile, as a share of the frame.
_REACH = 1 / 8
# In standard deviations of counting noise: what is less is no peak.
SIGNIFICANT = 8.0


@dataclass(frozen=True, eq=False)
class QuickLook:
    """What was seen.

    Parameters
    ----------
    peak
        Of the rocking curve; None where none stands out.
    reason
        Why there is none, else empty.
    pixel
        (row, column) of the peak on the detector, fractions included; None without one.
    brightest
        Counts in the brightest voxel of the peak that its neighbours support.
    exposure_s
        Usual exposure of a frame; NaN where not known.
    total_s
        Exposure of all of its frames; those of every run that it took.
    full_scale
        Counts at which the frames' numbers end; infinite where they don't.
    volume
        What was measured, clean, cut to the peak's surroundings; None where nothing could be made of it.
    wide
        The coarse curve's, where `volume` is a finer one of the peak alone; else None.
    frame_shape
        (rows, columns) of the detector's whole frames; None where none could be read.
    raw_uids
        Of the runs that it took.
    """

    peak: RockingPeak | None
    reason: str = ""
    pixel: tuple[float, float] | None = None
    brightest: float = 0.0
    exposure_s: float = float("nan")
    total_s: float = 0.0
    full_scale: float = float("inf")
    volume: DiffractionVolume | None = None
    wide: DiffractionVolume | None = None
    frame_shape: tuple[int, int] | None = None
    raw_uids: tuple[str, ...] = ()

    def after(self, earlier: "QuickLook") -> "QuickLook":
        """Return this look as the last of several: what they took together is its own."""
        uids, total_s = (*earlier.raw_uids, *self.raw_uids), earlier.total_s + self.total_s
        return replace(self, raw_uids=uids, total_s=total_s)

    @property
    def rate(self) -> float:
        """Counts a second in the brightest voxel."""
        return self.brightest / self.exposure_s


def look_at(curve: RockingCurve) -> QuickLook:
    """Return what a coarse rocking curve shows; that there is nothing to see is an answer too.

    Parameters
    ----------
    curve
        As assembled from documents; its frames are read where they lie in files.
    """
    uids = (curve.raw_uid,)
    times = curve.count_time_s
    exposure_s = float("nan") if times is None else float(np.nanmedian(times))
    total_s = 0.0 if times is None else float(np.nansum(times))
    try:
        curve = load_frames(curve)
        shape = np.asarray(curve.frames).shape
        rows, columns = box = box_around_peak(curve)
        volume = prepare(assemble(cut(curve, box)))
        place = find_peak(volume)
    except CdinnError as error:
        return QuickLook(None, str(error), exposure_s=exposure_s, total_s=total_s, raw_uids=uids)
    assert volume.angles_deg is not None
    peak = rocking_peak(volume.angles_deg, _profile(volume, place))
    dtype = np.asarray(curve.frames).dtype
    seen = QuickLook(
        peak=peak,
        pixel=(rows.start + place[1], columns.start + place[2]),
        brightest=_brightest(volume, place),
        exposure_s=exposure_s,
        total_s=total_s,
        full_scale=float(np.iinfo(dtype).max) if dtype.kind in "iu" else float("inf"),
        volume=volume,
        frame_shape=(shape[-2], shape[-1]),
        raw_uids=uids,
    )
    if peak.significance >= SIGNIFICANT:
        return seen
    why = f"no peak stands out: {peak.height:.3g} counts above {peak.background:.3g}"
    return replace(seen, peak=None, pixel=None, reason=why)


def _profile(volume: DiffractionVolume, place: tuple[float, float, float]) -> NDArray[np.float64]:
    """Return the counts about the peak, slice by slice."""
    _, row, column = place
    window = tuple(
        slice(max(0, round(centre - _REACH * n)), round(centre + _REACH * n) + 1)
        for centre, n in zip((row, column), volume.intensity.shape[1:], strict=True)
    )
    part = (slice(None), *window)
    counts = np.where(volume.valid[part], volume.intensity[part], 0)
    return counts.sum(axis=(1, 2), dtype=np.float64)


def _brightest(volume: DiffractionVolume, place: tuple[float, float, float]) -> float:
    box = tuple(slice(max(0, int(centre) - 2), int(centre) + 4) for centre in place)
    return float(np.where(volume.valid[box], volume.intensity[box], 0).max())
