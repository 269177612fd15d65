"""The startup files where they are used: in a real IPython, a real queueserver, with EPICS records."""

import json
import re
import subprocess
import sys

import psutil
import pytest
from profile_processes import END_S, PLAN_S, PROFILE, START_S, Manager, Prompt, descendants, environment
from soft_ioc import soft_ioc

from bluesky_cdinn import plans
from bluesky_cdinn.callbacks import ReconstructionSummary
from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.settings import Settings
from bluesky_cdinn.sim.ioc import client_environment
from bluesky_cdinn.spool import spooled_runs

# Several processes that import a lot each.
pytestmark = pytest.mark.timeout(900)

SCAN = (-0.35, 0.35, 24)
OFF_PEAK = (2.0, 2.5, 10)
IN_ORDER = """
import json, sys
from pathlib import Path
for file in sorted(Path(sys.argv[1]).glob("*.py")):
    exec(compile(file.read_text(), file, "exec"))
uid = RE(rocking_scan(det, theta, -0.1, 0.1, 3, count_time=0.01)).plan_result
assert catalog.flush(60)
# Not on the terminal, where the session says a line of its own once the crystal is there.
Path(sys.argv[2]).write_text(json.dumps({
    "exit_status": catalog.raw[uid].metadata["stop"]["exit_status"],
    "reconstruction": live.result(uid).result(300).reason,
    "torch": "torch" in sys.modules,
    "det": type(det).__name__,
}))
"""

# As BITS does: each class by its path, each device by keywords alone.
AS_BITS = """
import json, pydoc, sys, yaml
from ophyd.signal import EpicsSignalBase
EpicsSignalBase.set_defaults(connection_timeout=60)
made = {}
for path, entries in yaml.safe_load(open(sys.argv[1])).items():
    for entry in entries:
        device = pydoc.locate(path)(**entry)
        device.wait_for_connection(timeout=60)
        made[device.name] = sorted(device._ophyd_labels_)
print(json.dumps(made))
"""


@pytest.fixture(scope="module")
def stored(tiled_server):
    """Name the shared server's containers for this file's sessions."""
    address = tiled_server.address()
    return {
        "tiled__uri": address.uri,
        "tiled__api_key": address.api_key,
        "tiled__raw": "profile/raw",
        "tiled__processed": "profile/processed",
    }


@pytest.fixture(scope="module")
def started(tmp_path_factory, stored):
    """Start both kinds of process side by side: each takes its time."""
    pytest.importorskip("bluesky_queueserver")
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("prompt", "queue")}
    prompt = Prompt(folders["prompt"], environment(folders["prompt"]))
    try:
        manager = Manager(folders["queue"], environment(folders["queue"], **stored))
        try:
            manager.open()
            yield prompt, manager, folders
        finally:
            manager.close()
    finally:
        prompt.close()


@pytest.fixture
def prompt(started):
    started[0].read(r"In \[1\]", START_S)
    return started[0]


@pytest.fixture
def manager(started):
    started[1].wait(START_S, worker_environment_exists=True, manager_state="idle")
    return started[1]


def test_a_prompt_scans_shows_how_far_it_is_and_ends(prompt, started):
    """With a Tiled server of its own, which is gone with it."""
    folder = started[2]["prompt"]
    prompt.type(f"RE(rocking_scan_with_recon(det, theta, {', '.join(map(str, SCAN))}));")
    shown = prompt.read(r"In \[2\]", PLAN_S)
    assert f"{SCAN[2]} of {SCAN[2]} points" in shown
    assert "crystal" in shown
    (line,) = re.findall(r"reconstruction \w{8} of scan \w{8}: .*", shown)
    assert re.search(r"chi2 [\d.]+, .*confidence [\d.]+", line)
    children = descendants(prompt.process.pid)
    commands = " ".join(map(command_of, children))
    assert "tiled_main" in commands
    assert "worker_main" in commands
    prompt.type("exit")
    said, code = prompt.end()
    assert code == 0
    assert "Traceback" not in said
    assert not psutil.wait_procs(children, END_S)[1]
    assert list(spooled_runs(folder / "spool")) == []
    assert json.loads((folder / "metadata.json").read_text())["scan_id"] == 1


def test_a_queueserver_lists_every_plan_with_its_parameters(manager, started):
    allowed = manager.ask("plans_allowed", user_group="primary")["plans_allowed"]
    assert set(plans.__all__) <= set(allowed)
    for name in plans.__all__:
        assert allowed[name]["description"], name
        for parameter in allowed[name]["parameters"]:
            where = f"{name}, {parameter['name']}"
            assert parameter.get("description"), where
            # Without one it takes what a session in Python alone has: a rule, a callback.
            assert "annotation" in parameter or parameter.get("default") == "None", where
    devices = manager.ask("devices_allowed", user_group="primary")["devices_allowed"]
    assert set(devices) == {"det", "theta", "x", "y"}
    listed = (started[2]["queue"] / "profile_collection/startup/existing_plans_and_devices.yaml").read_text()
    assert all(f"\n  {name}:" in listed for name in (*plans.__all__, *devices))


