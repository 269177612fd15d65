"""Measurements in which something is wrong, of known crystals: what a confidence has to recognise."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from bluesky_cdinn import quality
from bluesky_cdinn.posing import centre_peak
from bluesky_cdinn.records import DiffractionVolume
from bluesky_cdinn.sim.crystal import sample, strained_crystal
from bluesky_cdinn.sim.polyhedron import Polyhedron, random_polyhedron
from bluesky_cdinn.training.held_out import SIDE, TROUBLES, Case, measured, procedural_case, strain_class

Complex = NDArray[np.complex64]
Maker = Callable[[str, int, np.random.Generator], Case]
# Phase range (rad, peak to valley), counts in the brightest voxel, oversampling: what experiments aim at.
PHASES, COUNTS, OVERSAMPLING = (0.5, 7.0), (1e4, 1e6), (2.2, 3.2)


def crystal_density(
    seed: int,
    phase_range: float,
    oversampling: tuple[float, float] = OVERSAMPLING,
    body: Polyhedron | None = None,
) -> Complex:
    """Return a strained crystal, the box being ``oversampling`` times its extent along each axis."""
    rng = np.random.default_rng(seed)
    crystal = strained_crystal(rng, body or random_polyhedron(rng, 100.0), phase_range)
    voxels_nm = np.ptp(crystal.body.vertices(), axis=0) * rng.uniform(*oversampling, 3) / SIDE
    placed = replace(crystal, body=crystal.body.moved(rng.uniform(-0.5, 0.5, 3) * voxels_nm))
    return sample(placed, np.diag(voxels_nm), (SIDE, SIDE, SIDE))


def pattern(density: Complex) -> NDArray[np.float64]:
    """Return the intensity of an object, origins at n // 2."""
    return np.abs(np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(density), norm="ortho"))) ** 2


def counted(
    name: str,
    kind: str,
    density: Complex,
    expected: NDArray[np.floating],
    counts: float,
    rng: np.random.Generator,
    **facts: Any,
) -> Case:
    """Return counts of an expectation that is not the object's alone, ``counts`` in its brightest voxel."""
    scale = counts / expected.max()
    intensity = rng.poisson(expected * scale).astype(np.float32)
    volume, roll = centre_peak(DiffractionVolume(intensity, np.ones(intensity.shape, dtype=np.bool_)))
    truth = (density * quality.ramp(density.shape, roll) * np.sqrt(scale)).astype(np.complex64)
    strain = strain_class(facts["phase_range_rad"])
    return Case(name, kind, strain, volume.intensity, volume.valid, truth, {**facts, "counts": counts})


def _drawn(rng: np.random.Generator) -> tuple[float, float]:
    return rng.uniform(*PHASES), float(np.exp(rng.uniform(*np.log(COUNTS))))


def ordinary(name: str, seed: int, rng: np.random.Generator) -> Case:
    """Return a crystal as hard as they come: 0.5 to 15 rad, 3e3 to 1e7 counts, gaps and defects."""
    counts = float(np.exp(rng.uniform(np.log(3e3), np.log(1e7))))
    trouble = str(rng.choice(TROUBLES))
    return procedural_case(name, seed, rng.uniform(0.5, 15), counts, trouble)


def easy(name: str, seed: int, rng: np.random.Generator) -> Case:
    """Return a crystal as most experiments aim at: enough counts, moderate strain."""
    phase_range, counts = _drawn(rng)
    density = crystal_density(seed, phase_range)
    return measured(name, "easy", density, counts, rng, {"phase_range_rad": phase_range})


def two_crystals(name: str, seed: int, rng: np.random.Generator) -> Case:
    """Return two crystals side by side, of one lattice a little turned, seen coherently.

    The other has the same intensity or 30 % of it, and lies one to two sizes away.
    """
    phase_range, counts = _drawn(rng)
    first, second = (crystal_density(seed + i * 500_000, phase_range, (4.2, 6.0)) for i in range(2))
    share = float(rng.choice([1.0, 0.3]))
    size = 2 * (3 * np.count_nonzero(np.abs(first) > 0.5) / (4 * np.pi)) ** (1 / 3)
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    apart = rng.uniform(1.2, 2.0)
    step = np.rint(direction * apart * size).astype(int)
    # Turned against each other, their peaks are some fringes apart.
    second = second * quality.ramp(second.shape, rng.uniform(-3, 3, 3).tolist())
    second *= np.sqrt(share * (np.abs(first) ** 2).sum() / (np.abs(second) ** 2).sum())
    back = -step // 2
    density = np.roll(first, back, (0, 1, 2)) + np.roll(second, step + back, (0, 1, 2))
    facts = {"phase_range_rad": phase_range, "share": share, "apart": apart}
    return measured(name, "two crystals", density.astype(np.complex64), counts, rng, facts)


def cut(name: str, seed: int, rng: np.random.Generator) -> Case:
    """Return a peak of which 10 to 40 % lie beyond the detector's edge or the rocking range."""
    case = easy(name, seed, rng)
    lost, axis = rng.uniform(0.1, 0.4), int(rng.integers(3))
    profile = case.intensity.sum(axis=tuple(a for a in range(3) if a != axis), dtype=np.float64)
    beyond = np.cumsum(profile[::-1])[::-1] / profile.sum() < lost
    valid = case.valid & ~beyond.reshape([-1 if a == axis else 1 for a in range(3)])
    facts = {**case.facts, "lost": lost, "axis": axis}
    return replace(case, kind="cut", intensity=np.where(valid, case.intensity, 0), valid=valid, facts=facts)


