"""A reconstruction on an orthogonal grid: in the lab's frame, along Q, or along the crystal's axes.

A volume's own axes are oblique, and an object lies on them. Brought to cubic voxels it is interpolated by
cubic splines, which of what was tried keeps phase and amplitude best (``docs/explanations/lab-frame.md``).
The phase's ramp is taken out first: a phase that turns by half a circle from voxel to voxel would let
neighbours cancel. Positions are from voxel n//2 of the reconstruction.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from bluesky_cdinn.errors import InvalidInput, MissingMetadata
from bluesky_cdinn.records import Reconstruction
from bluesky_cdinn.strain import flatten_phase

FloatArray = NDArray[np.float64]
Map = NDArray[np.float32]

MAPS = ("displacement", "strain", "phase_sd", "strain_sd")
"""The maps of a `Reconstruction` that go along, where it has them."""

# Voxels; what is farther from the support than a spline reaches needs no interpolating.
_REACH = 6
# Voxels of air on each side of the crystal.
_AIR = 2
_MOST_VOXELS = 512**3


@dataclass(frozen=True, eq=False)
class LabObject:
    """A crystal and its maps on cubic voxels.

    Parameters
    ----------
    density
        complex64 (x, y, z), without offset and ramp of the phase, as displacement and strain are, and with
        what of the crystal's blurred edge lies outside the support.
    support
        Where the crystal is, bool, the same shape.
    maps
        Those of `MAPS` that there are, float32, NaN where unknown. A standard deviation is interpolated as
        it is: neighbours' errors go together, so that their mean is no better than they are.
    basis
        Columns are the steps of one voxel along each axis in the lab, nm, orthogonal, float64 (3, 3).
    origin_nm
        Where voxel (0, 0, 0) lies in the lab, float64 (3,).
    ramp_per_nm
        Gradient of the phase that was taken out, in the lab, rad/nm, float64 (3,).
    """

    density: NDArray[np.complex64]
    support: NDArray[np.bool_]
    maps: Mapping[str, Map]
    basis: FloatArray
    origin_nm: FloatArray
    ramp_per_nm: FloatArray

    @property
    def voxel_nm(self) -> float:
        """Edge of a voxel."""
        return float(np.linalg.norm(self.basis[:, 0]))

    @property
    def axes(self) -> FloatArray:
        """Rows are the directions of the grid's axes in the lab, float64 (3, 3)."""
        return self.basis.T / self.voxel_nm

    @property
    def amplitude(self) -> Map:
        """abs(density), float32."""
        return np.abs(self.density)

    @property
    def phase(self) -> Map:
        """Phase of the density in rad, wrapped to (-pi, pi], float32, zero outside the support."""
        return np.where(self.support, np.angle(self.density), 0.0).astype(np.float32)


def to_lab_frame(
    result: Reconstruction, voxel_nm: float | None = None, axes: FloatArray | None = None
) -> LabObject:
    """Bring a reconstruction to cubic voxels.

    Parameters
    ----------
    result
        With bases.
    voxel_nm
        Edge of a voxel; the shortest edge of the reconstruction's own if None.
    axes
        Rows are the directions of the grid's axes in the lab, orthonormal, float64 (3, 3): the lab's own if
        None; see `bluesky_cdinn.crystal_frame`.

    Returns
    -------
    LabObject
        The whole support with two voxels of air on each side.

    Raises
    ------
    MissingMetadata
        If the reconstruction is in voxel units.
    InvalidInput
        If it has no support, or the grid would be too large or not orthonormal.
    """
    if result.direct_basis is None:
        raise MissingMetadata(
            "the lab frame needs the reconstruction's bases, and it is in voxel units: the raw run says no "
            "geometry (cdi in its start document)"
        )
    directions = np.eye(3) if axes is None else _orthonormal(axes)
    step = float(np.linalg.norm(result.direct_basis, axis=0).min()) if voxel_nm is None else float(voxel_nm)
    if not 0 < step < np.inf:
        raise InvalidInput(f"voxel_nm must be a length above 0, got {voxel_nm}")
    low, shape = _bounds(result.support, directions @ result.direct_basis / step)
    basis = directions.T * step
    return resampled(result, basis, basis @ low, shape)


