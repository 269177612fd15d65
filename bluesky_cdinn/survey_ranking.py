"""Which grains of a sample are worth measuring, and why the others are not: rules of a survey.

A grain is known by a `GrainSeen`, which grows as it is looked at. Rules are functions of it, so that a
beamline's own takes a line: ``ranking=lambda grain: -grain.strain_rms`` measures the least strained first.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from bluesky_cdinn.aliens import CLEARANCE, STRONG, half_widths
from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.masking import connected
from bluesky_cdinn.peak import supported_intensity
from bluesky_cdinn.quick_look import QuickLook
from bluesky_cdinn.records import DiffractionVolume

GrainStatus = Literal["new", "skipped", "seen", "measured"]

# Of the peak's height: what another crystal's peak may have, and the counts at the detector's edge.
NEIGHBOUR, AT_EDGE = 0.2, 0.2
# Above this share of its height a crystal's speckles are connected.
CONNECTED = 0.03

WEIGHTS: Mapping[str, float] = {"size": 1.0, "counts": 1.0, "strain": 1.0, "confidence": 2.0}
"""What counts how much by default; a negative weight prefers the opposite."""

# Where a grain is half as good as it can be: nm, and strain.
_HALF_SIZE_NM, _HALF_STRAIN = 300.0, 1e-3
# Counts in the brightest voxel that are as good as none, and as many as one could want, powers of ten.
_COUNTS = (2.0, 6.0)


@dataclass(frozen=True)
class GrainSeen:
    """What a survey knows of one grain.

    Parameters
    ----------
    name, positions
        Its name, and where the sample's stage stands for it, by motor.
    status
        "new"; "skipped", with a `reason`; "seen"; "measured", its numbers then those of that measurement.
    reason
        Why it was skipped, or why measuring it failed.
    score
        By which it was ranked, 0 to 1 unless a ranking of one's own gives other numbers; NaN before.
    centre_deg, fwhm_deg
        Of its rocking curve.
    row_px, column_px
        Where its peak is on the detector.
    counts_s
        Counts a second in the brightest voxel.
    size_nm, strain_rms, resolution_nm, confidence
        Of its reconstruction; NaN where unknown.
    glance_uid, raw_uid
        Of the runs of the quick reconstruction, and of the proper measurement.
    """

    name: str
    positions: Mapping[str, float] = field(default_factory=dict)
    status: GrainStatus = "new"
    reason: str = ""
    score: float = math.nan
    centre_deg: float = math.nan
    fwhm_deg: float = math.nan
    row_px: float = math.nan
    column_px: float = math.nan
    counts_s: float = math.nan
    size_nm: float = math.nan
    strain_rms: float = math.nan
    resolution_nm: float = math.nan
    confidence: float = math.nan
    glance_uid: str = ""
    raw_uid: str = ""

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> "GrainSeen":
        """Return the grain that was written down as a mapping; what has no number is NaN."""
        known = {name: said[name] for name in cls.__dataclass_fields__ if said.get(name) is not None}
        return cls(**known)

    def __str__(self) -> str:
        words = [self.name, self.status, f"score {self.score:.2f}" if math.isfinite(self.score) else ""]
        return ": ".join(filter(None, [" ".join(filter(None, words)), self.reason]))


Ranking = Callable[[GrainSeen], float]


def trouble_in_look(look: QuickLook, count_time_s: float, least_counts: float) -> str:
    """Return why a grain isn't worth a reconstruction after a quick look, empty where it is.

    Parameters
    ----------
    look
        At its peak.
    count_time_s
        Exposure of the frames that are to come.
    least_counts
        That the brightest voxel must have with it.
    """
    if look.peak is None:
        return look.reason or "no peak"
    if look.peak.cut:
        return f"the peak is cut off at the {look.peak.cut} angle"
    counts = look.rate * count_time_s
    if counts < least_counts:
        return f"too weak: {counts:.3g} counts in the brightest voxel, {least_counts:.3g} are required"
    volume = look.volume
    if volume is None:
        return ""
    if (share := edge_share(volume)) > AT_EDGE:
        return f"the peak is cut at the detector's edge: {share:.0%} of its height there"
    if (share := max(neighbour_share(v) for v in (volume, look.wide) if v is not None)) > NEIGHBOUR:
        return f"two grains at once: another peak has {share:.0%} of the height of the first"
    return ""


def trouble_in_result(summary: Any, least_confidence: float) -> str:
    """Return why a grain isn't worth measuring after its quick reconstruction, empty where it is."""
    if summary.status != "success":
        return f"the reconstruction {summary.status}: {summary.reason}"
    if summary.confidence < least_confidence:
        return f"confidence {summary.confidence:.2f}, {least_confidence:g} is required"
    return ""


