"""The physical side of a result: what a density and its geometry say of the lattice."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn.errors import MissingMetadata
from bluesky_cdinn.facets import facet_table, find_facets
from bluesky_cdinn.geometry import volume_bases
from bluesky_cdinn.records import DiffractionVolume, Geometry
from bluesky_cdinn.strain import strain_field
from bluesky_cdinn.uncertainty import EXPLAINED


def physical_result(
    volume: DiffractionVolume,
    density: NDArray[np.complex64],
    support: NDArray[np.bool_],
    *,
    spread_rad: float | None = None,
    misfit: float = EXPLAINED,
) -> dict[str, Any]:
    """Return the fields of a `Reconstruction` that need the geometry: none of them without it.

    ``spread_rad`` and ``misfit`` are as for `strain_field`.
    """
    try:
        reciprocal, direct, q_vector = volume_bases(volume)
    except MissingMetadata:
        return {}
    if not support.any():
        return {"direct_basis": direct, "reciprocal_basis": reciprocal, "q_vector": q_vector}
    strained = strain_field(density, support, direct, q_vector, spread_rad=spread_rad, misfit=misfit)
    scalars = dict(strained.scalars)
    lattice = lattice_parameters(volume.geometry)
    if "lattice_nm" in lattice and "reflection" in lattice:
        scalars["lattice_parameter_nm"] = scalars["d_spacing_nm"] * float(
            np.linalg.norm(lattice["reflection"])
        )
    return {
        "direct_basis": direct,
        "reciprocal_basis": reciprocal,
        "q_vector": strained.q_vector,
        "displacement": strained.displacement,
        "strain": strained.strain,
        "phase_sd": strained.phase_sd,
        "strain_sd": strained.strain_sd,
        "scalars": scalars,
    }


def lattice_parameters(geometry: Geometry | None) -> dict[str, Any]:
    """Return what is known of the lattice, as a result's parameters record it."""
    if geometry is None:
        return {}
    reflection = None if geometry.reflection is None else list(geometry.reflection)
    known = {"reflection": reflection, "lattice_nm": geometry.lattice_nm}
    return {name: value for name, value in known.items() if value is not None}


def table_of_facets(
    density: NDArray[np.complex64],
    support: NDArray[np.bool_],
    physical: Mapping[str, Any],
    geometry: Geometry | None,
) -> NDArray[np.float64] | None:
    """Return the facets of a crystal as numbers; None in voxel units. ``physical`` as `physical_result`'s."""
    if "strain" not in physical:
        return None
    lattice = lattice_parameters(geometry)
    found = find_facets(
        density,
        support,
        physical["direct_basis"],
        physical["q_vector"],
        strain=physical["strain"],
        displacement=physical["displacement"],
        reflection=lattice.get("reflection") if "lattice_nm" in lattice else None,
    )
    return facet_table(found)
