"""From an expected intensity to what an imperfect detector counts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from bluesky_cdinn.errors import InvalidInput

FloatArray = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class DetectorModel:
    """A photon-counting area detector and its faults.

    Parameters
    ----------
    shape
        (rows, columns).
    dtype
        Of the counts it delivers.
    saturation
        The most it counts in an exposure; the largest value of `dtype` if None.
    background
        Counts a second that every pixel sees beside the crystal's: at the middle of the detector.
    background_gradient
        By which part of itself the background grows from the first to the last (row, column).
    efficiency
        Relative sensitivity of each pixel, float (rows, columns); 1 everywhere if None.
    dead
        True where a pixel counts nothing, bool (rows, columns).
    hot
        Counts a second of its own of each pixel, float (rows, columns).
    gap_rows, gap_columns
        Spans (first, past the last) between modules, where there are no pixels.
    gap_value
        What is delivered there.
    offset
        Counts that the electronics add to every pixel.
    read_noise
        Standard deviation of what they add, in counts.
    """

    shape: tuple[int, int]
    dtype: DTypeLike = np.uint16
    saturation: int | None = None
    background: float = 0.0
    background_gradient: tuple[float, float] = (0.0, 0.0)
    efficiency: FloatArray | None = None
    dead: Mask | None = None
    hot: FloatArray | None = None
    gap_rows: Sequence[tuple[int, int]] = ()
    gap_columns: Sequence[tuple[int, int]] = ()
    gap_value: int = 0
    offset: float = 0.0
    read_noise: float = 0.0

    def __post_init__(self) -> None:
        if np.dtype(self.dtype).kind not in "iu":
            raise InvalidInput(f"dtype must be an integer type, got {np.dtype(self.dtype)}")
        for name in ("efficiency", "dead", "hot"):
            values = getattr(self, name)
            if values is not None and np.shape(values) != tuple(self.shape):
                raise InvalidInput(
                    f"{name} must have the detector's shape {self.shape}, got {np.shape(values)}"
                )
        if min(self.background, self.read_noise, 1 - sum(np.abs(self.background_gradient)) / 2) < 0:
            raise InvalidInput(
                f"background and read noise must not be negative anywhere, got {self.background} "
                f"with gradient {self.background_gradient}, and {self.read_noise}"
            )
        if self.saturation is not None and not 0 < self.saturation <= np.iinfo(self.dtype).max:
            raise InvalidInput(
                f"saturation must be from 1 to {np.iinfo(self.dtype).max} for {np.dtype(self.dtype)}, "
                f"got {self.saturation}"
            )

    @property
    def full_scale(self) -> int:
        """The count that stands for any larger one."""
        return int(np.iinfo(self.dtype).max) if self.saturation is None else self.saturation

    @property
    def gaps(self) -> Mask:
        """True between modules, bool (rows, columns)."""
        gaps = np.zeros(self.shape, dtype=bool)
        for first, last in self.gap_rows:
            gaps[first:last] = True
        for first, last in self.gap_columns:
            gaps[:, first:last] = True
        return gaps

    @property
    def mask(self) -> Mask:
        """True where pixels can be trusted, but for saturation: bool (rows, columns)."""
        good = ~self.gaps
        if self.dead is not None:
            good &= ~self.dead
        if self.hot is not None:
            good &= self.hot == 0
        return good

    def expose(
        self, expected: ArrayLike, rng: np.random.Generator, count_time_s: float = 1.0
    ) -> NDArray[np.integer]:
        """Return the counts of one exposure.

        Parameters
        ----------
        expected
            Photons that the crystal sends to each pixel during the exposure, float (rows, columns).
        rng
            Draws the photons.
        count_time_s
            How long background and hot pixels add theirs.

        Returns
        -------
        numpy.ndarray
            Counts, `dtype` (rows, columns).

        Raises
        ------
        InvalidInput
            If `expected` has another shape than the detector.
        """
        photons = np.asarray(expected, dtype=float)
        if photons.shape != tuple(self.shape):
            raise InvalidInput(f"expected must have the detector's shape {self.shape}, got {photons.shape}")
        photons = photons + self._background() * count_time_s
        if self.efficiency is not None:
            photons = photons * self.efficiency
        if self.hot is not None:
            photons = photons + self.hot * count_time_s
        if self.dead is not None:
            photons = np.where(self.dead, 0.0, photons)
        counts = rng.poisson(photons).astype(float)
        if self.offset or self.read_noise:
            counts = np.rint(counts + rng.normal(self.offset, self.read_noise, size=self.shape))
        lowest = np.iinfo(self.dtype).min
        delivered = np.clip(counts, lowest, self.full_scale).astype(self.dtype)
        delivered[self.gaps] = self.gap_value
        return delivered

    def _background(self) -> FloatArray:
        """Return the background, counts a second, float64 (rows, columns)."""
        rows, columns = (np.linspace(-0.5, 0.5, size) for size in self.shape)
        by_row, by_column = self.background_gradient
        return self.background * (1 + by_row * rows[:, None] + by_column * columns[None, :])


def random_detector(
    rng: np.random.Generator,
    shape: tuple[int, int],
    *,
    dead_fraction: float = 1e-4,
    hot_fraction: float = 1e-4,
    gap: bool = True,
    background: float = 0.05,
) -> DetectorModel:
    """Return a detector with the usual faults at random places.

    Parameters
    ----------
    rng
        Chooses the places.
    shape
        (rows, columns).
    dead_fraction, hot_fraction
        Of the pixels; hot ones count 10 to 1000 a second.
    gap
        Whether a module gap of four columns runs a quarter of the width from the left.
    background
        Counts a second and pixel.

    Returns
    -------
    DetectorModel
        Counting in int32, which no Bragg peak overflows.
    """
    draw = rng.random(shape)
    rates = 10 ** rng.uniform(1.0, 3.0, size=shape)
    first = shape[1] // 4
    return DetectorModel(
        shape,
        dtype=np.int32,
        background=background,
        background_gradient=(0.3, -0.2),
        efficiency=rng.normal(1.0, 0.01, size=shape).clip(0.9, 1.1),
        dead=draw < dead_fraction,
        hot=np.where(draw > 1 - hot_fraction, rates, 0.0),
        gap_columns=((first, first + 4),) if gap else (),
    )
