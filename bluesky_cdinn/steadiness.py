"""When further frames no longer change the object: the rule that stops a scan early.

How far an object will still move is told by how far it has moved lately: over a twentieth of a scan its phase
changes by about as much as it will from there to the end (docs/explanations/stopping-early.md). Looks that
are close together change it less each, and by each fit's own noise: they add up as independent changes do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.records import PartialResult
from bluesky_cdinn.steering import STOP, Decision


@dataclass(frozen=True)
class UntilSteady:
    """Stop a scan once its object has stood still over a part of it, and can be believed.

    It is a `bluesky_cdinn.steering.StopRule`. A number that a partial result should have and hasn't keeps the
    scan going.

    Parameters
    ----------
    tolerance_rad
        How much the object's phase may have changed over `span`, rms, rad; about as much it will change yet.
        Nor may the two independent objects that are followed differ by more.
    span
        Over how much of one pass over the angles it must have stood still. 1 compares whole passes: only
        they tell what repeating them brings.
    least_fraction
        Of the planned angles; before, no scan is stopped.
    least_confidence
        That the object is right (`PartialResult.confidence`).
    least_agreement
        Correlation of the two objects.
    """

    tolerance_rad: float = 0.05
    span: float = 0.05
    least_fraction: float = 0.5
    least_confidence: float = 0.7
    least_agreement: float = 0.97

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tolerance_rad) and self.tolerance_rad > 0):
            raise InvalidInput(f"tolerance_rad must be a positive angle in rad, got {self.tolerance_rad}")
        if not (math.isfinite(self.span) and self.span > 0):
            raise InvalidInput(f"span must be a positive share of a pass, got {self.span}")
        for name in ("least_fraction", "least_confidence", "least_agreement"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidInput(f"{name} must be from 0 to 1, got {getattr(self, name)}")

    def __call__(self, partials: Sequence[PartialResult], /) -> Decision | None:
        """Return a decision to stop, or None to go on.

        Parameters
        ----------
        partials
            The scan's partial results so far, the newest last.
        """
        newest = partials[-1]
        spread = newest.scalars.get("phase_spread_rad", math.nan)
        moved = moved_rad(partials, self.span)
        # Each written so that a number that isn't there is one that isn't good enough.
        enough = (
            newest.fraction >= self.least_fraction
            and newest.confidence >= self.least_confidence
            and newest.scalars.get("agreement", math.nan) >= self.least_agreement
            and spread <= self.tolerance_rad
            and moved <= self.tolerance_rad
        )
        if not enough:
            return None
        return Decision(
            STOP,
            f"over the last {self.span:.0%} of a pass the phase has changed by {moved:.3f} rad, no more than "
            f"the {self.tolerance_rad:g} rad that were asked for",
            {
                "points": newest.points,
                "fraction": newest.fraction,
                "moved_rad": moved,
                "phase_spread_rad": spread,
                "agreement": newest.scalars["agreement"],
                "confidence": newest.confidence,
                "chi2": newest.chi2,
            },
        )


def moved_rad(partials: Sequence[PartialResult], span: float) -> float:
    """Return how far an object's phase has moved over the last part of a scan, rms, rad.

    Parameters
    ----------
    partials
        In order of measurement, one at least.
    span
        How much of one pass over the planned angles, by points.

    Returns
    -------
    float
        The changes from look to look, added as independent ones; NaN where the looks don't reach back so far,
        one can't be compared with the one before, or one is missing among them.
    """
    reaches = [p.points / p.fraction for p in partials if p.fraction > 0]
    # In later passes fraction stays 1.
    since = partials[-1].points - span * min(reaches, default=math.nan)
    total = 0.0
    for before, partial in reversed(list(pairwise(partials))):
        # Not every look need have been seen: then what this one says is less than the whole change.
        seen = partial.scalars.get("change_since_points") == before.points
        total += partial.scalars.get("change_rad", math.nan) ** 2 if seen else math.nan
        if before.points <= since:
            return math.sqrt(total)
    return math.nan
