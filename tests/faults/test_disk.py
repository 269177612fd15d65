"""The disk of the spool is full, over its quota, or not a disk at all."""

import resource
import subprocess
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
from scans import POINTS, assert_whole, rocking, watch

from bluesky_cdinn.callbacks import LiveReconstruction
from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.records import Reconstruction
from bluesky_cdinn.spool import spooled_runs


@contextmanager
def no_file_over(size):
    """Refuse this process every file over some bytes.

    In a test's own call alone: the report of a test that goes into a file is held to it too.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(params=["full", "over its quota"])
def short_of_disk(request, settings, tmp_path):
    """Give what puts a test on a disk that takes some of a scan: a small real one, or files of small size."""
    if request.param == "over its quota":

        @contextmanager
        def quota():
            with no_file_over(2500):
                yield settings

        yield quota
        return
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(disk)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small disk needs root")
    try:
        yield lambda: nullcontext(settings.model_copy(update={"spool": disk / "spool"}))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_in_mid_scan(RE, short_of_disk, caplog):
    """The scan is held in memory from there on, and delivered."""
    with short_of_disk() as settings, Catalog(settings) as catalog:
        RE.subscribe(catalog.raw_writer())
        scans = [RE(rocking()).plan_result for _ in range(2)]
        assert catalog.flush(60)
        for uid in scans:
            assert_whole(catalog, uid)
        # Nothing of it stays behind to fill the disk for ever.
        assert [path.name for path in settings.spool.iterdir()] == [".lock"]
    assert "kept in memory" in caplog.text


def test_while_a_result_is_written(short_of_disk):
    """What the disk took of it does not stand in for it, now or after the next start."""
    size = (24, 24, 24)
    result = Reconstruction(density=np.ones(size, np.complex64), support=np.ones(size, bool))
    with short_of_disk() as settings, Catalog(settings) as catalog:
        uid = catalog.store(result)
        assert not list(settings.spool.glob("*processed*"))
        assert catalog.flush(60)
        np.testing.assert_array_equal(catalog.load(uid).density, result.density)


def test_with_tiled_away_too_it_is_said_what_is_lost(RE, short_of_disk, caplog):
    """The plan has its result all the same; nothing is said to be safe that is not."""
    with short_of_disk() as settings:
        tiled = settings.tiled.model_copy(update={"uri": "http://127.0.0.1:9"})
        with Catalog(settings.model_copy(update={"tiled": tiled})) as catalog:
            RE.subscribe(catalog.raw_writer())
            uid = RE(rocking()).plan_result
            assert not catalog.flush(5)
    assert f"raw run {uid} is lost" in caplog.text


def test_a_file_where_the_spool_should_be(RE, settings, make_worker, caplog):
    settings.spool.write_text("a file is in the way")
    with Catalog(settings) as catalog, LiveReconstruction(catalog, worker=make_worker()) as live:
        watch(RE, live)
        raw_uid = RE(rocking()).plan_result
        summary = live.result(raw_uid).result(30)
        assert summary.load().raw_uid == raw_uid
        assert_whole(catalog, raw_uid)
        assert catalog.latest(raw_uid).processed_uid == summary.processed_uid
    assert "can't be written" in caplog.text


def test_space_that_comes_back_is_used(RE, quiet_catalog, monkeypatch):
    """A scan after the disk was cleared is on disk again."""
    spool = quiet_catalog.settings.spool
    RE.subscribe(quiet_catalog.raw_writer())
    with no_file_over(1000):
        RE(rocking())
        quiet_catalog.raw_writer().flush(10)
    second = RE(rocking()).plan_result
    assert quiet_catalog.raw_writer().flush(10)
    (run,) = spooled_runs(spool)
    assert run.uid == second
    assert len([name for name, _ in run.documents() if name == "event"]) == POINTS
