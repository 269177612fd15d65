"""What the scan before came to, as the start of the next one of the same crystal.

Its peak may have moved on the detector and along the rocking curve, its strain grown, its exposure changed:
the objects are laid upon the new peak, and believed only as far as the new data confirm them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bluesky_cdinn.forward import AXES
from bluesky_cdinn.posing import Posed
from bluesky_cdinn.records import DiffractionVolume
from bluesky_cdinn.settings import ReconstructionOptions
from bluesky_cdinn.warm_start import Known, WarmStart, boxed, ramped, step_deg
from bluesky_cdinn.windows import objects_on

STARTS_FROM = "starts_from"
"""Of the start document's ``cdi`` mapping: uid of the scan before, empty in the first of a series."""

FOUND_FROM = "scan before"

# By how much chi2, over that of counting noise, may exceed what it was in the scan before. Of a crystal that
# has changed altogether, two objects from one start may agree on what is wrong: at 1.4 times there.
ALLOWED = 1.15


@dataclass(frozen=True, eq=False)
class SeriesStart:
    """The objects of a scan that has ended.

    Parameters
    ----------
    warm
        Them, in their own volume.
    options
        That they were computed with.
    raw_uid
        Of their scan.
    """

    warm: WarmStart
    options: ReconstructionOptions
    raw_uid: str

    @property
    def nbytes(self) -> int:
        """How much memory the objects take."""
        objects = self.warm.objects
        return sum(values.numel() * values.element_size() for values in (objects.density, objects.support))

    def known(self, posed: Posed, volume: DiffractionVolume) -> Known:
        """Return the objects on the working grid of the next scan's volume, centred on its peak."""
        warm = self.warm
        whole = boxed(warm.objects, self._same_voxels(volume))
        there = objects_on(whole, tuple(posed.full.magnitude.shape))
        field = torch.fft.fftn(there.density[:1], dim=AXES, norm="ortho").abs()[0]
        moved = displacement(field, posed.full.target.cpu())
        there = replace(there, density=ramped(there.density, moved))
        here = boxed(there, tuple(posed.working.measurement.magnitude.shape))
        return Known(
            here.to(posed.full.magnitude.device),
            {"found_from": FOUND_FROM},
            most_misfit=ALLOWED * warm.misfit,
        )

    def _same_voxels(self, volume: DiffractionVolume) -> tuple[int, int, int]:
        """Return the box whose field is sampled as the volume is: another step takes another length."""
        slices, rows, columns = self.warm.full
        ours, theirs = self.warm.step_deg, step_deg(volume)
        ratio = ours / theirs if ours and theirs else 1.0
        return max(1, round(slices * ratio)), rows, columns


def starts_from(metadata: Mapping[str, Any]) -> str | None:
    """Return the scan that a scan may start from; empty in the first of a series, None outside of one."""
    cdi = metadata.get("cdi")
    said = cdi.get(STARTS_FROM) if isinstance(cdi, Mapping) else None
    return said if isinstance(said, str) else None


def displacement(field: Tensor, magnitude: Tensor) -> tuple[int, int, int]:
    """Return by how many voxels a pattern lies beside another: where their correlation is largest.

    Parameters
    ----------
    field
        Magnitudes of the one that is to be moved, origin at index 0.
    magnitude
        Of the other, zero where not measured.
    """
    overlap = torch.fft.ifftn(torch.fft.fftn(magnitude) * torch.fft.fftn(field).conj()).real
    place = np.unravel_index(int(overlap.argmax()), tuple(overlap.shape))
    a, b, c = (int(p) if p <= n // 2 else int(p) - n for p, n in zip(place, overlap.shape, strict=True))
    return a, b, c
