"""Grains as fast as plans' tests need them: Gaussian peaks, and results that say what they are told."""

import math
from concurrent.futures import Future

import numpy as np

from bluesky_cdinn.callbacks import ReconstructionSummary
from bluesky_cdinn.errors import NotFound
from bluesky_cdinn.sim.devices import gold_geometry

WIDTH_DEG, WIDTH_PX = 0.03, 2.5


class Spots:
    """Peaks at places of a stage: (x, y) -> list of (centre_deg, row, column, rate)."""

    shape = (64, 64)
    dtype = np.dtype("int32")
    geometry = gold_geometry((64, 64))

    def __init__(self, spots, stages=(), arm=()):
        self.spots = spots
        self.stages, self.arm = stages, arm
        self.frames_taken = 0
        self._rng = np.random.default_rng(0)
        self._rows, self._columns = np.indices(self.shape)

    def at(self):
        return self.spots.get(tuple(round(stage.position) for stage in self.stages), [])

    def frame(self, angle_deg, count_time_s):
        self.frames_taken += 1
        expected = np.full(self.shape, 0.01)
        for centre, row, column, rate in self.at():
            # 10 pixels a unit, the one backwards and both a little askew.
            if self.arm:
                first, second = (motor.position for motor in self.arm)
                row, column = row - 10 * first + second, column + 10 * second
            away = ((angle_deg - centre) / WIDTH_DEG) ** 2
            away = away + ((self._rows - row) / WIDTH_PX) ** 2 + ((self._columns - column) / WIDTH_PX) ** 2
            expected = expected + rate * np.exp(-away / 2)
        return self._rng.poisson(expected * count_time_s).astype(self.dtype)


class ScriptedLive:
    """Has the result of each rocking curve at once: what `answer` makes of its start document."""

    def __init__(self, answer):
        self._answer = answer
        self._futures = {}
        self.asked = []

    def __call__(self, name, doc):
        if name == "start" and doc.get("purpose") == "rocking_curve":
            self.asked.append(doc["uid"])
            future = self._futures[doc["uid"]] = Future()
            answer = dict(self._answer(doc))
            scalars = {"size_nm": 300.0, "strain_rms": 1e-4, **answer.pop("scalars", {})}
            future.set_result(
                ReconstructionSummary(doc["uid"], "p", **{"confidence": 0.9, **answer}, scalars=scalars)
            )

    def result(self, raw_uid):
        if raw_uid not in self._futures:
            raise NotFound(raw_uid)
        return self._futures[raw_uid]


def decisions(documents):
    """Return (action, reason) of each decision, in order."""
    return [
        (doc["data"]["steering_action"], doc["data"]["steering_reason"])
        for name, doc in documents
        if name == "event" and "steering_action" in doc["data"]
    ]


def starts(documents, **equal):
    return [
        doc
        for name, doc in documents
        if name == "start" and all(doc.get(key) == value for key, value in equal.items())
    ]


def run_of(documents, uid):
    """Return the documents of one run."""
    descriptors = {d["uid"] for n, d in documents if n == "descriptor" and d["run_start"] == uid}
    return [
        (name, doc)
        for name, doc in documents
        if (name == "start" and doc["uid"] == uid)
        or (name in ("descriptor", "stop") and doc["run_start"] == uid)
        or (name == "event" and doc["descriptor"] in descriptors)
    ]


def drifting(centre):
    """Return spots whose centre is a function of the frames that were taken."""

    class Drifting(Spots):
        def at(self):
            where = centre(self.frames_taken)
            return [] if math.isnan(where) else [(where, 32.0, 32.0, 1e4)]

    return Drifting({})
