"""A crystal as VTK's XML files, which ParaView and PyVista open: an image in the lab, or the oblique grid.

Written by hand: the format is a few lines of XML before the arrays, and VTK is large.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn.errors import MissingMetadata
from bluesky_cdinn.export_contents import UNITS, Contents
from bluesky_cdinn.lab_frame import MAPS
from bluesky_cdinn.strain import flatten_phase

_TYPES = {"f4": "Float32", "f8": "Float64", "u1": "UInt8"}
_AIR = 2


def write_vti(path: Path, contents: Contents) -> None:
    """Write cubic voxels in nm, along x, y, z of the frame that was asked for."""
    lab = contents.lab
    if lab is None:
        raise MissingMetadata("vti is in nm, and the reconstruction is in voxel units: export npz or cxi")
    fields = {"amplitude": lab.amplitude, "phase": lab.phase, **lab.maps, "support": lab.support}
    origin = " ".join(f"{value:.9g}" for value in lab.axes @ lab.origin_nm)
    spacing = " ".join([f"{lab.voxel_nm:.9g}"] * 3)
    more = {"axes_in_lab": lab.axes, "origin_in_lab": lab.origin_nm}
    place = f'Origin="{origin}" Spacing="{spacing}"'
    _write(path, "ImageData", place, lab.density.shape, fields, None, more, contents.said)


def write_vts(path: Path, contents: Contents) -> None:
    """Write the reconstruction's own oblique voxels, each at its place in the lab in nm, not interpolated."""
    result = contents.result
    if result is None or result.direct_basis is None:
        raise MissingMetadata("vts is in nm, and the reconstruction is in voxel units: export npz or cxi")
    inside = np.argwhere(result.support)
    box = tuple(
        slice(max(low - _AIR, 0), high + _AIR + 1)
        for low, high in zip(inside.min(axis=0), inside.max(axis=0), strict=True)
    )
    flat, _ = flatten_phase(result.density, result.support)
    phase = np.where(result.support, np.angle(flat), 0).astype(np.float32)
    fields = {"amplitude": np.abs(flat), "phase": phase}
    fields |= {name: values for name in MAPS if (values := getattr(result, name)) is not None}
    fields = {name: values[box] for name, values in (fields | {"support": result.support}).items()}
    shape = fields["support"].shape
    first = np.array([cut.start for cut in box]) - np.array(result.support.shape) // 2
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) + first
    points = (indices @ result.direct_basis.T).astype(np.float32)
    more = {"direct_basis": result.direct_basis}
    _write(path, "StructuredGrid", "", shape, fields, points, more, contents.said)


def _write(
    path: Path,
    kind: str,
    place: str,
    shape: tuple[int, ...],
    fields: Mapping[str, NDArray[Any]],
    points: NDArray[np.float32] | None,
    more: Mapping[str, NDArray[Any]],
    said: Mapping[str, Any],
) -> None:
    """Write one data set: XML that says where each array begins, then the arrays, each after its length."""
    blocks: list[bytes] = []

    def array(name: str, values: NDArray[Any], components: int = 1, **attributes: Any) -> str:
        code = values.dtype.str[1:]
        written = [("type", _TYPES[code]), ("Name", name), ("NumberOfComponents", components)]
        written += [*attributes.items(), ("format", "appended"), ("offset", sum(map(len, blocks)))]
        data = np.ascontiguousarray(values, dtype=f"<{code}").tobytes()
        blocks.append(len(data).to_bytes(8, "little") + data)
        return f"<DataArray {' '.join(f'{key}={quoteattr(str(value))}' for key, value in written)}/>"

    facts = [_text("provenance", json.dumps(said)), _text("units", json.dumps(_units(fields)))]
    facts += [array(name, values.ravel(), values.shape[-1], NumberOfTuples=values.size // values.shape[-1])
              for name, values in more.items()]  # fmt: skip
    # VTK's first axis runs fastest.
    voxels = [array(name, _plain(values).ravel(order="F")) for name, values in fields.items()]
    grid = [] if points is None else [
        "<Points>", array("points", points.transpose(2, 1, 0, 3).reshape(-1, 3), 3), "</Points>"
    ]  # fmt: skip
    extent = " ".join(f"0 {n - 1}" for n in shape)
    lines = [
        '<?xml version="1.0"?>',
        f'<VTKFile type="{kind}" version="1.0" byte_order="LittleEndian" header_type="UInt64">',
        f'<{kind} WholeExtent="{extent}" {place}>',
        "<FieldData>", *facts, "</FieldData>",
        f'<Piece Extent="{extent}">',
        '<PointData Scalars="amplitude">', *voxels, "</PointData>", *grid,
        "</Piece>", f"</{kind}>", '<AppendedData encoding="raw">', "_",
    ]  # fmt: skip
    with path.open("wb") as stream:
        stream.write("\n".join(lines).encode())
        for block in blocks:
            stream.write(block)
        stream.write(b"\n</AppendedData>\n</VTKFile>\n")


def _text(name: str, text: str) -> str:
    """Return a string as VTK writes one: the codes of its bytes, with a zero at the end."""
    codes = " ".join(str(code) for code in [*text.encode(), 0])
    return f'<Array type="String" Name="{name}" NumberOfTuples="1" format="ascii">{codes}</Array>'


def _units(fields: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    return {"points": "nm", **{name: UNITS[name] for name in fields if name in UNITS}}


def _plain(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(np.uint8) if values.dtype == bool else values
