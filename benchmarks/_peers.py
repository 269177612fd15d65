"""What ours is compared with, behind one seam: a centred pattern and a seed in, a density and its cost out.

Two recipes are written here from their publications; the programs run in a Python of their own
(`_peer_cohere.py`, `_peer_pynx.py`), which is told one case a line and answers with one line.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bluesky_cdinn.pipeline import reconstruct
from bluesky_cdinn.preprocess import prepare
from bluesky_cdinn.records import DiffractionVolume
from bluesky_cdinn.settings import ReconstructionOptions

HERE = Path(__file__).parent


@dataclass(frozen=True, eq=False)
class Outcome:
    """A density, origin at n // 2 and in any scale, with its CPU and wall seconds of warm compute."""

    density: NDArray[np.complex64]
    cpu_s: float
    wall_s: float
    facts: dict[str, Any] = field(default_factory=dict)


Solver = Callable[[NDArray[np.float32], NDArray[np.bool_], int], Outcome]


def ours(
    intensity: NDArray[np.float32], valid: NDArray[np.bool_], seed: int, *, raw: bool = False
) -> Outcome:
    """One call, nothing set; of ``raw`` counts after the usual preparation, which every scan gets."""
    wall, cpu = time.perf_counter(), time.process_time()
    volume = DiffractionVolume(intensity, valid)
    if raw:
        volume = prepare(volume)
    result = reconstruct(volume, ReconstructionOptions(seed=seed, device="cpu"))
    took = time.process_time() - cpu, time.perf_counter() - wall
    facts = {
        "confidence": result.confidence,
        "agreement": result.scalars.get("agreement", float("nan")),
        "warnings": [line for step in result.history for line in step.get("warnings", ())],
    }
    return Outcome(result.density, *took, facts)


def timed(recipe: Callable[..., torch.Tensor]) -> Solver:
    """Return a recipe on tensors, origins at index 0, as a solver."""

    def solve(intensity: NDArray[np.float32], valid: NDArray[np.bool_], seed: int) -> Outcome:
        wall, cpu = time.perf_counter(), time.process_time()
        generator = torch.Generator().manual_seed(seed)
        magnitude, known = (torch.fft.ifftshift(torch.from_numpy(a)) for a in (np.sqrt(intensity), valid))
        density = torch.fft.fftshift(recipe(magnitude, known, generator)).numpy()
        return Outcome(density, time.process_time() - cpu, time.perf_counter() - wall)

    return solve


def autocorrelation(magnitude: torch.Tensor, threshold: float = 0.04) -> torch.Tensor:
    """Return where the object's autocorrelation is over a part of its maximum: a first, loose support."""
    lags = torch.fft.ifftn(magnitude.square()).abs()
    return lags > threshold * lags.max()


def blurred(values: torch.Tensor, sigma: float) -> torch.Tensor:
    spectrum = torch.fft.rfftn(values)
    for axis, n in enumerate(values.shape):
        frequency = (torch.fft.rfftfreq if axis == 2 else torch.fft.fftfreq)(n)
        factor = torch.exp(-2 * (torch.pi * sigma * frequency) ** 2)
        spectrum = spectrum * factor.reshape([-1 if a == axis else 1 for a in range(3)])
    return torch.fft.irfftn(spectrum, s=values.shape)


def shrink_wrap(density: torch.Tensor, threshold: float, sigma: float) -> torch.Tensor:
    """Return where the blurred amplitude is over a part of its maximum (Marchesini et al. 2003)."""
    amplitude = blurred(density.abs(), sigma)
    return amplitude > threshold * amplitude.max()


