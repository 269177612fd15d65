"""What a plan decides by a reconstruction: decisions are values, and rules are functions that return them.

A rule sees what is known so far and says what next, and why; plans carry it out and write it down. Any
function of the right shape is a rule, so that a beamline's own takes ten lines::

    def until_sharp(partials):
        latest = partials[-1]
        if latest.scalars.get("resolution_nm", math.inf) < 15:
            return Decision("stop", "sharp enough", {"resolution_nm": latest.scalars["resolution_nm"]})
        return None
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.records import PartialResult

STOP = "stop"
MEASURE = "measure"


@dataclass(frozen=True)
class Pass:
    """One pass over a rocking curve.

    Parameters
    ----------
    start, stop
        First and last angle, deg.
    num
        Angles, evenly spaced.
    count_time
        Exposure of each, s.
    """

    start: float
    stop: float
    num: int
    count_time: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start) and math.isfinite(self.stop)) or self.start == self.stop:
            raise InvalidInput(
                f"a pass must go from one angle to another, got start {self.start} and stop {self.stop}"
            )
        if self.num < 2 or not (math.isfinite(self.count_time) and self.count_time > 0):
            raise InvalidInput(
                f"a pass must have 2 angles or more and a positive exposure, got {self.num} and "
                f"{self.count_time} s"
            )

    @property
    def step_deg(self) -> float:
        """From one angle to the next, positive, deg."""
        return abs(self.stop - self.start) / (self.num - 1)

    @property
    def exposure_s(self) -> float:
        """Of all angles together: what counts as dose."""
        return self.num * self.count_time


@dataclass(frozen=True)
class Decision:
    """What is done next, and why.

    Parameters
    ----------
    action
        What: "measure", "stop", "skip", ...
    reason
        Why, one sentence for people.
    numbers
        Those that it was decided by.
    scan
        What to measure, where that is the decision.
    """

    action: str
    reason: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    scan: Pass | None = None

    def __str__(self) -> str:
        return f"{self.action}: {self.reason}"


class StopRule(Protocol):
    """Says whether a scan that runs may end."""

    def __call__(self, partials: Sequence[PartialResult], /) -> Decision | None:
        """Return a decision to stop, or None to go on.

        Parameters
        ----------
        partials
            The scan's partial results so far, one at least, the newest last.
        """
        ...
