"""What the plans need of the devices and the callback that they are given."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, runtime_checkable

from bluesky.protocols import Movable, Readable

from bluesky_cdinn.records import PartialResult


@runtime_checkable
class KnowsExperiment(Protocol):
    """A detector that knows something for the start document's ``cdi`` mapping, such as the sample."""

    @property
    def cdi(self) -> Mapping[str, Any]:
        """Entries of the mapping, by name."""
        ...


@runtime_checkable
class ReadableMovable(Readable, Movable, Protocol):
    """A device that is set and read by the same name: a motor, a detector's exposure time."""


class Summary(Protocol):
    """What a plan looks at of a finished reconstruction."""

    @property
    def status(self) -> str:
        """Return "success", "failed" or "cancelled"."""
        ...

    @property
    def reason(self) -> str:
        """Why it isn't a success, else empty."""
        ...


class LiveCallback(Protocol):
    """A Bluesky callback that reconstructs each rocking scan whose documents it is given."""

    def __call__(self, name: str, doc: Mapping[str, Any]) -> Any:
        """Take one document."""
        ...

    def result(self, raw_uid: str) -> Future[Any]:
        """Return the result to come of a run; `CdinnError` if its start document wasn't seen."""
        ...


@runtime_checkable
class ShowsPartialResults(Protocol):
    """A live callback that shows what it makes of a scan that runs."""

    def partials(self, raw_uid: str) -> Sequence[PartialResult]:
        """Return a running scan's partial results so far, at once, the newest last."""
        ...


@runtime_checkable
class GivesPartialResults(Protocol):
    """A live callback that makes partial results when it is asked for one."""

    def partial(self, raw_uid: str, points: int) -> Future[PartialResult]:
        """Return the first partial result to come that rests on so many points of a scan that runs."""
        ...
