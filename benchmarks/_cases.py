"""What the programs are compared on: crystals that nobody tuned on, kinds of trouble, and a real scan."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import cycle
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
# Of the Gaussian that blurs what a partly coherent beam shows, voxels of the pattern. The longest extent of a
# crystal is 1/2 to 1/3 of the side: across it the coherence falls to 0.29 to 0.58, as where the coherence
# length (one sigma) is 0.6 to 1 times that extent. Twice as much leaves 0.01 to 0.1 of the fringes.
BLUR = 0.5
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
    raw
        As a detector gave it, nothing masked and nothing subtracted.
    """

    name: str
    kind: str
    intensity: NDArray[np.float32]
    valid: NDArray[np.bool_]
    truth: NDArray[np.complex64] | None = None
    facts: dict[str, object] = field(default_factory=dict)
    raw: bool = False


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
    cell: NDArray[np.float64] | None = None,
    finer: int = 1,
) -> Case:
    """Return a random crystal's pattern with counting noise, ``side`` voxels along each axis.

    The crystal's longest extent along a grid axis is 1/2 to 1/3 of the side, its place random to a fraction
    of a voxel, its orientation random. The columns of ``cell``, float64 (3, 3), are the object's voxel but
    for its size; cubic where not given.

    The transform of the crystal's voxels is its pattern, folded back at the grid's edges. With voxels that
    are ``finer`` so many times it is computed as far out, and cut off where a detector would end.
    """
    rng = np.random.default_rng(seed)
    crystal = random_crystal(rng, 100.0, phase_range, defect=defect)
    cell = np.eye(3) if cell is None else cell
    extents = np.ptp(crystal.body.vertices() @ np.linalg.inv(cell).T, axis=0)
    voxel_nm = extents.max() * rng.uniform(2.0, 3.0) / side
    # The body moves against its strain field by less than a voxel: as good a crystal as it was.
    placed = replace(crystal, body=crystal.body.moved(rng.uniform(-0.5, 0.5, 3) * voxel_nm))
    density = sample(placed, voxel_nm * cell, (side,) * 3)
    facts = {
        "seed": seed,
        "phase_range_rad": float(phase_range),
        "counts": counts,
        "defect": defect,
        "oversampling": (side * voxel_nm / extents).round(2).tolist(),
    }
    case = measured(Case(name, kind, np.zeros(0), np.zeros(0, dtype=bool), density, facts), counts, rng)
    if finer == 1:
        return case
    whole = far_field(sample(placed, voxel_nm / finer * cell, (side * finer,) * 3))
    middle = slice(side * (finer - 1) // 2, side * (finer + 1) // 2)
    pattern = np.abs(whole[middle, middle, middle]).astype(np.float64) ** 2
    return replace(case, intensity=rng.poisson(counts / pattern.max() * pattern).astype(np.float32))


def measured(case: Case, counts: float, rng: np.random.Generator) -> Case:
    """Return the case with Poisson counts, ``counts`` of them expected in the brightest voxel."""
    assert case.truth is not None
    scale = np.sqrt(counts) / np.abs(far_field(case.truth)).max()
    truth = (case.truth * scale).astype(np.complex64)
    intensity = rng.poisson(np.abs(far_field(truth)) ** 2).astype(np.float32)
    return replace(case, truth=truth, intensity=intensity, valid=np.ones(intensity.shape, dtype=bool))


def chance(case: Case, number: int) -> np.random.Generator:
    """Return what a change of a case draws from: of the case's seed, and of no other change's."""
    return np.random.default_rng([int(case.facts["seed"]), number])  # type: ignore[call-overload]


def expected_counts(case: Case) -> NDArray[np.float64]:
    """Return the pattern of the truth without noise."""
    assert case.truth is not None
    return np.abs(far_field(case.truth)).astype(np.float64) ** 2


def masked(case: Case) -> Case:
    """Return the case behind a detector with a 4-pixel gap close to the peak and 40 hot pixels."""
    rng = chance(case, 1)
    good = np.ones(case.valid.shape[1:], dtype=bool)
    gap = SIDE // 2 + int(rng.integers(3, 9))
    good[:, gap : gap + 4] = False
    good[rng.integers(0, SIDE, 40), rng.integers(0, SIDE, 40)] = False
    valid = np.broadcast_to(good, case.valid.shape).copy()
    return replace(case, intensity=np.where(valid, case.intensity, 0), valid=valid)


def off_centre(case: Case) -> Case:
    """Return the case with its peak 8 to 14 voxels, and a fraction, away from the centre."""
    rng = chance(case, 2)
    cycles = rng.uniform(8, 14, 3) * rng.choice([-1, 1], 3)
    assert case.truth is not None
    moved = replace(case, truth=case.truth * quality.ramp(case.truth.shape, cycles))
    return measured(moved, float(case.facts["counts"]), rng)  # type: ignore[arg-type]


def partly_coherent(case: Case) -> Case:
    """Return the case in a partly coherent beam: its pattern blurred by a Gaussian of `BLUR` voxels."""
    lags = np.fft.fftn(expected_counts(case))
    for axis, n in enumerate(lags.shape):
        coherence = np.exp(-2 * (np.pi * BLUR * np.fft.fftfreq(n)) ** 2)
        lags *= coherence.reshape([-1 if a == axis else 1 for a in range(3)])
    blurred = np.fft.ifftn(lags).real.clip(0)
    scale = float(case.facts["counts"]) / blurred.max()  # type: ignore[arg-type]
    assert case.truth is not None
    return replace(
        case,
        truth=(case.truth * np.sqrt(scale)).astype(np.complex64),
        intensity=chance(case, 3).poisson(scale * blurred).astype(np.float32),
        facts={**case.facts, "blur_voxels": BLUR},
    )


def with_alien(case: Case) -> Case:
    """Return the case with another crystal's peak towards a corner, and 0.5 to 1 counts of background.

    The alien is as large, of 1 to 30 % of the peak's height, 18 to 26 voxels away along each axis: its tails
    and the peak's overlap. Two crystals scatter incoherently. It is seen beyond the volume's edges too, so
    that none of it comes round to the other side.
    """
    rng = chance(case, 4)
    side = case.intensity.shape[0]
    other = random_crystal(rng, 100.0, rng.uniform(0.5, 2 * np.pi))
    voxel_nm = np.ptp(other.body.vertices(), axis=0).max() * rng.uniform(2.0, 3.0) / side
    # Half the voxel on twice the grid is twice the range of frequencies in steps as large.
    wide = np.abs(far_field(sample(other, voxel_nm / 2 * np.eye(3), (2 * side,) * 3))) ** 2
    away = rng.integers(18, 27, 3) * rng.choice([-1, 1], 3)
    seen = wide[tuple(slice(side // 2 - step, side // 2 - step + side) for step in away)]
    counts = float(case.facts["counts"])  # type: ignore[arg-type]
    height, background = float(np.exp(rng.uniform(np.log(0.01), np.log(0.3)))), rng.uniform(0.5, 1.0)
    expected = expected_counts(case) + height * counts * seen / wide.max() + background
    facts = {**case.facts, "alien_at": away.tolist(), "alien_height": height, "background": background}
    return replace(case, intensity=rng.poisson(expected).astype(np.float32), facts=facts, raw=True)


def sheared_cell(seed: int) -> NDArray[np.float64]:
    """Return an object's voxel, columns, whose pattern is stepped obliquely, as rocking scans do.

    The rocking step leans by 20 to 40 degrees to the detector's normal, and is 0.7 to 1.4 pixels long.
    """
    rng = np.random.default_rng([seed, 5])
    lean, about, length = np.radians(rng.uniform(20, 40)), rng.uniform(0, 2 * np.pi), rng.uniform(0.7, 1.4)
    reciprocal = np.eye(3)
    reciprocal[:, 0] = length * np.array(
        [np.cos(lean), np.sin(lean) * np.cos(about), np.sin(lean) * np.sin(about)]
    )
    return np.linalg.inv(reciprocal).T


@dataclass(frozen=True)
class Kind:
    """Several cases with one trouble.

    Parameters
    ----------
    prefix
        Of the cases' names.
    title
        What the tables call it.
    first_seed
        Of its crystals.
    phases
        Least and largest phase range, rad, peak to valley; the crystals are spread evenly over it.
    counts
        In the brightest voxel.
    defects
        Of the crystals, in turn.
    change
        What is done to a crystal's case.
    sheared
        Whether the pattern is on an oblique grid.
    finer
        As `crystal_case` takes it.
    """

    prefix: str
    title: str
    first_seed: int
    phases: tuple[float, float] = (0.5, 2 * np.pi)
    counts: float = 1e6
    defects: tuple[DefectName | None, ...] = (None,)
    change: Callable[[Case], Case] = lambda case: case
    sheared: bool = False
    finer: int = 1

    def cases(self, count: int) -> Iterator[Case]:
        """Yield ``count`` of them."""
        phases = np.linspace(*self.phases, count) if count else []
        for i, (phase_range, defect) in enumerate(zip(phases, cycle(self.defects), strict=False)):
            seed = self.first_seed + i
            name, cell = f"{self.prefix}-{i:02d}", sheared_cell(seed) if self.sheared else None
            yield self.change(
                crystal_case(
                    name, self.title, seed, phase_range, self.counts, defect, cell=cell, finer=self.finer
                )
            )


# The nine on which today's programs are weak, then the others.
HARDER = (
    Kind("extra2", "weak counts, 1e4", 92_000, counts=1e4),
    Kind("counts3", "few counts, 1e3", 96_000, counts=1e3),
    Kind("phase3", "3π rad", 96_100, (3 * np.pi, 3 * np.pi)),
    Kind("phase5", "5π rad", 96_200, (5 * np.pi, 5 * np.pi)),
    Kind("extra3", "gap and hot pixels masked", 93_000, change=masked),
    Kind("coherence", "partly coherent beam", 96_300, change=partly_coherent),
    Kind("void", "inner void", 96_400, defects=("void",)),
    Kind("alien", "alien peak and background", 96_500, change=with_alien),
    Kind("extra4", "peak off centre", 94_000, change=off_centre),
)
OTHERS = (
    Kind("sheared", "sheared frames", 96_600, sheared=True),
    Kind("dislocation", "dislocation", 96_700, defects=("dislocation",)),
    Kind("extra1", "very strong, 2π-4π rad", 91_000, (2 * np.pi, 4 * np.pi)),
    Kind("extra5", "void, dislocation or domain wall", 95_000, defects=DEFECTS),
    Kind("beyond", "pattern cut off, not folded back", 96_800, finer=3),
)


def strain_kind(phase_range: float) -> str:
    return (
        "weak, 0.5-2 rad" if phase_range < 2 else "medium, 2-4 rad" if phase_range < 4 else "strong, 4-2π rad"
    )


def synthetic_cases(main: int, extra: int) -> Iterator[Case]:
    """Yield the main cases, evenly from 0.5 to 2 pi rad, then ``extra`` of each kind of trouble."""
    for i, phase_range in enumerate(np.linspace(0.5, 2 * np.pi, main)):
        yield crystal_case(f"main-{i:02d}", strain_kind(phase_range), FIRST_SEED + i, phase_range)
    for kind in (*HARDER, *OTHERS):
        yield from kind.cases(extra)


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
