"""Fixtures of the tests of faults."""

import os
from pathlib import Path

import pytest

from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.settings import Settings, TiledSettings, WorkerSettings
from bluesky_cdinn.worker import ReconstructionWorker


@pytest.fixture
def make_worker(jobs_on_path, monkeypatch):
    """Make workers whose child does one of `fault_jobs`; all are closed in the end."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    made = []

    def make(job="fault_jobs:at_once", options=None, **settings):
        made.append(ReconstructionWorker(WorkerSettings(**settings), options, entry=job))
        return made[-1]

    yield make
    for worker in made:
        worker.close()


@pytest.fixture
def quiet_catalog(tmp_path):
    """Open a catalog whose Tiled is away: what it is given stays in the spool."""
    tiled = TiledSettings(uri="http://127.0.0.1:9", api_key="none")
    with Catalog(Settings(tiled=tiled, spool=tmp_path / "spool")) as catalog:
        yield catalog
