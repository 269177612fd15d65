"""A crystal cut out of its grid, on axes that a figure can show."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bluesky_cdinn.lab_frame import LabObject, to_lab_frame
from bluesky_cdinn.quality import typical_amplitude
from bluesky_cdinn.records import Reconstruction
from bluesky_cdinn.strain import flatten_phase
from bluesky_cdinn.surface import Surface, isosurface

_MARGIN = 2
# Voxels a side beyond which figures get no finer.
_MOST = 160


@dataclass(frozen=True, eq=False)
class Box:
    """A crystal cut out of its grid, with the ramp of its phase taken out.

    Parameters
    ----------
    density, support
        complex64 and bool (n0, n1, n2), the crystal alone with a margin around it.
    strain, displacement
        float32, the same shape, NaN where unknown, the displacement in nm; None where the result has none.
    names
        Of the three axes.
    unit
        Of a step along them.
    step
        Length of one voxel along each axis.
    """

    density: NDArray[np.complex64]
    support: NDArray[np.bool_]
    strain: NDArray[np.float32] | None
    displacement: NDArray[np.float32] | None
    names: tuple[str, str, str]
    unit: str
    step: float

    @property
    def centre(self) -> tuple[int, int, int]:
        """The voxel of the crystal's centre of mass."""
        x, y, z = np.argwhere(self.support).mean(axis=0).round().astype(int).tolist()
        return x, y, z

    def surface(self) -> Surface:
        """Return the surface at half of the typical amplitude, smoothed by less than a voxel of its grid."""
        amplitude = np.where(ndimage.binary_dilation(self.support), np.abs(self.density), 0)
        smooth = ndimage.gaussian_filter(amplitude.astype(np.float32), 0.8)
        level = 0.5 * typical_amplitude(np.where(self.support, self.density, 0))
        return isosurface(smooth, min(level, 0.9 * float(smooth.max())), self.step * np.eye(3))


def crystal_box(result: Reconstruction, finer: float = 2.0) -> Box:
    """Cut the crystal out of its grid, in the lab frame with cubic voxels where the bases are known.

    A volume's own axes are oblique: rocking by a small angle moves the detector's plane through reciprocal
    space along a direction that isn't perpendicular to it. Shown as they are, the crystal would be sheared.

    Parameters
    ----------
    result
        With a support.
    finer
        By how much the lab's voxels are finer than the result's.
    """
    if result.direct_basis is not None:
        extent = np.ptp(np.argwhere(result.support) @ result.direct_basis.T, axis=0).max()
        step = max(np.linalg.norm(result.direct_basis, axis=0).min() / finer, extent / _MOST)
        lab = to_lab_frame(result, float(step))
        maps = lab.maps.get("strain"), lab.maps.get("displacement")
        return Box(lab.density, _shape(lab), *maps, ("x", "y", "z"), "nm", lab.voxel_nm)
    places = np.argwhere(result.support)
    cut = tuple(
        slice(max(low - _MARGIN, 0), high + _MARGIN + 1)
        for low, high in zip(places.min(axis=0), places.max(axis=0), strict=True)
    )
    flat, _ = flatten_phase(np.where(result.support, result.density, 0), result.support)
    return Box(flat[cut], result.support[cut], None, None, ("rocking", "row", "column"), "voxel", 1.0)


def _shape(lab: LabObject) -> NDArray[np.bool_]:
    """Return where the amplitude is over half of the typical one, near the support.

    The support's voxels would show as steps: they are coarser than the lab's, and oblique.
    """
    level = 0.5 * typical_amplitude(np.where(lab.support, lab.density, 0))
    return np.asarray(ndimage.binary_dilation(lab.support, iterations=2), bool) & (lab.amplitude > level)
