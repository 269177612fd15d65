"""What the documents of one run have said so far, sorted by kind; nothing is interpreted here."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from bluesky_cdinn.callbacks._keys import Stream
from bluesky_cdinn.errors import CdinnError, InvalidInput

Document = Mapping[str, Any]

BASELINE = "baseline"


class RunDocuments:
    """Keep the documents of one run, those of other runs are ignored.

    Events count by their ``seq_num``: after a pause the RunEngine goes back to the last checkpoint and
    measures points again under the same numbers, and the later measurement is the one that is kept.

    Attributes
    ----------
    start, stop
        None until they come.
    streams
        What the descriptors say, by stream name.
    points
        ``data`` of the events, by stream name and ``seq_num``.
    resources
        Resource and StreamResource documents, by uid.
    datums
        Datum documents, by ``datum_id``.
    stream_datums
        (stream name, StreamDatum), in the order of arrival.
    """

    def __init__(self, detector: str | None = None) -> None:
        self.start: Document | None = None
        self.stop: Document | None = None
        self.streams: dict[str, Stream] = {}
        self.points: dict[str, dict[int, Document]] = {}
        self.resources: dict[str, Document] = {}
        self.datums: dict[str, Document] = {}
        self.stream_datums: list[tuple[str, Document]] = []
        self._detector = detector
        self._names: dict[str, str] = {}
        self._takers = {
            "start": self._take_start,
            "descriptor": self._take_descriptor,
            "event": self._take_event,
            "event_page": self._take_event_page,
            "resource": self._take_resource,
            "stream_resource": self._take_resource,
            "datum": self._take_datum,
            "datum_page": self._take_datum_page,
            "stream_datum": self._take_stream_datum,
            "stop": self._take_stop,
        }

    def __call__(self, name: str, doc: Document) -> None:
        """Take one document; names that aren't known are ignored.

        Raises
        ------
        InvalidInput
            If the document can't be understood. What came before stays as it was.
        """
        taker = self._takers.get(name)
        if taker is not None:
            with understood(f"a {name} document"):
                taker(doc)

    def cdi(self, name: str) -> Any:
        """Return an entry of the start document's ``cdi``, None where it isn't."""
        return self.start.get("cdi", {}).get(name) if self.start else None

    def _take_start(self, doc: Document) -> None:
        if self.start is not None:
            if doc["uid"] == self.start["uid"]:
                raise InvalidInput(f"run {doc['uid']} was started twice; one assembler takes one run")
            return
        if not isinstance(doc["uid"], str) or not isinstance(doc.get("cdi", {}), Mapping):
            raise InvalidInput(f"a start document must have a text uid and a mapping cdi, got {doc!r}")
        self.start = doc
        self._detector = self.cdi("detector") or self._detector

    def _take_descriptor(self, doc: Document) -> None:
        if self.start is None or doc["run_start"] != self.start["uid"]:
            return
        name, described = str(doc.get("name", "primary")), Stream.from_descriptor(doc)
        self.streams[name] = self.streams[name].updated(described) if name in self.streams else described
        self._names[doc["uid"]] = name

    def _take_event(self, doc: Document) -> None:
        name = self._names.get(doc["descriptor"])
        if name is not None:
            self._keep(name, doc["seq_num"], doc["data"])

    def _take_event_page(self, doc: Document) -> None:
        name = self._names.get(doc["descriptor"])
        if name is not None:
            for row, number in enumerate(doc["seq_num"]):
                self._keep(name, number, {key: column[row] for key, column in doc["data"].items()})

    def _keep(self, name: str, number: Any, data: Document) -> None:
        if int(number) != number:
            raise InvalidInput(f"seq_num must be a whole number, got {number!r}")
        stream, own = self.streams[name], self.streams[name].object_keys.get(self._detector or "")
        # Other detectors' images are let go, so that they can be freed.
        kept = {k: v for k, v in data.items() if own is None or k in own or not stream.is_image(k)}
        self.points.setdefault(name, {})[int(number)] = kept

    def _take_resource(self, doc: Document) -> None:
        self.resources[doc["uid"]] = doc

    def _take_datum(self, doc: Document) -> None:
        self.datums[doc["datum_id"]] = doc

    def _take_datum_page(self, doc: Document) -> None:
        for row, datum_id in enumerate(doc["datum_id"]):
            kwargs = {key: column[row] for key, column in doc["datum_kwargs"].items()}
            self.datums[datum_id] = {"resource": doc["resource"], "datum_kwargs": kwargs}

    def _take_stream_datum(self, doc: Document) -> None:
        name = self._names.get(doc["descriptor"])
        if name is not None:
            self.stream_datums.append((name, doc))

    def _take_stop(self, doc: Document) -> None:
        if self.start is not None and doc["run_start"] == self.start["uid"]:
            self.stop = doc


@contextmanager
def understood(what: str) -> Iterator[None]:
    """Turn whatever a malformed document sets off into one clear `InvalidInput`."""
    try:
        yield
    except CdinnError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InvalidInput(
            f"{what} must follow the event model, got {type(error).__name__}: {error}"
        ) from error
