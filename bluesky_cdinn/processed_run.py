"""The documents of one processed run as they come: partial results while the scan runs, then the crystal.

The run's uid is there before anything else. Its start document is written twice: with the first partial
result, when all that is known is the scan; and at the end, with what a search needs. Both have the same uid
and time, so that the whole run, as `ProcessedRun.end` gives it, is told by the second one.
"""

import time
import uuid
from collections.abc import Mapping
from typing import Any

from event_model import ComposeDescriptorBundle, ComposeRunBundle, compose_run

from bluesky_cdinn.documents import RUNNING, Document, compose_end, reconstruction_documents, start_metadata
from bluesky_cdinn.failure import failed_reconstruction
from bluesky_cdinn.partials import STREAM, partial_data, partial_keys
from bluesky_cdinn.records import PartialResult, Reconstruction


class ProcessedRun:
    """What becomes of one scan.

    Parameters
    ----------
    raw_start
        The raw run's start document.
    """

    def __init__(self, raw_start: Mapping[str, Any]) -> None:
        self.uid = str(uuid.uuid4())
        self._raw_start = raw_start
        self._run: ComposeRunBundle | None = None
        self._stream: ComposeDescriptorBundle | None = None
        self._partials: list[Document] = []

    @property
    def head(self) -> list[Document]:
        """What the run began with, before its first event; nothing before there was one."""
        if self._run is None:
            return []
        return [("start", dict(self._run.start_doc)), self._partials[0]]

    def update(self, result: PartialResult) -> list[Document]:
        """Return the documents that come with a partial result; the first ones begin the run.

        Raises
        ------
        InvalidInput
            It doesn't fit to those before, or can't be described. The run stays as it was.
        """
        if self._run is None or self._stream is None:
            keys = partial_keys(result)
            data = partial_data(result, keys)
            metadata = start_metadata(failed_reconstruction(self._raw_start, "")) | {"status": RUNNING}
            run = compose_run(uid=self.uid, time=time.time(), metadata=metadata)
            stream = run.compose_descriptor(name=STREAM, data_keys=keys, object_keys={STREAM: list(keys)})
            self._run, self._stream = run, stream
            self._partials = [("descriptor", dict(stream.descriptor_doc))]
            new: list[Document] = [("start", dict(run.start_doc)), *self._partials]
        else:
            data, new = partial_data(result, self._stream.descriptor_doc["data_keys"]), []
        event = self._stream.compose_event(
            data=data, timestamps=dict.fromkeys(data, time.time()), validate=False
        )
        self._partials.append(("event", dict(event)))
        return [*new, self._partials[-1]]

    def end(self, result: Reconstruction) -> tuple[list[Document], list[Document]]:
        """Return the whole run, and of it what comes after the partial results.

        Raises
        ------
        InvalidInput
            The result can't be described; the run can be ended with another one.
        """
        if self._run is None:
            whole = list(reconstruction_documents(result, uid=self.uid))
            return whole, whole
        start = {
            **start_metadata(result),
            **{name: self._run.start_doc[name] for name in ("uid", "time")},
        }
        rest = list(compose_end(self._run, result))
        return [("start", start), *self._partials, *rest], rest
