"""3D-CDI-NN: a network that takes a half-phased object and its measurement to the object.

The published network (Chan et al., arXiv 2006.09441) maps magnitudes to amplitude and phase in one go: one
encoder, two decoders. Which of an object and its twin to return, and where in the box, the magnitudes don't
say, so that it must average or agree on a convention that no convolution can see. Here the network starts
where a few iterations of phase retrieval stand: they have chosen a twin and a place, from a random start, and
leave what they can't do well, telling a crystal from a stagnated one. Random starts then give independent
guesses, whose agreement says what they are worth.

The object fills at most half of each axis, so that the network works on the central half of the box; the
measurement enters with each 2x2x2 voxels of it as one position.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.forward import AXES

# What `CDINN.forward` takes: weights that were trained on something else are refused.
NORMALISATION = "counts; state at typical amplitude 1, phase of its sum 0"
# Of an amplitude whose crystal has 1.
LARGEST = 1.5
TINY = 1e-6
# Of channels that are normalised together.
GROUPS = 8


@dataclass(frozen=True)
class NetworkConfig:
    """What a network is built from.

    Parameters
    ----------
    architecture, version
        Weights are refused by a network of another name or version.
    side
        Of the grid it was trained on, voxels. It runs on any grid of sides that 8 divides.
    widths
        Channels at the central box's own resolution, at half and at a quarter of it.
    depths
        Residual blocks at each on the way down; on the way up each decoder has one.
    heads
        Of the attention at the bottom.
    """

    architecture: str = "cdinn-unrolled"
    version: int = 1
    side: int = 32
    widths: tuple[int, int, int] = (32, 64, 128)
    depths: tuple[int, int, int] = (1, 2, 2)
    heads: int = 4

    def __post_init__(self) -> None:
        if any(width < 1 or width % GROUPS for width in self.widths):
            raise InvalidInput(f"widths must be multiples of {GROUPS}, got {list(self.widths)}")
        if self.heads < 1 or self.widths[-1] % self.heads:
            raise InvalidInput(f"heads must share {self.widths[-1]} channels evenly, got {self.heads}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "NetworkConfig":
        """Return the configuration that JSON holds; TypeError or InvalidInput where it isn't one."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)


class CDINN(nn.Module):
    """One encoder and two decoders, amplitude and phase, over the central half of the box."""

    # State (re, im, amplitude, support), autocorrelation at once and twice the distance, coordinates.
    OBJECT_CHANNELS = 9
    # Square-root and log magnitude and mask, of eight voxels each.
    DATA_CHANNELS = 24

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        fine, middle, coarse = config.widths
        self.stem = nn.Conv3d(self.OBJECT_CHANNELS, fine, 3, padding=1)
        self.data = nn.Conv3d(self.DATA_CHANNELS, fine, 1)
        self.fine = _blocks(fine, config.depths[0])
        self.to_middle = nn.Conv3d(fine, middle, 2, stride=2)
        self.middle = _blocks(middle, config.depths[1])
        self.to_coarse = nn.Conv3d(middle, coarse, 2, stride=2)
        self.coarse = _blocks(coarse, config.depths[2])
        self.attention = Attention(coarse, config.heads)
        self.mixed = _blocks(coarse, 1)
        self.amplitude = Decoder(config.widths, 1)
        self.phase = Decoder(config.widths, 3)

    def forward(self, magnitude: Tensor, measured: Tensor, density: Tensor, support: Tensor) -> Tensor:
        """Return the objects that the network sees behind half-phased ones.

        Parameters
        ----------
        magnitude
            sqrt of the counts, float32 (batch, n0, n1, n2), origin at index 0.
        measured
            bool of the same shape.
        density
            Half-phased objects, complex64 of the same shape, origin at index 0, in any scale and at any
            global phase, centred on their mass.
        support
            float32 of the same shape, origin at index 0.

        Returns
        -------
        Tensor
            complex64 of the same shape, origin at index 0, zero outside the central half, amplitude 1 in
            a whole crystal.
        """
        state = standardised(density, support)
        inside = [state.real, state.imag, state.abs(), centre_box(support)]
        inside += [*_autocorrelations(magnitude, measured, density), *_coordinates(state)]
        x = self.stem(torch.stack(inside, 1)) + self.data(_data_channels(magnitude, measured))
        fine = self.fine(x)
        middle = self.middle(self.to_middle(fine))
        coarse = self.mixed(self.attention(self.coarse(self.to_coarse(middle))))
        amplitude = LARGEST * self.amplitude(fine, middle, coarse)[:, 0].float().sigmoid()
        real, imaginary, gain = self.phase(fine, middle, coarse).float().unbind(1)
        # The state's own phase is the first guess; the decoder says by how much to believe it.
        gain = F.softplus(gain + 1)
        direction = torch.complex(gain * state.real + real, gain * state.imag + imaginary)
        guess = amplitude * direction / (direction.abs() + TINY)
        return into_box(guess, magnitude.shape)


class Block(nn.Module):
    """Two convolutions beside a straight way (He et al. 2016), normalised by group (Wu and He 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(width, width, 3, padding=1)
        self.second = nn.Conv3d(width, width, 3, padding=1)
        self.norm_first, self.norm_second = nn.GroupNorm(GROUPS, width), nn.GroupNorm(GROUPS, width)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return float (batch, width, ...), as it came."""
        y = self.first(F.silu(self.norm_first(x)))
        return x + self.second(F.silu(self.norm_second(y)))


