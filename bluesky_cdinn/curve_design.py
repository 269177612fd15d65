"""From a quick look at a peak to the rocking curve that it needs: step, range and exposure, by its physics.

- The step follows from the fringes: a crystal L wide along the rocking direction has them 2 pi / L apart, and
  phase retrieval needs two samples of each at the very least. L is taken from the autocorrelation of the
  frame on the peak, which shows it along the detector's axes; a crystal is about as wide along the third.
- The range ends where the counts do: a mean of nine pixels over one count is the last that can be told from
  an empty detector (`grid.signal_window` draws the reconstruction's window by the same rule); or where the
  detector ends, as far from the peak.
- How far the counts reach grows with the exposure t as t**s; the exponent is read from the quick look itself,
  at several levels. What range and exposure a budget allows is where both meet.

The resolution to expect is that of a window which ends where the counts end; what is wrong with it the
measurement tells, pass by pass. Measured against simulated crystals in ``docs/explanations/steering.md``.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.geometry import reciprocal_basis
from bluesky_cdinn.quick_look import QuickLook
from bluesky_cdinn.records import DiffractionVolume
from bluesky_cdinn.steering import Pass

FloatArray = NDArray[np.float64]
Triple = tuple[float, float, float]

# Of its maximum, or of its noise: where the autocorrelation of a frame ends. Measured on 24 crystals of 0.5
# to 9 rad and 1e2 to 1e5 counts, that is 0.73 (0.65 to 0.82) of the crystal's width.
_LEVEL, _NOISE, _SEEN = 0.05, 4.0, 0.72
# A crystal without strain has a peak this wide, in its fringes.
_FWHM = 0.886
# Levels at which the reach of the counts is read, for its exponent; and what is believed of that.
_LEVELS = 2.0 ** np.arange(0, 12)
_SLOPES, _USUAL_SLOPE = (0.15, 0.5), 0.3
# The range is that much longer than the reach; it is no shorter than so many widths of the peak.
_MARGIN, _LEAST_WIDTHS = 1.05, 2.5
LEAST_ANGLES, MOST_ANGLES = 24, 256


@dataclass(frozen=True)
class PeakShape:
    """What a measurement of the peak must cover and resolve, along (rocking, row, column).

    Parameters
    ----------
    centre_deg
        Rocking angle of the peak.
    fringe
        From one fringe to the next, (deg, pixels, pixels).
    reach
        How far counts can be seen from the centre with `exposure_s` a frame, in the same units.
    slope
        Exponent by which that grows with the exposure.
    edge
        How far there is a detector, in the same units; along rocking as far as that is, infinite without a
        geometry.
    exposure_s
        Of a frame of the quick look.
    width_deg
        Full width at half maximum along rocking.
    cell
        Volume of reciprocal space, 1/nm^3, of 1 deg by 1 pixel by 1 pixel; NaN without a geometry.
    """

    centre_deg: float
    fringe: Triple
    reach: Triple
    slope: float
    edge: Triple
    exposure_s: float
    width_deg: float
    cell: float

    def seen(self, exposure_s: float) -> Triple:
        """Return the reach with another exposure."""
        grown = (exposure_s / self.exposure_s) ** self.slope
        a, b, c = (min(r * grown, e) for r, e in zip(self.reach, self.edge, strict=True))
        return a, b, c

    def resolution_nm(self, exposure_s: float) -> float:
        """Return what resolution to expect from an exposure, where counts end; NaN without a geometry."""
        a, b, c = self.seen(exposure_s)
        return 2 * math.pi / math.cbrt(8 * a * b * c * self.cell)


def peak_shape(look: QuickLook) -> PeakShape:
    """Return what a quick look says of its peak.

    Raises
    ------
    InvalidInput
        It saw no peak, or the exposure isn't known.
    """
    if look.peak is None or look.volume is None or look.pixel is None:
        raise InvalidInput(f"a curve can only be designed for a peak that was seen: {look.reason}")
    if not look.exposure_s > 0:
        raise InvalidInput("a curve can only be designed where frames' exposure is known: set count_time")
    volume = look.volume
    basis = _basis(volume)
    steps = np.full(3, math.nan) if basis is None else np.linalg.norm(basis, axis=0)
    frame = volume.intensity[_nearest(volume, look.peak.centre_deg)]
    rows, columns = _autocorrelation_widths(frame)
    fringe_px = (_SEEN / rows, _SEEN / columns)
    # The finest fringes are those of the widest: in deg, by way of the lab.
    swept = float(np.min(np.array(fringe_px) * steps[1:] / steps[0]))
    reach, slope = _reach(look)
    row_px, column_px = (n / 2 for n in volume.intensity.shape[1:])
    seen_deg = math.sqrt(row_px * steps[1] * column_px * steps[2]) / steps[0]
    return PeakShape(
        centre_deg=look.peak.centre_deg,
        fringe=(look.peak.fwhm_deg / _FWHM if basis is None else swept, *fringe_px),
        reach=reach,
        slope=slope,
        edge=(math.inf if basis is None else seen_deg, row_px, column_px),
        exposure_s=look.exposure_s,
        width_deg=look.peak.fwhm_deg,
        cell=math.nan if basis is None else float(abs(np.linalg.det(basis))),
    )


def affordable(shape: PeakShape, budget_s: float, oversampling: float) -> Pass:
    """Return the curve that sees the most for a budget: what it reaches, it covers."""

    def spent(log_exposure: float) -> float:
        return fitted(shape, math.exp(log_exposure), oversampling).exposure_s

    low, high = math.log(1e-9 * budget_s), math.log(budget_s)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) < budget_s else (low, middle)
    scan = fitted(shape, math.exp(low), oversampling)
    return replace(scan, count_time=budget_s / scan.num)


def fitted(shape: PeakShape, count_time: float, oversampling: float) -> Pass:
    """Return the curve that covers what an exposure lets see."""
    reach = max(_MARGIN * shape.seen(count_time)[0], _LEAST_WIDTHS * shape.width_deg)
    return centred(shape.centre_deg, reach, shape.fringe[0] / oversampling, count_time)


def centred(centre_deg: float, reach_deg: float, step_deg: float, count_time: float) -> Pass:
    """Return a pass about an angle, of as many angles as its step asks for and an engine can use."""
    num = min(max(2 * math.ceil(reach_deg / step_deg) + 1, LEAST_ANGLES), MOST_ANGLES)
    return Pass(centre_deg - reach_deg, centre_deg + reach_deg, num, count_time)


def sufficient(shape: PeakShape, resolution_nm: float, oversampling: float, most_s: float) -> Pass | None:
    """Return the cheapest curve that should reach a resolution; None where none within a budget does."""
    best = affordable(shape, most_s, oversampling)
    if shape.resolution_nm(best.count_time) > resolution_nm:
        return None
    low, high = math.log(1e-9 * best.count_time), math.log(best.count_time)
    for _ in range(60):
        middle = (low + high) / 2
        fine = shape.resolution_nm(math.exp(middle)) <= resolution_nm
        low, high = (low, middle) if fine else (middle, high)
    return fitted(shape, math.exp(high), oversampling)


def _nearest(volume: DiffractionVolume, angle_deg: float) -> int:
    assert volume.angles_deg is not None
    return int(np.abs(volume.angles_deg - angle_deg).argmin())


def _basis(volume: DiffractionVolume) -> NDArray[np.float64] | None:
    """Return the steps of 1 deg and of 1 pixel in reciprocal space, 1/nm, as columns; None where unknown."""
    if volume.geometry is None:
        return None
    try:
        return reciprocal_basis(volume.geometry, 1.0)
    except InvalidInput:
        return None


def _autocorrelation_widths(frame: NDArray[np.float32]) -> tuple[float, float]:
    """Return the crystal's width along rows and columns as the autocorrelation shows it, cycles a pixel."""
    lags = np.abs(np.fft.fftshift(np.fft.fft2(frame.astype(np.float64))))
    lags /= lags.max()
    level = max(_LEVEL, _NOISE / math.sqrt(max(float(frame.sum()), 1.0)))
    pieces: NDArray[Any] = np.asarray(ndimage.label(lags > min(level, 0.5))[0])  # pyright: ignore[reportIndexIssue]
    middle = tuple(n // 2 for n in frame.shape)
    inside = pieces == pieces[middle]
    rows, columns = (
        (np.ptp(np.flatnonzero(inside.any(axis=1 - axis))) + 1) / 2 / n for axis, n in enumerate(frame.shape)
    )
    return float(rows), float(columns)


def _reach(look: QuickLook) -> tuple[Triple, float]:
    """Return how far from the peak one count can be seen, along each axis, and how that falls with more."""
    peak, near = look.peak, look.volume
    wide = look.wide or look.volume
    assert peak is not None
    assert near is not None
    assert wide is not None
    assert wide.angles_deg is not None
    coarse, fine = _smooth(wide), _smooth(near)
    row, column = _place(near, peak.centre_deg)
    offsets: list[FloatArray] = [
        np.abs(wide.angles_deg - peak.centre_deg),
        np.abs(np.arange(fine.shape[1], dtype=float) - row),
        np.abs(np.arange(fine.shape[2], dtype=float) - column),
    ]
    profiles = [coarse.max(axis=(1, 2)), fine.max(axis=(0, 2)), fine.max(axis=(0, 1))]
    reaches, slopes = [], []
    for away, profile in zip(offsets, profiles, strict=True):
        levels = _LEVELS[profile.max() / 4 > _LEVELS]
        found = np.array([away[profile > level].max() for level in levels]) if len(levels) else np.zeros(0)
        known = found > 0
        if known.sum() >= 3 and not _at_edge(away, profile):
            slopes.append(-float(np.polyfit(np.log(levels[known]), np.log(found[known]), 1)[0]))
        step = float(np.median(np.diff(np.sort(away)))) if len(away) > 1 else 1.0
        reaches.append(max(float(found[0]) if len(found) else 0.0, step))
    slope = float(np.median(slopes)) if slopes else _USUAL_SLOPE
    a, b, c = reaches
    return (a, b, c), min(max(slope, _SLOPES[0]), _SLOPES[1])


def _smooth(volume: DiffractionVolume) -> NDArray[np.float32]:
    """Return the means of nine pixels of each frame."""
    counts = np.where(volume.valid, volume.intensity, 0)
    return np.stack([ndimage.uniform_filter(frame, 3) for frame in counts]).astype(np.float32)


def _at_edge(away: NDArray[np.float64], profile: NDArray[np.float32]) -> bool:
    """Whether counts go on where the measurement ends."""
    return bool(profile[away.argmax()] > 1)


def _place(volume: DiffractionVolume, angle_deg: float) -> tuple[int, int]:
    """Return the pixel of the peak in a volume that was cut to its surroundings."""
    frame = volume.intensity[_nearest(volume, angle_deg)]
    row, column = np.unravel_index(int(ndimage.uniform_filter(frame, 3).argmax()), frame.shape)
    return int(row), int(column)
