"""A scan that asks, point by point, whether what is known of its crystal will do."""

import logging
from collections.abc import Callable
from dataclasses import replace

from bluesky.utils import MsgGenerator

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.plans._decisions import DecisionLog, record
from bluesky_cdinn.plans._protocols import LiveCallback, ShowsPartialResults
from bluesky_cdinn.records import PartialResult
from bluesky_cdinn.steadiness import UntilSteady
from bluesky_cdinn.steering import Decision, StopRule

logger = logging.getLogger(__name__)


def rule_for(stop_early: bool | float, stop_rule: StopRule | None, repeats: int) -> StopRule | None:
    """Return the rule that a plan's arguments mean; None where the scan is to be measured whole.

    Of a scan that is repeated whole passes are compared: a second frame at each angle is there for its
    counts, and the end of a pass, where there are few, doesn't tell what those change.

    Raises
    ------
    InvalidInput
        If the tolerance is no positive angle, or a rule comes beside it.
    """
    if stop_early is False:
        return stop_rule
    if stop_rule is not None:
        raise InvalidInput(
            f"stop_early is for the rule that comes with this package, got {stop_early} and {stop_rule!r}: "
            "give one of the two"
        )
    rule = UntilSteady() if stop_early is True else UntilSteady(tolerance_rad=float(stop_early))
    return rule if repeats == 1 else replace(rule, span=1.0)


def name_of(rule: StopRule) -> str:
    """Return what a start document says of a rule: its fields, or where the function is."""
    name = getattr(rule, "__qualname__", None)
    return repr(rule) if name is None else f"{rule.__module__}.{name}"


class EarlyStop:
    """Shows a rule the partial results of one scan as they come, and writes down what it decides.

    It waits for nothing: between two partial results, and before the first, the scan goes on. A rule that
    raises is not asked again: the scan is then measured whole.

    Parameters
    ----------
    rule
        That is asked.
    live
        Follows the scan.
    raw_uid
        Returns the run's uid, once it is open.
    """

    def __init__(self, rule: StopRule, live: LiveCallback, raw_uid: Callable[[], str]) -> None:
        self._rule: StopRule | None = rule
        self._live = live
        self._raw_uid = raw_uid
        self._seen: PartialResult | None = None
        if not isinstance(live, ShowsPartialResults):
            logger.warning("%r shows no partial results: the scan will not be stopped early", live)
            self._rule = None

    def __call__(self) -> MsgGenerator[bool]:
        """Return whether the scan that is running ends here; the decision is in its documents then."""
        decision = self._decide()
        if decision is None:
            return False
        yield from record(DecisionLog(), decision)
        return True

    def _decide(self) -> Decision | None:
        if self._rule is None or not isinstance(self._live, ShowsPartialResults):
            return None
        try:
            partials = self._live.partials(self._raw_uid())
            if not partials or partials[-1] is self._seen:
                return None
            self._seen = partials[-1]
            decision = self._rule(partials)
            if not (decision is None or isinstance(decision, Decision)):
                raise InvalidInput(f"a stop rule must return a Decision or None, got {decision!r}")
            return decision
        except Exception:
            logger.exception("the rule %r failed: the scan is measured whole", self._rule)
            self._rule = None
            return None
