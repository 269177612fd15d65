"""A network in training: all that a checkpoint holds, and the step that changes it."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bluesky_cdinn.errors import TrainingFailed
from bluesky_cdinn.training.batch import Batch
from bluesky_cdinn.training.checkpoint import load_checkpoint, save_checkpoint
from bluesky_cdinn.training.distributed import Ranks
from bluesky_cdinn.training.ema import AveragedModel
from bluesky_cdinn.training.feed import step_generator
from bluesky_cdinn.training.optimisers import make_optimisers, set_rate
from bluesky_cdinn.training.options import TrainingOptions
from bluesky_cdinn.training.schedule import Budget, Clock, rate_factor

log = logging.getLogger(__name__)

# The loss of a batch, and scores to follow; the generator is for whatever is random in it.
Objective = Callable[[nn.Module, Batch, torch.Generator], tuple[Tensor, dict[str, float]]]


class Trainee:
    """A network, its average, its optimisers, and what they have had.

    Parameters
    ----------
    model
        The network; moved to the device.
    objective
        Gives the loss of a batch.
    options
        How it is trained.
    ranks
        This process among those that train together.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, options: TrainingOptions, ranks: Ranks
    ) -> None:
        self.options, self.ranks = options, ranks
        self.model = model.to(ranks.device).train()
        # Copied before it is compiled or shared, so that it stays a plain network.
        self.average = AveragedModel(self.model, options.average)
        self.optimisers = make_optimisers(self.model, options.optimiser, options.rate, options.weight_decay)
        self.budget = Budget(options.steps, options.hours and 3600 * options.hours)
        self.clock = Clock(options.clock)
        self.step = self.crystals = self.skipped = self.skipped_in_a_row = 0
        self.since = self.rate = 0.0
        if options.compiled:
            self.model.compile()
        self._objective = objective
        self._loss: nn.Module | None = None

    def share(self) -> float:
        """Return the share of the budget that is used."""
        return self.budget.share(self.step, self.clock.seconds())

    def take(self, batch: Batch, share: float) -> tuple[float, dict[str, float]]:
        """Take one step on a batch, unless its loss or gradient isn't finite; return loss and scores.

        Raises
        ------
        TrainingFailed
            Too many steps in a row were not finite.
        """
        options = self.options
        if self._loss is None:  # now that the weights are those to begin with
            lower = options.precision == "bfloat16"
            network = _Lower(self.model, self.ranks.device) if lower else self.model
            self._loss = self.ranks.share_gradients(_Loss(network, self._objective))
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        generator = step_generator(options.seed, self.ranks.rank, self.step, self.ranks.device, purpose=1)
        loss, scores = self._loss(batch, generator)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), options.clip)
        finite = bool(torch.isfinite(loss) & torch.isfinite(norm))
        (wrong,) = self.ranks.largest(float(not finite))
        self.rate = options.rate * rate_factor(share, options.warm_up, self.since)
        if wrong:
            self._skip()
        else:
            self.skipped_in_a_row = 0
            set_rate(self.optimisers, self.rate)
            for optimiser in self.optimisers:
                optimiser.step()
            self.average.update(self.model)
        self.step += 1
        self.crystals += len(batch) * self.ranks.size
        return float(loss.detach()), scores

    def facts(self) -> dict[str, Any]:
        """Return where training is, as a line of the learning curve says it."""
        return {
            "step": self.step,
            "crystals": self.crystals,
            "seconds": self.clock.seconds(),
            "rate": self.rate,
            "skipped": self.skipped,
        }

    def save(self, folder: Path) -> None:
        """Write a checkpoint."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "averaged_steps": self.average.steps,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "options": self.options.as_dict(),
            "since": self.since,
            "skipped_in_a_row": self.skipped_in_a_row,
            **self.facts(),
        }
        save_checkpoint(folder, self.step, state)

    def resume(self, folder: Path) -> None:
        """Go on from the last checkpoint of a run.

        Raises
        ------
        TrainingFailed
            There is none that is whole and of this network and optimiser.
        """
        state = load_checkpoint(folder)
        try:
            self.model.load_state_dict(state["model"])
            self.average.model.load_state_dict(state["average"])
            for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(saved)
        except (RuntimeError, ValueError) as error:
            raise TrainingFailed(
                f"the run in {folder} is of another network or optimiser, resume it with its own: {error}"
            ) from error
        self.average.steps = state["averaged_steps"]
        for name in ("step", "crystals", "skipped", "skipped_in_a_row", "rate", "since"):
            setattr(self, name, state[name])
        self.clock = Clock(self.options.clock, state["seconds"])
        before = state["options"]
        if (before["steps"], before["hours"]) != (self.options.steps, self.options.hours):
            self.since = self.budget.share(self.step, state["seconds"])

    def _skip(self) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        log.warning("step %d was skipped: its loss or gradient is not finite", self.step)
        if self.skipped_in_a_row >= self.options.patience:
            raise TrainingFailed(
                f"loss and gradient must be finite, {self.skipped_in_a_row} steps in a row were not: "
                f"resume from the last checkpoint with a lower rate than {self.options.rate}"
            )


class _Loss(nn.Module):
    """The objective as a module: gradients are shared once a step, however often it asks the network."""

    def __init__(self, network: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.network, self.objective = network, objective

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a batch, and scores."""
        return self.objective(self.network, batch, generator)


class _Lower(nn.Module):
    """A network in bfloat16, and nothing else: transforms and losses around it keep their precision."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.network, self.device = network, device

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return what the network returns."""
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.network(*inputs, **named)
