"""A reconstruction's numbers as people read them, the same in figures and in the terminal."""

import math
from collections.abc import Iterator, Mapping
from typing import TypeGuard

from bluesky_cdinn.records import Reconstruction

# Name, heading, factor, format; in the order in which they are shown. {} in a name stands for a direction.
_NUMBERS = (
    ("chi2", "chi2", 1.0, "{:.5f}"),
    ("free_llk", "free log-likelihood", 1.0, "{:.4f}"),
    ("confidence", "confidence", 100.0, "{:.0f} %"),
    ("agreement", "agreement of starts", 100.0, "{:.1f} %"),
    ("resolution_nm", "resolution", 1.0, "{:.1f} nm"),
    ("resolution_voxels", "resolution in voxels", 1.0, "{:.1f}"),
    ("resolution_{}_nm", "resolution along {}", 1.0, "{:.0f}"),
    ("edge_width_nm", "edge width", 1.0, "{:.1f} nm"),
    ("size_nm", "size", 1.0, "{:.0f} nm"),
    ("size_{}_nm", "size along {}", 1.0, "{:.0f}"),
    ("d_spacing_nm", "d spacing", 1.0, "{:.5f} nm"),
    ("strain_rms", "strain, rms", 1.0, "{:.2e}"),
    ("strain_rms_bulk", "strain in the bulk, rms", 1.0, "{:.2e}"),
    ("strain_rms_surface", "strain at the surface, rms", 1.0, "{:.2e}"),
    ("seconds", "computed in", 1.0, "{:.1f} s"),
    ("cpu_s", "CPU time", 1.0, "{:.1f} s"),
)
_DIRECTIONS = {"x": "x", "y": "y", "z": "z", "q": "Q"}


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
            known = {title: numbers.get(name.format(axis)) for axis, title in _DIRECTIONS.items()}
            known = {title: value for title, value in known.items() if _is_known(value)}
            if known:
                values = " / ".join(form.format(value) for value in known.values())
                yield heading.format(", ".join(known)), f"{values} nm"
            continue
        value, deviation = numbers.get(name), numbers.get(f"{name}_sd")
        if _is_known(value):
            told = form.format(factor * value)
            if _is_known(deviation):
                told = f"{told} ± {form.format(factor * deviation).split()[0]}"
            yield heading, f"≤ {told}" if name == "resolution_nm" and is_bound(numbers) else told


def is_bound(numbers: Mapping[str, float]) -> bool:
    """Return whether a resolution is only a bound: all that the volume holds is resolved."""
    limit = numbers.get("resolution_limit_nm")
    return limit is not None and numbers.get("resolution_nm", math.inf) <= 1.001 * limit


def sample_name(result: Reconstruction) -> str:
    """Return what a result is of, as the raw run's start document says it."""
    said = result.metadata
    return str(said.get("sample") or (said.get("cdi") or {}).get("sample") or "Reconstruction")


def _is_known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
