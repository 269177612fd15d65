"""The main path: a diffraction volume in, a crystal out. Start reading here.

The volume is evened out and centred on its peak; a few independent starts, the network's guesses where there
are weights, are phased on its central, coarse part; two that agree go up level by level to the full grid; the
better is fitted to the end, judged on voxels that no fit saw, and given its physical meaning.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

import bluesky_cdinn
from bluesky_cdinn import judgement, phasing, quality
from bluesky_cdinn.boxed import Boxed
from bluesky_cdinn.curvature import cropped_flat
from bluesky_cdinn.device import choose_device
from bluesky_cdinn.doubts import confidence, doubts, larger_body, signs
from bluesky_cdinn.errors import IncompleteScan, InvalidInput
from bluesky_cdinn.evenness import evened, gain_numbers
from bluesky_cdinn.forward import to_centre, to_corner
from bluesky_cdinn.geometry import volume_bases
from bluesky_cdinn.grid import signal_window
from bluesky_cdinn.half_sets import Counted
from bluesky_cdinn.imperfections import fitted_with_background
from bluesky_cdinn.network_start import LEAST, NetworkStart, network_start
from bluesky_cdinn.partial_coherence import blur_of, blurred, blurred_alike, searched_again
from bluesky_cdinn.peak import find_peak
from bluesky_cdinn.physical import lattice_parameters, physical_result, table_of_facets
from bluesky_cdinn.posing import FEWEST_SLICES, HELD_OUT, Posed, centre_peak, padded, pose, unpadded
from bluesky_cdinn.preprocess import crop_around_peak, detector_fields, prepare
from bluesky_cdinn.records import DiffractionVolume, Reconstruction, RockingCurve
from bluesky_cdinn.refine import Objects
from bluesky_cdinn.region import box_around_peak, cut
from bluesky_cdinn.sampling import check_edges, check_oversampling, oversampling
from bluesky_cdinn.seen import remarks, seen_numbers
from bluesky_cdinn.settings import ReconstructionOptions
from bluesky_cdinn.starts import start_named
from bluesky_cdinn.volume import assemble, load_frames
from bluesky_cdinn.voxels import averaged, unaveraged
from bluesky_cdinn.warm_start import Known, WarmStart, over_noise
from bluesky_cdinn.watch import Cancel, Report, Watch
from bluesky_cdinn.weights import shipped_weights

logger = logging.getLogger(__name__)

# How many of the starts that agree are taken to the full grid; two suffice to compare.
FINALISTS = 2


class Start(Protocol):
    """Objects that were found before, in other data of the same crystal."""

    def known(self, posed: Posed, volume: DiffractionVolume) -> Known:
        """Return them where a volume, centred on its peak, needs them."""
        ...


Keep = Callable[[WarmStart], None]


def reconstruct_curve(
    curve: RockingCurve,
    options: ReconstructionOptions | None = None,
    *,
    progress: Report | None = None,
    cancelled: Cancel | None = None,
    warm: Start | None = None,
    keep: Keep | None = None,
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
    warm
        What an earlier part of the same scan came to, or the scan before; believed as far as the whole
        confirms it.
    keep
        Given the objects that were found, where they agree, for a scan to come.

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
    volume = measured_volume(curve, options)
    result = reconstruct(volume, options, progress=progress, cancelled=cancelled, warm=warm, keep=keep)
    return replace(
        result,
        raw_uid=curve.raw_uid,
        scan_id=curve.scan_id,
        metadata=curve.metadata,
        parameters={**result.parameters, "missing_metadata": list(curve.missing)},
    )


def measured_volume(curve: RockingCurve, options: ReconstructionOptions) -> DiffractionVolume:
    """Return what a rocking curve has measured of its peak, clean; of a running scan as far as it is.

    Raises
    ------
    IncompleteScan, InvalidInput
        As in `reconstruct_curve`.
    """
    whole = np.asarray(curve.frames).shape[-2:]
    box = box_around_peak(curve, options.max_shape)
    measured = replace(assemble(cut(curve, box)), window=(0, box[0].start, box[1].start))
    slices = int(measured.valid.any(axis=(1, 2)).sum())
    if slices < FEWEST_SLICES:
        raise IncompleteScan(
            f"at least {FEWEST_SLICES} rocking angles are required, the scan has {slices}; "
            f"it ended with exit status {curve.exit_status!r}"
        )
    # A field that doesn't fit is refused where it is used.
    fields = {
        name: field[box] if field.shape == whole else field for name, field in detector_fields(curve).items()
    }
    clean = with_lattice(prepare(measured, dark=fields.get("dark"), flat=fields.get("flat")))
    shape = options.max_shape or signal_window(clean.intensity, find_peak(clean))
    if curve.exit_status == "unfinished":
        return crop_around_peak(clean, shape)
    return cropped_flat(check_edges(clean), shape)


def with_lattice(volume: DiffractionVolume) -> DiffractionVolume:
    """Return the volume, without a geometry by which its peak is not swept: then voxel units are left."""
    if volume.geometry is None:
        return volume
    try:
        volume_bases(crop_around_peak(volume, (2, 2, 2)))
    except InvalidInput as error:
        logger.warning("the geometry can't be used: %s", error)
        step = {"step": "geometry", "warnings": [str(error)]}
        return replace(volume, geometry=None, history=(*volume.history, step))
    return volume


def reconstruct(
    volume: DiffractionVolume,
    options: ReconstructionOptions | None = None,
    *,
    progress: Report | None = None,
    cancelled: Cancel | None = None,
    warm: Start | None = None,
    keep: Keep | None = None,
) -> Reconstruction:
    """Reconstruct the crystal behind a diffraction volume.

    Parameters
    ----------
    volume
        Any shape, the peak anywhere; voxels that are not valid are free.
    options, progress, cancelled, warm, keep
        As in `reconstruct_curve`.

    Returns
    -------
    Reconstruction
        Its density lies on the volume's own grid: ``abs(propagate(density))**2`` compares with the intensity,
        but for the blur, background and scales that its scalars tell.

    Raises
    ------
    InvalidInput
        If the volume holds no peak.
    Cancelled
        On request.
    """
    options = options or ReconstructionOptions()
    watch = Watch(progress, cancelled)
    device = choose_device(options.device)
    torch.set_num_threads(options.threads)
    with torch.no_grad():
        with watch.stage("prepare"):
            volume = check_edges(volume)
            if options.imperfections:
                volume = evened(volume)
            centred, roll = centre_peak(volume)
            posed = pose(padded(centred, roll), options, device)
        solution = solve(posed, options, watch, None if warm is None else warm.known(posed, centred))
        best, posed, finalists = solution.best, solution.posed, solution.finalists
        if keep is not None and options.refine:
            whole = finalists.all_whole()
            if phasing.agreement(whole) > phasing.AGREED:
                keep(WarmStart.of(whole, posed, centred))
            del whole
        with watch.stage("judge"):
            noted = {**parameters(options, posed.working, device), **solution.origin}
            # Whole grids are large: what is left to do with the finalists needs their counts and box alone.
            counted, measurement = Counted.of(posed.working.measurement), posed.full
            guess_chi2 = solution.guess_chi2
            del posed, solution
            numbers = judgement.judge(best, finalists, measurement)
            if guess_chi2 is not None:
                numbers["guess_chi2"] = guess_chi2
            if options.refine:
                best = phasing.settle(best, measurement, watch)
            if measurement.averaged:
                best = replace(best, density=unaveraged(best.density))
            shape = centred.intensity.shape
            best = unpadded(best, shape)
            seen = None if measurement.detection is None else measurement.detection.window(shape)
            expected = judgement.expected_counts(best, seen)
            chi2 = judgement.misfit(expected, centred)
            slices = judgement.compared_slices(expected, centred)
            share = np.divide(shape, measurement.magnitude.shape).tolist()
            del expected, measurement
            density, support = quality.canonical(
                to_centre(best.density[0]).cpu().numpy(), to_centre(best.support[0]).cpu().numpy() > 0
            )
            del best
            halves = judgement.halved(finalists, counted, share, options.seed)
    support &= quality.half_level_support(density)
    sampled = oversampling(support) if support.any() else {}
    spread, counts = numbers.get("phase_spread_rad"), np.where(centred.valid, centred.intensity, 0)
    # What the detector saw of a crystal rings, however right it is; its means over voxels don't.
    means = to_centre(averaged(to_corner(torch.from_numpy(density)))).numpy()
    found = signs(means, support, counts, chi2, spread)
    # Of two crystals the larger one.
    crystal, _ = larger_body(density, support)
    with watch.stage("strain"):
        physical = physical_result(
            centred,
            density,
            crystal,
            spread_rad=spread,
            misfit=found.misfit,
        )
        curve, resolved = judgement.fineness(halves, density, crystal, physical)
        table = table_of_facets(density, crystal, physical, volume.geometry)
    if any(roll):
        # Back to where the peak was: a shift of the pattern is a ramp of the object's phase.
        density = density * quality.ramp(density.shape, [-r for r in roll])
    transfer = numbers.pop("transfer", None)
    free_llk = numbers.pop("free_llk")
    scalars = {**{k: float(v) for k, v in numbers.items()}, **sampled, **physical.pop("scalars", {})}
    unlike = seen_numbers(seen, counts, centred.valid, physical.get("direct_basis"))
    scalars |= resolved | found.scalars() | unlike | gain_numbers(volume)
    return Reconstruction(
        density=density,
        support=support,
        chi2=chi2,
        free_llk=free_llk,
        # Fewer numbers than unknowns, two for each voxel, determine no object.
        confidence=confidence(found) if centred.valid.sum() > 2 * support.sum() else 0.0,
        seconds=watch.seconds,
        cpu_s=watch.cpu_s,
        timings_s=watch.timings,
        scalars=scalars,
        resolution_curve=transfer,
        shell_correlation=curve,
        intensity_slices=slices,
        facet_table=table,
        progress=np.asarray(watch.chi2, dtype=np.float32),
        parameters={
            **noted,
            **lattice_parameters(volume.geometry),
        },
        history=(
            *volume.history,
            {
                "step": "reconstruct",
                "roll": list(roll),
                "warnings": [*check_oversampling(sampled), *doubts(found), *remarks(unlike)],
            },
        ),
        **physical,
    )


@dataclass(frozen=True, eq=False)
class Solution:
    """What phasing came to.

    Parameters
    ----------
    finalists
        On the working grid, the best first.
    best
        On the full grid.
    posed
        What was phased, and how its voxels count the objects' far field.
    origin
        Where they started from, as `parameters` records it.
    guess_chi2
        Of the network's best guess, where it was asked.
    """

    finalists: Boxed
    best: Objects
    posed: Posed
    origin: dict[str, Any]
    guess_chi2: float | None = None


def solve(
    posed: Posed,
    options: ReconstructionOptions,
    watch: Watch,
    warm: Known | None = None,
    *,
    full: bool = True,
) -> Solution:
    """Phase a measurement.

    Parameters
    ----------
    posed
        The measurement.
    options, watch
        As everywhere.
    warm
        Objects known from a part of it, or from the scan before. They are taken where they agree after all
        and fit; where they agree barely, a search may yet find better ones, which is left out at the end of
        a scan: each update before it has searched.
    full
        Whether the best object is fitted to the full grid too; else, while a scan runs, it stays on the
        working one.
    """
    problem, known, believed = posed.working, None, posed.working
    if warm is not None and options.refine:
        if options.imperfections:
            with watch.stage("prepare"):
                believed = blurred(problem, blur_of(warm.objects, problem, watch))
        known, believed = refined(warm.objects, believed, problem.levels[-1:], options, watch)
        fits = over_noise(known, believed.measurement) <= warm.most_misfit
        if fits and phasing.agreement(known) > (phasing.AGREED if full else phasing.SURE):
            posed = replace(posed, working=believed)
            finalists = Boxed.of(known)
            del known
            return finished(finalists, posed, options, dict(warm.origin), watch, full=full)
    generator = torch.Generator().manual_seed(options.seed)
    with watch.stage("starts"):
        start = start_named("autocorrelation" if options.start == "network" else options.start)
        guess = network_guess(options, problem.levels[0], posed.full.magnitude.device)
        weights = {} if guess is None else {"weights": guess.weights}
        if not options.refine:
            objects = (guess or start)(posed.full if full else problem.measurement, 1, generator)
            origin = {"found_from": "network" if guess else "classical", **weights}
            return Solution(
                Boxed.of(objects), objects, posed, origin, float(objects.chi2[0]) if guess else None
            )

        def search(problem: phasing.Problem) -> phasing.Found:
            return phasing.search(problem, start, options.starts, generator, watch, guess)

        found = search(problem)
        if options.imperfections:
            problem, found = searched_again(posed, options.seed, found, search, watch)
        objects = found.objects.keep(torch.arange(min(FINALISTS, options.starts)))
    objects, problem = refined(objects, problem, problem.levels[1:], options, watch)
    origin = {"found_from": found.start, **weights}
    if known is not None and warm is not None and phasing.agreement(known) >= phasing.agreement(objects):
        # Objects of one start may agree on what is wrong: those that fit worse are left.
        limit = max(warm.most_misfit, over_noise(objects, problem.measurement))
        if over_noise(known, believed.measurement) <= limit:
            objects, problem, origin = known, believed, dict(warm.origin)
    posed, finalists = replace(posed, working=problem), Boxed.of(objects)
    # Whole grids are large, and another is fitted now.
    del objects, known
    return finished(finalists, posed, options, origin, watch, found.guess_chi2, full=full)


def refined(
    objects: Objects,
    problem: phasing.Problem,
    levels: Sequence[phasing.Shape],
    options: ReconstructionOptions,
    watch: Watch,
) -> tuple[Objects, phasing.Problem]:
    """Take objects up the levels and fit them to the end, the best first; and what the problem came to."""
    with watch.stage("projections"):
        for level in levels:
            objects = phasing.climb(objects, problem, level, watch)
    with watch.stage("polish"):
        objects = phasing.fitted(objects, problem, watch)
        if options.imperfections:
            problem = replace(
                problem, measurement=fitted_with_background(objects, problem.measurement, watch)
            )
    return objects.keep(objects.chi2.argsort()), problem


def finished(
    finalists: Boxed,
    posed: Posed,
    options: ReconstructionOptions,
    origin: dict[str, Any],
    watch: Watch,
    guess_chi2: float | None = None,
    *,
    full: bool,
) -> Solution:
    """Fit the best object to the full grid too, unless that is left for later."""
    if posed.working.measurement.magnitude is posed.full.magnitude:
        best, posed = finalists.whole(0), replace(posed, full=posed.working.measurement)
    elif not full:
        best = finalists.whole(0)
    else:
        whole = blurred_alike(posed.full, posed.working.measurement)
        with watch.stage("polish"):
            best = phasing.finish(finalists.whole(0), whole, watch)
            if options.imperfections:
                whole = fitted_with_background(best, whole, watch)
        posed = replace(posed, full=whole)
    if full:
        with watch.stage("polish"):
            best, measurement = phasing.as_it_scatters(best, posed.full, watch)
        posed = replace(posed, full=measurement)
    return Solution(finalists, best, posed, origin, guess_chi2)


def network_guess(
    options: ReconstructionOptions, level: phasing.Shape, device: torch.device
) -> NetworkStart | None:
    """Return the network that options ask for, if any: it sees nothing on the smallest grids.

    Raises
    ------
    WeightsError
        It has no weights that fit.
    """
    if options.start not in ("auto", "network") or min(level) < LEAST:
        return None
    if options.start == "auto" and options.weights is None and shipped_weights() is None:
        return None
    return network_start(options.weights, str(device))


def parameters(
    options: ReconstructionOptions, problem: phasing.Problem, device: torch.device
) -> dict[str, Any]:
    """Return everything that the result depends on beside the data."""
    return {
        **options.model_dump(mode="json"),
        # Not what was allowed but what was asked, which `Solution.origin` says.
        "weights": None,
        "device": str(device),
        "working_shape": list(problem.measurement.magnitude.shape),
        "levels": [list(level) for level in problem.levels],
        "held_out": HELD_OUT,
        "version": bluesky_cdinn.__version__,
        "torch": torch.__version__,
    }
