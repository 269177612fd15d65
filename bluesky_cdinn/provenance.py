"""Where a reconstruction comes from, as every file says that holds one."""

from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from bluesky_cdinn.documents import finite_scalars, plain
from bluesky_cdinn.records import Reconstruction

CREATOR = "bluesky-cdinn"

CONVENTIONS = (
    "density = amplitude * exp(i phase), phase = Q . u. Axes (rocking, row, column); voxel n lies at "
    "direct_basis @ (n - shape // 2), nm, in the lab: z along the beam, y up, x completing a right-handed "
    "frame. abs(FFT(density))**2, orthonormal with zero frequency at n // 2, compares with the intensity. "
    "displacement: u_Q, nm. strain: d(u_Q)/d(x_Q). Both are NaN where unknown, and without the phase's ramp."
)
"""What the arrays of a file mean, in words."""


def provenance(result: Reconstruction, processed_uid: str = "") -> dict[str, Any]:
    """Return what a file says of a reconstruction beside its arrays.

    Parameters
    ----------
    result
        The reconstruction.
    processed_uid
        Of the run that holds it; empty where none does.

    Returns
    -------
    dict
        Plain JSON: ``creator``, ``version`` (that wrote the file; the one that computed is in
        ``parameters``), ``written``, ``raw_uid``, ``processed_uid``, ``scan_id``, ``sample``, ``status``,
        ``weights`` (name and sha256 of the network's, where it was asked), ``scalars``, ``parameters``,
        ``history``, ``raw_metadata``, ``conventions``; without what isn't known.
    """
    metadata = plain(result.metadata)
    cdi = metadata.get("cdi") or {}
    said = {
        "creator": CREATOR,
        "version": version(CREATOR),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "raw_uid": result.raw_uid or None,
        "processed_uid": processed_uid or None,
        "scan_id": result.scan_id,
        "sample": _name(metadata.get("sample") or (cdi.get("sample") if isinstance(cdi, dict) else None)),
        "status": result.status,
        "weights": plain(result.parameters.get("weights")),
        "scalars": finite_scalars(result),
        "parameters": plain(result.parameters),
        "history": plain(list(result.history)),
        "raw_metadata": metadata,
        "conventions": CONVENTIONS,
    }
    return {name: value for name, value in said.items() if value is not None}


def _name(sample: Any) -> str | None:
    """Return a sample's name; Bluesky's start documents have it as text or in a mapping."""
    named = sample.get("name", sample) if isinstance(sample, dict) else sample
    return None if named is None else str(named)
