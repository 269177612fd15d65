"""A reconstruction's numbers as people read them, the same in figures and in the terminal."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn.facets import facets_of_table
from bluesky_cdinn.records import Reconstruction, Scanned

# Name, heading, factor, format; in the order in which they are shown. {} in a name stands for a part.
_NUMBERS = (
    ("chi2", "chi2", 1.0, "{:.5f}"),
    ("free_llk", "free log-likelihood", 1.0, "{:.4f}"),
    ("confidence", "confidence", 100.0, "{:.0f} %"),
    ("agreement", "agreement of starts", 100.0, "{:.1f} %"),
    ("resolution_nm", "resolution", 1.0, "{:.1f} nm"),
    ("resolution_{}_nm", "resolution along {}", 1.0, "{:.0f} nm"),
    ("resolution_voxels", "resolution", 1.0, "{:.1f} voxels"),
    ("edge_width_nm", "edge width", 1.0, "{:.1f} nm"),
    ("size_nm", "size", 1.0, "{:.0f} nm"),
    ("size_{}_nm", "size along {}", 1.0, "{:.0f} nm"),
    ("d_spacing_nm", "d spacing", 1.0, "{:.5f} nm"),
    ("phase_sd_rad", "one sigma of the phase, median", 1.0, "{:.3f} rad"),
    ("strain_rms", "strain, rms", 1e4, "{:.2f} · 10⁻⁴"),
    ("strain_{}_bulk", "strain in the bulk: {}", 1e4, "{:.2f} · 10⁻⁴"),
    ("strain_{}_surface", "strain at the surface: {}", 1e4, "{:.2f} · 10⁻⁴"),
    ("strain_sd_typical", "one sigma of strain, median", 1e4, "{:.2f} · 10⁻⁴"),
    ("dislocation_voxels", "voxels on dislocations", 1.0, "{:.0f}"),
    ("seconds", "computed in", 1.0, "{:.1f} s"),
    ("cpu_s", "CPU time", 1.0, "{:.1f} s"),
)
_PARTS = {"x": "x", "y": "y", "z": "z", "q": "Q", "mean": "mean", "rms": "rms"}


@dataclass(frozen=True, eq=False)
class RockingTotals:
    """What was counted in each frame of a scan.

    Parameters
    ----------
    positions
        Angles in degrees, or photon energies in keV, float (points,).
    counts
        float (points,).
    scanned
        Which of the two.
    """

    positions: NDArray[np.floating]
    counts: NDArray[np.floating]
    scanned: Scanned = "angle"


def number_rows(numbers: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Yield heading and formatted value of each number that people read and that is known.

    With its standard deviation, where there is one; a resolution that is only a bound gets a "≤".

    Parameters
    ----------
    numbers
        By the names of `Reconstruction`'s attributes and scalars.
    """
    for name, heading, factor, form in _NUMBERS:
        if "{}" in name:
            parts = {title: name.format(part) for part, title in _PARTS.items()}
            parts = {title: part for title, part in parts.items() if _is_known(numbers.get(part))}
            if parts:
                number, _, unit = form.partition(" ")
                told = (
                    f"{_bound(numbers, part)}{number.format(factor * numbers[part])}"
                    for part in parts.values()
                )
                yield heading.format(", ".join(parts)), f"{' / '.join(told)} {unit}".rstrip()
            continue
        value, deviation = numbers.get(name), numbers.get(f"{name}_sd")
        if _is_known(value) and not (name == "resolution_voxels" and "resolution_nm" in numbers):
            number, _, unit = form.partition(" ")
            told = f"{_bound(numbers, name)}{number.format(factor * value)}"
            if _is_known(deviation):
                told = f"{told} ± {number.format(factor * deviation)}"
            yield heading, f"{told} {unit}".rstrip()


def facet_rows(result: Reconstruction) -> list[tuple[str, str, str]]:
    """Return name, area in nm^2 and mean strain in 1e-4 of each facet, the largest first, in words."""
    return [
        (
            f"{{{''.join(map(str, facet.family))}}}" if any(facet.family) else "unnamed",
            f"{facet.area_nm2:.0f}",
            f"{1e4 * facet.strain_mean:+.2f}" if math.isfinite(facet.strain_mean) else "",
        )
        for facet in facets_of_table(result.facet_table)
    ]


def raw_rows(result: Reconstruction) -> list[tuple[str, str]]:
    """Return what the raw run's start document says, by name, in words."""
    said = {**result.metadata, **(result.metadata.get("cdi") or {})}
    return [(name, str(said[name])) for name in sorted(said) if not isinstance(said[name], Mapping)]


def is_bound(numbers: Mapping[str, float], name: str = "resolution_nm") -> bool:
    """Return whether a resolution is only a bound: all that the volume holds is resolved."""
    limits = {"resolution_limit_voxels": 1.0, **numbers}
    limit = limits.get(name.replace("resolution_", "resolution_limit_", 1))
    return limit is not None and numbers.get(name, math.inf) <= 1.001 * limit


def _bound(numbers: Mapping[str, float], name: str) -> str:
    return "≤" if name.startswith("resolution") and is_bound(numbers, name) else ""


def sample_name(result: Reconstruction) -> str:
    """Return what a result is of, as the raw run's start document says it."""
    said = result.metadata
    return str(said.get("sample") or (said.get("cdi") or {}).get("sample") or "Reconstruction")


def _is_known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
