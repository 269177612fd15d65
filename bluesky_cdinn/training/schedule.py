"""When the learning rate is what: a function of how much of the budget is used, and of nothing else."""

import math
import time
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Budget:
    """What training may use: steps, or seconds by its clock.

    Parameters
    ----------
    steps, seconds
        One of them; the other is None.
    """

    steps: int | None = None
    seconds: float | None = None

    def share(self, steps: int, seconds: float) -> float:
        """Return the share of the budget that so many steps and seconds use up."""
        if self.steps is not None:
            return steps / self.steps
        assert self.seconds is not None, "TrainingOptions holds one of them"
        return seconds / self.seconds


def rate_factor(share: float, warm_up: float, since: float = 0.0) -> float:
    """Return the learning rate as a part of its peak.

    A cosine from 1 to 0 (Loshchilov and Hutter 2017) under a ramp from 0 to 1. Training that is resumed with
    a larger budget finds itself earlier on the cosine: the ramp, begun anew, lets it climb to that rate.

    Parameters
    ----------
    share
        Of the budget that is used.
    warm_up
        Length of the ramp, a share of the budget.
    since
        Share at which the budget was given: 0, or where training stood when it got another one.
    """
    cosine = 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    return cosine * min(1.0, (share - since) / warm_up)


class Clock:
    """Seconds that training has taken, over all its sessions.

    Parameters
    ----------
    kind
        "wall", or "cpu" for this process's processor time.
    before
        Seconds of the earlier sessions.
    """

    def __init__(self, kind: Literal["wall", "cpu"], before: float = 0.0) -> None:
        self._now = time.monotonic if kind == "wall" else time.process_time
        self._start = self._now() - before

    def seconds(self) -> float:
        """Return the seconds so far."""
        return self._now() - self._start
