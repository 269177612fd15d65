"""The whole way once, on a simulated crystal: scan, live reconstruction, Tiled, a query, the truth."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bluesky_cdinn.embedded import EmbeddedServer
from bluesky_cdinn.errors import CdinnError, ReconstructionFailed
from bluesky_cdinn.plans import rocking_scan_with_recon
from bluesky_cdinn.quality import Comparison, compare
from bluesky_cdinn.records import Progress, Reconstruction
from bluesky_cdinn.session import open_session
from bluesky_cdinn.settings import Settings
from bluesky_cdinn.sim.crystal import Crystal, random_crystal, sample
from bluesky_cdinn.sim.devices import simulated_beamline
from bluesky_cdinn.summary import ReconstructionSummary
from bluesky_cdinn.terminal import progress_bars

SIZE_NM = 400.0
PHASE_RANGE_RAD = 3.0
SCAN = (-0.35, 0.35, 64)

Watch = Callable[[Progress], None]


@dataclass(frozen=True)
class Measured:
    """What the session got.

    Parameters
    ----------
    summary
        Of the reconstruction that the plan returned.
    error
        Of that reconstruction, against the crystal that was in the beam.
    scan_s
        How long the scan took.
    wait_s
        From the scan's end to the stored result.
    """

    summary: ReconstructionSummary
    error: Comparison
    scan_s: float
    wait_s: float


def measure(settings: Settings, seed: int, on_point: Watch, on_progress: Watch) -> Measured:
    """Scan a simulated crystal, wait for its reconstruction, and compare it with the truth.

    Raises
    ------
    ReconstructionFailed
        There is no crystal to compare.
    """
    crystal = random_crystal(np.random.default_rng(seed), SIZE_NM, PHASE_RANGE_RAD)
    det, theta = simulated_beamline(crystal=crystal, seed=seed)
    with open_session(settings, on_progress) as session:
        plan = rocking_scan_with_recon(
            det,
            theta,  # pyright: ignore[reportArgumentType] - ophyd's devices are not annotated as movable
            *SCAN,
            live=session.live,
        )
        summary = session.run(plan, on_point)
        if not summary.success:
            raise ReconstructionFailed(f"the simulated crystal was not reconstructed: {summary.reason}")
        raw = session.catalog.raw[summary.raw_uid].metadata
        processed = session.catalog.processed[summary.processed_uid].metadata
        error = true_error(summary.load(), crystal)
    return Measured(
        summary=summary,
        error=error,
        scan_s=raw["stop"]["time"] - raw["start"]["time"],
        wait_s=processed["stop"]["time"] - raw["stop"]["time"],
    )


def true_error(result: Reconstruction, crystal: Crystal) -> Comparison:
    """Compare a reconstruction with the crystal that was measured, on the reconstruction's own grid.

    Raises
    ------
    ReconstructionFailed
        The result has no metric: the geometry was lost on the way.
    """
    if result.direct_basis is None:
        raise ReconstructionFailed("a comparison with the truth needs the bases, the result has none")
    return compare(result.density, sample(crystal, result.direct_basis, result.density.shape))


def ask(*arguments: object) -> tuple[dict[str, Any], float]:
    """Run a ``cdinn`` command in a process of its own; return what it answers and how long it took.

    Raises
    ------
    CdinnError
        It failed; the message is its own.
    """
    command = [sys.executable, "-m", "bluesky_cdinn.cli", *map(str, arguments), "--json"]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CdinnError(f"{' '.join(command)} failed: {done.stderr}")
    return json.loads(done.stdout), time.monotonic() - began


def demonstrate(settings: Settings, folder: Path, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Tell the whole story, one line a step.

    Parameters
    ----------
    settings
        Of a catalog in `folder`.
    folder
        Where everything is kept; the figure goes to ``reconstruction.png`` in it.
    seed
        Of the crystal, the detector's faults and the photons.
    say
        Gets each line.

    Returns
    -------
    dict
        Every number of it, flat.
    """
    began = time.monotonic()
    say(f"In the beam: a gold crystal, {SIZE_NM:.0f} nm, its strain a phase of {PHASE_RANGE_RAD} rad at 111.")
    say(f"RE(rocking_scan_with_recon(det, theta, {', '.join(map(str, SCAN))})) ...")
    with closing(EmbeddedServer(settings.tiled.directory, settings.tiled.readable_storage)) as server:
        server.address()  # started once, for the session and for the processes that ask later
        with progress_bars("scan", "crystal") as (scan, crystal):
            measured = measure(settings, seed, scan, crystal)
        summary, error = measured.summary, measured.error
        say(f"The scan took {measured.scan_s:.1f} s; {measured.wait_s:.1f} s later the crystal was stored.")
        say(f"Tiled holds raw run {summary.raw_uid[:8]} and its reconstruction {summary.processed_uid[:8]}.")

        found, took = ask("list", "--raw", summary.raw_uid, "--directory", folder)
        if [entry["processed_uid"] for entry in found["reconstructions"]] != [summary.processed_uid]:
            raise CdinnError(f"a new process must find {summary.processed_uid} by its raw uid, got {found}")
        chi2 = found["reconstructions"][0]["chi2"]
        say(f"A new process found it by the scan's uid in {took:.1f} s: chi2 {chi2:.5f}.")
        say(
            f"Against the true crystal: phase off by {error.phase_rmse:.3f} rad rms, "
            f"supports overlap by {100 * error.iou:.1f} %, correlation {error.correlation:.4f}."
        )
        figure = folder / "reconstruction.png"
        ask("show", summary.processed_uid, "-o", figure, "--directory", folder)
    say(f"Drawn in {figure}. All of it took {time.monotonic() - began:.0f} s.")
    return {
        "raw_uid": summary.raw_uid,
        "processed_uid": summary.processed_uid,
        **summary.scalars,
        "phase_rmse": error.phase_rmse,
        "iou": error.iou,
        "correlation": error.correlation,
        "scan_s": measured.scan_s,
        "wait_s": measured.wait_s,
        "total_s": time.monotonic() - began,
        "figure": str(figure),
    }
