"""How right are resolution, edge width and size? Crystals that nobody tuned on tell.

    python benchmarks/resolution.py                 # 12 crystals at four levels of counts, 2 CPU min
    python benchmarks/resolution.py --crystals 2    # a glance

Writes results/resolution.md. Crystals of 0.5 to 2 pi rad on 64 x 64 x 64 voxels of a gold (111) peak, Poisson
counts, no background. The truth is the sampled crystal, moved and twinned to where the result lies: its
correlation with the result, in the shells and cones of `bluesky_cdinn.resolution`, falls under the same 0.5.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn import quality
from bluesky_cdinn.geometry import volume_bases
from bluesky_cdinn.pipeline import reconstruct
from bluesky_cdinn.records import DiffractionVolume, Reconstruction
from bluesky_cdinn.resolution import (
    HalfSets,
    Shells,
    average_shells,
    edge_widths,
    lab_directions,
    shells_along,
)
from bluesky_cdinn.sim.crystal import Crystal, random_crystal, sample
from bluesky_cdinn.sim.devices import gold_geometry

Complex = NDArray[np.complex64]
Row = dict[str, float]

TABLE = Path(__file__).resolve().parent / "results" / "resolution.md"
# `resolution` was written with seeds from 960 000 on.
FIRST_SEED = 970_000
COUNTS = (3e2, 1e3, 1e4, 1e5)
SIDE, STEP_DEG = 64, 0.0135
DIRECTIONS = ("x", "y", "z", "q")


def measured(seed: int, share: float) -> Iterator[tuple[float, Crystal, Complex, DiffractionVolume]]:
    """Yield a crystal at each number of counts: that, the crystal, its density and what was counted.

    ``share`` is the place of its phase range between 0.5 and 2 pi rad, 0 to 1.
    """
    rng = np.random.default_rng(seed)
    crystal = random_crystal(rng, rng.uniform(280.0, 450.0), 0.5 + share * (2 * np.pi - 0.5))
    shape = (SIDE, SIDE, SIDE)
    angles = (20 + (np.arange(SIDE) - SIDE // 2) * STEP_DEG).astype(np.float64)
    middle = (20.0, SIDE // 2, SIDE // 2)
    empty = DiffractionVolume(
        np.zeros(shape, np.float32), np.ones(shape, np.bool_), angles, gold_geometry((SIDE, SIDE)),
        flat_about=middle,
    )  # fmt: skip
    _, direct, _ = volume_bases(empty)
    density = sample(crystal, direct, shape)
    intensity = np.abs(transformed(density)) ** 2
    for counts in COUNTS:
        drawn = np.random.default_rng([seed, int(counts)]).poisson(intensity * counts / intensity.max())
        yield counts, crystal, density, replace(empty, intensity=drawn.astype(np.float32))


def transformed(density: Complex) -> Complex:
    """Return the orthonormal transform, zero frequency at n // 2."""
    return np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(density), norm="ortho")).astype(np.complex64)


def with_truth(shells: Shells) -> Shells:
    """Return what two objects' correlation h is where sqrt(2 h / (1 + h)) was taken."""
    square = shells.value**2
    return replace(shells, value=square / (2 - square))


