"""Runs of scans that still run: what Tiled doesn't take is dropped, what the disk doesn't take not shown."""

import numpy as np
import pytest

from bluesky_cdinn.errors import StoreUnavailable
from bluesky_cdinn.processed_run import ProcessedRun
from bluesky_cdinn.records import PartialResult, Reconstruction
from bluesky_cdinn.running import RunningRuns
from bluesky_cdinn.spool import recover_abandoned, running_runs, spooled_runs


def partial(points):
    preview = np.zeros((3, 4, 4), np.float32)
    return PartialResult(points=points, fraction=0.5, amplitude=preview, phase=preview)


@pytest.fixture
def run():
    return ProcessedRun({"uid": "raw", "time": 1.0})


def test_a_tiled_that_is_away_is_asked_once_for_each_event(tmp_path, run):
    runs, asked = RunningRuns(tmp_path), []

    def away(kind):
        asked.append(kind)
        raise StoreUnavailable("not there")

    for points in (4, 5):
        runs.write(run.uid, run.update(partial(points)))
    for _ in range(3):
        runs.show(away)
    assert asked == ["processed"]
    runs.write(run.uid, run.update(partial(6)))
    runs.show(away)
    assert asked == ["processed"] * 2
    (spooled,) = running_runs(tmp_path)
    assert [name for name, _ in spooled.documents()] == ["start", "descriptor", "event", "event", "event"]


def test_an_ended_run_is_shown_no_more_and_leaves_nothing(tmp_path, run):
    runs = RunningRuns(tmp_path)
    runs.write(run.uid, run.update(partial(4)))
    runs.end(run.uid)
    runs.end(run.uid)
    runs.show(lambda kind: pytest.fail("there is nothing to show"))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_in_the_middle_ends_the_showing(tmp_path, run, monkeypatch):
    runs = RunningRuns(tmp_path)
    runs.write(run.uid, run.update(partial(4)))

    def full(path, array, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(np, "save", full)
        with pytest.raises(OSError, match="No space"):
            runs.write(run.uid, run.update(partial(5)))
    runs.write(run.uid, run.update(partial(6)))
    runs.show(lambda kind: pytest.fail("nobody could clean it up"))
    recover_abandoned(tmp_path)
    assert running_runs(tmp_path) == spooled_runs(tmp_path) == []


def test_the_whole_run_is_never_taken_for_the_one_that_grows(catalog, tmp_path, run):
    """Another process on the same spool may have delivered it just as this one was to show it."""
    told = list(run.update(partial(4)))
    support = np.ones((2, 2, 2), bool)
    whole, _ = run.end(Reconstruction(support.astype(np.complex64), support, raw_uid="raw"))
    catalog.store_documents(whole)
    assert catalog.flush(60)
    late = RunningRuns(tmp_path / "late")
    late.write(run.uid, told)
    late.show(lambda kind: catalog.processed)
    stored = catalog.processed[run.uid].metadata
    assert "stop" in stored
    assert stored["start"]["status"] == "success"
