"""The spool keeps runs whole on disk, whoever dies meanwhile."""

import json
from pathlib import Path

import numpy as np
import pytest

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.spool import RunJournal, recover_abandoned, running_runs, sole_delivery, spooled_runs

STOP = {"uid": "s", "run_start": "one", "time": 9.0}


def journal(spool, uid="one", time=5.0, kind="raw"):
    return RunJournal(spool, kind, {"uid": uid, "time": time})


def abandoned(spool, lines):
    """Leave what a process leaves that was killed: no lock on the file any more."""
    path = spool / "00000000005000000000-raw-one.part"
    path.mkdir(parents=True)
    (path / "documents.jsonl").write_text(lines)
    return path


@pytest.mark.parametrize("dtype", ["u2", "i4", "f4", "f8", "c8", "?", "U5"])
def test_documents_come_back_as_they_were(tmp_path, dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    event = {"data": {"a": array, "b": np.float32(0.5), "c": [1, "x", None]}, "nan": float("nan")}
    run = journal(tmp_path)
    run.append("event", event)
    run.append("stop", STOP)
    (_, start), (name, came), stop = run.complete().documents()
    assert start == {"uid": "one", "time": 5.0}
    assert name == "event"
    assert came["data"]["a"].dtype == array.dtype
    np.testing.assert_array_equal(came["data"]["a"], array)
    assert (came["data"]["b"], came["data"]["c"]) == (0.5, [1, "x", None])
    assert np.isnan(came["nan"])
    assert stop == ("stop", STOP)


def test_what_json_does_not_know_is_told_in_words(tmp_path):
    run = journal(tmp_path)
    run.append("event", {"path": Path("a/b"), "set": {3, 1}, "objects": np.array([1, "x"], object)})
    run.append("stop", STOP)
    _, (_, came), _ = run.complete().documents()
    assert came == {"path": "a/b", "set": [1, 3], "objects": [1, "x"]}


@pytest.mark.parametrize(
    "clock", [(1e9, 2e9, 3e9), (3e9, 2e9, 1e9), (1.0, 1.0, 1.0), (5.0, -1, float("nan"))]
)
def test_runs_wait_in_the_order_in_which_they_began_whatever_the_clock_said(tmp_path, clock):
    kinds = ("raw", "processed", "raw")
    begun = [journal(tmp_path, f"run{i}", clock[i], kinds[i]) for i in range(3)]
    for run in reversed(begun):
        assert len(spooled_runs(tmp_path)) == 2 - begun.index(run)
        run.append("stop", STOP)
        run.complete()
    assert [(run.uid, run.kind) for run in spooled_runs(tmp_path)] == [
        ("run0", "raw"),
        ("run1", "processed"),
        ("run2", "raw"),
    ]


def test_delivered_and_refused_runs_wait_no_more(tmp_path, caplog):
    for uid in ("one", "two"):
        run = journal(tmp_path, uid)
        run.append("stop", STOP)
        run.complete()
    first, second = spooled_runs(tmp_path)
    first.remove()
    second.reject()
    assert "two.rejected: take '.rejected' off the name" in caplog.text
    assert spooled_runs(tmp_path) == []
    assert [path.name.endswith("two.rejected") for path in tmp_path.iterdir()] == [True]


@pytest.mark.parametrize("uid", ["../escape", "a b", "", "x" * 300])
def test_a_uid_that_is_no_name_is_refused(tmp_path, uid):
    with pytest.raises(InvalidInput, match="uid must be made of"):
        journal(tmp_path / "spool", uid)


def test_a_run_that_is_being_written_is_left_alone(tmp_path):
    run = journal(tmp_path)
    recover_abandoned(tmp_path)
    assert spooled_runs(tmp_path) == []
    run.append("stop", STOP)
    assert [name for name, _ in run.complete().documents()] == ["start", "stop"]


@pytest.mark.parametrize("cut", ["", '["event", {"uid": "cu'])
def test_an_abandoned_run_is_ended_with_the_reason(tmp_path, cut):
    abandoned(tmp_path, json.dumps(["start", {"uid": "one", "time": 5.0}]) + "\n" + cut)
    recover_abandoned(tmp_path)
    (run,) = spooled_runs(tmp_path)
    (_, start), (_, stop) = run.documents()
    assert start["uid"] == stop["run_start"] == "one"
    assert stop["exit_status"] == "fail"
    assert "ended before the run did" in stop["reason"]


def test_a_run_abandoned_after_its_stop_keeps_it(tmp_path):
    lines = [["start", {"uid": "one", "time": 5.0}], ["stop", STOP]]
    abandoned(tmp_path, "".join(json.dumps(line) + "\n" for line in lines))
    recover_abandoned(tmp_path)
    assert list(spooled_runs(tmp_path)[0].documents())[-1] == ("stop", STOP)


def test_a_run_abandoned_before_its_start_was_whole_is_none(tmp_path):
    path = abandoned(tmp_path, '["start", {"ui')
    recover_abandoned(tmp_path)
    assert not path.exists()


def test_what_a_power_cut_damaged_is_kept_up_to_the_damage(tmp_path):
    start = json.dumps(["start", {"uid": "one", "time": 5.0}]) + "\n"
    path = abandoned(tmp_path, start)
    with (path / "documents.jsonl").open("ab") as lines:
        lines.write(b'["event", {"uid\0\0\0\xff\n["event", {"uid": "after"}]\n')
    recover_abandoned(tmp_path)
    (run,) = spooled_runs(tmp_path)
    assert [name for name, _ in run.documents()] == ["start", "stop"]


def test_one_unfinished_run_that_cannot_be_completed_is_alone_in_it(tmp_path, caplog):
    bad = tmp_path / "00000000001000000000-raw-bad.part"
    (bad / "documents.jsonl").mkdir(parents=True)
    abandoned(tmp_path, json.dumps(["start", {"uid": "one", "time": 5.0}]) + "\n")
    recover_abandoned(tmp_path)
    assert [run.uid for run in spooled_runs(tmp_path)] == ["one"]
    assert "can't be completed now" in caplog.text


def test_one_delivers_at_a_time(tmp_path):
    with sole_delivery(tmp_path) as first, sole_delivery(tmp_path) as second:
        assert (first, second) == (True, False)
    with sole_delivery(tmp_path) as again:
        assert again


def test_a_withdrawn_run_leaves_nothing_behind(tmp_path):
    run = journal(tmp_path)
    run.append("event", {"data": {"a": np.ones(3)}})
    (_, start), (_, event) = run.withdraw()
    assert start["uid"] == "one"
    np.testing.assert_array_equal(event["data"]["a"], np.ones(3))
    assert list(tmp_path.iterdir()) == []


def running(spool):
    start = {"uid": "p", "time": 1.0, "status": "running", "raw_uid": "r", "scalars": {}}
    journal = RunJournal(spool, "processed", start, running=True)
    journal.append("descriptor", {"uid": "d", "name": "partial", "run_start": "p"})
    journal.append("event", {"descriptor": "d", "data": {"amplitude": np.ones((3, 2, 2))}})
    return journal


def test_a_running_run_is_left_alone_while_its_process_lives(tmp_path):
    journal = running(tmp_path)
    recover_abandoned(tmp_path)
    assert spooled_runs(tmp_path) == []
    (run,) = running_runs(tmp_path)
    assert (run.kind, run.uid) == ("processed", "p")
    assert [name for name, _ in run.documents()] == ["start", "descriptor", "event"]
    journal.discard()
    assert running_runs(tmp_path) == []


def test_a_running_run_whose_process_died_becomes_a_failed_one(tmp_path):
    running(tmp_path)._lines.close()
    recover_abandoned(tmp_path)
    (run,) = spooled_runs(tmp_path)
    documents = list(run.documents())
    assert [name for name, _ in documents] == ["start", "descriptor", "event", "stop"]
    start, stop = documents[0][1], documents[-1][1]
    assert (start["status"], stop["exit_status"]) == ("failed", "fail")
    assert "process that ran it ended" in start["reason"]
    np.testing.assert_array_equal(documents[2][1]["data"]["amplitude"], np.ones((3, 2, 2)))


def test_a_running_run_whose_whole_is_there_is_dropped(tmp_path):
    journal = running(tmp_path)
    whole = RunJournal(tmp_path, "processed", {"uid": "p", "time": 1.0, "status": "success"})
    whole.append("stop", {"run_start": "p"})
    whole.complete()
    journal._lines.close()
    recover_abandoned(tmp_path)
    (run,) = spooled_runs(tmp_path)
    assert next(run.documents())[1]["status"] == "success"
    assert running_runs(tmp_path) == []


def test_a_folder_that_is_just_being_made_disturbs_nobody(tmp_path):
    name = f"{10:020d}-raw-x"
    (tmp_path / f".{name}.part").mkdir()
    (tmp_path / f".{name}.part" / "documents.jsonl").touch()
    recover_abandoned(tmp_path)
    assert spooled_runs(tmp_path) == []
