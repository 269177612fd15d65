"""A reconstruction's numbers as people read them, the same in figures and in the terminal."""

import math
from collections.abc import Iterator, Mapping

# Name, heading, factor, format; in the order in which they are shown.
_NUMBERS = (
    ("chi2", "chi2", 1.0, "{:.5f}"),
    ("free_llk", "free log-likelihood", 1.0, "{:.4f}"),
    ("confidence", "confidence", 100.0, "{:.0f} %"),
    ("agreement", "agreement of starts", 100.0, "{:.1f} %"),
    ("resolution_nm", "resolution", 1.0, "{:.1f} nm"),
    ("size_nm", "size", 1.0, "{:.0f} nm"),
    ("d_spacing_nm", "d spacing", 1.0, "{:.5f} nm"),
    ("strain_rms", "strain, rms", 1.0, "{:.2e}"),
    ("seconds", "computed in", 1.0, "{:.1f} s"),
    ("cpu_s", "CPU time", 1.0, "{:.1f} s"),
)


def number_rows(numbers: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Yield heading and formatted value of each number that people read and that is known.

    Parameters
    ----------
    numbers
        By the names of `Reconstruction`'s attributes and scalars.
    """
    for name, heading, factor, form in _NUMBERS:
        value = numbers.get(name)
        if value is not None and math.isfinite(value):
            yield heading, form.format(factor * value)
