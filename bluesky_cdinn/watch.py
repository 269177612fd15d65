"""How far a reconstruction is, for whoever waits for it, and the way to stop it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from bluesky_cdinn.errors import Cancelled
from bluesky_cdinn.records import Progress
from bluesky_cdinn.refine import Objects

Report = Callable[[Progress], None]
Cancel = Callable[[], bool]

# Share of the whole that is done when a stage ends; the first object takes about half of it.
ENDS = {"prepare": 0.03, "starts": 0.5, "projections": 0.75, "polish": 0.9, "judge": 0.97, "strain": 1.0}


@dataclass
class Watch:
    """Reports after each iteration, and ends the work when asked to.

    Parameters
    ----------
    progress
        Called with how far the work is.
    cancelled
        Asked whether to stop.
    timings
        Wall seconds of each stage that ended.
    chi2
        Of the leading object by iteration; NaN where a step doesn't compute it.
    seconds, cpu_s
        Wall and CPU time of all stages that ended.
    name, fraction
        The stage, and how far the whole is, 0 to 1.

    Raises
    ------
    Cancelled
        From any call, once ``cancelled`` says True.
    """

    progress: Report | None
    cancelled: Cancel | None
    timings: dict[str, float] = field(default_factory=dict)
    chi2: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu_s: float = 0.0
    name: str = ""
    fraction: float = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done inside, as the stage of this name."""
        self.name, wall, cpu = name, time.perf_counter(), time.process_time()
        self._say()
        yield
        took = time.perf_counter() - wall
        self.timings[name] = self.timings.get(name, 0.0) + took
        self.seconds += took
        self.cpu_s += time.process_time() - cpu
        self.fraction = max(self.fraction, ENDS[name])
        self._say()

    def __call__(self, objects: Objects) -> None:
        """Take note of an iteration."""
        best = objects.chi2.min()
        self.chi2.append(float(best) if torch.isfinite(best) else float("nan"))
        # Stages differ in length from case to case, so each closes on its end without reaching it.
        self.fraction += max(0.0, ENDS[self.name] - self.fraction) * 0.01
        self._say()

    def _say(self) -> None:
        if self.cancelled is not None and self.cancelled():
            raise Cancelled(f"the reconstruction was stopped on request while at {self.name!r}")
        if self.progress is not None:
            last = self.chi2[-1] if self.chi2 else float("nan")
            self.progress(Progress(self.name, self.fraction, last))
