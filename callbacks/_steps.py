"""What a background thread is to do: one step after the other, some of them not before their time."""

import heapq
import logging
import queue
import time
from collections.abc import Callable
from itertools import count

logger = logging.getLogger(__name__)

Step = Callable[[], None]


class Steps:
    """Steps that any thread may ask for and one thread does."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[tuple[float, Step] | None] = queue.SimpleQueue()

    def put(self, step: Step, delay_s: float = 0.0) -> None:
        """Have a step done after a delay; those without one are done in the order of asking."""
        self._asked.put((time.monotonic() + delay_s if delay_s > 0 else 0.0, step))

    def end(self) -> None:
        """End the thread, once what was asked for without delay is done."""
        self._asked.put(None)

    def run(self) -> None:
        """Do what is asked for until `end`; what a step raises is logged."""
        later: list[tuple[float, int, Step]] = []
        numbers = count()
        while True:
            while later and later[0][0] <= time.monotonic():
                _do(heapq.heappop(later)[2])
            try:
                asked = self._asked.get(timeout=_until(later))
            except queue.Empty:
                continue
            if asked is None:
                return
            due, step = asked
            if due > time.monotonic():
                heapq.heappush(later, (due, next(numbers), step))
            else:
                _do(step)
            # An idle thread must not keep the last scan's frames.
            del asked, step


def _until(later: list[tuple[float, int, Step]]) -> float | None:
    return max(0.0, later[0][0] - time.monotonic()) if later else None


def _do(step: Step) -> None:
    try:
        step()
    except Exception:
        logger.exception("a step of publishing a reconstruction failed; the next ones go on")
