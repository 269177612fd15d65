"""What a training step sees: simulated measurements, and the objects that made them."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(eq=False)
class Batch:
    """Simulated measurements on one grid.

    Parameters
    ----------
    magnitude
        sqrt of the counts, float32 (batch, n, n, n), origin at index 0; zero where not measured.
    measured
        bool (batch, n, n, n), origin at index 0.
    truth
        The objects, complex64 (batch, n, n, n), origin at n // 2, in units in which a whole crystal's
        amplitude is 1.
    facts
        What is known of each, float32 (batch,) by name: ``phase_range_rad`` (peak to valley inside the
        crystal), ``counts`` (expected in the brightest voxel), ``oversampling`` (least of the three axes).
    """

    magnitude: Tensor
    measured: Tensor
    truth: Tensor
    facts: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        facts = {name: values.to(device) for name, values in self.facts.items()}
        return Batch(self.magnitude.to(device), self.measured.to(device), self.truth.to(device), facts)

    def __len__(self) -> int:
        return len(self.magnitude)


# Makes the batch that a generator's state says: the same state, the same batch, on any machine.
Source = Callable[[torch.Generator], Batch]