def edge_share(volume: DiffractionVolume) -> float:
    """Return how high the peak stands in the outermost rows and columns, over its height there."""
    counts = np.where(volume.valid, volume.intensity, 0)
    shares = []
    for axis in (1, 2):
        profile = counts.max(axis=(0, 3 - axis))
        shares.append(max(profile[0], profile[-1]) / max(float(profile.max()), 1.0))
    return float(max(shares))


def neighbour_share(volume: DiffractionVolume) -> float:
    """Return the height of the highest peak that can't be the first one's own, over the first one's.

    One that was masked as another crystal's counts as well.
    """
    masked = [float(s.get("strongest", 0.0)) for s in volume.history if s.get("step") == "mask_aliens"]
    frames = [
        supported_intensity(np.where(v, f, 0)) for f, v in zip(volume.intensity, volume.valid, strict=True)
    ]
    counts = np.stack(frames)
    peak = np.unravel_index(int(counts.argmax()), counts.shape)
    height = float(counts[peak])
    if not height > 0:
        return 0.0
    distance = np.zeros(counts.shape)
    # Of a strained crystal all strong speckles make the width; they hang together, another's peak doesn't.
    pieces = connected(counts > CONNECTED * height)
    own = (pieces == pieces[peak]) & (counts > STRONG * height)
    widths = half_widths(np.where(own, counts, 0)).clip(1.0)
    for axis, (place, half) in enumerate(zip(peak, widths, strict=True)):
        along = (np.arange(counts.shape[axis]) - place) / half
        distance += np.expand_dims(along**2, tuple(a for a in range(3) if a != axis))
    beyond = counts[distance > CLEARANCE**2]
    return max([float(beyond.max(initial=0.0)) / height, *masked])


def weighted_score(weights: Mapping[str, float] | None = None, count_time_s: float = 1.0) -> Ranking:
    """Return the ranking that comes with this package: a weighted mean of four marks from 0 to 1.

    Size counts ``d / (d + 300 nm)``, strain ``1 / (1 + rms / 1e-3)``, counts the decades from 10**2 to 10**6
    in the brightest voxel, confidence itself. What is unknown gets no mark.

    Parameters
    ----------
    weights
        By name; those left out are as in `WEIGHTS`.
    count_time_s
        Exposure that the counts are for.

    Raises
    ------
    InvalidInput
        A weight has another name, or all are zero.
    """
    unknown = set(weights or {}) - set(WEIGHTS)
    merged = {name: float(weight) for name, weight in {**WEIGHTS, **(weights or {})}.items()}
    names = ", ".join(WEIGHTS)
    total = sum(map(abs, merged.values()))
    if unknown or not (math.isfinite(total) and total > 0):
        raise InvalidInput(
            f"weights must be numbers of {names}, not all of them zero, got {dict(weights or {})}"
        )

    def score(grain: GrainSeen) -> float:
        marks = _marks(grain, count_time_s)
        gained = sum(
            weight * (marks[name] if weight >= 0 else marks[name] - 1)
            for name, weight in merged.items()
            if math.isfinite(marks[name])
        )
        return gained / total

    return score


def _marks(grain: GrainSeen, count_time_s: float) -> dict[str, float]:
    low, high = _COUNTS
    decades = math.log10(grain.counts_s * count_time_s) if grain.counts_s > 0 else math.nan
    return {
        "size": grain.size_nm / (grain.size_nm + _HALF_SIZE_NM),
        "counts": min(max((decades - low) / (high - low), 0.0), 1.0) if math.isfinite(decades) else math.nan,
        "strain": 1 / (1 + grain.strain_rms / _HALF_STRAIN),
        "confidence": grain.confidence,
    }


def ranked(grains: Iterable[GrainSeen], ranking: Ranking) -> list[tuple[float, GrainSeen]]:
    """Return the grains that were seen with their scores, best first; who has none comes last."""
    scored = [(float(ranking(grain)), grain) for grain in grains if grain.status == "seen"]
    return sorted(scored, key=lambda pair: -pair[0] if math.isfinite(pair[0]) else math.inf)


def grain_grid(axes: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Return places on a grid, as grains for a survey where no list of them is known.

    Parameters
    ----------
    axes
        Positions by motor; the first motor moves fastest, every other row backwards.

    Raises
    ------
    InvalidInput
        There is no motor, or no position of one.
    """
    if not axes or not all(len(positions) for positions in axes.values()):
        raise InvalidInput(f"axes must have positions for each motor, got {dict(axes)}")
    (fast, positions), *slow = axes.items()
    rest = grain_grid(dict(slow)) if slow else [{"name": "", "positions": {}}]
    return [
        {
            "name": ", ".join(filter(None, [f"{fast} {float(position):g}", place["name"]])),
            "positions": {fast: float(position), **place["positions"]},
        }
        for row, place in enumerate(rest)
        for position in (positions if row % 2 == 0 else list(positions)[::-1])
    ]
