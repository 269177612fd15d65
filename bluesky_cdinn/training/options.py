"""How a network is trained: every choice of the loop, as plain values that a preset or a file can hold."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from bluesky_cdinn.errors import InvalidInput


@dataclass(frozen=True)
class TrainingOptions:
    """Choices of the training loop.

    Parameters
    ----------
    steps, hours
        The budget; exactly one of them. The learning rate depends on the share of it that is used.
    clock
        What the hours are of: "wall", or "cpu" for the processor time of the training process, on a machine
        that is shared.
    seed
        Of everything random: the same seed and number of processes see the same crystals in the same order.
    optimiser
        "muon": momentum orthogonalised (Jordan et al. 2024) for kernels and AdamW for the rest; "adamw":
        AdamW for all.
    rate
        The learning rate's peak.
    weight_decay
        Of kernels, decoupled from the gradient (Loshchilov and Hutter 2019).
    warm_up
        Share of the budget in which the rate rises to the peak; it then falls as a cosine.
    clip
        Largest norm of the gradient.
    average
        Mean age of the averaged weights, as a share of the steps so far (`ema`).
    precision
        "float32", or "bfloat16" for the network's matrix products under autocast.
    compiled
        Compile the network by torch.compile: minutes at the start, faster steps on a GPU.
    workers
        Processes that make batches on the CPU; 0 makes them in the training process, on its device.
    log_every, evaluate_every
        Steps from one line of the learning curve to the next, and from one held-out evaluation to the next.
    save_every_s
        Seconds from one checkpoint to the next.
    patience
        Steps in a row whose loss or gradient is not finite before training stops; each is skipped.
    """

    steps: int | None = None
    hours: float | None = None
    clock: Literal["wall", "cpu"] = "wall"
    seed: int = 0
    optimiser: Literal["muon", "adamw"] = "muon"
    rate: float = 2e-3
    weight_decay: float = 0.01
    warm_up: float = 0.02
    clip: float = 1.0
    average: float = 0.03
    precision: Literal["float32", "bfloat16"] = "float32"
    compiled: bool = False
    workers: int = 0
    log_every: int = 50
    evaluate_every: int = 1000
    save_every_s: float = 300.0
    patience: int = 20

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.hours is None):
            raise InvalidInput(f"a budget of steps or hours is required, got {self.steps} and {self.hours}")
        for name in ("steps", "hours", "rate", "clip", "log_every", "evaluate_every", "patience"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidInput(f"{name} must be above 0, got {value}")
        for name in ("seed", "weight_decay", "workers", "save_every_s"):
            if getattr(self, name) < 0:
                raise InvalidInput(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("warm_up", "average"):
            if not 0 < getattr(self, name) < 1:
                raise InvalidInput(f"{name} must be a share between 0 and 1, got {getattr(self, name)}")
        for name, allowed in _NAMED.items():
            if getattr(self, name) not in allowed:
                raise InvalidInput(f"{name} must be {' or '.join(allowed)}, got {getattr(self, name)!r}")

    def as_dict(self) -> dict[str, Any]:
        """Return the options as JSON's own types."""
        return dataclasses.asdict(self)


_NAMED = {"clock": ("wall", "cpu"), "optimiser": ("muon", "adamw"), "precision": ("float32", "bfloat16")}
