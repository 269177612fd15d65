"""What is shown of scans, short of a terminal; with one it is seen in `plans.test_profile_collection`."""

import io
import sys
import warnings
from concurrent.futures import Future

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import pytest

from bluesky_cdinn.callbacks import ReconstructionSummary
from bluesky_cdinn.records import Progress
from bluesky_cdinn.scan_display import ScanDisplay
from bluesky_cdinn.sim.stage import RockingStage

START = {"uid": "raw", "purpose": "rocking_curve", "num_points": 3}


class Results:
    """The side of a live reconstruction that is needed here."""

    def __init__(self):
        self.future = Future()

    def result(self, raw_uid):
        assert raw_uid == "raw"
        return self.future

    def subscribe(self, callback):
        self.callback = callback


@pytest.fixture
def results():
    return Results()


@pytest.fixture
def display(RE, results):
    display = ScanDisplay()
    display.follow(RE, results)
    yield display
    display.hide()


def scan(display):
    """Tell it the documents of a whole scan."""
    display("start", START)
    display("descriptor", {"uid": "stream", "run_start": "raw", "name": "primary"})
    for _ in range(3):
        display("event", {"descriptor": "stream"})
    display("stop", {"run_start": "raw"})


def test_one_line_comes_with_the_crystal_whenever_that_is(display, results, capsys):
    scan(display)
    display.progress(Progress("starts", 0.3, 0.01))
    display.state_changed("idle", "running")
    display.progress(Progress("judge", 0.9, 0.01))
    assert capsys.readouterr() == ("", "")
    results.future.set_result(ReconstructionSummary("raw", status="failed", reason="no peak"))
    assert capsys.readouterr().out == "reconstruction not stored of scan raw: failed: no peak\n"


def test_a_cancelled_one_says_nothing(display, results, capsys, caplog):
    scan(display)
    results.future.cancel()
    assert capsys.readouterr() == ("", "")
    assert not caplog.text


def test_partial_results_are_taken(display, results):
    display("start", START)
    partial = {"points": 2, "confidence": 0.5, "fraction": float("nan"), "chi2": 0.02}
    results.callback("event", {"data": partial})
    results.callback("event", {"data": {"chi2": 0.02}})


@pytest.mark.parametrize(
    "doc", [{**START, "num_points": "many"}, {**START, "uid": "another"}, {"num_points": 3}]
)
def test_what_can_not_be_shown_does_not_reach_the_scan(display, caplog, doc):
    display("start", doc)
    display("event", {})
    assert "can't be shown; it goes on" in caplog.text


def test_a_motor_moved_by_hand_is_shown_and_one_in_a_scan_is_not(RE, display):
    stage = RockingStage(name="theta", time_scale=0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what bluesky gives where a bar ends that never began
        RE(bps.mv(stage, 1.0))
        display("start", START)
        display.waiting({"a status"})
        display.waiting(None)


class GoneTerminal(io.StringIO):
    """A terminal whose other end may go."""

    gone = False

    def isatty(self):
        return True

    def write(self, text):
        if self.gone:
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)


@pytest.mark.timeout(60)
def test_a_terminal_that_goes_away_does_not_stop_the_scan(RE, display, monkeypatch):
    terminal = GoneTerminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    stage = RockingStage(name="theta", time_scale=0.0)
    exits = []
    RE.subscribe(lambda _, doc: setattr(terminal, "gone", True), "event")
    RE.subscribe(lambda _, doc: exits.append(doc["exit_status"]), "stop")
    RE(bp.scan([], stage, -1, 1, 5))
    RE(bps.mv(stage, 0.0))
    assert exits == ["success"]
