"""Steps in one background thread: in order, or at their time."""

import threading
import time

import pytest

from bluesky_cdinn.callbacks._steps import Steps


@pytest.fixture
def steps():
    steps = Steps()
    thread = threading.Thread(target=steps.run)
    thread.start()
    yield steps
    steps.end()
    thread.join(10)
    assert not thread.is_alive()


def test_steps_are_done_in_order_and_late_ones_at_their_time(steps):
    done, ended = [], threading.Event()
    asked_at = time.monotonic()
    steps.put(lambda: done.append(("late", time.monotonic() - asked_at)), 0.2)
    steps.put(lambda: done.append(("sooner", time.monotonic() - asked_at)), 0.1)
    steps.put(lambda: done.append(("first", 0.0)))
    steps.put(lambda: done.append(("second", 0.0)))
    steps.put(ended.set, 0.3)
    assert ended.wait(30)
    assert [name for name, _ in done] == ["first", "second", "sooner", "late"]
    assert done[2][1] >= 0.1
    assert done[3][1] >= 0.2


def test_a_late_step_is_not_starved_by_those_that_keep_coming(steps):
    late = threading.Event()
    steps.put(late.set, 0.05)

    def again():
        if not late.is_set():
            steps.put(again)

    steps.put(again)
    assert late.wait(30)


def test_a_step_that_fails_is_logged(steps, caplog):
    ended = threading.Event()
    steps.put(lambda: 1 // 0)
    steps.put(ended.set)
    assert ended.wait(30)
    assert "ZeroDivisionError" in caplog.text
