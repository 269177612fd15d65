"""What anybody with access to Tiled sees of scans that run."""

import json
import threading

import numpy as np
from typer.testing import CliRunner

from bluesky_cdinn.cli import app
from bluesky_cdinn.live_view import live_figure, save_live
from bluesky_cdinn.processed_run import ProcessedRun
from bluesky_cdinn.records import PartialResult, Reconstruction
from bluesky_cdinn.watching import sights


def partial(points, **scalars):
    grid = np.indices((64, 64)) - 32
    disc = (grid**2).sum(axis=0) < 15**2
    amplitude = np.broadcast_to(disc, (3, 64, 64)).astype(np.float32)
    return PartialResult(
        points=points,
        fraction=points / 64,
        amplitude=amplitude,
        phase=amplitude * np.float32(0.5),
        chi2=0.002,
        confidence=0.8,
        seconds=1.0,
        scalars=scalars,
    )


def crystal():
    support = np.ones((4, 4, 4), bool)
    return Reconstruction(support.astype(np.complex64), support, chi2=0.001, raw_uid="scan-1", confidence=0.9)


class Scan:
    """A scan whose worker writes into a catalog."""

    def __init__(self, catalog, uid="scan-1"):
        self.catalog, self.run = catalog, ProcessedRun({"uid": uid, "time": 1.0, "scan_id": 3})

    def update(self, result):
        documents = list(self.run.update(result))
        self.catalog.store_running(self.run.uid, documents)
        self.catalog.flush(30)

    def end(self):
        whole, _ = self.run.end(crystal())
        self.catalog.store_documents(whole)
        self.catalog.flush(30)


def test_a_scan_is_watched_until_its_result_is_there(catalog):
    scan = Scan(catalog)
    scan.update(partial(36))
    seen = sights(catalog, "scan-1", interval_s=0.05)
    first = next(seen)
    assert not first.ended
    assert [p.points for p in first.partials] == [36]
    scan.update(partial(40, change_rad=0.05))
    second = next(seen)
    assert [p.points for p in second.partials] == [36, 40]
    scan.end()
    last = next(seen)
    assert last.ended
    assert last.summary.success
    assert len(last.partials) == 2
    assert next(seen, None) is None


def test_all_scans_are_watched_and_only_what_was_seen_running_is_told_to_have_ended(catalog):
    before = Scan(catalog, "before")
    before.update(partial(36))
    before.end()
    scan = Scan(catalog)
    scan.update(partial(36))
    seen = sights(catalog, interval_s=0.05)
    assert next(seen).summary.raw_uid == "scan-1"
    scan.end()
    last = next(seen)
    assert last.ended
    assert last.summary.raw_uid == "scan-1"


def test_a_run_that_begins_anew_in_tiled_goes_on_being_told(catalog, monkeypatch):
    scan = Scan(catalog)
    for points in (30, 33, 36):
        scan.update(partial(points))
    seen = sights(catalog, "scan-1", interval_s=0.05)
    assert len(next(seen).partials) == 3
    # As another machine sees it, after a write that failed: the newest alone.
    monkeypatch.setattr(catalog, "partials", lambda uid: [partial(40)])
    assert [p.points for p in next(seen).partials] == [40]


def test_the_command_tells_and_draws(catalog, tmp_path, monkeypatch):
    monkeypatch.setenv("CDINN_TILED__URI", catalog.uri)
    monkeypatch.setenv("CDINN_TILED__API_KEY", catalog.api_key)
    monkeypatch.setenv("CDINN_TILED__RAW", catalog.settings.tiled.raw)
    monkeypatch.setenv("CDINN_TILED__PROCESSED", catalog.settings.tiled.processed)
    monkeypatch.setenv("CDINN_SPOOL", str(tmp_path / "spool"))
    monkeypatch.chdir(tmp_path)
    scan = Scan(catalog)
    scan.update(partial(36))
    scan.update(partial(40, change_rad=0.05))
    ending = threading.Timer(2.0, scan.end)
    ending.start()
    done = CliRunner().invoke(app, ["watch", "scan-1", "-o", "live.png", "--interval", "0.1", "--json"])
    ending.join()
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["status"] == "success"
    assert answer["updates"] == 2
    assert "40 points, 62%, chi2 0.0020, confidence 0.80, changed by 0.050 rad" in done.stderr
    assert (tmp_path / "live.png").read_bytes().startswith(b"\x89PNG")
    refused = CliRunner().invoke(app, ["watch", "-o", "live.txt"])
    assert refused.exit_code == 1
    assert "must end in .png" in refused.stderr


def test_the_figure_shows_the_newest_and_the_course_of_all(tmp_path):
    course = [partial(36), partial(40, change_rad=0.1), partial(44, change_rad=0.05, agreement=0.99)]
    figure = live_figure(course, "gold")
    assert "44 points, 69% of the scan" in figure.get_suptitle()
    save_live(course, tmp_path / "live.svg", "gold")
    assert "gold" in (tmp_path / "live.svg").read_text()
    # One partial result, and one of nothing, can be drawn as well.
    empty = PartialResult(
        8, float("nan"), np.zeros((3, 64, 64), np.float32), np.zeros((3, 64, 64), np.float32)
    )
    save_live([empty], tmp_path / "empty.png")
