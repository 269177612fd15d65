"""The published 3D-CDI-NN (Chan et al. 2021, arXiv 2006.09441), rebuilt as the baseline to measure against.

Taken as it was published, in the paper and its authors' list of layers: 32^3 magnitudes in; an encoder of
3x3x3 convolutions, two at each of 32, 64 and 128 filters, each pair followed by 2x2x2 max pooling; two
decoders, amplitude and phase, of two convolutions at each of 128, 64 and 32 filters, each pair followed by
2x2x2 upsampling, and a last convolution to one channel; ReLU between them; dropout of 0.1 on the input and
after every convolution but the last ones. These are 3 459 938 parameters, their 3.46 million. Errors in real
and in reciprocal space make the loss.

Changed, as it learned nothing otherwise: the published network ends in ReLUs and is taught by absolute
errors. On crystals that fill a few percent of the box these drive the amplitude to zero everywhere within 30
steps, for good. So amplitudes end in a sigmoid and phases in pi tanh, as in the same group's later
AutoPhaseNN, and the loss is that of this package's own network (`objective`), which leaves open which twin is
learned.
"""

import torch
from torch import Tensor, nn

from bluesky_cdinn.forward import AXES, propagate, to_centre, to_corner
from bluesky_cdinn.guess import as_objects, chi2_of
from bluesky_cdinn.refine import Measurement, Objects
from bluesky_cdinn.starts import Start
from bluesky_cdinn.support import TINY
from bluesky_cdinn.training.batch import Batch
from bluesky_cdinn.training.objective import PHYSICS, aligned, correlation, squared_error
from bluesky_cdinn.windows import windowed

SIDE = 32
WIDTHS = (32, 64, 128)


class PaperNetwork(nn.Module):
    """One encoder and two decoders, with no way around the 4x4x4 positions between them.

    Parameters
    ----------
    dropout
        Share of values that is zeroed in training; 0.1 was published.
    """

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        down = zip((1, *WIDTHS), WIDTHS, strict=False)
        levels = [nn.Sequential(*_pair(before, width, dropout), nn.MaxPool3d(2)) for before, width in down]
        self.encoder = nn.Sequential(nn.Dropout(dropout), *levels)
        # Most of the box is empty: amplitudes begin at 0.05.
        self.amplitude, self.phase = _decoder(dropout, -3.0), _decoder(dropout, 0.0)

    def forward(self, magnitude: Tensor) -> tuple[Tensor, Tensor]:
        """Return amplitude and phase.

        Parameters
        ----------
        magnitude
            sqrt of the counts over its maximum, float32 (batch, 32, 32, 32), origin at n // 2.

        Returns
        -------
        tuple
            Amplitude, 1 in a whole crystal, and phase in rad, -pi to pi, each float32
            (batch, 32, 32, 32), origin at n // 2.
        """
        code = self.encoder(magnitude[:, None])
        amplitude, phase = self.amplitude(code)[:, 0], self.phase(code)[:, 0]
        return amplitude.float().sigmoid(), torch.pi * phase.float().tanh()


def _pair(before: int, width: int, dropout: float) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs in (before, width):
        layers += [nn.Conv3d(inputs, width, 3, padding=1), nn.ReLU(), nn.Dropout(dropout)]
    return layers


def _decoder(dropout: float, offset: float) -> nn.Sequential:
    widths = WIDTHS[::-1]
    levels = [
        nn.Sequential(*_pair(before, width, dropout), nn.Upsample(scale_factor=2))
        for before, width in zip((WIDTHS[-1], *widths), widths, strict=False)
    ]
    last = nn.Conv3d(WIDTHS[0], 1, 3, padding=1)
    assert last.bias is not None
    nn.init.constant_(last.bias, offset)
    return nn.Sequential(*levels, last)


def paper_objective(
    model: nn.Module, batch: Batch, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss, errors in real and in reciprocal space, and scores by name.

    The object is compared with the true one after twin, translation and global phase are taken from the
    comparison and, propagated, with the measurement; both as `objective.objective` does it.

    Parameters
    ----------
    model
        A `PaperNetwork`.
    batch
        Of 32^3.
    generator
        Not used: nothing here is drawn.
    """
    guess = to_corner(torch.polar(*model(normalised(to_centre(batch.magnitude)))))
    target = aligned(to_corner(batch.truth), guess.detach())
    error = squared_error(guess, target)
    misfit = chi2_of(guess, Measurement(batch.magnitude, batch.measured))
    scores = {
        "correlation": float(correlation(guess.detach(), target).mean()),
        "chi2": float(misfit.detach().mean()),
    }
    return (error + 1e-3).sqrt().mean() + PHYSICS * misfit.mean(), scores


def normalised(magnitude: Tensor) -> Tensor:
    """Return magnitudes (..., n, n, n) over the largest of each pattern."""
    return magnitude / magnitude.amax(AXES, keepdim=True).clamp_min(TINY)


def paper_start(model: nn.Module) -> Start:
    """Return the network as a start.

    It sees the central 32^3 of the measurement, gaps filled since it knows of no mask, and gives one object;
    asked for more, it gives copies.

    Parameters
    ----------
    model
        A `PaperNetwork`.
    """

    def start(measurement: Measurement, count: int, generator: torch.Generator) -> Objects:
        magnitude = to_centre(windowed(measurement.intensity, (SIDE,) * 3)).clamp_min(0).sqrt()
        was_training = model.training
        with torch.no_grad():
            amplitude, phase = model.eval()(normalised(magnitude[None]))
        model.train(was_training)
        field = propagate(torch.polar(amplitude, phase)).expand(count, -1, -1, -1)
        whole = windowed(to_corner(field), measurement.magnitude.shape)
        return as_objects(torch.fft.ifftn(whole, dim=AXES, norm="ortho"), measurement)

    return start