def row_of(crystal: Crystal, density: Complex, result: Reconstruction) -> Row:
    """Return what a result says of itself beside what is so."""
    direct, reciprocal, q_vector = result.direct_basis, result.reciprocal_basis, result.q_vector
    assert direct is not None
    assert reciprocal is not None
    assert q_vector is not None
    assert result.shell_correlation is not None
    truth = quality.align(density, result.density)
    fields = np.stack([transformed(truth), transformed(result.density)])
    both = HalfSets(fields, np.ones(density.shape, np.float32), 0.0)
    average = with_truth(average_shells(both))
    frequency, value = result.shell_correlation
    off = value - np.interp(frequency, average.frequency * average.reach, average.value)
    said = result.scalars
    row = {
        "rms": float(np.sqrt(np.mean(off**2))),
        "outer": float(off[5 * len(off) // 6 :].mean()),
        "cut": said["resolution_limit_nm"] / said["resolution_nm"],
        "true_cut": average.cut_off,
        "agreement": said["agreement"],
        "true": quality.similarity(result.density, truth),
    }
    for name, unit in lab_directions(q_vector).items():
        row[f"cut_{name}"] = said[f"resolution_limit_{name}_nm"] / said[f"resolution_{name}_nm"]
        row[f"true_cut_{name}"] = with_truth(shells_along(both, reciprocal, unit.tolist())).cut_off
    edges = edge_widths(truth, np.abs(truth) > 0.3 * np.abs(truth).max(), direct, q_vector)
    voxel = abs(np.linalg.det(direct)) ** (1 / 3)
    row |= {"edge": said["edge_width_nm"] / voxel, "true_edge": edges["edge_width_nm"] / voxel}
    extents = np.ptp(crystal.body.vertices(), axis=0)
    across = [said[f"size_{axis}_nm"] / extent for axis, extent in zip("xyz", extents, strict=True)]
    row["extent"] = float(np.mean(across)) - 1
    volume = np.abs(density).sum() / np.abs(density).max() * voxel**3
    row["size"] = said["size_nm"] / np.cbrt(6 * volume / np.pi) - 1
    return row


def report(rows: dict[float, list[Row]]) -> str:
    """Return the tables."""
    crystals = len(rows[COUNTS[0]])
    lines = [
        "# Resolution, edge width and size",
        "",
        f"{crystals} crystals on {SIDE} x {SIDE} x {SIDE} voxels (`python benchmarks/resolution.py`), "
        f"of 0.5 to 2 pi rad, seeds {FIRST_SEED} to {FIRST_SEED + crystals - 1}, which no choice saw. "
        "Cut-offs are shares of what the volume reaches.",
        "",
        "Correlation with the truth by shell, estimated less true: root mean square, and mean in the "
        "outermost sixth; both as mean over crystals; then where it falls under 0.5, median "
        "[lowest, highest], the estimate over the truth, median and 16 to 84 %, and how many are bounds "
        "(1) as told and in truth. Good: results whose correlation with the truth as a whole is over 0.95.",
        "",
        "| counts | good | rms | outermost | cut-off told | true | told / true | bounds told | true |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for counts, part in rows.items():
        told, true, good = (column(part, name) for name in ("cut", "true_cut", "true"))
        rms, outer = column(part, "rms").mean(), column(part, "outer").mean()
        lines.append(
            f"| {counts:.0e} | {np.count_nonzero(good > 0.95)} | {rms:.3f} | {outer:+.3f} "
            f"| {spread(told)} | {spread(true)} | {ratios(told / true)} "
            f"| {np.count_nonzero(told > 0.999)} | {np.count_nonzero(true > 0.999)} |"
        )
    lines += [
        "",
        "Cut-offs in cones of 30 deg about a direction: told / true, median and 16 to 84 %:",
        "",
        "| counts | x | y | z | Q |",
        "|---|---|---|---|---|",
    ]
    for counts, part in rows.items():
        cells = [
            ratios(column(part, f"cut_{name}") / column(part, f"true_cut_{name}")) for name in DIRECTIONS
        ]
        lines.append(f"| {counts:.0e} | {' | '.join(cells)} |")
    lines += [
        "",
        "Edge width of the result and of the truth, sampled, in voxels; size (diameter of the sphere of the "
        "same volume) and mean extent along x, y, z less true ones; median and 16 to 84 %:",
        "",
        "| counts | edge | of the truth | size | extent |",
        "|---|---|---|---|---|",
    ]
    for counts, part in rows.items():
        edge, true_edge, size, extent = (column(part, n) for n in ("edge", "true_edge", "size", "extent"))
        lines.append(
            f"| {counts:.0e} | {ratios(edge)} | {ratios(true_edge)} | {percent(size)} | {percent(extent)} |"
        )
    return "\n".join([*lines, ""])


def column(rows: Sequence[Row], name: str) -> NDArray[np.float64]:
    """Return a number of each row, float64 (rows,)."""
    return np.array([row[name] for row in rows])


def spread(values: NDArray[np.float64]) -> str:
    """Return median, lowest and highest in words."""
    return f"{np.median(values):.2f} [{values.min():.2f}, {values.max():.2f}]"


def ratios(values: NDArray[np.float64]) -> str:
    """Return median and the middle two thirds in words."""
    low, middle, high = np.quantile(values, (0.16, 0.5, 0.84))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def percent(values: NDArray[np.float64]) -> str:
    """Return the same of shares."""
    low, middle, high = np.quantile(values, (0.16, 0.5, 0.84))
    return f"{middle:+.1%} ({low:+.1%} to {high:+.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--crystals", type=int, default=12)
    parser.add_argument("--table", type=Path, default=TABLE)
    arguments = parser.parse_args()
    rows: dict[float, list[Row]] = {counts: [] for counts in COUNTS}
    for i in range(arguments.crystals):
        for counts, crystal, density, volume in measured(FIRST_SEED + i, (i + 0.5) / arguments.crystals):
            rows[counts].append(row_of(crystal, density, reconstruct(volume)))
    arguments.table.write_text(report(rows))
    print(report(rows))


if __name__ == "__main__":
    main()
