"""The worker against real child processes that compute, fail, hang, crash and get killed."""

import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from concurrent.futures import CancelledError
from dataclasses import replace

import numpy as np
import psutil
import pytest

from bluesky_cdinn import worker_loop
from bluesky_cdinn.errors import Cancelled, IncompleteScan, ReconstructionFailed, WorkerDied
from bluesky_cdinn.growing import CurveInPieces
from bluesky_cdinn.records import RockingCurve
from bluesky_cdinn.settings import ReconstructionOptions, WorkerSettings
from bluesky_cdinn.worker import ReconstructionWorker
from bluesky_cdinn.worker_process import WorkerProcess

ENTRY = "worker_jobs:job"
FRAMES = [np.full((4, 5), point, np.uint16) for point in range(10)]


def curve(do="sum", frames=None, **metadata):
    frames = np.ones((3, 4, 5), np.uint16) if frames is None else frames
    return RockingCurve(
        frames, np.arange(len(frames), dtype=float), raw_uid="raw", metadata={"do": do, **metadata}
    )


@pytest.fixture
def worker(jobs_on_path):
    with ReconstructionWorker(WorkerSettings(timeout_s=60, max_pending=4), entry=ENTRY) as worker:
        yield worker


def has_ended(pid, within=5.0):
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_gives_the_child_s_result_and_progress(worker):
    seen = []
    frames = np.arange(3 * 4 * 5, dtype=np.uint16).reshape(3, 4, 5)
    result = worker.submit(curve(frames=frames), on_progress=seen.append).result(60)
    assert result.scalars["total"] == frames.sum()
    assert result.scalars["pid"] == worker.pid != os.getpid()
    assert result.raw_uid == "raw"
    assert result.density.flags.writeable
    assert [(p.stage, p.fraction, p.chi2) for p in seen] == [("starts", 0.5, 0.25)]


def test_child_is_kept_and_yields_to_acquisition(worker):
    results = [worker.submit(curve(), ReconstructionOptions(threads=2)).result(60) for _ in range(3)]
    assert len({r.scalars["pid"] for r in results}) == 1
    assert results[0].scalars["niceness"] >= 5
    assert results[0].scalars["threads"] == 2


def test_frames_that_are_a_view_arrive_as_they_are(worker):
    frames = np.arange(6 * 4 * 5).reshape(6, 4, 5)[::-2, :, ::2]
    assert worker.submit(curve(frames=frames)).result(60).scalars["total"] == frames.sum()


@pytest.mark.parametrize(
    ("do", "error", "message"),
    [
        ("reject", IncompleteScan, "needs at least 9 points"),
        ("bug", ReconstructionFailed, "ZeroDivisionError: an unforeseen one"),
    ],
)
def test_errors_come_back_as_ours_with_the_child_s_traceback(worker, do, error, message):
    with pytest.raises(error, match=message) as caught:
        worker.submit(curve(do)).result(60)
    assert "worker_jobs.py" in caught.value.__notes__[0]
    assert worker.submit(curve()).result(60).scalars["total"] == 60


def test_an_unforeseen_error_makes_a_fresh_process(worker):
    before = worker.submit(curve()).result(60).scalars["pid"]
    with pytest.raises(ReconstructionFailed):
        worker.submit(curve("bug")).result(60)
    assert worker.submit(curve()).result(60).scalars["pid"] != before


def test_what_cannot_be_sent_fails_alone(worker):
    with pytest.raises(ReconstructionFailed, match="pickle"):
        worker.submit(curve(unpicklable=lambda: None)).result(60)
    assert worker.submit(curve()).result(60).scalars["total"] == 60


def test_a_job_whose_process_was_killed_is_done_by_the_next_one(worker, tmp_path):
    result = worker.submit(curve("die once", marker=str(tmp_path / "died"))).result(60)
    assert (tmp_path / "died").exists()
    assert result.scalars["pid"] == worker.pid


@pytest.mark.parametrize(
    ("do", "ending"),
    [("die always", "SIGKILL.*out of memory"), ("segfault", "SIGSEGV"), ("exit", "exited with code 3")],
)
def test_a_job_that_kills_every_process_says_how(worker, tmp_path, do, ending):
    with pytest.raises(WorkerDied, match=ending) as caught:
        worker.submit(curve(do, marker=str(tmp_path / "died"))).result(60)
    if do == "die always":
        assert "last words" in str(caught.value)
    assert worker.submit(curve()).result(60).scalars["total"] == 60


