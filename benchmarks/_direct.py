"""A live callback that computes where the plan runs: no worker, no Tiled, and so no more time than needed."""

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from bluesky_cdinn.callbacks import ReconstructionSummary, RockingCurveAssembler, is_rocking_curve
from bluesky_cdinn.errors import CdinnError, NotFound
from bluesky_cdinn.following import ScanFollower
from bluesky_cdinn.records import PartialResult, Reconstruction
from bluesky_cdinn.settings import ReconstructionOptions


class DirectReconstruction:
    """Reconstructs when it is asked, as the worker's process would, and keeps what came of it."""

    def __init__(self, options: ReconstructionOptions | None = None) -> None:
        self._options = options or ReconstructionOptions()
        self._follow = ScanFollower()
        self._runs: dict[str, RockingCurveAssembler] = {}
        self._results: dict[str, Future[ReconstructionSummary]] = {}
        self.crystals: dict[str, Reconstruction] = {}
        self._open = ""

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        if name == "start":
            self._open = doc["uid"] if is_rocking_curve(doc) else ""
            if self._open:
                self._runs[self._open] = RockingCurveAssembler()
                self._results[self._open] = Future()
        if self._open:
            self._runs[self._open](name, doc)
            if name == "stop":
                self._finish(self._open)
                self._open = ""

    def result(self, raw_uid: str) -> Future[ReconstructionSummary]:
        if raw_uid not in self._results:
            raise NotFound(f"no rocking scan {raw_uid} came by here")
        return self._results[raw_uid]

    def partial(self, raw_uid: str, points: int) -> Future[PartialResult]:
        future: Future[PartialResult] = Future()
        try:
            future.set_result(self._follow(self._runs[raw_uid].curve(), self._options))  # type: ignore[arg-type]
        except CdinnError as error:
            future.set_exception(error)
        return future

    def _finish(self, uid: str) -> None:
        try:
            crystal = self._follow(self._runs[uid].curve(), self._options)
        except CdinnError as error:
            summary = ReconstructionSummary(raw_uid=uid, status="failed", reason=str(error))
        else:
            assert isinstance(crystal, Reconstruction)
            self.crystals[uid] = replace(crystal, raw_uid=uid)
            summary = ReconstructionSummary(
                raw_uid=uid,
                chi2=crystal.chi2,
                confidence=crystal.confidence,
                seconds=crystal.seconds,
                scalars={**crystal.scalars, "confidence": crystal.confidence, "chi2": crystal.chi2},
            )
        self._results[uid].set_result(summary)
        del self._runs[uid]
