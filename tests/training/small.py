"""The least that can be trained, for tests of what trains it, and a run of it as a program of its own."""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from bluesky_cdinn.training.batch import Batch
from bluesky_cdinn.training.distributed import ranks
from bluesky_cdinn.training.feed import step_generator
from bluesky_cdinn.training.loop import train
from bluesky_cdinn.training.options import TrainingOptions

SIDE = 4
Scored = tuple[Tensor, dict[str, float]]


class SmallNetwork(nn.Module):
    """Magnitudes to an amplitude, by two convolutions."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first = nn.Conv3d(1, 8, 3, padding=1)
            self.norm = nn.GroupNorm(2, 8)
            self.wide = nn.Conv3d(8, 8, 3, padding=1)
            self.last = nn.Conv3d(8, 1, 1)

    def forward(self, magnitude: Tensor) -> Tensor:
        x = self.norm(self.first(magnitude[:, None]))
        return self.last(torch.tanh(self.wide(x)))[:, 0]


def source(generator: torch.Generator) -> Batch:
    """Return magnitudes whose squares are the truth."""
    magnitude = torch.rand((4, SIDE, SIDE, SIDE), generator=generator, device=generator.device)
    return Batch(magnitude, magnitude > 0, magnitude.square().to(torch.complex64))


def objective(model: nn.Module, batch: Batch, generator: torch.Generator) -> Scored:
    """Return the mean squared error, with a little noise on what the network sees."""
    noise = torch.randn(batch.magnitude.shape, generator=generator, device=generator.device)
    loss = (model(batch.magnitude + 0.01 * noise) - batch.truth.real).square().mean()
    return loss, {"error": float(loss.detach()) ** 0.5}


def plain_objective(model: nn.Module, batch: Batch, generator: torch.Generator) -> Scored:
    """Return the mean squared error."""
    return (model(batch.magnitude) - batch.truth.real).square().mean(), {}


class JointSource:
    """What several processes see, as one batch: told the step by its generator, it draws for each."""

    def __init__(self, seed: int, size: int) -> None:
        self.seed, self.size, self.step = seed, size, 0

    def __call__(self, generator: torch.Generator) -> Batch:
        parts = [source(step_generator(self.seed, rank, self.step)) for rank in range(self.size)]
        self.step += 1
        joined = (torch.cat([getattr(p, name) for p in parts]) for name in ("magnitude", "measured", "truth"))
        return Batch(*joined)


def main() -> None:
    """Train in a folder, saving after each step: the arguments are folder, steps, and whether to resume."""
    torch.set_num_threads(1)
    folder, steps, resume = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "resume"
    options = TrainingOptions(steps=steps, optimiser="adamw", save_every_s=0, log_every=3, rate=1e-2)
    with ranks("cpu") as here:
        # Several begin with weights of their own, to see that the first one's are taken.
        model = SmallNetwork(seed=here.rank)
        lossy = plain_objective if here.size > 1 else objective
        for progress in train(model, source, lossy, options, folder, resume=resume, ranks=here):
            print(progress.step, flush=True)
        torch.save(model.state_dict(), folder / f"rank{here.rank}.pt")


if __name__ == "__main__":
    main()
