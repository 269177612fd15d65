"""``RE.md`` that outlives its session."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import bluesky.plan_stubs as bps
import numpy as np
import pytest

from bluesky_cdinn import saved_metadata
from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.saved_metadata import SavedMetadata


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "metadata.json"


def test_the_next_session_has_it(path):
    md = SavedMetadata(path)
    md["sample"] = {"name": "gold 7", "thickness_nm": np.float64(30.0), "grid": np.arange(3)}
    md["operator"] = "night shift"
    del md["operator"]
    again = SavedMetadata(path)
    assert dict(again) == {"sample": {"name": "gold 7", "thickness_nm": 30.0, "grid": [0, 1, 2]}}
    assert json.loads(path.read_text()) == dict(again)
    assert len(again) == 1


def test_a_change_inside_an_item_is_kept(path):
    md = SavedMetadata(path)
    md["sample"] = {"name": "gold 7"}
    md["sample"]["name"] = "gold 8"
    md.save()
    assert SavedMetadata(path)["sample"] == {"name": "gold 8"}


def test_two_sessions_share_it(path):
    """Both change it, one of them inside of an item, before either has looked again."""
    prompt, queue = SavedMetadata(path), SavedMetadata(path)
    prompt["scan_id"] = 7
    assert queue["scan_id"] == 7
    prompt["sample"] = {"name": "gold 7"}
    prompt["sample"]["name"] = "gold 8"
    queue["scan_id"] = 8
    assert prompt["scan_id"] == 8
    assert dict(queue) == {"scan_id": 8, "sample": {"name": "gold 8"}}


def test_processes_at_once_lose_nothing(path):
    code = (
        "import sys; from pathlib import Path; from bluesky_cdinn.saved_metadata import SavedMetadata\n"
        "md = SavedMetadata(Path(sys.argv[1]))\n"
        "for number in range(10): md[f'{sys.argv[2]}{number}'] = number"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, path, name]) for name in "ab"]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert len(SavedMetadata(path)) == 20


def empty_run():
    yield from bps.open_run()
    yield from bps.close_run()


def test_a_run_engine_counts_on(path, RE):
    RE.md = SavedMetadata(path)
    starts = []
    RE.subscribe(lambda _, doc: starts.append(doc), "start")
    for _ in range(2):
        RE(empty_run())
    RE.md = SavedMetadata(path)
    RE.md["proposal"] = "31415"
    RE(empty_run())
    assert [start["scan_id"] for start in starts] == [1, 2, 3]
    assert starts[-1]["proposal"] == "31415"


@pytest.mark.parametrize("value", [object(), {"at": float("nan")}, {1, 2}, {"f": len}])
def test_what_no_file_holds_is_refused(path, value):
    md = SavedMetadata(path)
    with pytest.raises(InvalidInput, match="sample"):
        md["sample"] = value
    assert not md
    with pytest.raises(InvalidInput, match="key"):
        md[1] = 2


def test_what_no_file_holds_does_not_stop_a_scan(path):
    """Put inside of an item it is only seen when the next run begins."""
    md = SavedMetadata(path)
    md["sample"] = {}
    md["sample"]["thing"] = object()
    assert "thing" in dict(md)["sample"]
    assert SavedMetadata(path)["sample"]["thing"].startswith("<object")


@pytest.mark.parametrize("content", ["{", "[1, 2]"])
def test_a_damaged_file_is_told_and_left_alone(path, content):
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(InvalidInput, match=r"metadata\.json must hold a JSON object"):
        SavedMetadata(path)
    assert path.read_text() == content


def test_a_file_damaged_meanwhile_is_told(path, caplog):
    md = SavedMetadata(path)
    md["scan_id"] = 7
    path.write_text("{")
    assert md["scan_id"] == 7
    assert "goes on with what it knows" in caplog.text


def test_what_a_full_disk_did_not_take_is_written_later(path, monkeypatch, caplog):
    """Though another session has written meanwhile; it is told once."""

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    md, other = SavedMetadata(path), SavedMetadata(path)
    md["scan_id"] = 1
    with monkeypatch.context() as patched:
        patched.setattr(saved_metadata, "replacing", full)
        md["scan_id"] = 2
        md["sample"] = "gold 7"
        assert dict(md) == {"scan_id": 2, "sample": "gold 7"}
    assert len(caplog.records) == 1
    other["operator"] = "night shift"
    assert dict(md) == {"scan_id": 2, "sample": "gold 7", "operator": "night shift"}
    assert dict(SavedMetadata(path)) == dict(md)


def test_a_file_that_has_gone_takes_nothing_with_it(path):
    md = SavedMetadata(path)
    md["scan_id"] = 7
    path.unlink()
    md["sample"] = "gold 7"
    assert dict(SavedMetadata(path)) == {"scan_id": 7, "sample": "gold 7"}


@pytest.mark.parametrize("fails", ["fcntl.flock", "Path.read_text"])
def test_a_file_system_that_fails_does_not_stop_a_scan(path, monkeypatch, fails):
    def failing(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    md, other = SavedMetadata(path), SavedMetadata(path)
    md["scan_id"] = 7
    other["scan_id"] = 8
    monkeypatch.setattr(f"bluesky_cdinn.saved_metadata.{fails}", failing)
    md["sample"] = "gold 7"
    assert md["sample"] == "gold 7"


def test_a_disk_that_takes_nothing_costs_a_line_in_the_log(caplog):
    # The kernel's: closed to root too.
    md = SavedMetadata(Path("/proc/cdinn/metadata.json"))
    md["scan_id"] = 7
    md["sample"] = {"name": "gold 7"}
    md["sample"]["name"] = "gold 8"
    assert dict(md) == {"scan_id": 7, "sample": {"name": "gold 8"}}
    assert "for this session only" in caplog.text
