"""Checks of an installation, each answering what is right, or what is wrong and what to do about it."""

import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from uuid import uuid4

import numpy as np
from packaging.requirements import Requirement

from bluesky_cdinn.catalog import Catalog, connect
from bluesky_cdinn.errors import CdinnError, StoreUnavailable
from bluesky_cdinn.records import RockingCurve
from bluesky_cdinn.settings import Settings, config_file
from bluesky_cdinn.worker import ReconstructionWorker

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Parameters
    ----------
    name
        What.
    good
        Whether it is as it must be.
    finding
        What was found, and if it isn't good what to do.
    seconds
        How long it took.
    """

    name: str
    good: bool
    finding: str
    seconds: float


def examine(settings: Settings) -> Iterator[Check]:
    """Yield the checks, each when it is done; none of them changes anything that was there.

    Parameters
    ----------
    settings
        Which server, worker and spool to look at.
    """
    yield _check("python and packages", _packages)
    yield _check("settings", _settings_source)
    yield _check("spool", lambda: _spool(settings))
    yield _check("tiled", lambda: _tiled(settings))
    yield _check("worker", lambda: _worker(settings))


def _check(name: str, look: Callable[[], str]) -> Check:
    began = time.monotonic()
    try:
        good, finding = True, look()
    except (CdinnError, OSError) as error:
        good, finding = False, " ".join(str(error).split())
    except Exception as error:
        # The doctor's own boundary: an unforeseen fault of what it looks at is a finding.
        logger.debug("the check of %s failed", name, exc_info=True)
        good, finding = False, f"{type(error).__name__}: {error}"
    return Check(name, good, finding, time.monotonic() - began)


def _packages() -> str:
    faults = []
    for line in requires("bluesky-cdinn") or ():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            installed = None
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            faults.append(f"{requirement} is required, found {installed or 'none'}")
    if faults:
        raise CdinnError("; ".join(faults) + ": install with the lock as constraints, see the README")
    shown = ("bluesky-cdinn", "bluesky", "ophyd", "tiled", "numpy", "torch")
    return f"Python {sys.version.split()[0]}, " + ", ".join(f"{name} {version(name)}" for name in shown)


def _settings_source() -> str:
    return str(config_file() or "no file, defaults and environment alone")


def _spool(settings: Settings) -> str:
    settings.spool.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=settings.spool):
        pass
    return f"{settings.spool.resolve()} can be written"


def _tiled(settings: Settings) -> str:
    with connect(settings) as catalog:
        _write_and_remove(catalog)
        return (
            f"{catalog.uri} reads and writes, "
            f"{len(catalog.raw)} raw and {len(catalog.processed)} processed runs"
        )


def _write_and_remove(catalog: Catalog) -> None:
    key = f"cdinn-doctor-{uuid4().hex}"
    try:
        catalog.processed.create_container(key)
        catalog.processed.delete_contents([key])
    except Exception as error:
        raise StoreUnavailable(
            f"{catalog.uri} answers, but a container in 'processed' can't be made and removed ({error}): "
            "give an API key that may write, in CDINN_TILED__API_KEY"
        ) from error


def _worker(settings: Settings) -> str:
    with ReconstructionWorker(settings.worker, settings.reconstruction) as worker:
        result = worker.submit(ball_curve()).result()
    where = result.parameters.get("device", "an unnamed device")
    weights = result.parameters.get("weights")
    network = f"network {weights['name']}" if weights else "no network"
    return (
        f"a child process reconstructed a ball on {where} with {network}, "
        f"chi2 {result.chi2:.4f} in {result.seconds:.1f} s"
    )


def ball_curve(size: int = 32, radius: float = 5.0) -> RockingCurve:
    """Return the rocking curve of a uniform ball, without geometry: the least that can be reconstructed.

    Parameters
    ----------
    size
        Of the volume along each axis.
    radius
        Of the ball, voxels.
    """
    squared = ((np.indices((size, size, size)) - size // 2) ** 2).sum(axis=0)
    ball = np.fft.ifftshift((squared <= radius**2).astype(float))
    intensity = np.abs(np.fft.fftshift(np.fft.fftn(ball, norm="ortho"))) ** 2
    frames = np.random.default_rng(0).poisson(intensity * (1e5 / intensity.max())).astype(np.int32)
    return RockingCurve(frames=frames, angles_deg=np.linspace(-0.1, 0.1, size))
