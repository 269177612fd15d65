"""What has come of a run whose documents may get lost on their way, and whether that is all of it."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bluesky_cdinn.callbacks._paths import file_path

_STREAM = "STREAM:"


class ReceivedRun:
    """Counts one run's documents; keeps none but the first and the last.

    Parameters
    ----------
    start
        The run's start document.

    Attributes
    ----------
    start, stop
        The stop document is None until it comes.
    """

    def __init__(self, start: Mapping[str, Any]) -> None:
        self.start = start
        self.stop: Mapping[str, Any] | None = None
        self._streams: dict[str, str] = {}
        self._external: dict[str, set[str]] = defaultdict(set)
        self._inline: set[str] = set()
        self._points: dict[tuple[str, str], set[int]] = defaultdict(set)
        self._resources: dict[str, str] = {}
        self._files: set[Path] = set()
        self._datums: set[str] = set()
        self._wanted_datums: set[str] = set()

    @property
    def uid(self) -> str:
        """Of the run."""
        return self.start["uid"]

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Note one document of the run; KeyError, TypeError and the like if it can't be understood."""
        if name == "descriptor":
            self._describe(doc)
        elif name in ("event", "event_page"):
            self._note_events(doc, page=name == "event_page")
        elif name in ("resource", "stream_resource"):
            self._resources[doc["uid"]] = doc.get("data_key", "")
            self._files.add(file_path(doc))
        elif name == "stream_datum":
            self._note_stream_datum(doc)
        elif name in ("datum", "datum_page"):
            ids = doc["datum_id"]
            self._datums.update([ids] if isinstance(ids, str) else ids)
        elif name == "stop":
            self.stop = doc

    def lost(self) -> str:
        """Say what the stop document announces and didn't come, or can't be reached; empty if all is here."""
        return "; ".join(self._lost())

    def _lost(self) -> Iterator[str]:
        announced = (self.stop or {}).get("num_events")
        for stream, number in announced.items() if isinstance(announced, Mapping) else ():
            events = {""} if stream in self._inline or not self._external[stream] else set()
            came = min(len(self._points[stream, part]) for part in events | self._external[stream])
            if came < number:
                yield f"{number - came} of {number} points of the stream {stream!r} didn't come"
        if missing := self._wanted_datums - self._datums:
            yield f"{len(missing)} datum documents didn't come"
        for path in sorted(path for path in self._files if not path.exists()):
            yield f"{path} can't be reached from here"

    def _describe(self, doc: Mapping[str, Any]) -> None:
        stream = str(doc.get("name", "primary"))
        self._streams[doc["uid"]] = stream
        external = {key: str(said.get("external", "")) for key, said in doc["data_keys"].items()}
        self._external[stream] |= {key for key, where in external.items() if where.startswith(_STREAM)}
        if any(not where.startswith(_STREAM) for where in external.values()):
            self._inline.add(stream)

    def _note_events(self, doc: Mapping[str, Any], *, page: bool) -> None:
        stream = self._streams[doc["descriptor"]]
        numbers = doc["seq_num"] if page else [doc["seq_num"]]
        self._points[stream, ""].update(int(number) for number in numbers)
        filled = doc.get("filled") or {}
        for key in filled:
            values = doc["data"].get(key, ()) if page else [doc["data"].get(key)]
            self._wanted_datums.update(value for value in values if isinstance(value, str))

    def _note_stream_datum(self, doc: Mapping[str, Any]) -> None:
        stream, key = self._streams[doc["descriptor"]], self._resources[doc["stream_resource"]]
        first, end = int(doc["seq_nums"]["start"]), int(doc["seq_nums"]["stop"])
        # As many as a document may cover; see `_assets.MAX_FRAMES`.
        self._points[stream, key].update(range(first, min(end, first + 1_000_000)))