def test_process_killed_while_idle_is_replaced(jobs_on_path):
    with ReconstructionWorker(WorkerSettings(attempts=1), entry=ENTRY) as worker:
        first = worker.submit(curve()).result(60).scalars["pid"]
        os.kill(int(first), 9)
        while worker.pid is not None:
            time.sleep(0.01)
        assert worker.submit(curve()).result(60).scalars["pid"] != first


def test_process_that_cannot_start_is_told_with_its_words():
    with (
        ReconstructionWorker(entry="no_such_module:job") as worker,
        pytest.raises(WorkerDied, match="No module named 'no_such_module'"),
    ):
        worker.submit(curve()).result(60)


def test_a_job_that_takes_too_long_is_stopped_and_the_next_goes_on(jobs_on_path):
    with ReconstructionWorker(WorkerSettings(timeout_s=1.0), entry=ENTRY) as worker:
        hung, good = worker.submit(curve("hang")), worker.submit(curve())
        with pytest.raises(ReconstructionFailed, match=r"longer than 1 s.*worker\.timeout_s"):
            hung.result(60)
        assert good.result(60).scalars["total"] == 60


def test_more_jobs_than_may_wait_are_refused(worker):
    running = worker.submit(curve("wait"))
    while worker.pending:
        time.sleep(0.01)
    waiting = [worker.submit(curve()) for _ in range(4)]
    with pytest.raises(ReconstructionFailed, match=r"4 reconstructions wait already.*max_pending"):
        worker.submit(curve())
    assert waiting[2].cancel()
    waiting.append(worker.submit(curve()))
    assert running.cancel()
    assert [f.result(60).scalars["total"] for f in waiting if not f.cancelled()] == [60] * 4


@pytest.mark.parametrize("do", ["wait", "hang"])
def test_cancel_in_mid_job(worker, do):
    reached = threading.Event()
    future = worker.submit(curve(do), on_progress=lambda _: reached.set())
    assert reached.wait(60)
    pid = worker.pid
    assert worker.cancel(future)
    with pytest.raises(CancelledError):
        future.result(10)
    after = worker.submit(curve()).result(60)
    assert (after.scalars["pid"] == pid) is (do == "wait")


def test_close_cancels_what_is_not_done_and_may_be_repeated(worker):
    reached = threading.Event()
    futures = [worker.submit(curve("hang"), on_progress=lambda _: reached.set()), worker.submit(curve())]
    assert reached.wait(60)
    pid = worker.pid
    worker.close()
    worker.close()
    for future in futures:
        with pytest.raises(Cancelled, match="closed"):
            future.result(10)
    assert has_ended(pid)
    with pytest.raises(ReconstructionFailed, match="closed"):
        worker.submit(curve())


def test_a_forgotten_worker_takes_its_process_with_it(jobs_on_path):
    worker = ReconstructionWorker(entry=ENTRY)
    pid = int(worker.submit(curve()).result(60).scalars["pid"])
    del worker
    gc.collect()
    assert has_ended(pid)


def test_a_failing_progress_callback_is_only_logged(worker, caplog):
    def fail(_):
        raise RuntimeError("the display is gone")

    assert worker.submit(curve(), on_progress=fail).result(60).chi2 == 0.005
    assert "the display is gone" in caplog.text


def test_many_jobs_leak_neither_descriptors_nor_threads(jobs_on_path, tmp_path):
    def held():
        return psutil.Process().num_fds(), threading.active_count()

    with ReconstructionWorker(WorkerSettings(max_pending=64), entry=ENTRY) as worker:
        worker.submit(curve()).result(60)
        before = held()
        for future in [worker.submit(curve()) for _ in range(50)]:
            future.result(60)
        worker.submit(curve("die once", marker=str(tmp_path / "died"))).result(60)
        # A thread that was told to end takes a moment; and other tests' threads end when they end.
        patience = time.monotonic() + 30
        while any(now > then for now, then in zip(held(), before, strict=True)):
            assert time.monotonic() < patience, (before, held())
            time.sleep(0.05)