class Attention(nn.Module):
    """Every position looks at every other: what is fringe spacing here is size there."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(GROUPS, width)
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return float (batch, width, ...), as it came."""
        batch, width = x.shape[:2]
        tokens = self.norm(x).flatten(2).mT
        split = self.project(tokens).reshape(batch, -1, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        mixed = self.out(mixed.transpose(1, 2).reshape(batch, -1, width))
        return x + mixed.mT.reshape(x.shape)


class Decoder(nn.Module):
    """From the bottom up to the box's own resolution, with the encoder's levels beside."""

    def __init__(self, widths: tuple[int, int, int], channels: int) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.to_middle = nn.ConvTranspose3d(coarse, middle, 2, stride=2)
        self.middle = _blocks(middle, 1)
        self.to_fine = nn.ConvTranspose3d(middle, fine, 2, stride=2)
        self.fine = _blocks(fine, 1)
        self.out = nn.Sequential(
            nn.GroupNorm(GROUPS, fine), nn.SiLU(), nn.Conv3d(fine, channels, 3, padding=1)
        )

    def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> Tensor:
        """Return float (batch, channels, ...) at the resolution of ``fine``."""
        x = self.middle(middle + self.to_middle(coarse))
        return self.out(self.fine(fine + self.to_fine(x)))


def _blocks(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(Block(width) for _ in range(count)))


ARCHITECTURES: dict[str, Callable[[NetworkConfig], nn.Module]] = {"cdinn-unrolled": CDINN}


def build(config: NetworkConfig) -> nn.Module:
    """Return the network of a configuration, with random weights."""
    return ARCHITECTURES[config.architecture](config)


def standardised(density: Tensor, support: Tensor) -> Tensor:
    """Return the central half of objects, typical amplitude 1 and sum of a phase of 0.

    So that what is told about an object does not depend on what phase retrieval cannot tell.

    Returns
    -------
    Tensor
        complex64 (batch, n0 // 2, n1 // 2, n2 // 2), origin at index n // 4.
    """
    box = centre_box(density)
    inside = (box * centre_box(support)).abs()
    typical = inside.square().sum(AXES, keepdim=True) / inside.sum(AXES, keepdim=True).clamp_min(TINY)
    total = box.sum(AXES, keepdim=True)
    turn = total.conj() / total.abs().clamp_min(TINY) / typical.clamp_min(TINY)
    scaled = box * turn
    # Feedback outside the support may grow without bound.
    return scaled / (scaled.abs() / 2).clamp_min(1)


def centre_box(values: Tensor) -> Tensor:
    """Return the central half of arrays whose origin is at index 0, origin then at n // 4."""
    for axis in AXES:
        n = values.shape[axis]
        values = torch.cat([values.narrow(axis, n - n // 4, n // 4), values.narrow(axis, 0, n // 4)], axis)
    return values


def into_box(values: Tensor, shape: torch.Size) -> Tensor:
    """Return arrays with what `centre_box` cut off as zeros."""
    for axis, n in zip(AXES, shape[-3:], strict=True):
        low, high = values.chunk(2, axis)
        gap_shape = list(low.shape)
        gap_shape[axis] = n - 2 * (n // 4)
        values = torch.cat([high, values.new_zeros(gap_shape), low], axis)
    return values


def _autocorrelations(magnitude: Tensor, measured: Tensor, density: Tensor) -> tuple[Tensor, Tensor]:
    """Return the autocorrelation at each position and at twice its distance, compressed, 1 at the origin.

    Where nothing was measured stands what the half-phased object scatters there.
    """
    field = torch.fft.fftn(density, dim=AXES, norm="ortho")
    known = (magnitude * measured).square()
    scale = known.sum(AXES, keepdim=True) / (field.abs() * measured).square().sum(
        AXES, keepdim=True
    ).clamp_min(TINY)
    intensity = torch.where(measured, known, scale * field.abs().square())
    lags = torch.fft.ifftn(intensity, dim=AXES).abs()
    lags = (lags / lags[..., :1, :1, :1].clamp_min(TINY)).sqrt()
    once = centre_box(lags)
    twice = torch.fft.fftshift(lags, dim=AXES)[..., ::2, ::2, ::2]
    return once, twice


def _coordinates(state: Tensor) -> list[Tensor]:
    """Return each axis' position, from -1 to 1, three times float32 (batch, ...)."""
    batch, *shape = state.shape
    lines = [torch.linspace(-1, 1, n, device=state.device) for n in shape]
    return [line.expand(batch, *shape) for line in torch.meshgrid(*lines, indexing="ij")]


def _data_channels(magnitude: Tensor, measured: Tensor) -> Tensor:
    """Return what was measured, each 2x2x2 voxels as channels of one position, float32 (batch, 24, ...)."""
    brightest = magnitude.amax(AXES, keepdim=True).clamp_min(TINY)
    root = (magnitude / brightest).sqrt()
    logarithm = (1 + magnitude).log() / 8
    channels = torch.stack([root, logarithm, measured.to(root.dtype)], 1)
    shifted = torch.fft.fftshift(channels, dim=AXES)
    batch, count, a, b, c = shifted.shape
    split = shifted.reshape(batch, count, a // 2, 2, b // 2, 2, c // 2, 2)
    return split.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(batch, 8 * count, a // 2, b // 2, c // 2)
