"""How fine a reconstruction is, in nm: by the frequencies that its two half-sets share, and by its edge.

Two estimates of how far the result goes with the true crystal, shell by shell; the lower one counts:

- of the half-sets: two starts that agree are each fitted to one half of the counts
  (`bluesky_cdinn.half_sets`). With the correlation F of their transforms, that of the whole with the truth
  is expected to be sqrt(2 F / (1 + F)) (Rosenthal and Henderson 2003). It sees where starts or halves differ;
- of the photons: an object of n voxels that N voxels of counts determine has an error of n / N photons in
  each of them, so that with S photons there it is sqrt(S / (S + n / N)). It sees where there is nothing to
  see, which the half-sets, having seen it together before they were parted, can't.

The resolution is half a period at the frequency where that falls under `LEVEL`; where it never does, it is
the volume's edge that ends what is seen, and the resolution is a bound: at least as fine as that. What these
and other estimates are worth is told in ``docs/explanations/resolution.md``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bluesky_cdinn.quality import typical_amplitude
from bluesky_cdinn.surface import isosurface

FloatArray = NDArray[np.float64]
Complex = NDArray[np.complex64]

# Correlation with the truth below which a frequency counts as lost; F = 1/7 of the halves.
LEVEL = 0.5
# Half the opening of the double cone that stands for a direction.
CONE_DEG = 30.0
# Voxels of a shell below which its correlation says nothing; the same for corners of a surface.
FEWEST = 20
# Voxels whose frequencies are computed in one go.
TOGETHER = 2**18
# Voxels inwards and outwards from the surface over which the amplitude is followed, and between samples.
_REACH, _STEP = 3.0, 0.25
# Where inside, in voxels from the surface, the amplitude is taken for the crystal's own.
_INTERIOR = (-3.0, -2.0)


@dataclass(frozen=True, eq=False)
class HalfSets:
    """A crystal seen twice, and the counts that it was seen by.

    Parameters
    ----------
    fields
        Transforms of the two, zero frequency at n // 2, zero where not measured, complex64 (2, n0, n1, n2).
    counts
        Of both together, float32 (n0, n1, n2), zero where not measured.
    unknowns
        Voxels of the object over those of the counts.
    """

    fields: Complex
    counts: NDArray[np.float32]
    unknowns: float


@dataclass(frozen=True, eq=False)
class Shells:
    """Estimated correlation with the true crystal.

    Parameters
    ----------
    frequency
        Middle of each shell, as a share of `reach`, float64 (shells,).
    value
        float64 (shells,); NaN where a shell has too few voxels.
    reach
        Frequency at which the measured volume ends: 1/nm with the 2 pi along a direction, and half a cycle a
        voxel on the average.
    """

    frequency: FloatArray
    value: FloatArray
    reach: float

    @property
    def cut_off(self) -> float:
        """Where the value falls under `LEVEL`, as a share of the reach; 1 where it never does."""
        known = np.isfinite(self.value)
        frequency, value = self.frequency[known], self.value[known]
        below = np.flatnonzero(value < LEVEL)
        if not len(below):
            return 1.0
        i = int(below[0])
        if i == 0:
            return float(frequency[0])
        share = (value[i - 1] - LEVEL) / (value[i - 1] - value[i])
        return float(frequency[i - 1] + share * (frequency[i] - frequency[i - 1]))


def average_shells(halves: HalfSets) -> Shells:
    """Return the correlation on ellipsoids that end at the volume's faces."""
    shape = halves.counts.shape
    axes = [(np.arange(n) - n // 2) / (n / 2) for n in shape]

    def radius(part: slice) -> FloatArray:
        return np.sqrt(axes[0][part, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2)

    return _shells(halves, radius, min(shape) // 2, 0.5)


def shells_along(halves: HalfSets, reciprocal_basis: FloatArray, direction: Sequence[float]) -> Shells:
    """Return the correlation in a double cone about a direction.

    Parameters
    ----------
    halves
        With the volume's voxels.
    reciprocal_basis
        Columns are the lab-frame steps of one of them, 1/nm, float64 (3, 3).
    direction
        In the lab, of any length, (3,).
    """
    shape = halves.counts.shape
    unit = np.asarray(direction, dtype=np.float64) / np.linalg.norm(direction)
    reach = reach_along(reciprocal_basis, shape, unit)
    index = [np.arange(n) - n // 2 for n in shape]

    def radius(part: slice) -> FloatArray:
        q = [
            b[0] * index[0][part, None, None] + b[1] * index[1][:, None] + b[2] * index[2]
            for b in reciprocal_basis.astype(np.float32)
        ]
        length = np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2)
        along = np.abs(q[0] * unit[0] + q[1] * unit[1] + q[2] * unit[2])
        inside = along >= np.cos(np.radians(CONE_DEG)) * length
        return np.where(inside, length / reach, np.inf)

    return _shells(halves, radius, max(min(shape) // 4, 4), reach)


def reach_along(reciprocal_basis: FloatArray, shape: Sequence[int], unit: FloatArray) -> float:
    """Return how far a volume about q = 0 reaches along a unit vector (3,), 1/nm."""
    steps = np.abs(np.linalg.solve(reciprocal_basis, unit))
    return float((np.array(shape) / 2 / np.maximum(steps, 1e-30)).min())


def _shells(halves: HalfSets, radius: Callable[[slice], FloatArray], count: int, reach: float) -> Shells:
    """Return the correlation on shells of a radius that is 1 where the volume ends, given for some slices."""
    shape = halves.counts.shape
    # Power of the two, what they have in common, voxels and photons.
    sums = np.zeros((5, count))
    # Some slices at a time: whole volumes of double precision are large.
    together = max(1, TOGETHER // int(np.prod(shape[1:])))
    for start in range(0, shape[0], together):
        part = slice(start, start + together)
        distance = radius(part)
        inside = distance < 1
        first, second = (field[part][inside] for field in halves.fields)
        shell = (distance[inside] * count).astype(np.int_)
        common = (first * second.conj()).real
        each = (np.abs(first) ** 2, np.abs(second) ** 2, common, first != 0, halves.counts[part][inside])
        sums += [np.bincount(shell, weights=values, minlength=count) for values in each]
    power, other, common, voxels, photons = sums
    norm = np.sqrt(power * other)
    half = np.divide(common, norm, out=np.zeros(count), where=norm > 0).clip(0, 1)
    noise = halves.unknowns * voxels
    seen = np.divide(photons, photons + noise, out=np.zeros(count), where=photons > 0)
    value = np.sqrt(np.minimum(2 * half / (1 + half), seen))
    frequency = (np.arange(count) + 0.5) / count
    return Shells(frequency, np.where(voxels >= FEWEST, value, np.nan), reach)


def lab_directions(q_vector: FloatArray) -> dict[str, FloatArray]:
    """Return the directions that numbers are given along: the lab's x, y and z, and that of Q."""
    x, y, z = np.eye(3)
    return {"x": x, "y": y, "z": z, "q": np.asarray(q_vector) / np.linalg.norm(q_vector)}


def resolutions(
    halves: HalfSets,
    reciprocal_basis: FloatArray | None = None,
    q_vector: FloatArray | None = None,
) -> tuple[NDArray[np.float32] | None, dict[str, float]]:
    """Return the average curve and the resolution it means, on the average and along directions.

    Parameters
    ----------
    halves, reciprocal_basis
        As for `shells_along`.
    q_vector
        In the lab, float64 (3,).

    Returns
    -------
    curve
        float32 (2, shells): frequency, cycles a voxel, and the correlation; None where no shell is known.
    scalars
        resolution_voxels; with bases resolution_nm, resolution_limit_nm (what the volume allows, and what
        resolution_nm is where all of it is resolved), and resolution_x_nm, ``_y_``, ``_z_``, ``_q_``, each
        with its resolution_limit_x_nm.
    """
    average = average_shells(halves)
    if not np.isfinite(average.value).any():
        return None, {}
    curve = np.stack([average.frequency * average.reach, average.value]).astype(np.float32)
    scalars = {"resolution_voxels": 1 / average.cut_off}
    if reciprocal_basis is not None and q_vector is not None:
        cell = abs(np.linalg.det(reciprocal_basis * np.array(halves.counts.shape)))
        limit = float(2 * np.pi / np.cbrt(cell))
        scalars |= {"resolution_nm": limit / average.cut_off, "resolution_limit_nm": limit}
        for name, unit in lab_directions(q_vector).items():
            shells = shells_along(halves, reciprocal_basis, unit.tolist())
            if np.isfinite(shells.value).any():
                limit = float(np.pi / shells.reach)
                scalars |= {
                    f"resolution_{name}_nm": limit / shells.cut_off,
                    f"resolution_limit_{name}_nm": limit,
                }
    return curve[:, np.isfinite(curve[1])], scalars


def edge_widths(
    density: Complex, support: NDArray[np.bool_], direct_basis: FloatArray, q_vector: FloatArray
) -> dict[str, float]:
    """Return how wide the crystal's edge looks: full width at half maximum of the step's derivative.

    The amplitude is followed along the normals of its surface at half height, over the interior's just there;
    the median of those that point within `CONE_DEG` of a direction is the step's profile. A blurred step is
    an error function, whose slope at half height tells its width; the foot, which the support cuts off, isn't
    needed. What is sharp comes out at the width of the voxels, 1.2 of them or so.

    Parameters
    ----------
    density
        complex64 (n0, n1, n2).
    support
        Where the crystal is, bool, the same shape.
    direct_basis
        Columns are the lab-frame steps of one voxel along each axis, nm, float64 (3, 3).
    q_vector
        In the lab, float64 (3,).

    Returns
    -------
    dict
        edge_width_nm over all of the surface, and edge_width_x_nm, ``_y_``, ``_z_``, ``_q_``; without those
        whose surface is too small or too uneven.
    """
    if not support.any():
        return {}
    box = tuple(
        slice(max(cut.start - 4, 0), cut.stop + 4)
        for cut in ndimage.find_objects(support.astype(np.uint8))[0]
    )
    amplitude = np.abs(density[box]).astype(np.float32)
    surface = isosurface(amplitude, 0.5 * typical_amplitude(density * support), direct_basis)
    step = abs(np.linalg.det(direct_basis)) ** (1 / 3)
    offsets = np.arange(-_REACH, _REACH + _STEP / 2, _STEP)
    into_voxels = np.linalg.inv(direct_basis) @ surface.normals.T * step
    places = surface.places.T[:, :, None] + into_voxels[:, :, None] * offsets
    # mode "constant": beyond the box there is nothing.
    profiles = ndimage.map_coordinates(amplitude, places, order=3)
    interior = (offsets >= _INTERIOR[0]) & (offsets <= _INTERIOR[1])
    level = profiles[:, interior].mean(axis=1)
    usable = level > 0.5 * np.median(level)
    profiles = profiles[usable] / level[usable, None]
    normals = surface.normals[usable]
    widths = {"edge_width_nm": _step_width(profiles, offsets)}
    for name, unit in lab_directions(q_vector).items():
        facing = np.abs(normals @ unit) > np.cos(np.radians(CONE_DEG))
        widths[f"edge_width_{name}_nm"] = _step_width(profiles[facing], offsets)
    return {name: float(width * step) for name, width in widths.items() if np.isfinite(width)}


def _step_width(profiles: NDArray[np.floating], offsets: FloatArray) -> float:
    """Return the width of the step that profiles (n, offsets) have, from its slope at half height."""
    if len(profiles) < FEWEST:
        return float("nan")
    profile = np.median(profiles, axis=0)
    near = (profile > 0.3) & (profile < 0.7) & (np.abs(offsets) < 2)
    if np.count_nonzero(near) < 2:
        # Steeper than the sampling: between the last sample above and the first below.
        near = np.abs(offsets) <= _STEP
    slope = -np.polyfit(offsets[near], profile[near], 1)[0]
    # The derivative of an error function from 1 to 0 is a Gaussian of height -slope.
    return float(np.sqrt(8 * np.log(2) / (2 * np.pi)) / slope) if slope > 0 else float("nan")