def test_a_queueserver_runs_plans_and_its_history_holds_a_failed_reconstruction(manager, started, stored):
    """Closed, it leaves no process behind, and nothing that it measured is lost."""
    manager.ask("queue_mode_set", mode={"ignore_failures": True})
    found = manager.add("rocking_scan_with_recon", "det", "theta", *SCAN)
    raised = manager.add("rocking_scan_with_recon", ["det"], "theta", *OFF_PEAK, on_failure="raise")
    returned = manager.add("rocking_scan_with_recon", ["det"], "theta", *OFF_PEAK)
    refused = manager.add("rocking_scan", "det", "theta", -90.0, 90.0, 5)
    # There is nothing to be reconstructed for these.
    nowhere = {"name": "nowhere", "positions": {"x": 300.0, "y": 0.0}}
    skipped = manager.add("survey", "det", "theta", ["x", "y"], [nowhere], -0.35, 0.35, glance_s=0.0)
    unseen = manager.add("adaptive_rocking_scan", "det", "theta", *OFF_PEAK[:2], 10.0, on_failure="raise")
    lost = manager.add("follow", "det", "theta", *OFF_PEAK, scans=1)
    manager.ask("queue_start")
    manager.wait(PLAN_S, manager_state="idle", items_in_queue=0, running_item_uid=None)
    results = manager.history()
    assert results[found]["exit_status"] == results[returned]["exit_status"] == "completed"
    assert results[raised]["exit_status"] == results[refused]["exit_status"] == "failed"
    assert "limits" in results[refused]["msg"]
    assert results[skipped]["exit_status"] == "completed"
    assert len(results[skipped]["run_uids"]) > 1
    assert "there is no crystal" in results[unseen]["msg"]
    assert results[lost]["exit_status"] == "completed"
    (raw_uid,) = results[raised]["run_uids"]
    assert f"the reconstruction of run {raw_uid} failed: " in results[raised]["msg"]
    assert "ReconstructionFailed" in results[raised]["traceback"]
    assert [results[uid]["scan_ids"] for uid in (found, raised, returned)] == [[1], [2], [3]]
    (worker,) = [child for child in descendants(manager.process.pid) if "worker_main" in command_of(child)]
    manager.ask("environment_close")
    manager.wait(END_S, worker_environment_exists=False)
    assert not psutil.wait_procs([worker], END_S)[1]
    told = manager.told()
    with Catalog(settings_of(stored, started[2]["queue"])) as catalog:
        assert catalog.flush(END_S)
        for uid, status in ((found, "success"), (raised, "failed"), (returned, "failed")):
            (raw_uid,) = results[uid]["run_uids"]
            assert catalog.raw[raw_uid].metadata["stop"]["exit_status"] == "success"
            summary = catalog.latest(raw_uid)
            assert summary.status == status
            # A failure that was returned is told where the manager's output is read.
            assert summary_head(summary) in told


@pytest.fixture(scope="module")
def channels():
    """Serve EPICS records; gives what clients' environment needs."""
    pytest.importorskip("epics")
    with soft_ioc("--prefix", "34idc:", "--pixels", 32, "--velocity", 20) as ioc:
        yield client_environment(ioc.port)


def test_one_setting_takes_epics_devices(channels, stored, tmp_path):
    records = {"session__detector": "34idc:det:", "session__motor": "34idc:theta", "session__connect_s": 60}
    env = environment(tmp_path, **stored, session__devices="epics", **records) | channels
    answers = tmp_path / "answers.json"
    python(IN_ORDER, PROFILE / "startup", answers, env=env, cwd=tmp_path)
    answer = json.loads(answers.read_text())
    # Three points are no rocking curve, which the worker says.
    assert "at least" in answer.pop("reconstruction")
    assert answer == {"exit_status": "success", "torch": False, "det": "EventDetector"}


def test_the_devices_file_of_the_docs_makes_devices(channels, tmp_path):
    page = (PROFILE.parent / "docs/how-to/use-with-bits.md").read_text()
    devices = tmp_path / "devices.yml"
    devices.write_text(page.partition("```yaml\n")[2].partition("```")[0])
    said = python(AS_BITS, devices, env=environment(tmp_path) | channels, cwd=tmp_path)
    assert json.loads(said) == {"theta": ["baseline", "motors"], "det": ["detectors"]}


def test_records_that_are_not_there_are_told(tmp_path):
    pytest.importorskip("epics")
    nowhere = client_environment(9)
    env = environment(tmp_path, session__devices="epics", session__connect_s=0.5) | nowhere
    code = "from bluesky_cdinn.beamline_devices import beamline_devices\nbeamline_devices()"
    with pytest.raises(subprocess.CalledProcessError) as failure:
        python(code, env=env, cwd=tmp_path)
    told = failure.value.stderr.splitlines()[-1]
    assert told.startswith("bluesky_cdinn.errors.DeviceUnavailable")
    assert "the motor record CDI:theta, as theta, not found within 0.5 s" in told


def settings_of(stored, folder):
    """Return the settings of a session that ran in a folder."""
    return Settings.model_validate(
        {
            "tiled": {name.removeprefix("tiled__"): value for name, value in stored.items()},
            "spool": folder / "spool",
        }
    )


def summary_head(summary: ReconstructionSummary) -> str:
    """Return what a summary says first, before its numbers."""
    head = f"reconstruction {summary.processed_uid[:8]} of scan {summary.raw_uid[:8]}: "
    return head if summary.success else f"{head}failed: "


def command_of(process: psutil.Process) -> str:
    """Return a process's command; nothing of one that is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def python(code, *arguments, env, cwd):
    """Run code in a process of its own; return what it printed."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(
        command, env=env, cwd=cwd, check=True, capture_output=True, text=True, timeout=PLAN_S
    )
    return done.stdout
