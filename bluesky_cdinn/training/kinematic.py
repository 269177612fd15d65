"""What atoms scatter, exactly and in the continuum, so that the second can be judged by the first.

Both use the signs of docs/explanations/decisions/0002: waves are summed with exp(+i q . r), and a lattice
that is moved along Q has a positive phase. The form factor, nearly constant over a Bragg peak, is left out.
"""

from collections.abc import Sequence

import finufft
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

# Of finufft, relative to the strongest value.
TOLERANCE = 1e-9


def scattering_vector(hkl: Sequence[int], cell_nm: float) -> FloatArray:
    """Return Q of a reflection of a cubic lattice, 1/nm with the 2 pi, float64 (3,)."""
    return 2 * np.pi / cell_nm * np.asarray(hkl, dtype=float)


def kinematic_sum(positions_nm: FloatArray, wavevectors: FloatArray) -> ComplexArray:
    """Return what atoms scatter into any directions: the sum of exp(i q . r).

    Parameters
    ----------
    positions_nm
        Of the atoms, float64 (atoms, 3).
    wavevectors
        Where the wave is wanted, 1/nm, float64 (..., 3).

    Returns
    -------
    numpy.ndarray
        complex128 (...).
    """
    x, y, z = np.ascontiguousarray(positions_nm.T)
    u, v, w = np.ascontiguousarray(wavevectors.reshape(-1, 3).T)
    strengths = np.ones(len(positions_nm), dtype=complex)
    found = finufft.nufft3d3(x, y, z, strengths, u, v, w, eps=TOLERANCE, isign=1)
    return np.asarray(found, dtype=np.complex128).reshape(wavevectors.shape[:-1])


def bragg_peak(
    positions_nm: FloatArray,
    centre: FloatArray,
    basis: FloatArray,
    side: int,
    weights: ComplexArray | None = None,
) -> ComplexArray:
    """Return what atoms scatter on a grid about a point of reciprocal space.

    Much faster than `kinematic_sum`, which would have to find out that its targets lie on a grid.

    Parameters
    ----------
    positions_nm
        Of the atoms, float64 (atoms, 3).
    centre
        Of the grid, 1/nm, float64 (3,).
    basis
        Columns are the grid's steps, 1/nm, float64 (3, 3); they may be oblique.
    side
        Grid points along each axis.
    weights
        Of the atoms, complex128 (atoms,); None for 1.

    Returns
    -------
    numpy.ndarray
        complex128 (side, side, side), the centre at side // 2.
    """
    strengths = np.exp(1j * (positions_nm @ centre))
    if weights is not None:
        strengths = strengths * weights
    # exp(i k . (basis^T r)) has period 2 pi in each component.
    phases = np.mod(positions_nm @ basis + np.pi, 2 * np.pi) - np.pi
    x, y, z = np.ascontiguousarray(phases.T)
    found = finufft.nufft3d1(x, y, z, strengths, (side,) * 3, eps=TOLERANCE, isign=1)
    return np.asarray(found, dtype=np.complex128)


def continuum_peak(
    density: NDArray,
    corner_nm: FloatArray,
    voxel_nm: FloatArray,
    centre: FloatArray,
    basis: FloatArray,
    side: int,
) -> ComplexArray:
    """Return what a density scatters on a grid about a reflection.

    Parameters
    ----------
    density
        Atoms per volume of a perfect crystal's times exp(i Q . u), on a grid, complex (n, n, n).
    corner_nm, voxel_nm
        Of that grid, float64 (3,).
    centre
        Of the wanted grid, from the reflection, 1/nm, float64 (3,).
    basis, side
        As for `bragg_peak`.

    Returns
    -------
    numpy.ndarray
        complex128 (side, side, side), in the density's unit times nm^3.
    """
    points = corner_nm + np.moveaxis(np.indices(density.shape), 0, -1).reshape(-1, 3) * voxel_nm
    filled = np.flatnonzero(density)
    weights = density.ravel()[filled].astype(np.complex128) * complex(np.prod(voxel_nm))
    return bragg_peak(points[filled], centre, basis, side, weights)
