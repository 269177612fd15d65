"""The startup files, run as IPython and queueserver run them: in order, in one namespace."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

STARTUP = Path(__file__).parents[2] / "profile_collection" / "startup"

SESSION = """
import json, sys
from pathlib import Path
for file in sorted(Path(sys.argv[1]).glob("*.py")):
    exec(compile(file.read_text(), file, "exec"))
result = RE(rocking_scan(det, theta, -0.1, 0.1, 3))
assert catalog.flush(60)
print(json.dumps({
    "raw_uid": result.plan_result,
    "exit_status": catalog.raw[result.plan_result].metadata["stop"]["exit_status"],
    "pending": live.result(result.plan_result).cancel(),
    "torch": "torch" in sys.modules,
}))
"""


@pytest.fixture
def environment(settings):
    tiled = settings.tiled
    return {
        **os.environ,
        "CDINN_TILED__URI": tiled.uri,
        "CDINN_TILED__API_KEY": tiled.api_key.get_secret_value(),
        "CDINN_TILED__RAW": tiled.raw,
        "CDINN_TILED__PROCESSED": tiled.processed,
        "CDINN_SPOOL": str(settings.spool),
    }


def test_a_scan_at_the_prompt(environment, tmp_path):
    session = subprocess.run(
        [sys.executable, "-c", SESSION, STARTUP],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert session.returncode == 0, session.stderr
    said = json.loads(session.stdout.splitlines()[-1])
    assert said["exit_status"] == "success"
    assert not said["torch"]


def test_queueserver_takes_them(environment, tmp_path, monkeypatch):
    """It lists the plans and the devices of a startup folder by executing it."""
    pytest.importorskip("bluesky_queueserver")
    lists = tmp_path / "lists.yaml"
    subprocess.run(
        [
            "qserver-list-plans-devices",
            "--startup-dir",
            STARTUP,
            "--file-dir",
            tmp_path,
            "--file-name",
            lists.name,
        ],
        env={**environment, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        cwd=tmp_path,
        check=True,
        timeout=120,
    )
    listed = lists.read_text()
    for name in ("rocking_scan", "rocking_scan_with_recon", "det", "theta"):
        assert f"\n  {name}:" in listed
