"""Whether a scan saw its peak: finely enough for phase retrieval, and all of it.

What is wrong is not an error: the number is kept, a line says what to do, and the reconstruction goes on.
"""

import logging
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn.records import DiffractionVolume

logger = logging.getLogger(__name__)

AXES = ("rocking", "row", "column")
REMEDIES = ("smaller steps", "a longer detector distance", "a longer detector distance")
# Below two samples a fringe an object isn't told by its diffraction.
LEAST_OVERSAMPLING = 2.0
# Of the strongest slice: what the outermost one may hold. At 0.05 the phase's error has doubled.
CUT = 0.03
STEP = "check_edges"


def oversampling(support: NDArray[np.bool_]) -> dict[str, float]:
    """Return how many voxels of the pattern there are for each fringe, along each axis.

    It is the grid's length over the object's, from its first voxel to its last, and so depends neither on
    how far the volume was cropped nor on how far it was padded.

    Parameters
    ----------
    support
        Where the object is, bool (n0, n1, n2); not empty.

    Returns
    -------
    dict
        ``oversampling_rocking``, ``oversampling_row``, ``oversampling_column``; 2 is the least that phase
        retrieval needs.
    """
    ratios = {}
    for axis, name in enumerate(AXES):
        inside = np.flatnonzero(support.any(axis=tuple(a for a in range(3) if a != axis)))
        ratios[f"oversampling_{name}"] = support.shape[axis] / int(np.ptp(inside) + 1)
    return ratios


def check_oversampling(ratios: dict[str, float]) -> list[str]:
    """Return, and log, a line for each axis along which the pattern is sampled too coarsely."""
    lines = [
        f"oversampled {ratios[f'oversampling_{name}']:.2f} times along {name}, {LEAST_OVERSAMPLING:g} is the "
        f"least: take {remedy}"
        for name, remedy in zip(AXES, REMEDIES, strict=True)
        if ratios.get(f"oversampling_{name}", LEAST_OVERSAMPLING) < LEAST_OVERSAMPLING
    ]
    return _logged(lines)


def check_edges(volume: DiffractionVolume) -> DiffractionVolume:
    """Note in the history how much of its peak a volume has at its edges, and log where it was cut.

    The measure is, at either end of each axis, the intensity in the outermost slice that was measured over
    that in the strongest one.

    Parameters
    ----------
    volume
        As far as it was measured, before it is cropped; one that was checked is returned as it is.
    """
    if any(step.get("step") == STEP for step in volume.history):
        return volume
    noted: dict[str, float] = {}
    lines = []
    for axis, name in enumerate(AXES):
        low, high = _edges(volume, axis)
        noted |= {f"{name}_first": low, f"{name}_last": high}
        if max(low, high) > CUT:
            ends = " and ".join(end for end, share in (("first", low), ("last", high)) if share > CUT)
            lines.append(
                f"the peak is cut at the {ends} of {name}: {max(low, high):.0%} of its height there; "
                f"{'scan on beyond' if axis == 0 else 'centre it on the detector'}"
            )
    step = {"step": STEP, **noted, "warnings": _logged(lines)}
    return replace(volume, history=(*volume.history, step))


def _edges(volume: DiffractionVolume, axis: int) -> tuple[float, float]:
    """Return the height of the first and the last slice that holds a measurement, over the highest."""
    others = tuple(a for a in range(3) if a != axis)
    counts = np.where(volume.valid, volume.intensity, 0).sum(axis=others, dtype=np.float64)
    # A slice that is masked in part stands for what it still shows.
    shown = volume.valid.mean(axis=others)
    measured = np.flatnonzero(shown > 0.5 * shown.max(initial=0))
    if not len(measured) or not counts.max() > 0:
        return 0.0, 0.0
    profile = counts[measured] / shown[measured]
    return float(profile[0] / profile.max()), float(profile[-1] / profile.max())


def _logged(lines: list[str]) -> list[str]:
    for line in lines:
        logger.warning("%s", line)
    return lines
