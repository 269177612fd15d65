"""Fixtures that more than one test file needs."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def jobs_on_path(monkeypatch):
    """Let the worker's child import `worker_jobs` from this folder."""
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])))
