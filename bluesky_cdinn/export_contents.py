"""What goes into an exported file, whatever its format."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.geometry import geometry_from
from bluesky_cdinn.lab_frame import LabObject
from bluesky_cdinn.records import DiffractionVolume, Geometry, Reconstruction

UNITS = {
    "phase": "rad",
    "phase_sd": "rad",
    "displacement": "nm",
    "direct_basis": "nm",
    "reciprocal_basis": "1/nm",
    "q_vector": "1/nm",
}
"""Of the arrays that have one."""


@dataclass(frozen=True, eq=False)
class Contents:
    """What a file is made of.

    Parameters
    ----------
    result
        A reconstruction with an object; None for a volume alone.
    lab
        The same on cubic voxels; None in voxel units, or where the format doesn't ask for it.
    volume
        The measured intensities on the grid of the result, where they are wanted.
    said
        See `bluesky_cdinn.provenance`.
    """

    result: Reconstruction | None
    lab: LabObject | None
    volume: DiffractionVolume | None
    said: Mapping[str, Any]

    @property
    def geometry(self) -> Geometry | None:
        """Of the measurement; None where it isn't known."""
        if self.volume is not None and self.volume.geometry is not None:
            return self.volume.geometry
        cdi = self.said.get("raw_metadata", {}).get("cdi")
        try:
            return geometry_from(cdi)[0] if cdi else None
        except InvalidInput:
            return None


def own_arrays(result: Reconstruction) -> dict[str, NDArray[Any]]:
    """Return every array of a reconstruction that there is, by its name in the record."""
    names = ("density", "support", "displacement", "strain", "phase_sd", "strain_sd", "direct_basis",
             "reciprocal_basis", "q_vector", "resolution_curve", "progress")  # fmt: skip
    arrays = {name: getattr(result, name) for name in names}
    return {name: array for name, array in arrays.items() if array is not None}


def group(parent: h5py.Group, name: str, nx_class: str, **attributes: Any) -> h5py.Group:
    """Make a group of a NeXus class in an HDF5 file."""
    made = parent.create_group(name)
    made.attrs["NX_class"] = nx_class
    made.attrs.update(attributes)
    return made


def put(parent: h5py.Group, name: str, value: Any, units: str = "", **attributes: Any) -> h5py.Dataset:
    """Write a value into an HDF5 group; arrays of two axes or more are compressed."""
    array = np.asarray(value)
    packed = {"compression": "gzip", "compression_opts": 4, "shuffle": True} if array.ndim > 1 else {}
    packed = packed if array.size else {}
    if array.dtype.kind == "U":
        made = parent.create_dataset(name, data=value, dtype=h5py.string_dtype())
    else:
        # Of HDF5's enumerated booleans not every reader knows.
        made = parent.create_dataset(
            name, data=array.astype("u1") if array.dtype == bool else array, **packed
        )
    made.attrs.update({**({"units": units} if units else {}), **attributes})
    return made
