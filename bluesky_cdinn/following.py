"""A crystal while its scan runs: each update starts from the one before, and the final result from the last.

Scans of a series (`bluesky_cdinn.series_start`) start from the scan before, in their first update already.

What has not been measured yet is masked, never zero. Half of a rocking curve and a little more fixes the
crystal already (docs/explanations/running-scans.md): what the other half adds is precision.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bluesky_cdinn import judgement, phasing, pipeline, quality
from bluesky_cdinn.boxed import Boxed
from bluesky_cdinn.crop import crop_around_peak
from bluesky_cdinn.device import choose_device
from bluesky_cdinn.doubts import confidence, signs
from bluesky_cdinn.errors import IncompleteScan, InvalidInput
from bluesky_cdinn.fallback import within_memory
from bluesky_cdinn.forward import AXES, amplitude_loss, to_centre
from bluesky_cdinn.frame_files import load_frames
from bluesky_cdinn.grid import fast_side, window_on_grid
from bluesky_cdinn.half_sets import Counted
from bluesky_cdinn.posing import Posed, centre_peak, padded, pose
from bluesky_cdinn.preview import Frame, preview
from bluesky_cdinn.records import (
    DiffractionVolume,
    FrameReference,
    PartialResult,
    Reconstruction,
    RockingCurve,
)
from bluesky_cdinn.refine import Measurement, Objects
from bluesky_cdinn.sampling import oversampling
from bluesky_cdinn.series_start import SeriesStart, starts_from
from bluesky_cdinn.settings import ReconstructionOptions
from bluesky_cdinn.warm_start import Place, WarmStart, voxels_between, zero_frequency
from bluesky_cdinn.watch import Cancel, Report, Watch

# A running scan has its peak in view once the frames at both ends hold less than this part of the brightest.
PAST_THE_PEAK = 0.5
# What of a file isn't there yet comes with the next update, s.
PATIENCE_S = 0.2
# An update looks at so many voxels at most, the central ones: what lies beyond sharpens the object, and takes
# longer than the next frames do.
MOST_VOXELS = 300_000
# Once all that was planned is there, plans decide by how fine the whole is, and nothing is in a hurry.
MOST_OF_ALL = 8 * MOST_VOXELS
# Running scans that are remembered; one that never ends must not stay for ever.
REMEMBERED = 4
# Scans of series that are remembered after their end, and bytes of their objects.
SERIES, MOST_BYTES = 4, 2**28


@dataclass(frozen=True, eq=False)
class Followed:
    """What is remembered of a running scan.

    Parameters
    ----------
    options
        That it was computed with; others start afresh.
    warm
        Where the next update starts; None where the last one's objects don't agree.
    density
        The last update's, for comparison; complex64.
    centre
        That its phase refers to, see `warm_start.WarmStart`; the same as long as the full grid is.
    full
        Shape of the full grid around it; objects of the same one have the same voxels.
    frame
        What the preview shows.
    points
        How many frames each update had, in order: with them the result can be computed again.
    """

    options: ReconstructionOptions
    warm: WarmStart | None
    density: NDArray[np.complex64]
    centre: Place
    full: tuple[int, ...]
    frame: Frame
    points: tuple[int, ...]


@dataclass
class RunningScan:
    """What the follower holds of a scan.

    Parameters
    ----------
    last
        What its last update came to; None before there was one.
    frames
        Those that were read from files. The final result reads its own: a file may have held less than it
        seemed to while it was being written.
    """

    last: Followed | None = None
    frames: dict[FrameReference, NDArray[Any]] = field(default_factory=dict)


@dataclass
class ScanFollower:
    """Reconstructs scans while they run and when they have ended: the worker's entry.

    It is made once in the worker's process and called with whatever has been measured so far.
    """

    _scans: OrderedDict[str, RunningScan] = field(default_factory=OrderedDict)
    _series: OrderedDict[str, SeriesStart] = field(default_factory=OrderedDict)

    def __call__(
        self,
        curve: RockingCurve,
        options: ReconstructionOptions | None = None,
        *,
        progress: Report | None = None,
        cancelled: Cancel | None = None,
    ) -> PartialResult | Reconstruction:
        """Return what a scan shows: a `PartialResult` while its exit status is "unfinished".

        Parameters
        ----------
        curve, options, progress, cancelled
            As in `pipeline.reconstruct_curve`.

        Raises
        ------
        IncompleteScan
            The scan runs, and its peak isn't in view yet.
        CdinnError
            As `pipeline.reconstruct_curve` does.
        """
        options = options or ReconstructionOptions()
        before = self._before(curve, options)
        if curve.exit_status == "unfinished":
            return self._update(self._scan(curve.raw_uid), curve, options, before, progress, cancelled)
        earlier = self._scans.pop(curve.raw_uid, RunningScan()).last
        if earlier is not None and earlier.options != options:
            earlier = None
        warm = earlier.warm if earlier is not None else None
        result = self._result(curve, options, warm or before, progress, cancelled)
        came_from: dict[str, Any] = {} if before is None else {"started_from": before.raw_uid}
        if earlier is not None:
            came_from["updates_at_points"] = list(earlier.points)
        return replace(result, parameters={**result.parameters, **came_from})

    def _before(self, curve: RockingCurve, options: ReconstructionOptions) -> SeriesStart | None:
        """Return where the first look at a scan may start."""
        before = self._series.get(starts_from(curve.metadata) or "")
        return before if before is not None and before.options == options else None

    def _remember(self, uid: str, found: SeriesStart) -> None:
        """Keep what a scan of a series found for the next, and forget what is oldest."""
        self._series[uid] = found
        self._series.move_to_end(uid)
        while len(self._series) > 1 and (
            len(self._series) > SERIES or sum(s.nbytes for s in self._series.values()) > MOST_BYTES
        ):
            self._series.popitem(last=False)

    def _update(
        self,
        scan: RunningScan,
        curve: RockingCurve,
        options: ReconstructionOptions,
        before: SeriesStart | None,
        progress: Report | None,
        cancelled: Cancel | None,
    ) -> PartialResult:
        earlier = scan.last if scan.last is not None and scan.last.options == options else None
        curve = load_frames(curve, patience_s=PATIENCE_S, known=scan.frames)
        partial, followed = within_memory(
            lambda less: update(curve, less, earlier, before, progress=progress, cancelled=cancelled), options
        )
        scan.last = replace(followed, options=options)
        return partial

    def _result(
        self,
        curve: RockingCurve,
        options: ReconstructionOptions,
        warm: pipeline.Start | None,
        progress: Report | None,
        cancelled: Cancel | None,
    ) -> Reconstruction:
        in_series = starts_from(curve.metadata) is not None
        if in_series and (before := self._before(curve, options)) is not None:
            # What was found last, should nothing be found in this one.
            self._remember(curve.raw_uid, before)

        def keep(found: WarmStart) -> None:
            found = replace(found, objects=found.objects.to("cpu"))
            self._remember(curve.raw_uid, SeriesStart(found, options, curve.raw_uid))

        return within_memory(
            lambda less: pipeline.reconstruct_curve(
                curve,
                less,
                progress=progress,
                cancelled=cancelled,
                warm=warm,
                keep=keep if in_series else None,
            ),
            options,
        )

    def _scan(self, raw_uid: str) -> RunningScan:
        """Return what is held of a scan, and forget those that nothing was heard of for longest."""
        scan = self._scans.setdefault(raw_uid, RunningScan())
        self._scans.move_to_end(raw_uid)
        while len(self._scans) > REMEMBERED:
            self._scans.popitem(last=False)
        return scan


def update(
    curve: RockingCurve,
    options: ReconstructionOptions,
    earlier: Followed | None = None,
    before: SeriesStart | None = None,
    *,
    progress: Report | None = None,
    cancelled: Cancel | None = None,
) -> tuple[PartialResult, Followed]:
    """Reconstruct what a running scan has measured, its frames read, from where it was if that is known.

    The first look starts from the scan before, where that is known.

    The object is fitted to the central part of a large volume, on the working grid. Its fit to all of it, to
    the detector's own sampling and to the held-out voxels is left to the end.

    Raises
    ------
    IncompleteScan
        The peak isn't in view yet.
    InvalidInput, Cancelled
        As in `pipeline.reconstruct_curve`.
    """
    watch = Watch(progress, cancelled)
    known = earlier.points if earlier is not None else ()
    torch.set_num_threads(options.threads)
    with torch.no_grad():
        with watch.stage("prepare"):
            centred, roll = peak_in_view(curve, options)
            posed = pose(padded(centred, roll), options, choose_device(options.device))
        start = before if earlier is None else earlier.warm
        warm = None if start is None else start.known(posed, centred)
        # Each search from other random phases than those before.
        seed = options.seed + len(known)
        searching = options.model_copy(update={"seed": seed})
        solution = pipeline.solve(posed, searching, watch, warm, full=False)
        posed, finalists = solution.posed, solution.finalists.all_whole()
        with watch.stage("judge"):
            numbers = judgement.judge(solution.best, solution.finalists, posed.working.measurement)
            chi2 = fit(solution.best, posed.working.measurement)
            density, support = quality.canonical(
                to_centre(solution.best.density[0]).cpu().numpy(),
                to_centre(solution.best.support[0]).cpu().numpy() > 0,
            )
            support &= quality.half_level_support(density)
            counts = posed.working.measurement.fitted_counts.cpu().numpy()
            found = signs(density, support, counts, chi2, numbers.get("phase_spread_rad"))
            full = tuple(posed.full.magnitude.shape)
            centre, changed, moved = zero_frequency(centred), {}, [0.0, 0.0, 0.0]
            if earlier is not None and earlier.full == full:
                # About another centre the same crystal has another ramp in its phase.
                centre = earlier.centre
                # Of the full grid's voxels; the working grid has fewer of them over the same range.
                moved = [
                    -n * side / whole
                    for n, side, whole in zip(
                        voxels_between(centre, centred), density.shape, full, strict=True
                    )
                ]
                density = (density * quality.ramp(density.shape, moved)).astype(np.complex64)
                density, changed = change(density, earlier.density)
                changed["change_since_points"] = float(earlier.points[-1])
                support = quality.half_level_support(density)
        with watch.stage("strain"):
            # Its Q is that of the volume's own centre.
            there = (density * quality.ramp(density.shape, [-m for m in moved])).astype(np.complex64)
            physical = pipeline.physical_result(centred, there, support)
            measured = fraction_measured(curve)
            # Halves of a part of a curve say nothing of the whole.
            fine = fineness(solution.finalists, posed, centred, physical) if measured >= 1 else {}
            sampled = as_measured(support, full) if support.any() else {}
    numbers.pop("transfer", None)
    frame = earlier.frame if earlier is not None else Frame.around(support)
    amplitude, phase = preview(density, support, frame)
    agreed = phasing.agreement(finalists) > phasing.AGREED
    points = len(curve.angles_deg)
    return (
        PartialResult(
            points=points,
            fraction=measured,
            amplitude=amplitude,
            phase=phase,
            chi2=chi2,
            free_llk=numbers.pop("free_llk"),
            confidence=confidence(found),
            seconds=watch.seconds,
            scalars={
                **{name: float(value) for name, value in numbers.items()},
                **physical.get("scalars", {}),
                **sampled,
                **fine,
                **changed,
            },
        ),
        Followed(
            options,
            WarmStart.of(finalists, posed, centred) if agreed and options.refine else None,
            density,
            centre,
            full,
            frame,
            (*known, points),
        ),
    )


def peak_in_view(
    curve: RockingCurve, options: ReconstructionOptions
) -> tuple[DiffractionVolume, tuple[int, ...]]:
    """Return what is to be looked at, centred, and by how much it was rolled.

    Raises
    ------
    IncompleteScan
        What has been measured holds no peak, or none that has been passed.
    """
    try:
        volume = pipeline.measured_volume(curve, options)
        require_peak(volume)
        centred, roll = centre_peak(volume)
    except InvalidInput as error:
        # Before the peak there may be next to no counts. What is really wrong is said at the end.
        raise IncompleteScan(f"nothing can be seen yet: {error}") from error
    return central_part(centred, MOST_OF_ALL if fraction_measured(curve) >= 1 else MOST_VOXELS), roll


def require_peak(volume: DiffractionVolume) -> None:
    """Raise unless a scan that still runs has the peak behind it.

    Raises
    ------
    IncompleteScan
        The first or the last measured slice holds nearly as much as the brightest.
    """
    measured = volume.valid.any(axis=(1, 2))
    totals = np.where(volume.valid, volume.intensity, 0).sum(axis=(1, 2), dtype=np.float64)[measured]
    edge = float(max(totals[0], totals[-1]))
    brightest = float(totals.max())
    if edge >= PAST_THE_PEAK * brightest:
        raise IncompleteScan(
            f"the peak must be in view before the crystal can be seen: the slices at the ends of what is "
            f"measured must hold less than {PAST_THE_PEAK:g} of the brightest's {brightest:g} counts, one "
            f"holds {edge:g}; go on with the scan"
        )


def central_part(volume: DiffractionVolume, most: int = MOST_VOXELS) -> DiffractionVolume:
    """Return the volume, or of a large one so many voxels about its centre in its own proportions."""
    shape = volume.intensity.shape
    if volume.intensity.size <= most:
        return volume
    ratio = (most / volume.intensity.size) ** (1 / 3)
    a, b, c = (min(n, fast_side(n * ratio)) for n in shape)
    middle = [n // 2 for n in shape]
    return crop_around_peak(volume, (a, b, c), (middle[0], middle[1], middle[2]))


def fit(objects: Objects, measurement: Measurement) -> float:
    """Return chi2 of the first object on what is fitted."""
    power = torch.fft.fftn(objects.density[:1], dim=AXES, norm="ortho").abs().square()
    expected = measurement.expected(power).sqrt()
    return float(amplitude_loss(expected, measurement.magnitude, measurement.fitted)[0])


def fineness(
    finalists: Boxed, posed: Posed, volume: DiffractionVolume, physical: Mapping[str, Any]
) -> dict[str, float]:
    """Return the numbers of resolution of the whole peak, as far as the working grid shows it."""
    counted = Counted.of(posed.working.measurement)
    share = np.divide(volume.intensity.shape, posed.full.magnitude.shape).tolist()
    halves = judgement.halved(finalists, counted, share, 0)
    if halves is None:
        return {}
    return judgement.resolved(halves, volume.intensity.shape, physical)[1]


def as_measured(support: NDArray[np.bool_], full: tuple[int, ...]) -> dict[str, float]:
    """Return how finely the pattern was sampled by the detector, not by the working grid."""
    ratios = oversampling(support)
    finer = np.divide(full, support.shape)
    return {name: ratio * float(f) for (name, ratio), f in zip(ratios.items(), finer, strict=True)}


def fraction_measured(curve: RockingCurve) -> float:
    """Return the share of the planned angles that a running scan has reached; NaN without a plan."""
    if curve.planned_deg is None or len(curve.planned_deg) < 2:
        expected = curve.expected_points
        return min(len(curve.angles_deg) / expected, 1.0) if expected else float("nan")
    planned = np.unique(curve.planned_deg)
    step = float(np.median(np.diff(planned)))
    apart = np.abs(planned[:, None] - np.asarray(curve.angles_deg)[None, :]).min(axis=1)
    return float((apart < 0.75 * step).mean())


def change(
    density: NDArray[np.complex64], before: NDArray[np.complex64]
) -> tuple[NDArray[np.complex64], dict[str, float]]:
    """Return an object as the one before lay, so that pictures don't jump, and by how much it has changed.

    Parameters
    ----------
    density, before
        complex64, boxes of the same voxels about n // 2, whose sides may differ.

    Returns
    -------
    density
        In its own box.
    numbers
        ``change``, 1 - complex correlation, and ``change_rad``, the rms phase difference inside both.
    """
    reference = np.zeros(density.shape, np.complex64)
    common = [min(n, m) for n, m in zip(density.shape, before.shape, strict=True)]
    reference[window_on_grid(density.shape, common)] = before[window_on_grid(before.shape, common)]
    aligned = quality.align(density, reference)
    return aligned, {
        "change": 1 - quality.similarity(aligned, reference),
        "change_rad": quality.phase_difference(aligned, reference),
    }
