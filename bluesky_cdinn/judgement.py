"""What is said of an object: how far two starts agree, how well it predicts counts, how fine it is."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bluesky_cdinn import quality, resolution
from bluesky_cdinn.boxed import Boxed
from bluesky_cdinn.detection import Detection
from bluesky_cdinn.forward import AXES, to_centre
from bluesky_cdinn.half_sets import Counted, half_sets
from bluesky_cdinn.preview import intensity_slices
from bluesky_cdinn.records import DiffractionVolume
from bluesky_cdinn.refine import Measurement, Objects, held_out_deviance, power_of
from bluesky_cdinn.resolution import HalfSets


def judge(best: Objects, finalists: Boxed, full: Measurement) -> dict[str, Any]:
    """Return free_llk and, from several finalists, their agreement and PRTF."""
    numbers: dict[str, Any] = {"free_llk": held_out_deviance(power_of(best)[0], full)}
    if len(finalists.density) > 1:
        # Where the origin is doesn't matter here.
        first, *others = (finalists.whole(n).density[0].cpu().numpy() for n in range(len(finalists.chi2)))
        aligned = [first, *(quality.align(other, first) for other in others)]
        numbers["transfer"] = quality.phase_retrieval_transfer(aligned)
        numbers["agreement"] = quality.similarity(aligned[1], first)
        numbers["phase_spread_rad"] = quality.phase_difference(aligned[1], first)
    return numbers


def expected_counts(best: Objects, seen: Detection | None) -> NDArray[np.float32]:
    """Return the counts to expect of the first object, on its grid."""
    field = torch.fft.fftn(best.density[0], dim=AXES, norm="ortho")
    power = field.real.square().add_(field.imag.square())
    return to_centre(power if seen is None else seen.expected(power)).cpu().numpy()


def misfit(expected: NDArray[np.float32], volume: DiffractionVolume) -> float:
    """Return chi2 of the counts to expect on all valid voxels of the volume."""
    counts = volume.intensity[volume.valid].clip(0)
    gap = np.sqrt(expected[volume.valid]) - np.sqrt(counts)
    return float(np.sum(gap**2, dtype=np.float64) / counts.sum(dtype=np.float64))


def compared_slices(expected: NDArray[np.float32], volume: DiffractionVolume) -> NDArray[np.float32]:
    """Return central slices of what was measured and of what was to be expected."""
    return intensity_slices(volume.intensity, volume.valid, expected)


def halved(finalists: Boxed, counted: Counted, measured: Sequence[float], seed: int) -> HalfSets | None:
    """Return the crystal from two halves of the counts; None from a single finalist."""
    return half_sets(finalists, counted, measured, seed) if len(finalists.density) > 1 else None


def fineness(
    halves: HalfSets | None,
    density: NDArray[np.complex64],
    support: NDArray[np.bool_],
    physical: Mapping[str, Any],
) -> tuple[NDArray[np.float32] | None, dict[str, float]]:
    """Return the estimated correlation with the truth by shell, and the numbers of resolution and edge.

    ``physical`` is as from `physical_result`.
    """
    curve, scalars = (None, {}) if halves is None else resolved(halves, density.shape, physical)
    q_vector = physical.get("q_vector")
    if q_vector is not None:
        scalars |= resolution.edge_widths(density, support, physical["direct_basis"], q_vector)
    return curve, scalars


def resolved(
    halves: HalfSets, shape: Sequence[int], physical: Mapping[str, Any]
) -> tuple[NDArray[np.float32] | None, dict[str, float]]:
    """Return what `resolution.resolutions` says of two halves, ``shape`` being the object's."""
    reciprocal = physical.get("reciprocal_basis")
    if reciprocal is not None:
        reciprocal = reciprocal * np.divide(shape, halves.counts.shape)
    return resolution.resolutions(halves, reciprocal, physical.get("q_vector"))
