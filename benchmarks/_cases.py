"""What the programs are compared on: crystals that nobody tuned on, kinds of trouble, and a real scan."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn import quality
from bluesky_cdinn.sim.crystal import random_crystal, sample
from bluesky_cdinn.sim.defects import DefectName

SIDE = 64
# Seeds from here on belong to this benchmark; tests, tuning and training stay below.
FIRST_SEED = 90_000
DEFECTS: tuple[DefectName, ...] = ("void", "dislocation", "domain_wall")
SCAN = "aps34idc_scan54.h5"
SCAN_PEAK = (99, 126, 127)


@dataclass(frozen=True, eq=False)
class Case:
    """One diffraction pattern and, for a synthetic one, what made it.

    Parameters
    ----------
    name, kind
        The kind is what the tables sort by.
    intensity
        Counts, float32 (n0, n1, n2).
    valid
        bool, the same shape.
    truth
        The object, complex64, origin at n // 2, in the intensity's scale; None for a real scan.
    facts
        Seed, phase range (rad, peak to valley), counts in the brightest voxel, oversampling by axis, defect.
    """

    name: str
    kind: str
    intensity: NDArray[np.float32]
    valid: NDArray[np.bool_]
    truth: NDArray[np.complex64] | None = None
    facts: dict[str, object] = field(default_factory=dict)


def far_field(density: NDArray[np.complexfloating]) -> NDArray[np.complexfloating]:
    """Return the orthonormal transform, origins at n // 2."""
    return np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(density), norm="ortho"))


def crystal_case(
    name: str,
    kind: str,
    seed: int,
    phase_range: float,
    counts: float = 1e6,
    defect: DefectName | None = None,
    side: int = SIDE,
) -> Case:
    """Return a random crystal's pattern with counting noise, ``side`` voxels along each axis.

    The crystal's longest extent along a grid axis is 1/2 to 1/3 of the side, its place random to a fraction
    of a voxel, its orientation random.
    """
    rng = np.random.default_rng(seed)
    crystal = random_crystal(rng, 100.0, phase_range, defect=defect)
    extents = np.ptp(crystal.body.vertices(), axis=0)
    voxel_nm = extents.max() * rng.uniform(2.0, 3.0) / side
    # The body moves against its strain field by less than a voxel: as good a crystal as it was.
    placed = replace(crystal, body=crystal.body.moved(rng.uniform(-0.5, 0.5, 3) * voxel_nm))
    density = sample(placed, voxel_nm * np.eye(3), (side,) * 3)
    facts = {
        "seed": seed,
        "phase_range_rad": float(phase_range),
        "counts": counts,
        "defect": defect,
        "oversampling": (side * voxel_nm / extents).round(2).tolist(),
    }
    return measured(Case(name, kind, np.zeros(0), np.zeros(0, dtype=bool), density, facts), counts, rng)


def measured(case: Case, counts: float, rng: np.random.Generator) -> Case:
    """Return the case with Poisson counts, ``counts`` of them expected in the brightest voxel."""
    assert case.truth is not None
    scale = np.sqrt(counts) / np.abs(far_field(case.truth)).max()
    truth = (case.truth * scale).astype(np.complex64)
    intensity = rng.poisson(np.abs(far_field(truth)) ** 2).astype(np.float32)
    return replace(case, truth=truth, intensity=intensity, valid=np.ones(intensity.shape, dtype=bool))


def masked(case: Case) -> Case:
    """Return the case behind a detector with a 4-pixel gap close to the peak and 40 hot pixels."""
    rng = np.random.default_rng([int(case.facts["seed"]), 1])  # type: ignore[call-overload]
    good = np.ones(case.valid.shape[1:], dtype=bool)
    gap = SIDE // 2 + int(rng.integers(3, 9))
    good[:, gap : gap + 4] = False
    good[rng.integers(0, SIDE, 40), rng.integers(0, SIDE, 40)] = False
    valid = np.broadcast_to(good, case.valid.shape).copy()
    return replace(case, intensity=np.where(valid, case.intensity, 0), valid=valid)


def off_centre(case: Case) -> Case:
    """Return the case with its peak 8 to 14 voxels, and a fraction, away from the centre."""
    rng = np.random.default_rng([int(case.facts["seed"]), 2])  # type: ignore[call-overload]
    cycles = rng.uniform(8, 14, 3) * rng.choice([-1, 1], 3)
    assert case.truth is not None
    moved = replace(case, truth=case.truth * quality.ramp(case.truth.shape, cycles))
    return measured(moved, float(case.facts["counts"]), rng)  # type: ignore[arg-type]


def strain_kind(phase_range: float) -> str:
    return (
        "weak, 0.5-2 rad" if phase_range < 2 else "medium, 2-4 rad" if phase_range < 4 else "strong, 4-2π rad"
    )


def synthetic_cases(main: int, extra: int) -> Iterator[Case]:
    """Yield the main cases, evenly from 0.5 to 2 pi rad, then ``extra`` of each kind of trouble."""
    for i, phase_range in enumerate(np.linspace(0.5, 2 * np.pi, main)):
        yield crystal_case(f"main-{i:02d}", strain_kind(phase_range), FIRST_SEED + i, phase_range)
    kinds: list[tuple[str, tuple[float, float], float, Callable[[Case], Case]]] = [
        ("very strong, 2π-4π rad", (2 * np.pi, 4 * np.pi), 1e6, lambda case: case),
        ("weak counts, 1e4", (0.5, 2 * np.pi), 1e4, lambda case: case),
        ("gap and hot pixels masked", (0.5, 2 * np.pi), 1e6, masked),
        ("peak off centre", (0.5, 2 * np.pi), 1e6, off_centre),
    ]
    for k, (kind, (low, high), counts, change) in enumerate(kinds):
        for i, phase_range in enumerate(np.linspace(low, high, extra) if extra else []):
            seed = FIRST_SEED + 1000 * (k + 1) + i
            yield change(crystal_case(f"extra{k + 1}-{i:02d}", kind, seed, phase_range, counts))
    for i, phase_range in enumerate(np.linspace(0.5, 2 * np.pi, extra) if extra else []):
        defect = DEFECTS[i % len(DEFECTS)]
        name, seed = f"extra5-{i:02d}", FIRST_SEED + 5000 + i
        yield crystal_case(name, "void, dislocation or domain wall", seed, phase_range, defect=defect)


def scan_file() -> Path | None:
    """Return the recorded scan, in ``CDINN_DATA`` or ``../shared/data`` beside the checkout, or None."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folders = [Path(os.environ["CDINN_DATA"])] if "CDINN_DATA" in os.environ else [beside]
    return next((folder / SCAN for folder in folders if (folder / SCAN).is_file()), None)


def scan_case(path: Path, side: int) -> Case:
    """Return the central cube of the recorded scan, dark and flat field corrected, not binned."""
    with h5py.File(path) as file:
        frames = file["frames"][...].astype(np.float32)
        rows, columns = frames.shape[1:]
        dark, white = (file[name][:rows, :columns] for name in ("dark", "whitefield"))
    good = (dark == 0) & (white > 0)
    gain = np.where(good, np.median(white[good]) / np.where(good, white, 1), 0).astype(np.float32)
    window = tuple(slice(p - side // 2, p + side // 2) for p in SCAN_PEAK)
    intensity = np.ascontiguousarray((frames * gain)[window])
    valid = np.broadcast_to(good, frames.shape)[window].copy()
    return Case(f"scan-{side}", f"real scan, {side}³", intensity, valid, None, {"shape": [side] * 3})
