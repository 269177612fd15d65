"""What was found of a detection, in numbers and in words: how coherent, what background, which frames."""

import logging
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn.detection import Detection
from bluesky_cdinn.sampling import AXES

logger = logging.getLogger(__name__)

# Blur over this, voxels, costs fringes; frames that hold so little of the counts tell nothing of their scale.
BLURRED, HELD = 0.5, 1e-3
# A background that holds this share of all counts, and frames so far from the others, are worth a look.
SHARE, APART = 0.2, 0.2


def seen_numbers(
    detection: Detection | None,
    counts: NDArray[np.float32],
    valid: NDArray[np.bool_],
    direct_basis: NDArray[np.float64] | None,
) -> dict[str, float]:
    """Return the numbers of a detection that are not those of an ideal one.

    Parameters
    ----------
    detection
        On the volume's own grid.
    counts
        As measured, zero where not, float (n0, n1, n2), origin at n // 2.
    valid
        Where they were measured, bool (n0, n1, n2).
    direct_basis
        Of the object's voxels on that grid, nm; None in voxel units.

    Returns
    -------
    dict
        ``coherence_sigma_rocking``, ``..._row`` and ``..._column``: one sigma of the blur, voxels;
        ``coherence_length_rocking_nm`` and so on: the distance in the crystal over which the coherence falls
        to ``exp(-1/2)``; ``background_counts`` a voxel, and ``background_share`` of all counts;
        ``frame_scale_min`` and ``frame_scale_max``.
    """
    numbers: dict[str, float] = {}
    if detection is None:
        return numbers
    for axis, (name, sigma) in enumerate(zip(AXES, detection.blur, strict=True)):
        if any(detection.blur):
            numbers[f"coherence_sigma_{name}"] = sigma
        if sigma > 0 and direct_basis is not None:
            voxel = float(np.linalg.norm(direct_basis[:, axis]))
            numbers[f"coherence_length_{name}_nm"] = detection.shape[axis] / (2 * np.pi * sigma) * voxel
    if detection.background is not None:
        background = np.fft.fftshift(detection.background.cpu().numpy())
        numbers["background_counts"] = float(background.mean(dtype=np.float64))
        # What it holds where nothing was measured is among no counts.
        measured = float(background[valid].sum(dtype=np.float64))
        numbers["background_share"] = measured / max(float(counts.sum(dtype=np.float64)), 1.0)
    if (scales := frame_scales(detection, counts)) is not None:
        numbers["frame_scale_min"] = float(np.nanmin(scales))
        numbers["frame_scale_max"] = float(np.nanmax(scales))
    return numbers


def frame_scales(detection: Detection, counts: NDArray[np.float32]) -> NDArray[np.float64] | None:
    """Return the scale of each frame, rocking angle rising, NaN for those that hold next to nothing.

    None where all frames count alike. ``counts`` as in `seen_numbers`.
    """
    if detection.scales is None:
        return None
    held = counts.sum(axis=(1, 2), dtype=np.float64)
    scales = np.fft.fftshift(detection.scales.double().cpu().numpy())
    return np.where(held > HELD * held.sum(), scales, np.nan)


def remarks(numbers: Mapping[str, float]) -> list[str]:
    """Return, and log, a line for each of the numbers of `seen_numbers` that an experimenter should know."""
    lines = []
    blurred = [
        f"{numbers[key]:.2f} voxels along {name}"
        for name in AXES
        if numbers.get(key := f"coherence_sigma_{name}", 0.0) > BLURRED
    ]
    if blurred:
        lines.append(f"blurred: by {', '.join(blurred)} (one sigma): fitted; close the slits further")
    if numbers.get("background_share", 0.0) > SHARE:
        lines.append(
            f"background: {numbers['background_counts']:.2g} counts a voxel, "
            f"{numbers['background_share']:.0%} of all: fitted; shield it, or measure it without the crystal"
        )
    low, high = numbers.get("frame_scale_min", 1.0), numbers.get("frame_scale_max", 1.0)
    if low < 1 - APART or high > 1 + APART:
        lines.append(
            f"frames differ: they count {low:.2f} to {high:.2f} times the mean: fitted; see the monitor"
        )
    for line in lines:
        logger.warning("%s", line)
    return lines
