"""The demonstration, as `make demo` runs it, but in a directory of its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from matplotlib.image import imread

from bluesky_cdinn.cli import settings
from bluesky_cdinn.demo import true_error
from bluesky_cdinn.records import Reconstruction
from bluesky_cdinn.sim.crystal import random_crystal, sample


def test_the_demo_finds_the_true_crystal(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "bluesky_cdinn.cli",
        "demo",
        "--directory",
        str(tmp_path / "out"),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["phase_rmse"] < 0.1
    assert answer["iou"] > 0.95
    assert answer["total_s"] < 180
    assert answer["strain_rms"] > 0
    assert imread(answer["figure"]).shape[1] > 1000
    for words in ("rocking_scan_with_recon", "A new process found it", "Against the true crystal"):
        assert words in done.stderr


def test_the_true_error_is_that_of_the_crystal_on_the_results_grid() -> None:
    basis = np.array([[9.0, 0.0, 1.0], [2.0, 8.0, 0.0], [0.0, 1.0, 10.0]])
    crystal = random_crystal(np.random.default_rng(1), 150.0, 2.0)
    density = sample(crystal, basis, (40, 42, 44))
    wrong = density * np.exp(1j * 0.1 * np.random.default_rng(2).normal(size=density.shape))
    for candidate, phase_rmse in ((density, 0.0), (wrong, 0.1)):
        result = Reconstruction(candidate.astype(np.complex64), np.abs(density) > 0.5, direct_basis=basis)
        error = true_error(result, crystal)
        np.testing.assert_allclose(error.phase_rmse, phase_rmse, atol=0.005)
        assert error.iou == 1.0


def test_a_directory_of_ones_own_holds_everything(tmp_path: Path) -> None:
    chosen = settings(tmp_path)
    for path in (chosen.tiled.directory, chosen.spool, *chosen.tiled.readable_storage):
        assert path.is_relative_to(tmp_path)
