"""What a detector counts of a crystal's far field: not all of it is ``abs(F)**2``.

A beam that is coherent over a length only blurs the pattern: it multiplies the crystal's autocorrelation by
the mutual coherence, here a Gaussian of the lag (Clark et al. 2012, Nat. Commun. 3, 993). Frames may count
more or less than others as the beam decays, and some counts are background::

    counts = scale of the frame * (blur * abs(F)**2) + background

All arrays have their origin at index 0 (`forward.to_corner`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bluesky_cdinn.forward import AXES

Blur = tuple[float, float, float]

COHERENT: Blur = (0.0, 0.0, 0.0)
# Added to counts and to what is expected before their square roots are compared, which then differ in the
# mean by less than a percent of a count's noise however few they are (Anscombe 1948).
ANSCOMBE = 0.375
# Of what is measured over what is expected, in magnitude, where blur spreads it to the neighbours.
STEEPEST = 3.0
# Lags of less than this power, in that of counting noise, tell nothing; nor is a coherence of less undone.
NOISE, FAINT = 4.0, 0.02
TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Detection:
    """How a grid's voxels count a far field.

    Parameters
    ----------
    shape
        Of the grid.
    blur
        One sigma of the Gaussian along each axis, voxels; 0 where the beam is coherent.
    background
        Counts a voxel, float32 (n0, n1, n2); None for none.
    scales
        Of each frame, float32 (n0,), 1 in the mean over the counts; None where all are alike.
    """

    shape: tuple[int, int, int]
    blur: Blur = COHERENT
    background: Tensor | None = None
    scales: Tensor | None = None

    @cached_property
    def coherence(self) -> Tensor | None:
        """The mutual coherence by lag, float32 (n0, n1, n2 // 2 + 1), as ``rfftn`` has lags; None if 1."""
        return mutual_coherence(self.shape, self.blur) if any(self.blur) else None

    def blurred(self, power: Tensor) -> Tensor:
        """Return values (..., n0, n1, n2) convolved with the Gaussian; self-adjoint."""
        if self.coherence is None:
            return power
        lags = torch.fft.rfftn(power, dim=AXES).mul_(self.coherence.to(power.device))
        return torch.fft.irfftn(lags, s=self.shape, dim=AXES)

    def expected(self, power: Tensor) -> Tensor:
        """Return the counts to expect of ``abs(F)**2``, float (..., n0, n1, n2)."""
        counts = self.blurred(power)
        if self.coherence is not None:
            # Rounding, and a pattern that isn't sampled finely enough, may take it below zero.
            counts = counts.clamp_min(0)
        if self.scales is not None:
            counts = counts * self.scales[:, None, None].to(power.device)
        return counts if self.background is None else counts + self.background.to(power.device)

    def impose(
        self, field: Tensor, magnitude: Tensor, fitted: Tensor | None, power: Tensor | None = None
    ) -> Tensor:
        """Take a field towards the measured counts in place: the steepest descent that never overshoots.

        A blurred pattern is a sum of patterns, ``sqrt(blur[j]) * F[k - j]`` each. Giving all of them the
        measured magnitude at k and averaging what that says of F is the projection on the data for a sum of
        modes; it is the gradient step of the misfit of magnitudes too, and without blur, background and
        scales it is the projection on the measured magnitudes.

        Parameters
        ----------
        field
            complex (..., n0, n1, n2).
        magnitude
            sqrt of the counts, float (n0, n1, n2).
        fitted
            bool (n0, n1, n2), False where nothing is known; None takes all.
        power
            ``abs(F)**2`` that is counted, where the field is that but for a factor at each voxel.
        """
        power = field.real.square().add_(field.imag.square()) if power is None else power
        expected = self.expected(power)
        ratio = ((magnitude.square() + ANSCOMBE) / expected.add_(ANSCOMBE)).sqrt_()
        if self.coherence is not None:
            ratio.clamp_max_(STEEPEST)
        gap = 1 - ratio
        if fitted is not None:
            gap = gap * fitted
        if self.scales is not None:
            gap = gap * (self.scales / self.scales.max())[:, None, None].to(field.device)
        return field.mul_(1 - self.blurred(gap))

    def on(self, shape: Sequence[int]) -> "Detection":
        """Return the same detection sampled more finely or coarsely over the same range of frequencies."""
        if tuple(shape) == self.shape:
            return self
        first, second, third = (_between(n, m) for n, m in zip(self.shape, shape, strict=True))
        share = float(np.prod(self.shape) / np.prod(shape))
        background, scales = self.background, self.scales
        if background is not None:
            steps = (first.to(background), second.to(background), third.to(background))
            background = share * torch.einsum("abc,ia,jb,kc->ijk", background, *steps)
        if scales is not None:
            scales = first.to(scales) @ scales
        a, b, c = (s * m / n for s, n, m in zip(self.blur, self.shape, shape, strict=True))
        return Detection((shape[0], shape[1], shape[2]), (a, b, c), background, scales)

    def window(self, shape: Sequence[int]) -> "Detection":
        """Return the detection in a window of frequencies about the origin, of the same voxels.

        One that is larger has no background beyond, and frames like the last.
        """
        if tuple(shape) == self.shape:
            return self
        background, scales = self.background, self.scales
        places = [_places(n, m) for n, m in zip(self.shape, shape, strict=True)]
        if background is not None:
            a, b, c = places
            background = background[a][:, b][:, :, c]
        if scales is not None:
            scales = scales[places[0]]
        return Detection((shape[0], shape[1], shape[2]), self.blur, background, scales)

    def thinned(self, share: float) -> "Detection":
        """Return the detection of a random share of the counts."""
        return self if self.background is None else replace(self, background=share * self.background)


def without_blur(counts: Tensor, blur: Blur, noise: float = NOISE) -> Tensor:
    """Return the pattern that a coherent beam would have given, as far as noise lets it be told.

    Each lag of the autocorrelation is divided by the mutual coherence, and those that don't stand out from
    counting noise, which is as strong at all lags, are left out.

    Parameters
    ----------
    counts
        float (n0, n1, n2).
    blur
        One sigma along each axis, voxels.
    noise
        Power under which a lag tells nothing, in that of counting noise, which exceeds it in ``exp(-noise)``.
    """
    shape = tuple(counts.shape)
    lags = torch.fft.rfftn(counts, dim=AXES)
    power = lags.real.square() + lags.imag.square()
    kept = (1 - noise * counts.sum() / power.clamp_min(TINY)).clamp_min(0)
    lags.mul_(kept / mutual_coherence(shape, blur).clamp_min(FAINT).to(counts.device))
    return torch.fft.irfftn(lags, s=shape, dim=AXES).clamp_min_(0)


def mutual_coherence(shape: Sequence[int], blur: Sequence[float] | Tensor) -> Tensor:
    """Return the Gaussian of the lag that blurs a pattern by so many voxels, as ``rfftn`` has the lags.

    Differentiable by the blur, where that is a tensor (3,).
    """
    result = blur.new_ones(()) if isinstance(blur, Tensor) else torch.ones(())
    for axis, (n, sigma) in enumerate(zip(shape, blur, strict=True)):
        make = torch.fft.rfftfreq if axis == 2 else torch.fft.fftfreq
        lag = make(n, device=result.device, dtype=result.dtype)
        factor = torch.exp(-2 * (torch.pi * sigma * lag) ** 2)
        result = result * factor.reshape([-1 if a == axis else 1 for a in range(3)])
    return result


def _places(old: int, new: int) -> Tensor:
    """Return where the voxels of a window are, the nearest where the old one doesn't reach."""
    place = torch.fft.ifftshift(torch.arange(new) - new // 2)
    return place.clamp(-(old // 2), old - 1 - old // 2) % old


def _between(old: int, new: int) -> Tensor:
    """Return the matrix (new, old) that interpolates over the same range, origins at index 0."""
    place = (np.arange(new) - new // 2) * (old / new) + old // 2
    rows: NDArray[np.float64] = np.stack([np.interp(place, np.arange(old), unit) for unit in np.eye(old)], 1)
    return torch.fft.ifftshift(torch.from_numpy(rows))
