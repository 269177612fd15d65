"""A crystal that is known, and its counts as a detection has them."""

import numpy as np
import torch
from crystals import crystal_and_counts

from bluesky_cdinn.forward import to_corner
from bluesky_cdinn.refine import Measurement, Objects, power_of

SHAPE = (32, 32, 32)


def known_crystal(detection=None, peak=1e6, seed=5):
    """Return a crystal inside its support, and its counts as a detection has them."""
    density, counts = crystal_and_counts(seed, 3.0, SHAPE, peak=peak)
    density = to_corner(torch.from_numpy(density))[None]
    objects = Objects.start(density, (density.abs() > 0).float())
    rng = np.random.default_rng(seed)
    if detection is None:
        counts = to_corner(torch.from_numpy(counts))
    else:
        expected = detection.expected(power_of(objects)[0]).double().numpy()
        counts = torch.from_numpy(rng.poisson(expected).astype(np.float32))
    held_out = torch.from_numpy(rng.uniform(size=SHAPE) < 0.05)
    return objects, Measurement(counts.sqrt(), ~held_out, held_out)


def quiet(objects):
    """Watch nothing."""
