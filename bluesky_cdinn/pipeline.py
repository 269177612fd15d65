"""The main path: a diffraction volume in, a crystal out. Start reading here.

The volume is centred on its peak; a few independent starts are phased on its central, coarse part; two
that agree go up level by level to the full grid; the better is fitted to the end, judged on voxels that
no fit saw, and given its physical meaning.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import bluesky_cdinn
from bluesky_cdinn import phasing, quality
from bluesky_cdinn.errors import Cancelled, IncompleteScan, InvalidInput, MissingMetadata
from bluesky_cdinn.forward import (
    amplitude_loss,
    backpropagate,
    poisson_deviance,
    propagate,
    to_centre,
    to_corner,
)
from bluesky_cdinn.geometry import volume_bases
from bluesky_cdinn.grid import (
    coarse_levels,
    fill_invalid,
    held_out_voxels,
    resample_intensity,
    signal_window,
    smooth_shape,
    sufficient_shape,
    window_on_grid,
)
from bluesky_cdinn.peak import find_peak
from bluesky_cdinn.preprocess import crop_around_peak, detector_fields, prepare
from bluesky_cdinn.records import DiffractionVolume, Progress, Reconstruction, RockingCurve
from bluesky_cdinn.refine import Measurement, Objects
from bluesky_cdinn.settings import ReconstructionOptions
from bluesky_cdinn.starts import start_named
from bluesky_cdinn.strain import strain_field
from bluesky_cdinn.support import autocorrelation_support
from bluesky_cdinn.volume import assemble, load_frames

# Of the valid voxels, kept from the fit to judge it; outside the core, whose loss would cost too much.
HELD_OUT, CORE = 0.02, 0.15
# How many of the starts that agree are taken to the full grid; two suffice to compare.
FINALISTS = 2
# Voxels of over this share of the peak are the peak's own, not background.
FRINGES = 0.02
# Voxels that are not valid may hold this share of the counts before the grid is left as it is.
FILLED = 0.01
# Volumes of fewer voxels than this aren't worth padding, nor any whose edge holds more of its counts.
LARGE, CROSSED = 300_000, 1e-3
# Fewer slices or counts than this hold no crystal.
FEWEST_SLICES, FEWEST_COUNTS = 8, 500
# Share of the whole that is done when a stage ends; the first object takes about half of it.
ENDS = {"prepare": 0.03, "starts": 0.5, "projections": 0.75, "polish": 0.9, "judge": 0.97, "strain": 1.0}

Report = Callable[[Progress], None]
Cancel = Callable[[], bool]


def reconstruct_curve(
    curve: RockingCurve,
    options: ReconstructionOptions | None = None,
    *,
    progress: Report | None = None,
    cancelled: Cancel | None = None,
) -> Reconstruction:
    """Reconstruct the crystal that a rocking curve shows.

    Parameters
    ----------
    curve
        As assembled from documents; its frames are read here where they lie in files.
    options
        What the result depends on beside the data; the defaults where not given.
    progress
        Called after every iteration.
    cancelled
        Asked after every iteration; once it says True the work ends.

    Raises
    ------
    IncompleteScan
        Too few slices or counts to hold a crystal.
    InvalidInput
        Frames or fields that can't be used; the message says which.
    Cancelled
        On request.
    """
    options = options or ReconstructionOptions()
    curve = load_frames(curve)
    measured = assemble(curve)
    slices = int(measured.valid.any(axis=(1, 2)).sum())
    if slices < FEWEST_SLICES:
        raise IncompleteScan(
            f"at least {FEWEST_SLICES} rocking angles are required, the scan has {slices}; "
            f"it ended with exit status {curve.exit_status!r}"
        )
    fields = detector_fields(curve)
    clean = prepare(measured, dark=fields.get("dark"), flat=fields.get("flat"))
    volume = crop_around_peak(clean, options.max_shape or signal_window(clean.intensity, find_peak(clean)))
    result = reconstruct(volume, options, progress=progress, cancelled=cancelled)
    return replace(
        result,
        raw_uid=curve.raw_uid,
        scan_id=curve.scan_id,
        metadata=curve.metadata,
        parameters={**result.parameters, "missing_metadata": list(curve.missing)},
    )


def reconstruct(
    volume: DiffractionVolume,
    options: ReconstructionOptions | None = None,
    *,
    progress: Report | None = None,
    cancelled: Cancel | None = None,
) -> Reconstruction:
    """Reconstruct the crystal behind a diffraction volume.

    Parameters
    ----------
    volume
        Any shape, the peak anywhere; voxels that are not valid are free.
    options, progress, cancelled
        As in `reconstruct_curve`.

    Returns
    -------
    Reconstruction
        Its density lies on the volume's own grid: ``abs(propagate(density))**2`` compares with the intensity.

    Raises
    ------
    InvalidInput
        If the volume holds no peak.
    Cancelled
        On request.
    """
    options = options or ReconstructionOptions()
    watch = _Watch(progress, cancelled)
    device = choose_device(options.device)
    torch.set_num_threads(options.threads)
    with torch.no_grad():
        with watch.stage("prepare"):
            centred, roll = centre_peak(volume)
            posed = pose(padded(centred, roll), options, device)
        objects, best = solve(posed, options, watch)
        with watch.stage("judge"):
            numbers = judge(best, objects, posed.full)
            if options.refine:
                best = phasing.settle(best, posed.full, watch)
            best = unpadded(best, centred.intensity.shape)
            chi2 = misfit(best, centred)
            confidence = quality.confidence(numbers.get("phase_spread_rad"), chi2)
    density, support = quality.canonical(
        to_centre(best.density[0]).cpu().numpy(), to_centre(best.support[0]).cpu().numpy() > 0
    )
    support &= quality.half_level_support(density)
    with watch.stage("strain"):
        physical = physical_result(centred, density, support, numbers.pop("resolved", None))
    if any(roll):
        # Back to where the peak was: a shift of the pattern is a ramp of the object's phase.
        density = density * quality.ramp(density.shape, [-r for r in roll])
    transfer = numbers.pop("transfer", None)
    free_llk = numbers.pop("free_llk")
    scalars = {**{k: float(v) for k, v in numbers.items()}, **physical.pop("scalars", {})}
    return Reconstruction(
        density=density,
        support=support,
        chi2=chi2,
        free_llk=free_llk,
        confidence=confidence,
        seconds=watch.seconds,
        cpu_s=watch.cpu_s,
        timings_s=watch.timings,
        scalars=scalars,
        resolution_curve=transfer,
        progress=np.asarray(watch.chi2, dtype=np.float32),
        parameters=parameters(options, posed.working, device),
        history=(*volume.history, {"step": "reconstruct", "roll": list(roll)}),
        **physical,
    )


def choose_device(name: str) -> torch.device:
    """Return the device of a name; "auto" takes a GPU where there is one.

    Raises
    ------
    InvalidInput
        If torch knows no such device, or it isn't there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as err:
        raise InvalidInput(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from err
    if device.type not in ("cpu", "cuda"):
        raise InvalidInput(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise InvalidInput(
            f"device {name!r} was asked for, and torch sees {count or 'no'} GPU here: use 'auto' or 'cpu'"
        )
    return device


def centre_peak(volume: DiffractionVolume) -> tuple[DiffractionVolume, tuple[int, ...]]:
    """Return the volume rolled so that its peak lies at n // 2, and by how much.

    The transform is periodic, so that rolling is exact; voxels that cross the edge stay what they were.
    """
    counts = float(volume.intensity[volume.valid].sum())
    if not FEWEST_COUNTS <= counts < np.inf or min(volume.intensity.shape) < FEWEST_SLICES:
        raise InvalidInput(
            f"a diffraction volume must have at least {FEWEST_SLICES} voxels a side and {FEWEST_COUNTS} "
            f"valid counts, got shape {volume.intensity.shape} and {counts:.0f} counts; voxels that hold no "
            "number must not be valid"
        )
    roll = tuple(
        n // 2 - round(p) for n, p in zip(volume.intensity.shape, centre_of_counts(volume), strict=True)
    )
    if not any(roll):
        return volume, roll
    first, row, column = (w - r for w, r in zip(volume.window, roll, strict=True))
    rolled = replace(
        volume,
        intensity=np.roll(volume.intensity, roll, axis=quality.AXES),
        valid=np.roll(volume.valid, roll, axis=quality.AXES),
        window=(first, row, column),
    )
    return rolled, roll


def padded(volume: DiffractionVolume, roll: tuple[int, ...]) -> DiffractionVolume:
    """Return a large volume with voxels that are not valid around it, up to lengths that FFTs are fast on.

    Voxels that rolling took across the edge lie where they belong only on the volume's own grid, so that
    they are left out; where they matter, the volume stays as it is.
    """
    shape = volume.intensity.shape
    larger = smooth_shape(shape)
    if larger == shape or volume.intensity.size < LARGE:
        return volume
    stayed = np.ones(shape, dtype=np.bool_)
    for axis, step in enumerate(roll):
        crossed = slice(0, step) if step > 0 else slice(shape[axis] + step, None)
        if step:
            np.moveaxis(stayed, axis, 0)[crossed] = False
    counts = np.where(volume.valid, volume.intensity, 0)
    if counts[~stayed].sum() > CROSSED * counts.sum():
        return volume
    window = window_on_grid(larger, shape)
    intensity, valid = np.zeros(larger, np.float32), np.zeros(larger, np.bool_)
    intensity[window], valid[window] = volume.intensity, volume.valid & stayed
    return DiffractionVolume(intensity, valid)


def unpadded(objects: Objects, shape: tuple[int, ...]) -> Objects:
    """Return objects on the grid whose field is the central window of theirs."""
    larger = tuple(objects.density.shape[-3:])
    if larger == shape:
        return objects
    window = (slice(None), *window_on_grid(larger, shape))
    density = backpropagate(propagate(to_centre(objects.density))[window])
    extended = backpropagate(propagate(to_centre(objects.support).to(density.dtype))[window]).real
    scale = (density[0].numel() / objects.density[0].numel()) ** 0.5
    support = (extended > 0.5 / scale).to(objects.support.dtype)
    return Objects(to_corner(density), to_corner(support), objects.chi2)


def centre_of_counts(volume: DiffractionVolume) -> tuple[float, ...]:
    """Return the centre of mass of the peak, voxels: where the crystal's mean lattice scatters to.

    A strongly strained crystal's brightest fringe may be far from it.
    """
    peak = find_peak(volume)
    shape = volume.intensity.shape
    # About the peak the volume is periodic, so that one at the edge has all its sides.
    roll = [n // 2 - round(p) for n, p in zip(shape, peak, strict=True)]
    counts = np.roll(np.where(volume.valid, volume.intensity, 0), roll, axis=quality.AXES)
    counts = np.where(counts > FRINGES * counts[tuple(n // 2 for n in shape)], counts, 0)
    total = counts.sum(dtype=np.float64)
    centre = []
    for axis, (n, r) in enumerate(zip(shape, roll, strict=True)):
        profile = counts.sum(axis=tuple(a for a in quality.AXES if a != axis), dtype=np.float64)
        centre.append(float(profile @ np.arange(n) / total) - r if total else peak[axis])
    return tuple(centre)


@dataclass(frozen=True, eq=False)
class Posed:
    """A volume made ready.

    Parameters
    ----------
    working
        The phase problem, sampled no finer than the crystal needs.
    full
        The same measurement on the volume's own grid.
    """

    working: phasing.Problem
    full: Measurement


def pose(volume: DiffractionVolume, options: ReconstructionOptions, device: torch.device) -> Posed:
    """Return a volume, centred on its peak, as a phase problem."""
    rng = np.random.default_rng(options.seed)
    intensity = np.where(volume.valid, volume.intensity, 0).clip(0)
    free = held_out_voxels(volume.valid, HELD_OUT, CORE, rng)
    filled = fill_invalid(intensity, volume.valid)
    full = _measurement(intensity, volume.valid, free, filled, device)
    # A level high enough to leave out the autocorrelation's halo; the margins make up for what it cuts.
    box = to_centre(autocorrelation_support(full.intensity, 0.01)).cpu().numpy()
    extent = [int(box.any(axis=tuple(a for a in quality.AXES if a != axis)).sum()) for axis in quality.AXES]
    shape = sufficient_shape(intensity.shape, extent)
    filling = float(filled[~volume.valid].sum()) / float(filled.sum())
    if shape == intensity.shape or filling > FILLED:
        return Posed(phasing.Problem(full, coarse_levels(filled, extent)), full)
    sampled = resample_intensity(filled, volume.valid & ~free, shape)
    measured = np.ones(shape, dtype=np.bool_)
    spared = held_out_voxels(measured, HELD_OUT, CORE, rng)
    working = _measurement(sampled, measured, spared, sampled, device)
    return Posed(phasing.Problem(working, coarse_levels(sampled, extent)), full)


def _measurement(
    intensity: NDArray[np.float32],
    valid: NDArray[np.bool_],
    free: NDArray[np.bool_],
    filled: NDArray[np.float32],
    device: torch.device,
) -> Measurement:
    arrays = (np.sqrt(intensity), valid & ~free, free, filled)
    return Measurement(*(to_corner(torch.from_numpy(array).to(device)) for array in arrays))


def solve(posed: Posed, options: ReconstructionOptions, watch: "_Watch") -> tuple[Objects, Objects]:
    """Return the finalists on the working grid, the best first, and the best on the full grid."""
    generator = torch.Generator().manual_seed(options.seed)
    start = start_named(options.start)
    problem = posed.working
    if not options.refine:
        with watch.stage("starts"):
            objects = start(posed.full, 1, generator)
        return objects, objects
    with watch.stage("starts"):
        objects = phasing.search(problem, start, options.starts, generator, watch)
        objects = objects.keep(torch.arange(min(FINALISTS, options.starts)))
    with watch.stage("projections"):
        for level in problem.levels[1:]:
            objects = phasing.climb(objects, problem, level, watch)
    with watch.stage("polish"):
        objects = phasing.polish(objects, problem.measurement, watch)
        objects = objects.keep(objects.chi2.argsort())
        best = objects.keep(torch.arange(1))
        if problem.measurement is not posed.full:
            best = phasing.finish(best, posed.full, watch)
    return objects, best


def judge(best: Objects, finalists: Objects, full: Measurement) -> dict[str, Any]:
    """Return free_llk and, from several finalists, their agreement, PRTF and its cut-off."""
    field = propagate(to_centre(best.density))
    counts = to_centre(full.magnitude).square()
    held_out = None if full.held_out is None else to_centre(full.held_out)
    deviance = poisson_deviance(field.abs().square(), counts, held_out)
    numbers: dict[str, Any] = {"free_llk": float(deviance[0])}
    if len(finalists.density) > 1:
        first, *others = to_centre(finalists.density).cpu().numpy()
        aligned = [first, *(quality.align(other, first) for other in others)]
        numbers["transfer"] = quality.phase_retrieval_transfer(aligned)
        numbers["resolved"] = quality.resolved_frequency(numbers["transfer"])
        numbers["agreement"] = quality.similarity(aligned[1], first)
        numbers["phase_spread_rad"] = quality.phase_difference(aligned[1], first)
    return numbers


def misfit(best: Objects, volume: DiffractionVolume) -> float:
    """Return chi2 of the first object on all valid voxels of the volume."""
    field = propagate(to_centre(best.density[:1]))
    magnitude = np.sqrt(np.where(volume.valid, volume.intensity, 0).clip(0))
    valid = torch.tensor(volume.valid, device=field.device)
    return float(amplitude_loss(field, torch.from_numpy(magnitude).to(field.device), valid)[0])


def physical_result(
    volume: DiffractionVolume,
    density: NDArray[np.complex64],
    support: NDArray[np.bool_],
    resolved: float | None,
) -> dict[str, Any]:
    """Return the fields of a `Reconstruction` that need the geometry: none of them without it."""
    try:
        reciprocal, direct, q_vector = volume_bases(volume)
    except MissingMetadata:
        return {}
    if not support.any():
        return {"direct_basis": direct, "reciprocal_basis": reciprocal, "q_vector": q_vector}
    strained = strain_field(density, support, direct, q_vector)
    scalars = dict(strained.scalars)
    if resolved is not None:
        # Half a period at the frequency where the starts part, in voxels of the volume's mean direct edge.
        voxel_nm = abs(np.linalg.det(direct)) ** (1 / 3)
        scalars["resolution_nm"] = float(voxel_nm / (2 * resolved))
    return {
        "direct_basis": direct,
        "reciprocal_basis": reciprocal,
        "q_vector": strained.q_vector,
        "displacement": strained.displacement,
        "strain": strained.strain,
        "scalars": scalars,
    }


def parameters(
    options: ReconstructionOptions, problem: phasing.Problem, device: torch.device
) -> dict[str, Any]:
    """Return everything that the result depends on beside the data."""
    return {
        **options.model_dump(mode="json"),
        "device": str(device),
        "working_shape": list(problem.measurement.magnitude.shape),
        "levels": [list(level) for level in problem.levels],
        "held_out": HELD_OUT,
        "version": bluesky_cdinn.__version__,
        "torch": torch.__version__,
    }


@dataclass
class _Watch:
    """Reports after each iteration, and ends the work when asked to."""

    progress: Report | None
    cancelled: Cancel | None
    timings: dict[str, float] = field(default_factory=dict)
    chi2: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu_s: float = 0.0
    name: str = ""
    fraction: float = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.name, wall, cpu = name, time.perf_counter(), time.process_time()
        self._say()
        yield
        took = time.perf_counter() - wall
        self.timings[name] = took
        self.seconds += took
        self.cpu_s += time.process_time() - cpu
        self.fraction = ENDS[name]
        self._say()

    def __call__(self, objects: Objects) -> None:
        best = objects.chi2.min()
        self.chi2.append(float(best) if torch.isfinite(best) else float("nan"))
        # Stages differ in length from case to case, so each closes on its end without reaching it.
        self.fraction += (ENDS[self.name] - self.fraction) * 0.01
        self._say()

    def _say(self) -> None:
        if self.cancelled is not None and self.cancelled():
            raise Cancelled(f"the reconstruction was stopped on request while at {self.name!r}")
        if self.progress is not None:
            last = self.chi2[-1] if self.chi2 else float("nan")
            self.progress(Progress(self.name, self.fraction, last))
