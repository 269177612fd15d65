"""A volume as measured, whose frames are curved, -> the lattice that a Fourier transform has.

Each frame is cut out of reciprocal space by the Ewald sphere, and as a crystal is rocked the frames fan out,
or in an energy scan grow: voxels lie off the lattice that `geometry.volume_bases` puts them on, by nothing at
its centre and by the square of the distance from there. Where that matters the intensity is interpolated at
the lattice's points (decision 0014).
"""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bluesky_cdinn.crop import crop_around_peak
from bluesky_cdinn.geometry import bragg_vector, pixel_k, reciprocal_basis, rotation, wavenumber
from bluesky_cdinn.grid import fill_invalid
from bluesky_cdinn.peak import find_peak
from bluesky_cdinn.records import DiffractionVolume, Geometry

FloatArray = NDArray[np.float64]
Voxel = tuple[int, int, int]

# rms distance of the counts from the lattice, in voxels, from which on they are interpolated: what it does to
# the phase was measured.
MATTERS = 0.08
# How many points of each axis the distance from the lattice is computed at; it is smooth in between.
NODES = 17
# To the lattice's point: each step leaves a thousandth of the distance.
NEWTON = 3
# Order of the spline, and voxels around the box that is kept, so that its edge has neighbours.
SPLINE, MARGIN = 3, 8
STEP = "flatten"
BEAM = np.array([0.0, 0.0, 1.0])


def measured_at(geometry: Geometry, offsets: FloatArray, rows: FloatArray, columns: FloatArray) -> FloatArray:
    """Return what pixels see at offsets along a scan, all of one shape (...): 1/nm, float64 (..., 3).

    As `geometry.scattering_vectors`, point by point.
    """
    transfer = pixel_k(geometry, rows, columns) - wavenumber(geometry.energy_keV) * BEAM
    if geometry.scanned == "energy":
        return transfer * (1 + offsets / geometry.energy_keV)[..., None]
    return np.einsum("...ij,...j->...i", rotation(geometry.rocking_axis, -offsets), transfer)