def few_counts(name: str, seed: int, rng: np.random.Generator) -> Case:
    """Return 300, 1000 or 3000 counts in the brightest voxel."""
    phase_range, counts = rng.uniform(*PHASES), float(rng.choice([300, 1000, 3000]))
    density = crystal_density(seed, phase_range)
    return measured(name, "few counts", density, counts, rng, {"phase_range_rad": phase_range})


def centrosymmetric(name: str, seed: int, rng: np.random.Generator) -> Case:
    """Return a body that is its own mirror image, with a strong phase: its twin has the same shape."""
    phase_range, (_, counts) = rng.uniform(3, 9), _drawn(rng)
    half = random_polyhedron(np.random.default_rng(seed), 100.0)
    whole = Polyhedron(np.concatenate([half.normals, -half.normals]), np.tile(half.distances, 2))
    density = crystal_density(seed, phase_range, body=whole)
    return measured(name, "centrosymmetric", density, counts, rng, {"phase_range_rad": phase_range})


def strained(name: str, seed: int, rng: np.random.Generator) -> Case:
    """Return a phase range of 8 to 15 rad."""
    phase_range, (_, counts) = rng.uniform(8, 15), _drawn(rng)
    density = crystal_density(seed, phase_range)
    return measured(name, "strained", density, counts, rng, {"phase_range_rad": phase_range})


def undersampled(name: str, seed: int, rng: np.random.Generator) -> Case:
    """Return 1.3 to 2.2 voxels a fringe along each axis."""
    phase_range, counts = _drawn(rng)
    density = crystal_density(seed, phase_range, (1.3, 2.2))
    return measured(name, "undersampled", density, counts, rng, {"phase_range_rad": phase_range})


def alien(name: str, seed: int, rng: np.random.Generator) -> Case:
    """Return a peak of another crystal, 3 to 30 % of the intensity, incoherent, 10 to 20 voxels away."""
    phase_range, counts = _drawn(rng)
    density = crystal_density(seed, phase_range)
    share, step = rng.uniform(0.03, 0.3), rng.normal(size=3)
    step = np.rint(step / np.linalg.norm(step) * rng.uniform(10, 20)).astype(int)
    first, second = pattern(density), pattern(crystal_density(seed + 500_000, phase_range))
    expected = first + np.roll(second * share * first.sum() / second.sum(), step, (0, 1, 2))
    return counted(name, "alien", density, expected, counts, rng, phase_range_rad=phase_range, share=share)


def blurred(name: str, seed: int, rng: np.random.Generator) -> Case:
    """Return partial coherence: the intensity blurred by a Gaussian of 0.5 to 1.2 voxels."""
    phase_range, counts = _drawn(rng)
    sigma, density = rng.uniform(0.5, 1.2), crystal_density(seed, phase_range)
    expected = gaussian_filter(pattern(density), sigma, mode="wrap")
    return counted(name, "blurred", density, expected, counts, rng, phase_range_rad=phase_range, sigma=sigma)


def background(name: str, seed: int, rng: np.random.Generator) -> Case:
    """Return 0.1 to 5 counts a voxel beside the crystal's."""
    phase_range, counts = _drawn(rng)
    level, density = float(np.exp(rng.uniform(*np.log((0.1, 5.0))))), crystal_density(seed, phase_range)
    expected = pattern(density)
    expected += level * expected.max() / counts
    return counted(
        name, "background", density, expected, counts, rng, phase_range_rad=phase_range, level=level
    )


def core_gap(name: str, seed: int, rng: np.random.Generator) -> Case:
    """Return a gap of 3 to 6 pixels through the middle of the peak, or next to it."""
    case = easy(name, seed, rng)
    width, axis = int(rng.integers(3, 7)), int(rng.integers(1, 3))
    first = SIDE // 2 - int(rng.integers(-1, width + 1))
    valid = case.valid.copy()
    np.moveaxis(valid, axis, 0)[first : first + width] = False
    return replace(case, kind="core gap", intensity=np.where(valid, case.intensity, 0), valid=valid)


KINDS: dict[str, Maker] = {
    "ordinary": ordinary,
    "easy": easy,
    "two crystals": two_crystals,
    "cut": cut,
    "few counts": few_counts,
    "centrosymmetric": centrosymmetric,
    "strained": strained,
    "undersampled": undersampled,
    "alien": alien,
    "blurred": blurred,
    "background": background,
    "core gap": core_gap,
}
# Every second crystal is an ordinary one.
TURNS = [kind for doubtful in list(KINDS)[1:] for kind in ("ordinary", doubtful)]


def mixed_cases(first_seed: int, count: int) -> Iterator[Case]:
    """Yield cases of all kinds in turn, each of a seed of its own."""
    for number in range(count):
        seed, kind = first_seed + number, TURNS[number % len(TURNS)]
        case = KINDS[kind](f"{kind}-{seed}", seed, np.random.default_rng([seed, 7]))
        yield replace(case, kind=kind, facts={**case.facts, "seed": seed})