def resampled(
    result: Reconstruction, basis: FloatArray, origin_nm: FloatArray, shape: tuple[int, int, int]
) -> LabObject:
    """Interpolate a reconstruction on any regular grid.

    Parameters
    ----------
    result
        With bases and a support.
    basis, origin_nm
        Of the grid, as in `LabObject`; its voxels may be oblique too.
    shape
        Of the grid.
    """
    assert result.direct_basis is not None
    flat, ramp = flatten_phase(result.density, result.support)
    box = _around(result.support)
    inverse = np.linalg.inv(result.direct_basis)
    spacing = np.linalg.norm(result.direct_basis, axis=0)
    centre = np.array(result.support.shape) // 2 - [cut.start for cut in box]
    to_index = np.column_stack([inverse @ basis, inverse @ origin_nm + centre])

    # Beyond the array there is air, which a support that reaches its edge is interpolated to.
    def on_grid(values: NDArray[Any], order: int, mode: str = "grid-constant") -> NDArray[Any]:
        return np.asarray(
            ndimage.affine_transform(values, to_index, output_shape=shape, order=order, mode=mode)
        )

    def of_known(values: Map, order: int) -> Map:
        known = np.isfinite(values[box])
        if not known.any():
            return np.full(shape, np.nan, np.float32)
        extended = on_grid(_extended(values[box], known, spacing), order, "nearest")
        inside = on_grid(known.astype(np.float32), 1) > 0.5
        return np.where(inside, extended, np.nan).astype(np.float32)

    maps = {name: values for name in MAPS if (values := getattr(result, name)) is not None}
    return LabObject(
        density=on_grid(flat[box], 3).astype(np.complex64),
        support=on_grid(result.support[box].astype(np.float32), 1) > 0.5,
        # No spline for a standard deviation: it might swing below zero.
        maps={name: of_known(values, 1 if name.endswith("_sd") else 3) for name, values in maps.items()},
        basis=np.asarray(basis, dtype=np.float64),
        origin_nm=np.asarray(origin_nm, dtype=np.float64),
        ramp_per_nm=inverse.T @ ramp,
    )


def _orthonormal(axes: ArrayLike) -> FloatArray:
    array = np.asarray(axes, dtype=float)
    if array.shape != (3, 3) or not np.allclose(array @ array.T, np.eye(3), atol=1e-6):
        raise InvalidInput(f"axes must have three orthogonal directions of length 1 as rows, got {axes!r}")
    return array


def _bounds(support: NDArray[np.bool_], to_grid: FloatArray) -> tuple[FloatArray, tuple[int, int, int]]:
    """Return the first voxel, from the centre, and the shape of the grid that holds a support.

    ``to_grid`` (3, 3) takes a voxel's place from the centre to the grid's indices.
    """
    if not support.any():
        raise InvalidInput("the reconstruction must have a support, it is empty")
    places = (np.argwhere(support) - np.array(support.shape) // 2) @ to_grid.T
    half = np.abs(to_grid).sum(axis=1) / 2 + _AIR
    low = np.floor(places.min(axis=0) - half)
    shape = np.ceil(places.max(axis=0) + half) - low + 1
    if shape.prod() > _MOST_VOXELS:
        fits = (shape.prod() / _MOST_VOXELS) ** (1 / 3)
        raise InvalidInput(
            f"the grid must have {_MOST_VOXELS} voxels or fewer, it would have {shape.prod():.0f}: "
            f"make voxel_nm {fits:.1f} times as large"
        )
    return low, (int(shape[0]), int(shape[1]), int(shape[2]))


def _around(support: NDArray[np.bool_]) -> tuple[slice, slice, slice]:
    """Return the part of a grid that holds the support and what a spline reaches beyond it."""
    first, second, third = ndimage.find_objects(support.astype(np.uint8))[0]
    return tuple(  # pyright: ignore[reportReturnType]
        slice(max(cut.start - _REACH, 0), cut.stop + _REACH) for cut in (first, second, third)
    )


def _extended(values: Map, known: NDArray[np.bool_], spacing: FloatArray) -> Map:
    """Return a map that goes on, where it isn't known, as at the nearest voxel where it is."""
    nearest = ndimage.distance_transform_edt(
        ~known, sampling=spacing, return_distances=False, return_indices=True
    )
    return values[tuple(np.asarray(nearest))]