def test_sending_a_large_scan_does_not_stall_other_threads(worker):
    """The RunEngine's thread is one of them; 1 ms is what a point may cost it."""
    worker.submit(curve()).result(60)
    frames = np.ones((100, 512, 1024), np.uint16)
    started = time.perf_counter()
    future = worker.submit(curve(frames=frames))
    submit_s = time.perf_counter() - started
    gaps, last = [], time.perf_counter()
    while not future.done():
        now = time.perf_counter()
        gaps.append(now - last)
        last = now
    assert future.result().scalars["total"] == frames.size
    # A copy alone would take longer.
    assert submit_s < 0.02
    # Two busy processes on two cores are descheduled now and then: the typical stall counts.
    assert np.quantile(gaps, 0.999) < 1e-3


def test_child_ends_with_its_parent_however_that_ends(jobs_on_path):
    script = textwrap.dedent(
        """
        import os, threading
        import numpy as np
        from bluesky_cdinn.records import RockingCurve
        from bluesky_cdinn.worker import ReconstructionWorker
        reached = threading.Event()
        worker = ReconstructionWorker(entry="worker_jobs:job")
        curve = RockingCurve(np.ones((2, 2, 2)), np.arange(2.0), metadata={"do": "hang"})
        worker.submit(curve, on_progress=lambda _: reached.set())
        assert reached.wait(60)
        print(worker.pid, flush=True)
        os.kill(os.getpid(), 9)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert has_ended(int(done.stdout))


def test_an_unguarded_script_and_a_torch_free_parent(jobs_on_path):
    script = textwrap.dedent(
        """
        import sys
        import numpy as np
        from bluesky_cdinn.records import RockingCurve
        from bluesky_cdinn.worker import ReconstructionWorker
        worker = ReconstructionWorker(entry="worker_jobs:job")
        curve = RockingCurve(np.ones((2, 2, 2)), np.arange(2.0))
        print(worker.submit(curve).result(60).scalars["total"], "torch" in sys.modules)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["8.0", "False"], done.stderr


def running(points, uid="raw", frames=None, update="sum", **metadata):
    """Give what a scan has measured so far, as the live callback does: frames one by one."""
    frames = FRAMES if frames is None else frames
    rest = {
        "angles_deg": np.arange(float(points)),
        "raw_uid": uid,
        "exit_status": "unfinished",
        "metadata": {"update": update, **metadata},
    }
    return lambda: CurveInPieces(tuple(frames[:points]), rest)


def ended(points, uid="raw", frames=None, **metadata):
    pieces = running(points, uid, frames, **metadata)()
    return replace(pieces, rest={**pieces.rest, "exit_status": "success"})


@pytest.fixture
def follower(jobs_on_path):
    settings = WorkerSettings(timeout_s=60, max_pending=4)
    with ReconstructionWorker(settings, entry="worker_jobs:Follower") as worker:
        yield worker


def test_a_running_scan_is_followed_by_one_object_and_sent_once(follower, monkeypatch):
    passed = []
    send = WorkerProcess.send
    monkeypatch.setattr(WorkerProcess, "send", lambda self, job: (passed.append(job[1]), send(self, job)))
    for points in (3, 5, 8):
        update = follower.update("raw", running(points)).result(60)
        assert (update.points, update.scalars["total"]) == (points, sum(f.sum() for f in FRAMES[:points]))
    result = follower.submit(ended(9)).result(60)
    assert result.scalars["updates"] == 3
    assert result.scalars["total"] == sum(f.sum() for f in FRAMES[:9])
    assert [len(increment.frames) for increment in passed] == [3, 2, 3, 1]
    assert follower.follows


def test_an_update_of_a_large_scan_sends_what_is_new(follower):
    frames = [np.ones((512, 512), np.uint16) for _ in range(200)]
    first = follower.update("raw", running(199, frames=frames)).result(60)
    began = time.perf_counter()
    second = follower.update("raw", running(200, frames=frames)).result(60)
    assert second.scalars["total"] == 200 * 512 * 512
    # Room for twice as many frames isn't taken before it is needed.
    assert second.scalars["rss"] - first.scalars["rss"] < 20e6
    assert time.perf_counter() - began < 2.0


def test_scans_that_have_ended_go_first_and_only_the_newest_update_is_computed(follower):
    reached = threading.Event()
    blocking = follower.submit(ended(3, "first", do="wait"), on_progress=lambda _: reached.set())
    assert reached.wait(60)
    looks = []
    stale = follower.update("second", lambda: looks.append("stale"))
    points = [3]
    newest = follower.update("second", lambda: running(points[0], "second")())
    order = []
    newest.add_done_callback(lambda _: order.append("update"))
    later = follower.submit(ended(3, "third"))
    later.add_done_callback(lambda _: order.append("ended"))
    points[0] = 7
    assert stale.cancelled()
    assert follower.pending == 1
    assert blocking.cancel()
    assert newest.result(60).points == 7
    assert order == ["ended", "update"]
    assert not looks


@pytest.mark.parametrize("update", ["wait", "hang"])
def test_an_update_makes_way_for_a_scan_that_has_ended(follower, update, monkeypatch):
    monkeypatch.setattr(worker_loop, "UPDATE_GRACE_S", 1.0)
    reached = threading.Event()
    going = follower.update("raw", running(4, update=update), on_progress=lambda _: reached.set())
    assert reached.wait(60)
    pid = follower.pid
    result = follower.submit(ended(5)).result(60)
    assert going.cancelled()
    assert result.scalars["total"] == sum(f.sum() for f in FRAMES[:5])
    assert (result.scalars["pid"] == pid) is (update == "wait")


def test_a_scan_that_ends_while_the_child_warms_up_does_not_have_it_killed(follower):
    update = follower.update("raw", running(4))
    while follower.pid is None:
        time.sleep(0.01)
    result = follower.submit(ended(5)).result(60)
    assert update.cancelled()
    assert result.scalars["pid"] == follower.pid


def test_a_death_in_an_update_costs_that_update_only(follower, tmp_path):
    first = follower.update("raw", running(4)).result(60)
    with pytest.raises(WorkerDied, match="SIGKILL"):
        follower.update("raw", running(5, update="die always", marker=str(tmp_path / "m"))).result(60)
    again = follower.update("raw", running(6)).result(60)
    assert again.scalars["pid"] != first.scalars["pid"]
    assert (again.points, again.scalars["total"]) == (6, sum(f.sum() for f in FRAMES[:6]))
    assert again.scalars["updates"] == 1


def test_a_scan_whose_worker_died_at_its_end_is_sent_whole_again(follower, tmp_path):
    follower.update("raw", running(4)).result(60)
    result = follower.submit(ended(5, do="die once", marker=str(tmp_path / "m"))).result(60)
    assert result.scalars["total"] == sum(f.sum() for f in FRAMES[:5])
    assert result.scalars["updates"] == 0


def test_what_goes_wrong_with_an_update_harms_nothing_else(follower):
    def unlucky():
        raise ZeroDivisionError("while the curve was put together")

    def early():
        raise IncompleteScan("needs 3 points")

    pid = follower.submit(curve()).result(60).scalars["pid"]
    with pytest.raises(ReconstructionFailed, match="ZeroDivisionError: while"):
        follower.update("raw", unlucky).result(60)
    with pytest.raises(IncompleteScan, match="3 points"):
        follower.update("raw", early).result(60)
    with pytest.raises(IncompleteScan, match="at least 9"):
        follower.update("raw", running(4, update="reject")).result(60)
    assert follower.submit(ended(5)).result(60).scalars["pid"] == pid


def test_a_function_follows_no_scan(worker):
    assert worker.follows is None
    with pytest.raises(ReconstructionFailed, match="follows no running scan"):
        worker.update("raw", running(4)).result(60)
    assert worker.follows is False
    assert worker.submit(curve()).result(60).scalars["total"] == 60


def test_close_ends_updates_too(follower):
    reached = threading.Event()
    going = follower.update("one", running(4, "one", update="hang"), on_progress=lambda _: reached.set())
    waiting = follower.update("two", running(4, "two"))
    assert reached.wait(60)
    follower.close()
    for future in (going, waiting):
        with pytest.raises(Cancelled, match="closed"):
            future.result(10)
    with pytest.raises(ReconstructionFailed, match="closed"):
        follower.update("one", running(4))


def test_a_result_that_is_kept_keeps_no_frames(follower):
    frames = [np.ones((8, 8)) for _ in range(3)]
    gone = weakref.ref(frames[0])
    future = follower.submit(ended(3, frames=frames))
    future.result(60)
    follower.forget("raw")
    follower.submit(curve()).result(60)
    del frames
    gc.collect()
    assert gone() is None
