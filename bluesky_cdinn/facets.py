"""The facets of a crystal: where its surface is flat, and what the lattice does there."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.flat_surface import crystal_surface, facet_areas, flat_parts, flat_triangles
from bluesky_cdinn.lattice_orientation import Indices, name_families
from bluesky_cdinn.records import Reconstruction

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Facet:
    """A flat part of a crystal's surface.

    Parameters
    ----------
    normal
        Outward unit vector, lab frame.
    area_nm2
        Of the surface that faces that way, projected on the plane.
    distance_nm
        Of the plane from the crystal's centre of mass.
    strain_mean, strain_sd
        Over the facet's voxels, the outermost layer; NaN in voxel units.
    displacement_mean_nm, displacement_sd_nm
        The same of u_Q.
    voxels
        How many those are.
    family
        Miller indices {hkl}, cubic, as far as the reflection tells; zeros where unnamed.
    """

    normal: tuple[float, float, float]
    area_nm2: float
    distance_nm: float
    strain_mean: float
    strain_sd: float
    displacement_mean_nm: float
    displacement_sd_nm: float
    voxels: int
    family: Indices = (0, 0, 0)


def facets(result: Reconstruction, reflection: Sequence[int] | None = None) -> tuple[Facet, ...]:
    """Return the facets of a reconstruction, the largest first.

    Parameters
    ----------
    result
        In physical units.
    reflection
        Miller indices of the Bragg peak of a cubic lattice; if None, what the result's parameters say, where
        they know the lattice too. Without, no facet is named.

    Raises
    ------
    InvalidInput
        If the result is in voxel units, or holds no crystal.
    """
    if result.direct_basis is None or result.q_vector is None:
        raise InvalidInput("facets need physical units, the reconstruction has no bases")
    if reflection is None and result.parameters.get("lattice_nm"):
        reflection = result.parameters.get("reflection")
    return find_facets(
        result.density,
        result.support,
        result.direct_basis,
        result.q_vector,
        strain=result.strain,
        displacement=result.displacement,
        reflection=reflection,
    )


def find_facets(
    density: NDArray[np.complex64],
    support: NDArray[np.bool_],
    direct_basis: FloatArray,
    q_vector: FloatArray,
    *,
    strain: NDArray[np.float32] | None = None,
    displacement: NDArray[np.float32] | None = None,
    reflection: Sequence[int] | None = None,
) -> tuple[Facet, ...]:
    """Return the facets of a crystal, the largest first; arguments as in `Reconstruction`.

    Raises
    ------
    InvalidInput
        If there is no crystal.
    """
    surface = crystal_surface(density, support, direct_basis)
    labels, normals = flat_parts(surface, abs(np.linalg.det(direct_basis)) ** (1 / 3))
    if not len(normals):
        return ()
    families = name_families(normals, facet_areas(surface, labels, normals), q_vector, reflection)
    layer = np.argwhere(support & ~np.asarray(ndimage.binary_erosion(support), dtype=np.bool_))
    origin = np.array(support.shape) // 2
    middle = np.average(np.argwhere(support) - origin, axis=0, weights=np.abs(density[support]))
    centre = direct_basis @ middle
    # A voxel belongs to the facet whose triangle is nearest.
    owner = labels[KDTree(surface.centres).query((layer - origin) @ direct_basis.T)[1]]
    maps = [
        np.full(len(layer), np.nan) if values is None else values[tuple(layer.T)]
        for values in (strain, displacement)
    ]
    found = []
    areas = facet_areas(surface, labels, normals)
    for i, (normal, area, family) in enumerate(zip(normals, areas, families, strict=True)):
        flat = flat_triangles(surface, labels == i, normal)
        distance = np.average(surface.centres[flat] @ normal, weights=surface.areas[flat]) - centre @ normal
        x, y, z = normal.tolist()
        (strained, strained_sd), (moved, moved_sd) = (_mean_and_sd(values[owner == i]) for values in maps)
        found.append(
            Facet(
                normal=(x, y, z),
                area_nm2=float(area),
                distance_nm=float(distance),
                strain_mean=strained,
                strain_sd=strained_sd,
                displacement_mean_nm=moved,
                displacement_sd_nm=moved_sd,
                voxels=int((owner == i).sum()),
                family=family,
            )
        )
    return tuple(sorted(found, key=lambda facet: -facet.area_nm2))


def facet_table(found: tuple[Facet, ...]) -> FloatArray | None:
    """Return facets as numbers, float64 (facets, 13): `Facet`'s in their order; None where there are none."""
    rows = [np.hstack(astuple(facet)) for facet in found]
    return np.array(rows, dtype=np.float64) if rows else None


def facets_of_table(table: FloatArray | None) -> tuple[Facet, ...]:
    """Return the facets that `facet_table` made numbers of."""
    names = [field.name for field in fields(Facet)][1:-2]
    return tuple(
        Facet(
            normal=(row[0], row[1], row[2]),
            **dict(zip(names, row[3:9], strict=True)),
            voxels=round(row[9]),
            family=(round(row[10]), round(row[11]), round(row[12])),
        )
        for row in ([] if table is None else table.tolist())
    )


def _mean_and_sd(values: NDArray[np.floating]) -> tuple[float, float]:
    known = values[np.isfinite(values)].astype(np.float64)
    return (float(known.mean()), float(known.std())) if known.size else (float("nan"), float("nan"))
