"""The training loop, a generator that yields after each step, as phasing does and as a plan does.

Like so::

    for progress in train(network, source, objective, options, folder):
        print(progress.step, progress.loss)

Whoever runs it can log, draw or stop between any two steps; closing the generator writes a checkpoint. A run
that was killed and resumed goes on as if it had not been, on a CPU to the last bit of the weights: a step's
random numbers depend on the seed and the step alone (`feed.step_generator`).
"""

import math
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.training.batch import Source
from bluesky_cdinn.training.checkpoint import checkpoints, sweep
from bluesky_cdinn.training.curve import LearningCurve, Scalars
from bluesky_cdinn.training.distributed import Ranks
from bluesky_cdinn.training.feed import batches
from bluesky_cdinn.training.options import TrainingOptions
from bluesky_cdinn.training.trainee import Objective, Trainee

# Figures of a network on crystals that it never trains on.
HeldOut = Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True)
class TrainingProgress:
    """Where training is after a step.

    Parameters
    ----------
    step, crystals
        Taken and seen so far, by all processes together.
    seconds
        By the options' clock, over all sessions.
    share
        Of the budget that is used.
    rate
        The step's learning rate.
    loss, scores
        Of the step's batch, in this process.
    skipped
        Steps so far that were not finite.
    held_out
        Figures of the averaged weights, where they were evaluated after this step.
    """

    step: int
    crystals: int
    seconds: float
    share: float
    rate: float
    loss: float
    scores: Mapping[str, float]
    skipped: int
    held_out: Mapping[str, float] | None = None


def train(
    model: nn.Module,
    source: Source,
    objective: Objective,
    options: TrainingOptions,
    folder: Path,
    *,
    held_out: HeldOut | None = None,
    resume: bool = False,
    ranks: Ranks | None = None,
    scalars: Callable[[int], Scalars] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Generator[TrainingProgress]:
    """Train a model, and yield after each step.

    Parameters
    ----------
    model
        What to train; it is moved to the device and holds the last, not the averaged, weights at the end.
    source
        Makes batches.
    objective
        Gives their loss.
    options
        How.
    folder
        Where checkpoints and learning curve go.
    held_out
        Judges the averaged weights now and then, in the first process.
    resume
        Go on from the folder's last checkpoint. Where the budget has changed since, the learning rate warms
        up again.
    ranks
        This process among those that train together, and its device; None for one alone on the CPU.
    scalars
        Opens another place for the curve's numbers, given the step that training goes on from.
    stop
        Asked before each step; where it says so in any process, training ends as if the generator was closed.

    Raises
    ------
    InvalidInput
        The folder holds a run that is not to be resumed.
    TrainingFailed
        There is nothing to resume, loss or gradients stay infinite, or a worker died.
    """
    ranks = ranks or Ranks()
    trainee = Trainee(model, objective, options, ranks)
    if resume:
        trainee.resume(folder)
    elif checkpoints(folder):
        raise InvalidInput(f"a folder without a run is required, {folder} has one: resume it or name another")
    recorder = _Recorder(trainee, folder, scalars) if ranks.first else None
    feed = batches(source, options.seed, ranks.rank, trainee.step, options.workers, ranks.device)
    try:
        with closing(feed):
            for batch in feed:
                share, stopping = ranks.largest(trainee.share(), float(stop()))
                if share >= 1 or stopping:
                    break
                loss, scores = trainee.take(batch, share)
                figures = None
                if recorder is not None:
                    if held_out is not None and trainee.step % options.evaluate_every == 0:
                        figures = held_out(trainee.average.model)
                    recorder.after_step(loss, scores, figures)
                yield TrainingProgress(
                    **trainee.facts(), share=trainee.share(), loss=loss, scores=scores, held_out=figures
                )
    except GeneratorExit:
        if recorder is not None:
            recorder.save()
        raise
    else:
        if recorder is not None:
            recorder.save()
    finally:
        if recorder is not None:
            recorder.curve.close()


class _Recorder:
    """Keeps learning curve and checkpoints in step: what one says, the other holds."""

    def __init__(self, trainee: Trainee, folder: Path, scalars: Callable[[int], Scalars] | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        self.trainee, self.folder = trainee, folder
        self.curve = LearningCurve(folder, trainee.step, scalars and scalars(trainee.step))
        self.saved = time.monotonic()

    def after_step(self, loss: float, scores: dict[str, float], figures: dict[str, float] | None) -> None:
        """Write what is due."""
        if math.isfinite(loss):
            self.curve.take(loss, scores)
        if figures is not None or self.trainee.step % self.trainee.options.log_every == 0:
            self.curve.write(figures, **self.trainee.facts())
        if time.monotonic() - self.saved > self.trainee.options.save_every_s:
            self.save()

    def save(self) -> None:
        """Write a checkpoint, and a line of the curve for the steps since its last."""
        self.curve.write(**self.trainee.facts())
        self.trainee.save(self.folder)
        self.saved = time.monotonic()
