"""The command line, against a real Tiled server, a real worker and real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from matplotlib.image import imread
from typer.testing import CliRunner

from bluesky_cdinn.catalog import Catalog, connect
from bluesky_cdinn.cli import app, settings
from bluesky_cdinn.doctor import ball_curve
from bluesky_cdinn.embedded import SERVER_FILE
from bluesky_cdinn.records import Reconstruction

PHYSICS = {
    "energy_keV": 9.0,
    "detector_distance_m": 0.5,
    "pixel_size_um": 55.0,
    "detector_angles_deg": (32.2, 12.6),
    "reflection": (1, 1, 1),
    "lattice_nm": 0.40782,
}


def cdinn(*arguments: object) -> tuple[int, dict[str, Any], str]:
    """Run a command with --json in this process: exit code, what stdout's only line says, stderr."""
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    lines = done.stdout.splitlines()
    assert len(lines) <= 1, done.stdout
    return done.exit_code, json.loads(lines[0]) if lines else {}, done.stderr


# Where the tests themselves run in the background, SIGINT is ignored, and children inherit that.
HEARING = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recorded scan of a small ball, with its geometry."""
    curve = ball_curve(32, 5.0)
    path = tmp_path_factory.mktemp("recording") / "ball.npz"
    np.savez(
        path, frames=curve.frames, angles_deg=curve.angles_deg, count_time_s=0.1, sample="ball", **PHYSICS
    )
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory whose embedded Tiled server these tests share."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def catalog(home: Path) -> Any:
    """Hold the shared server up."""
    with connect(settings(home)) as opened:
        yield opened


@pytest.fixture(scope="module")
def replayed(recording: Path, home: Path, catalog: Catalog) -> dict[str, Any]:
    """Replay the recording once, through RunEngine, callback, worker and Tiled."""
    code, answer, err = cdinn("replay", recording, "--directory", home, "--starts", 2)
    assert code == 0, err
    return answer


def test_replay_tells_uids_and_numbers(replayed: dict[str, Any], catalog: Catalog) -> None:
    assert replayed["status"] == "success"
    assert 0 < replayed["chi2"] < 0.05
    assert replayed["seconds"] > 0
    assert replayed["size_nm"] > 0
    assert replayed["sample"] == "ball"
    raw = catalog.raw[replayed["raw_uid"]].metadata
    assert raw["stop"]["exit_status"] == "success"
    assert catalog.processed[replayed["processed_uid"]].metadata["start"]["raw_uid"] == replayed["raw_uid"]


def test_list_finds_by_scan_sample_and_status(replayed: dict[str, Any], home: Path) -> None:
    for query in (("--raw", replayed["raw_uid"]), ("--sample", "ball"), ("--status", "success")):
        _, answer, _ = cdinn("list", *query, "--directory", home)
        assert replayed["processed_uid"] in [found["processed_uid"] for found in answer["reconstructions"]]
    for query in (("--raw", "no such uid"), ("--sample", "cube"), ("--status", "cancelled")):
        assert cdinn("list", *query, "--directory", home)[1] == {"count": 0, "reconstructions": []}
    assert cdinn("list", "--limit", 1, "--directory", home)[1]["count"] == 1


def test_list_prints_a_table(replayed: dict[str, Any], home: Path) -> None:
    done = CliRunner().invoke(app, ["list", "--directory", str(home)])
    assert replayed["processed_uid"][:8] in done.stdout
    assert "confidence" in done.stdout


def test_show_tells_all_and_draws(replayed: dict[str, Any], home: Path, tmp_path: Path) -> None:
    figure = tmp_path / "crystal.png"
    code, answer, err = cdinn("show", replayed["processed_uid"][:8], "-o", figure, "--directory", home)
    assert code == 0, err
    assert answer["chi2"] == pytest.approx(replayed["chi2"])
    assert answer["raw_uid"] == replayed["raw_uid"]
    assert answer["parameters"]
    assert imread(figure).shape[0] > 500


@pytest.mark.parametrize("suffix", ["png", "pdf", "html"])
def test_a_report_is_written(replayed: dict[str, Any], home: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"crystal.{suffix}"
    code, answer, err = cdinn("report", replayed["processed_uid"][:8], "-o", path, "--directory", home)
    assert code == 0, err
    assert answer == {"output": str(path), "raw_uid": replayed["raw_uid"], "status": "success"}
    begins = {"png": b"\x89PNG", "pdf": b"%PDF", "html": b"<!DOCTYPE html>"}[suffix]
    assert path.read_bytes().startswith(begins)


def test_show_prints_numbers_as_people_read_them(replayed: dict[str, Any], home: Path) -> None:
    done = CliRunner().invoke(app, ["show", replayed["processed_uid"][:8], "--directory", str(home)])
    assert done.exit_code == 0
    assert "agreement of starts" in done.stdout
    assert "nm" in done.stdout


def test_show_warns(replayed: dict[str, Any], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reconstruction, "warnings", ["the peak is cut"])
    done = CliRunner().invoke(app, ["show", replayed["processed_uid"][:8], "--directory", str(home)])
    assert done.stdout.endswith("warning: the peak is cut\n")


@pytest.mark.parametrize("command", ["show", "report"])
def test_a_figure_that_cannot_be_drawn_is_refused(
    replayed: dict[str, Any], home: Path, tmp_path: Path, command: str
) -> None:
    uid = replayed["processed_uid"]
    code, answer, _ = cdinn(command, uid, "--directory", home, "-o", tmp_path / "crystal.xyz")
    assert (code, answer["type"]) == (1, "InvalidInput")


def test_an_interrupted_replay_is_stored_as_aborted(recording: Path, home: Path, catalog: Catalog) -> None:
    command = [sys.executable, "-m", "bluesky_cdinn.cli", "replay", str(recording), "--time-scale", "5"]
    command += ["--directory", str(home), "--json"]
    before = len(catalog.raw)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as replaying:
        while not list((home / "spool").glob("*-raw-*.part")):
            assert replaying.poll() is None
            time.sleep(0.1)
        replaying.send_signal(signal.SIGINT)
        out, err = replaying.communicate(timeout=60)
    assert (replaying.returncode, json.loads(out)["type"]) == (1, "Cancelled"), err
    assert err.splitlines()[-1].startswith("cdinn: interrupted")
    assert len(catalog.raw) == before + 1
    assert catalog.raw.values().last().metadata["stop"]["exit_status"] == "abort"


def test_reconstruct_makes_another_run(replayed: dict[str, Any], home: Path) -> None:
    raw_uid = replayed["raw_uid"]
    code, answer, err = cdinn("reconstruct", raw_uid, "--seed", 5, "--starts", 2, "--directory", home)
    assert code == 0, err
    assert answer["raw_uid"] == raw_uid
    assert answer["processed_uid"] != replayed["processed_uid"]
    assert answer["chi2"] == pytest.approx(replayed["chi2"], rel=0.5)
    assert cdinn("list", "--raw", raw_uid, "--directory", home)[1]["count"] >= 2


def test_what_is_not_there_is_one_line_and_code_1(home: Path, catalog: Catalog, tmp_path: Path) -> None:
    for command in (("show", "feedbeef"), ("reconstruct", "feedbeef")):
        code, answer, err = cdinn(*command, "--directory", home)
        assert code == 1
        assert answer["type"] == "NotFound"
        assert err.splitlines()[-1] == f"cdinn: {answer['error']}"
    code, answer, _ = cdinn("replay", tmp_path / "absent.h5", "--directory", home)
    assert (code, answer["type"]) == (1, "InvalidInput")


def test_doctor_finds_a_healthy_installation(home: Path, catalog: Catalog) -> None:
    runs = len(catalog.processed)
    code, answer, err = cdinn("doctor", "--directory", home)
    assert answer["ok"], answer
    assert code == 0, err
    assert {check["name"] for check in answer["checks"]} >= {"tiled", "worker", "spool"}
    assert len(catalog.processed) == runs


def test_doctor_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDINN_TILED__URI", "http://127.0.0.1:9")
    monkeypatch.setenv("CDINN_SPOOL", str(tmp_path / "spool"))
    code, answer, _ = cdinn("doctor")
    found = {check["name"]: check for check in answer["checks"]}
    assert code == 1
    assert not answer["ok"]
    assert not found["tiled"]["good"]
    assert "127.0.0.1:9" in found["tiled"]["finding"]
    assert found["spool"]["good"]


def test_wrong_settings_are_told_without_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDINN_TILED__API_KEY", "secret")
    monkeypatch.setenv("CDINN_WORKER__TIMEOUT_S", "soon")
    code, answer, err = cdinn("list")
    assert (code, answer["type"]) == (1, "InvalidInput")
    assert "timeout_s" in answer["error"]
    assert "secret" not in answer["error"] + err


@pytest.mark.parametrize(
    ("name", "value"),
    [("CDINN_CONFIG", "bad.toml"), ("CDINN_CONFIG", "absent.toml"), ("CDINN_TILED", "no json")],
)
def test_settings_that_cannot_be_read_are_told(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.toml").write_text("this is [no toml")
    monkeypatch.setenv(name, value)
    code, answer, _ = cdinn("list")
    assert (code, answer["type"]) == (1, "InvalidInput")
    assert value in answer["error"] or "environment" in answer["error"]


def test_a_server_that_does_not_let_in_is_told(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDINN_TILED__URI", catalog.uri)
    code, answer, _ = cdinn("list")
    assert (code, answer["type"]) == (1, "StoreUnavailable")
    assert "CDINN_TILED__API_KEY" in answer["error"]
    monkeypatch.setenv("CDINN_TILED__API_KEY", "wrong")
    code, answer, _ = cdinn("list")
    assert (code, answer["type"]) == (1, "StoreUnavailable")
    monkeypatch.delenv("CDINN_TILED__URI")
    monkeypatch.setenv("CDINN_TILED__PROFILE", "absent")
    code, answer, _ = cdinn("list")
    assert (code, answer["type"]) == (1, "StoreUnavailable")
    assert "absent" in answer["error"]


def test_demo_wants_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, answer, _ = cdinn("demo", "--directory", tmp_path / "file")
    assert (code, answer["type"]) == (1, "InvalidInput")


@pytest.mark.parametrize(
    "arguments", [["phase"], ["list", "--limit", "0"], ["phase", "x", "-o", "y", "--start", "z"]]
)
def test_wrong_usage_is_code_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


def volume_file(folder: Path, kind: str) -> tuple[Path, np.ndarray]:
    """Write the ball off centre in an odd-shaped volume, with a masked row."""
    counts = np.pad(np.asarray(ball_curve(32, 5.0).frames, float), ((0, 5), (3, 0), (0, 2)))
    mask = np.ones(counts.shape, bool)
    mask[:, 9] = False
    path = folder / f"volume.{kind}"
    if kind == "npz":
        np.savez(path, intensity=np.where(mask, counts, 1e7), mask=mask)
    else:
        with h5py.File(path, "w") as file:
            file["entry_1/data_1/data"] = np.where(mask, counts, 1e7)
            file["entry_1/instrument_1/detector_1/mask"] = (~mask[0]).astype(np.uint32)
    return path, np.where(mask, counts, np.nan)


@pytest.mark.parametrize("kind", ["npz", "cxi"])
def test_phase_gives_the_object_on_the_inputs_own_grid(tmp_path: Path, kind: str) -> None:
    path, counts = volume_file(tmp_path, kind)
    output = tmp_path / "crystal.npz"
    command = [sys.executable, "-m", "bluesky_cdinn.cli", "phase", str(path), "-o", str(output), "--json"]
    command += ["--starts", "2", "--seed", "3", "--threads", "1", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert {"chi2", "free_llk", "confidence", "seconds", "cpu_s", "timings_s"} <= set(answer)
    with np.load(output) as out:
        density, support = out["density"], out["support"]
        assert float(out["chi2"]) == pytest.approx(answer["chi2"])
    assert density.shape == support.shape == counts.shape
    assert density.dtype == np.complex64
    amplitude = np.abs(np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(density), norm="ortho")))
    valid = np.isfinite(counts)
    chi2 = ((amplitude - np.sqrt(counts))[valid] ** 2).sum() / counts[valid].sum()
    assert chi2 < 0.05
    # What is fitted of blur and background explains more than the object alone.
    assert answer["chi2"] < 1.3 * chi2
    assert 300 < support.sum() < 900  # a ball of radius 5 holds 524 voxels


def test_phase_refuses_before_it_computes(tmp_path: Path) -> None:
    path, _ = volume_file(tmp_path, "npz")
    code, answer, _ = cdinn("phase", path, "-o", tmp_path / "absent" / "out.npz")
    assert (code, answer["type"]) == (1, "InvalidInput")
    assert "make it first" in answer["error"]
    code, answer, _ = cdinn("phase", tmp_path / "absent.npz", "-o", tmp_path / "out.npz")
    assert (code, answer["type"]) == (1, "InvalidInput")
    assert not (tmp_path / "out.npz").exists()


def test_serve_until_interrupted(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bluesky_cdinn.cli", "serve", "--port", "0", "--json"]
    command += ["--directory", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=HEARING) as serving:
        assert serving.stdout is not None
        answer = json.loads(serving.stdout.readline())
        assert answer["served_here"]
        with connect(settings(tmp_path)) as catalog:
            assert catalog.uri == answer["uri"]
            assert len(catalog.processed) == 0
        serving.send_signal(signal.SIGINT)
        assert serving.wait(30) == 0


def test_serve_tells_that_its_server_died(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bluesky_cdinn.cli", "serve", "--port", "0", "--json"]
    command += ["--directory", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as serving:
        assert serving.stdout is not None
        assert serving.stderr is not None
        assert json.loads(serving.stdout.readline())["served_here"]
        os.kill(json.loads((tmp_path / "tiled" / SERVER_FILE).read_text())["pid"], signal.SIGKILL)
        assert serving.wait(30) == 1
        assert "server.log" in serving.stderr.read()
