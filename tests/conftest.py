"""Fixtures that more than one test file needs."""

import os
from itertools import count
from pathlib import Path

import pytest
from bluesky import RunEngine

from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.embedded import EmbeddedServer
from bluesky_cdinn.settings import Settings, TiledSettings

_numbers = count()


@pytest.fixture
def jobs_on_path(monkeypatch):
    """Let the worker's child import `worker_jobs` from this folder."""
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])))


@pytest.fixture(scope="session")
def tiled_server(tmp_path_factory):
    """Serve one directory for the whole session: the first start takes long."""
    folder = tmp_path_factory.mktemp("tiled")
    server = EmbeddedServer(folder / "served", readable_storage=[folder.parent])
    yield server
    server.close()


@pytest.fixture
def settings(tiled_server, tmp_path):
    """Give each test containers and a spool of its own on the shared server."""
    address = tiled_server.address()
    test = f"test{next(_numbers)}"
    tiled = TiledSettings(
        uri=address.uri, api_key=address.api_key, raw=f"{test}/raw", processed=f"{test}/processed"
    )
    return Settings(tiled=tiled, spool=tmp_path / "spool")


@pytest.fixture
def catalog(settings):
    """Open the test's own catalog."""
    with Catalog(settings) as catalog:
        yield catalog


@pytest.fixture
def RE():
    """Make a RunEngine that returns what plans return."""
    engine = RunEngine({}, call_returns_result=True)
    yield engine
    if engine.state != "idle":
        engine.halt()
