"""What a worker tells Prometheus: counters and histograms, served by HTTP where that is wanted."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from bluesky_cdinn.settings import RemoteSettings
from bluesky_cdinn.summary import ReconstructionSummary
from bluesky_cdinn.transport import require_loopback

_PARTIAL = "partial"
_SECONDS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)


class WorkerMetrics:
    """What one worker has done since it started; numbers for Prometheus in a registry of their own.

    Attributes
    ----------
    done, failed, updates
        Reconstructions that succeeded and that didn't, and partial results.
    last_error
        Why the last one that failed did.
    device
        That the first success was computed on; empty until it is known.
    """

    def __init__(self) -> None:
        self.done = self.failed = self.updates = 0
        self.last_error = self.device = self._partial = ""
        self.registry = own = CollectorRegistry()
        self._runs = Counter("cdinn_runs", "Scans whose reconstruction has ended", ["status"], registry=own)
        self._seconds = Histogram(
            "cdinn_reconstruction_seconds", "Computing one scan", buckets=_SECONDS, registry=own
        )
        self._updates = Counter("cdinn_updates", "Partial results during scans", registry=own)
        self._documents = Counter("cdinn_documents", "Documents that came", registry=own)
        self._mended = Counter("cdinn_mended_runs", "Scans read from Tiled, whole or in part", registry=own)
        self._beat = Gauge("cdinn_heartbeat_timestamp_seconds", "When Tiled last took one", registry=own)

    def watch(self, claimed: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Have two more numbers looked up when somebody asks: scans claimed, and those that wait."""
        own = self.registry
        Gauge("cdinn_claimed_runs", "Scans that this worker has", registry=own).set_function(claimed)
        Gauge("cdinn_queue_depth", "Scans that wait for their turn", registry=own).set_function(waiting)

    def ended(self, summary: ReconstructionSummary) -> None:
        """Count a reconstruction."""
        self._runs.labels(summary.status).inc()
        if math.isfinite(summary.seconds):
            self._seconds.observe(summary.seconds)
        if summary.success:
            self.done += 1
        elif summary.status == "failed":
            self.failed += 1
            self.last_error = summary.reason

    def processed(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take a document of a processed run; partial results are counted."""
        if name == "descriptor" and doc.get("name") == _PARTIAL:
            self._partial = doc["uid"]
        elif name == "event" and doc["descriptor"] == self._partial:
            self.updates += 1
            self._updates.inc()

    def document(self) -> None:
        """Count a document."""
        self._documents.inc()

    def mended(self) -> None:
        """Count a scan that was completed, or done altogether, from Tiled."""
        self._mended.inc()

    def beat(self) -> None:
        """Note that the heart beats."""
        self._beat.set(time.time())

    def serve(self, settings: RemoteSettings, until: ExitStack) -> str | None:
        """Serve the numbers until `until` is closed, where the settings say so; return where.

        Raises
        ------
        InvalidInput
            The host is another than this machine, though the settings don't allow that.
        OSError
            The port is taken.
        """
        if settings.metrics_port is None:
            return None
        require_loopback(settings.metrics_host, allow_network=settings.allow_network)
        server, thread = start_http_server(settings.metrics_port, settings.metrics_host, self.registry)

        def end() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        until.callback(end)
        return f"http://{settings.metrics_host}:{server.server_port}/metrics"
