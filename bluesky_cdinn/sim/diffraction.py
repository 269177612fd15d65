"""What a detector sees of a crystal: exact slices of its 3D transform, one for each rocking angle."""

from dataclasses import dataclass

import finufft
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import signal

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.geometry import bragg_vector, detector_frame, reciprocal_basis, scattering_vectors
from bluesky_cdinn.records import Geometry
from bluesky_cdinn.sim.crystal import Crystal, sample

FloatArray = NDArray[np.float64]

# Of the transform; the error measured is 3e-6 of the peak: 1e-5 photons beside a peak of a million.
_TOLERANCE = 3e-5
# The grid's band is this much wider than what the detector sees, since what lies beyond folds back.
_MARGIN = 1.3
# Low-pass of a grid twice as fine, before every other voxel is kept.
_TAPS = np.sinc(np.arange(-9, 10) / 2) / 2 * np.kaiser(19, 6.0)
_LEAST_VOXELS = 32
_MOST_VOXELS = 320
# Points transformed at once; bounds the memory of a long rocking curve.
_BATCH = 2_000_000


@dataclass(frozen=True, eq=False)
class SampledCrystal:
    """A crystal on an orthogonal grid fine enough for the part of its transform that is asked for.

    Parameters
    ----------
    density
        complex64, edge voxels filled in part; voxel n//2 is the crystal's centre.
    basis
        Columns are the steps of one voxel, nm, orthogonal, float64 (3, 3).
    """

    density: NDArray[np.complex64]
    basis: FloatArray

    @classmethod
    def reaching(cls, crystal: Crystal, axes: FloatArray, reach: FloatArray) -> "SampledCrystal":
        """Sample a crystal finely enough for some q.

        Parameters
        ----------
        crystal
            What to sample.
        axes
            Rows are the grid's orthonormal directions, float64 (3, 3).
        reach
            Largest abs(q) along each of them, 1/nm, float64 (3,).

        Returns
        -------
        SampledCrystal
            On its grid.

        Raises
        ------
        InvalidInput
            If the grid would be too large.
        """
        extent = 2 * np.abs(crystal.body.vertices() @ axes.T).max(axis=0)
        counts = np.ceil(np.maximum(extent * reach * _MARGIN / np.pi, _LEAST_VOXELS))
        if counts.max() > _MOST_VOXELS:
            raise InvalidInput(
                f"the detector must see the crystal at no more than {_MOST_VOXELS} resolution elements "
                f"a side, got {counts.max():.0f}: take a smaller crystal or detector"
            )
        basis = axes.T * (extent / counts)
        # Air for the filter's tails, and an even size, so that thinning keeps the voxel at the centre.
        nx, ny, nz = (2 * (int(count + len(_TAPS)) // 2 + 1) for count in counts)
        density = sample(crystal, basis / 2, (2 * nx, 2 * ny, 2 * nz))
        for axis in range(3):
            density = signal.resample_poly(density, 1, 2, axis=axis, window=_TAPS)
        return cls(density.astype(np.complex64), basis)

    def transform(self, q: ArrayLike) -> NDArray[np.complex64]:
        """Return the integral of density * exp(i q . r) at q (..., 3) in 1/nm: nm^3, complex64 (...).

        What sampling did to the crystal, the average over a half-size voxel and the low-pass filter, is
        divided out. Zero beyond the grid's band.
        """
        turns = np.asarray(q, dtype=float) @ self.basis
        in_band = (np.abs(turns) < np.pi).all(axis=-1)
        x, y, z = np.ascontiguousarray(turns[in_band].T.astype(np.float32))
        gain = _gain(turns[in_band]).prod(axis=-1) / abs(np.linalg.det(self.basis))
        result = np.zeros(turns.shape[:-1], dtype=np.complex64)
        total = finufft.nufft3d2(x, y, z, self.density, isign=1, eps=_TOLERANCE, nthreads=1, upsampfac=1.25)
        result[in_band] = total / gain
        return result


def _gain(turns: FloatArray) -> FloatArray:
    """Return what sampling leaves of a wave that turns by so many rad, up to pi, a voxel."""
    offsets = np.arange(len(_TAPS)) - len(_TAPS) // 2
    grid = np.linspace(0.0, np.pi, 4097)
    # The filter, then half a voxel's average; NumPy's sinc has the pi in it.
    gain = np.cos(grid[:, None] * offsets / 2) @ _TAPS * np.sinc(grid / (4 * np.pi))
    return np.interp(np.abs(turns), grid, gain)


class Diffraction:
    """The diffraction of a crystal on a detector, frame by frame.

    A frame is the kinematic intensity at each pixel's centre: the squared modulus of the crystal's
    transform where the Ewald sphere cuts it at that angle. Polarisation, absorption and the average
    over a pixel are left out; they are smooth over a Bragg peak.

    Parameters
    ----------
    crystal
        In the lab frame at the centre of the rocking curve.
    geometry
        Of the measurement.
    shape
        Detector (rows, columns).
    half_range_deg
        Rocking offsets, or an energy scan's in keV, up to here are exact; beyond, the tails lose accuracy
        and then are cut off. As far along the rocking curve as the detector sees along its rows if None.
    bragg
        The crystal's Bragg vector, 1/nm, float64 (3,); the one that diffracts onto the beam centre if None.

    Attributes
    ----------
    peak
        The largest intensity anywhere in the crystal's transform, nm^6.
    """

    def __init__(
        self,
        crystal: Crystal,
        geometry: Geometry,
        shape: tuple[int, int],
        *,
        half_range_deg: float | None = None,
        bragg: FloatArray | None = None,
    ) -> None:
        self.geometry = geometry
        self.shape = shape
        self.bragg = bragg_vector(geometry) if bragg is None else np.asarray(bragg, dtype=float)
        self._rows, self._columns = np.arange(shape[0])[:, None], np.arange(shape[1])[None, :]
        frame = self._vectors(np.zeros(1))
        columns, up, _ = detector_frame(geometry)
        if half_range_deg is None:
            swept = np.linalg.norm(reciprocal_basis(geometry, 1.0)[:, 0])
            half_range_deg = float(np.ptp(frame @ up) / 2 / swept)
        rocked = self._vectors(np.array([-half_range_deg, 0.0, half_range_deg]))
        # The detector's axes: along the third, across it, a frame is nearly flat.
        axes = np.array([columns, up, np.cross(columns, up)])
        reach = np.abs(rocked @ axes.T).reshape(-1, 3).max(axis=0)
        self._sampled = SampledCrystal.reaching(crystal, axes, reach)
        self.half_range_deg = half_range_deg
        self.peak = _peak(self._sampled)

    def frame(self, offset_deg: float) -> NDArray[np.float32]:
        """Return the frame at a rocking angle from the curve's centre, in units of `peak`: float32, 2D."""
        return self.frames([offset_deg])[0]

    def frames(self, offsets_deg: ArrayLike) -> NDArray[np.float32]:
        """Return the frames at rocking angles (n,), in units of `peak`: float32 (n, rows, columns)."""
        offsets = np.asarray(offsets_deg, dtype=float)
        batch = max(1, _BATCH // (self.shape[0] * self.shape[1]))
        stack = np.empty((len(offsets), *self.shape), dtype=np.float32)
        for start in range(0, len(offsets), batch):
            part = slice(start, start + batch)
            stack[part] = np.abs(self._sampled.transform(self._vectors(offsets[part]))) ** 2 / self.peak
        return stack

    def _vectors(self, offsets: FloatArray) -> FloatArray:
        return scattering_vectors(self.geometry, offsets, self._rows, self._columns) - self.bragg


def _peak(sampled: SampledCrystal) -> float:
    """Return the largest abs(transform)**2: a search over twelve fringes, then closer and closer."""
    directions = sampled.basis / np.linalg.norm(sampled.basis, axis=0)
    fringe = 2 * np.pi / (np.array(sampled.density.shape) * np.linalg.norm(sampled.basis, axis=0))
    centre, best = np.zeros(3), 0.0
    for half_width, points in ((12.0, 49), (0.5, 9), (0.1, 9)):
        grid = np.stack(np.meshgrid(*[np.linspace(-half_width, half_width, points)] * 3), axis=-1)
        q = centre + grid * fringe @ directions.T
        intensity = np.abs(sampled.transform(q)) ** 2
        best = float(intensity.max())
        centre = q[np.unravel_index(intensity.argmax(), intensity.shape)]
    return best