def places_on_lattice(
    volume: DiffractionVolume, centre: Voxel | None = None
) -> tuple[FloatArray, tuple[float, float, float]]:
    """Return where in the measured volume the points of the lattice about one of its voxels lie.

    Parameters
    ----------
    volume
        With angles, geometry and two slices or more.
    centre
        The voxel that stays where it is; the middle one if None.

    Returns
    -------
    places, about
        Slice, row and column for each of the lattice's voxels, float64 (3, n0, n1, n2); and the angle, row
        and column of the detector that the lattice is about.
    """
    angles, geometry, shape = volume.angles_deg, volume.geometry, volume.intensity.shape
    if angles is None or geometry is None:
        raise ValueError("a volume without angles or geometry has no lattice")
    step = float((angles[-1] - angles[0]) / (len(angles) - 1))
    middle = [n // 2 for n in shape] if centre is None else centre
    row, column = (float(volume.window[axis] + middle[axis]) for axis in (1, 2))
    about = (float(angles[0] + step * middle[0]), row, column)
    if geometry.scanned == "energy":
        geometry = replace(geometry, energy_keV=about[0])
    basis = reciprocal_basis(geometry, step, (row, column))
    inverse = np.linalg.inv(basis)
    nodes = [np.linspace(0, n - 1, min(n, NODES)) for n in shape]
    wanted = np.stack(np.meshgrid(*nodes, indexing="ij"), axis=-1) - middle
    q = bragg_vector(geometry, (row, column)) + wanted @ basis.T
    found = wanted.copy()
    for _ in range(NEWTON):
        there = measured_at(geometry, found[..., 0] * step, row + found[..., 1], column + found[..., 2])
        found -= (there - q) @ inverse.T
    places = _between_nodes(found - wanted, shape)
    for axis, n in enumerate(shape):
        places[axis] += np.arange(n).reshape([-1 if a == axis else 1 for a in range(3)])
    return places, about


def _between_nodes(values: FloatArray, shape: Voxel) -> FloatArray:
    """Interpolate linearly between nodes that are spread evenly from a grid's first voxel to its last.

    Parameters
    ----------
    values
        At the nodes, float64 (m0, m1, m2, 3).
    shape
        Of the grid.

    Returns
    -------
    NDArray
        float64 (3, n0, n1, n2).
    """
    for n, m in zip(shape, values.shape[:3], strict=True):
        place = np.linspace(0, m - 1, n)
        before = np.minimum(place.astype(int), max(m - 2, 0))
        share = (place - before)[:, None, None, None]
        # The axes take turns at being the first; after three turns they are in order, the components first.
        values = values[before] * (1 - share) + values[np.minimum(before + 1, m - 1)] * share
        values = np.moveaxis(values, 0, 2)
    return np.ascontiguousarray(np.moveaxis(values, -1, 0))


def curvature(volume: DiffractionVolume, places: FloatArray) -> float:
    """Return how far the counts lie from the lattice, rms, in voxels; from `places_on_lattice`."""
    rows, columns = np.ogrid[: volume.intensity.shape[1], : volume.intensity.shape[2]]
    weighted = total = 0.0
    for index, (frame, valid) in enumerate(zip(volume.intensity, volume.valid, strict=True)):
        counts = np.where(valid, frame, 0)
        slices_off, rows_off, columns_off = places[:, index]
        off = (slices_off - index) ** 2 + (rows_off - rows) ** 2 + (columns_off - columns) ** 2
        weighted += float((counts * off).sum(dtype=np.float64))
        total += float(counts.sum(dtype=np.float64))
    return math.sqrt(weighted / total) if total > 0 else 0.0


def flattened(
    volume: DiffractionVolume, centre: Voxel | None = None, matters: float = MATTERS
) -> DiffractionVolume:
    """Return the volume on the lattice about one of its voxels, if the curvature of its frames matters.

    Parameters
    ----------
    volume
        Clean; one without angles or geometry, or flat already, stays as it is.
    centre
        The peak's voxel; the middle one if None.
    matters
        The least `curvature` that is worth it.

    Returns
    -------
    DiffractionVolume
        Its voxels are valid where all that surround the place they are taken from are. The history says how
        large the curvature was, and whether anything was done.
    """
    if volume.angles_deg is None or volume.geometry is None or volume.flat_about is not None:
        return volume
    if min(volume.intensity.shape) < 2:
        return volume
    places, about = places_on_lattice(volume, centre)
    size = curvature(volume, places)
    step = {"step": STEP, "curvature_voxels": size, "flattened": size >= matters}
    if size < matters:
        return replace(volume, history=(*volume.history, step))
    filled = fill_invalid(volume.intensity, volume.valid)
    intensity = ndimage.map_coordinates(filled, places, order=SPLINE, mode="nearest")
    surrounded = ndimage.map_coordinates(volume.valid.astype(np.float32), places, order=1, cval=0.0)
    valid = surrounded > 1 - 1e-3
    return replace(
        volume,
        intensity=np.where(valid, intensity, 0).clip(0).astype(np.float32),
        valid=valid,
        flat_about=about,
        history=(*volume.history, step),
    )


def cropped_flat(volume: DiffractionVolume, shape: tuple[int, int, int]) -> DiffractionVolume:
    """Return the box around a volume's peak, on the lattice about it if that matters.

    Parameters
    ----------
    volume
        Clean; what lies around the box is needed for the lattice's points at its edges.
    shape
        Of the box.
    """
    peak = [round(place) for place in find_peak(volume)]
    # No further than was measured: a spline rings where made-up voxels begin.
    first = [max(p - n // 2 - MARGIN, 0) for p, n in zip(peak, shape, strict=True)]
    ends = zip(peak, shape, volume.intensity.shape, strict=True)
    a, b, c = (min(p - n // 2 + n + MARGIN, m) - f for (p, n, m), f in zip(ends, first, strict=True))
    wide = crop_around_peak(volume, (a, b, c), (first[0] + a // 2, first[1] + b // 2, first[2] + c // 2))
    i, j, k = (p - f for p, f in zip(peak, first, strict=True))
    flat = flattened(wide, (i, j, k))
    if flat.flat_about is None:
        noted = tuple(step for step in flat.history if step["step"] == STEP)
        return crop_around_peak(replace(volume, history=(*volume.history, *noted)), shape)
    return crop_around_peak(flat, shape, (i, j, k))
