"""What becomes of a scan that could not be reconstructed: a `Reconstruction` that is empty, and says why."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from bluesky_cdinn.errors import CdinnError
from bluesky_cdinn.records import Reconstruction, Status

logger = logging.getLogger(__name__)


def failed_reconstruction(
    start: Mapping[str, Any],
    reason: str,
    status: Status = "failed",
    parameters: Mapping[str, Any] | None = None,
) -> Reconstruction:
    """Return the empty reconstruction of a scan.

    Parameters
    ----------
    start
        The raw run's start document.
    reason, status
        Why, and whether it failed or was cancelled.
    parameters
        What it was tried with, where that is known.
    """
    return Reconstruction(
        density=np.zeros((0, 0, 0), np.complex64),
        support=np.zeros((0, 0, 0), bool),
        raw_uid=start["uid"],
        scan_id=start.get("scan_id"),
        metadata={key: value for key, value in start.items() if key not in ("uid", "scan_id")},
        parameters=parameters or {},
        status=status,
        reason=reason,
    )


def reason_of(error: BaseException) -> str:
    """Return what a processed run says of an error; one that nobody foresaw is logged in full."""
    if isinstance(error, CdinnError):
        return str(error)
    logger.error("unforeseen", exc_info=error)
    return f"{type(error).__name__}: {error}"