def er_hio(magnitude: torch.Tensor, known: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Run 3 x (20 ER + 180 HIO) + 20 ER, beta 0.9 (Fienup 1982), shrink-wrap every 20, sigma 3 to 0.5."""
    support = autocorrelation(magnitude)
    density = torch.polar(
        torch.rand(magnitude.shape, generator=generator),
        2 * torch.pi * torch.rand(magnitude.shape, generator=generator),
    ).mul_(support)
    free = None if bool(known.all()) else ~known
    inside = support.float()
    for i in range(620):
        spectrum = torch.fft.fftn(density, norm="ortho")
        factor = magnitude / spectrum.abs().clamp_min_(1e-9)
        image = torch.fft.ifftn(
            spectrum * (factor if free is None else factor.where(known, 1.0)), norm="ortho"
        )
        if i >= 600 or i % 200 < 20:
            density = image.mul_(inside)
        else:
            # Inside the image; outside, feedback.
            density = density.mul_(1 - inside).add_(image.mul_(1.9 * inside - 0.9))
        if i % 20 == 19 and i < 600:
            sigma = 3 - 2 * i / 300 if i < 300 else max(0.5, 1 - (i - 300) / 400)
            inside = shrink_wrap(density, 0.25, sigma).float()
    return density


def adam(magnitude: torch.Tensor, known: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Run the refinement of 3D-CDI-NN (Chan et al. 2021) alone: 500 steps of Adam, shrink-wrap every 50.

    Real and imaginary part, lr 0.01, amplitude loss; from an even object with little noise in the
    autocorrelation support, where the publication has its network's guess.
    """
    # So that an object of amplitude 1 explains the pattern, which the learning rate is meant for.
    support = autocorrelation(magnitude)
    goal = magnitude * (0.3 * support.sum()).sqrt() / magnitude.square().sum().sqrt()
    start = torch.complex(*(0.1 * torch.randn(goal.shape, generator=generator) for _ in range(2))) + 0.5
    parts = torch.view_as_real(start * support).clone().requires_grad_()
    optimiser = torch.optim.Adam([parts], lr=1e-2)
    inside = support
    for i in range(500):
        optimiser.zero_grad()
        model = torch.fft.fftn(torch.view_as_complex(parts) * inside, norm="ortho").abs()
        loss = ((model - goal).square() * known).sum() / goal.square().sum()
        loss.backward()
        optimiser.step()
        if i % 50 == 49 and i < 499:
            inside = shrink_wrap(torch.view_as_complex(parts.detach()) * inside, 0.1, 1.0)
    return torch.view_as_complex(parts.detach()) * inside


class Program:
    """A phasing program in a Python of its own, started once and asked case by case.

    Parameters
    ----------
    command
        What starts the Python, such as ``["/opt/cohere/bin/python"]`` or ``["chroot", ..., "python3"]``.
    script
        Of this folder; it is given to that Python as text, so that it may run where this folder isn't.
    scratch
        Folder that both sides see.
    inside
        The same folder as the other side calls it.
    settings
        What is asked beside the script's own parameters.
    """

    def __init__(
        self,
        command: list[str],
        script: str,
        scratch: Path,
        inside: str | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.scratch, self.inside, self.settings = scratch, inside or str(scratch), settings or {}
        self.process = subprocess.Popen(
            [*command, "-c", (HERE / script).read_text()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts: dict[str, Any] = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the program ended with {self.process.wait()}; its messages are above")
        return json.loads(line)

    def __call__(self, intensity: NDArray[np.float32], valid: NDArray[np.bool_], seed: int) -> Outcome:
        assert self.process.stdin is not None
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            np.savez(Path(folder) / "in.npz", intensity=intensity, valid=valid)
            order = {"folder": f"{self.inside}/{Path(folder).name}", "seed": seed, "settings": self.settings}
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            answer = self._answer()
            density = np.load(Path(folder) / "out.npy").astype(np.complex64)
        return Outcome(density, answer["cpu_s"], answer["wall_s"])

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


def can_import(command: list[str], module: str) -> bool:
    """Return whether a Python has a module, without importing it."""
    probe = f"import importlib.util as u, sys; sys.exit(u.find_spec({module!r}) is None)"
    try:
        return subprocess.run([*command, "-c", probe], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def install(module: str, folder: Path) -> Path:
    """Install a package from PyPI, and torch, into a virtual environment of its own; return its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    if not can_import([str(python)], module):
        requirements = [module, f"torch=={torch.__version__.split('+')[0]}"]
        subprocess.run([str(python), "-m", "pip", "install", "-q", *requirements], check=True)
    return python
