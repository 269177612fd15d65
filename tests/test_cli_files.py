"""The commands that exchange files: what is stored goes out, what lies in an archive comes in."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from bluesky_cdinn import cli_files
from bluesky_cdinn.cli import app
from bluesky_cdinn.records import Reconstruction

RUNNER = CliRunner()
GEOMETRY = {
    "energy_keV": 9.0,
    "detector_distance_m": 0.5,
    "pixel_size_um": 55.0,
    "detector_angles_deg": [32.0, 12.0],
}


@pytest.fixture(autouse=True)
def own_catalog(settings, monkeypatch):
    monkeypatch.setattr(cli_files, "settings", lambda directory=None: settings)


def told(*arguments: str, code: int = 0) -> dict:
    ended = RUNNER.invoke(app, [*arguments, "--json"])
    assert ended.exit_code == code, ended.output
    return json.loads(ended.stdout.splitlines()[-1])


def ball(raw_uid: str) -> Reconstruction:
    points = (np.stack(np.meshgrid(*[np.arange(16)] * 3, indexing="ij"), axis=-1) - 8) * 10.0
    support = np.linalg.norm(points, axis=-1) < 45
    return Reconstruction(
        support.astype(np.complex64),
        support,
        direct_basis=np.eye(3) * 10,
        q_vector=np.array([20.0, 3.0, -5.0]),
        raw_uid=raw_uid,
    )


def test_a_scan_comes_in_once_and_its_crystal_goes_out(tmp_path: Path, catalog) -> None:
    angles = 0.02 * np.arange(16)
    away = np.sum((np.indices((16, 16, 16)) - 8) ** 2, axis=0)
    counts = np.random.default_rng(1).poisson(5000 * np.exp(-away / 6)).astype(np.uint32)
    np.savez(tmp_path / "scan.npz", frames=counts, angles_deg=angles, sample="gold", **GEOMETRY)
    (first,) = told("import", str(tmp_path / "scan.npz"))["runs"]
    assert (first["new"], first["points"]) == (True, 16)
    (second,) = told("import", str(tmp_path / "scan.npz"))["runs"]
    assert (second["new"], second["uid"]) == (False, first["uid"])
    uid = catalog.store(ball(first["uid"]))
    catalog.flush(60)
    told("export", uid[:8], "-o", str(tmp_path / "crystal.nxs"), "--frame", "q", "--voxel", "7")
    with h5py.File(tmp_path / "crystal.nxs") as file:
        assert file["entry/entry_identifier"].asstr()[()] == uid
        assert file["entry/experiment_identifier"].asstr()[()] == first["uid"]
        np.testing.assert_allclose(np.diff(file["entry/object/x"]), 7.0)
    answer = told("export", first["uid"], "-o", str(tmp_path / "volume.cxi"))
    with h5py.File(tmp_path / "volume.cxi") as file:
        assert list(file["entry_1/data_1/data"].shape) == answer["shape"]
        assert file["entry_1/data_1/data"][()].max() > 1000


def test_what_is_wrong_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    assert "must exist" in told("export", "abc", "-o", str(tmp_path / "no" / "c.cxi"), code=1)["error"]
    assert "must end in" in told("export", "abc", "-o", str(tmp_path / "c.mrc"), code=1)["error"]
    assert "must exist" in told("import", str(tmp_path / "absent.h5"), code=1)["error"]
    (tmp_path / "x.npz").touch()
    assert "NAME=VALUE" in told("import", str(tmp_path / "x.npz"), "--set", "energy", code=1)["error"]
    assert list(tmp_path.glob("*.cxi")) == []


def test_damaged_files_and_options_that_do_not_apply_are_told(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "whole.h5", "w") as file:
        file["frames"] = np.zeros((9, 40, 40))
    (tmp_path / "cut.h5").write_bytes((tmp_path / "whole.h5").read_bytes()[:20000])
    (tmp_path / "cut.npz").write_bytes(b"no archive")
    (tmp_path / "empty.npz").touch()
    (tmp_path / "empty.tif").touch()
    for name in ("cut.h5", "cut.npz", "empty.npz", "empty.tif"):
        assert name in told("import", str(tmp_path / name), code=1)["error"]
    np.savez(tmp_path / "volume.npz", intensity=np.ones((4, 4, 4)), angles_deg=np.arange(4.0))
    error = told("import", str(tmp_path / "volume.npz"), "--angles", "eta", code=1)["error"]
    assert "--angles" in error
