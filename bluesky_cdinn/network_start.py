"""The network as a start: random phases, a few iterations, and the network's guess of what they tend to."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from bluesky_cdinn.errors import InvalidInput, WeightsError
from bluesky_cdinn.forward import to_centre
from bluesky_cdinn.grid import coarse_levels
from bluesky_cdinn.guess import CYCLE, as_objects, chi2_of, continued, half_phased, room_of
from bluesky_cdinn.network import ARCHITECTURES, NORMALISATION, NetworkConfig, build
from bluesky_cdinn.refine import Measurement, Objects
from bluesky_cdinn.starts import autocorrelation_start
from bluesky_cdinn.support import autocorrelation_support
from bluesky_cdinn.weights import fill, load_weights, shipped_weights
from bluesky_cdinn.windows import measurement_window, objects_on

# Sides that the network can halve twice in the central half of the box; the least that training allows.
MULTIPLE, LEAST = 8, 16


@dataclass(frozen=True, eq=False)
class NetworkStart:
    """A `starts.Start` that asks a network.

    Parameters
    ----------
    network
        `network.CDINN` or another with its signature, in evaluation mode.
    weights
        Name and sha256 of its weights, for the record.
    headway
        Iterations of phase retrieval before the network looks.
    looks
        How often it does, with `guess.CYCLE` iterations between.
    """

    network: nn.Module
    weights: dict[str, str]
    headway: int = 60
    looks: int = 3

    @property
    def iterations(self) -> int:
        """Iterations of phase retrieval in each guess."""
        return self.headway + CYCLE * (self.looks - 1)

    @torch.no_grad()
    def __call__(self, measurement: Measurement, count: int, generator: torch.Generator) -> Objects:
        """Return ``count`` guesses, each from random phases of its own; their chi2 is the guess' own."""
        seen = measurement_window(measurement, seen_shape(measurement))
        objects = autocorrelation_start(seen, count, generator)
        objects = half_phased(objects, seen, self.headway, room_of(objects.support))
        guess = self.look(objects, seen)
        for _ in range(self.looks - 1):
            guess = self.look(continued(guess, seen), seen)
        guessed = as_objects(guess, seen)
        guessed.chi2 = chi2_of(guess, seen)
        return objects_on(guessed, tuple(measurement.magnitude.shape))

    def look(self, objects: Objects, measurement: Measurement) -> Tensor:
        """Return what the network sees behind half-phased objects, complex (starts, n0, n1, n2)."""
        shape = objects.density.shape
        fitted = measurement.fitted
        measured = torch.ones(shape[1:], dtype=torch.bool) if fitted is None else fitted
        magnitude = measurement.target.expand(shape)
        measured = measured.to(magnitude.device).expand(shape)
        # As it was trained, where the processor multiplies in bfloat16: three times as fast.
        with torch.autocast(magnitude.device.type, torch.bfloat16, enabled=_has_bfloat16(magnitude.device)):
            return self.network(magnitude, measured, objects.density, objects.support)


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()


def seen_shape(measurement: Measurement) -> tuple[int, int, int]:
    """Return the grid that the network sees: the coarsest level, in sides that it can take."""
    intensity = to_centre(measurement.intensity).cpu().numpy()
    support = to_centre(autocorrelation_support(measurement.object_intensity)).cpu().numpy()
    extent = [
        int(support.any(axis=tuple(other for other in range(3) if other != axis)).sum()) for axis in range(3)
    ]
    level: Sequence[int] = coarse_levels(intensity, extent)[0]
    a, b, c = (max(LEAST, MULTIPLE * round(n / MULTIPLE)) for n in level)
    return a, b, c


def network_start(path: Path | None = None, device: str = "cpu") -> NetworkStart:
    """Return the start of a file of weights; None for the ones that ship with the package.

    It is kept for the next time, until the file changes.

    Raises
    ------
    WeightsError
        There are none, or they don't fit.
    """
    path = path or shipped_weights()
    changed = path.stat().st_mtime_ns if path is not None and path.is_file() else 0
    return _loaded(path, changed, device)


@lru_cache(maxsize=4)
def _loaded(path: Path | None, changed: int, device: str) -> NetworkStart:
    weights = load_weights(path, architectures=ARCHITECTURES, normalisation=NORMALISATION)
    try:
        config = NetworkConfig.from_mapping(weights.config)
    except (TypeError, InvalidInput) as error:
        raise WeightsError(
            f"{weights.name} must have the configuration of this version's network: {error}. Fetch the "
            "package version that wrote it, or package the training run again"
        ) from error
    if config.version != NetworkConfig.version:
        raise WeightsError(
            f"weights of version {NetworkConfig.version} of {config.architecture} are required, "
            f"{weights.name} has {config.version}: use the package version that wrote it, or train again"
        )
    network = build(config)
    fill(network, weights)
    return NetworkStart(network.eval().to(device), {"name": weights.name, "sha256": weights.sha256})
