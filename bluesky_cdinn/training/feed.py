"""Batches for the steps, made in this process or in others; step by step the same in either."""

import itertools
import pickle
import signal
import threading
from collections.abc import Generator, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from bluesky_cdinn.errors import InvalidInput, TrainingFailed
from bluesky_cdinn.training.batch import Batch, Source

# Batches that each worker process has ready.
AHEAD = 2


def step_generator(
    seed: int, rank: int, step: int, device: torch.device | str = "cpu", purpose: int = 0
) -> torch.Generator:
    """Return the random numbers of one step of one process, which depend on nothing that came before.

    Parameters
    ----------
    seed, rank, step
        Of the run, the process and the step.
    device
        Where the numbers are drawn.
    purpose
        0 for the data, 1 for the objective.
    """
    mixed = np.random.SeedSequence([seed, rank, step, purpose]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(mixed[0]))


def batches(
    source: Source, seed: int, rank: int, first: int, workers: int, device: torch.device
) -> Generator[Batch]:
    """Yield the batches of step ``first`` and all that follow.

    Parameters
    ----------
    source
        Makes them; with workers it is sent to each, so it must pickle.
    seed, rank
        Of the run and this process.
    first
        The first step.
    workers
        Processes that make batches on the CPU, each at most `AHEAD` of what was asked for; 0 makes them here.
    device
        Where the batches are wanted, and where they are made without workers.

    Raises
    ------
    InvalidInput
        There are workers, and the source can't be sent to them.
    TrainingFailed
        A worker ended.
    """
    if not workers:
        for step in itertools.count(first):
            yield source(step_generator(seed, rank, step, device))
    _require_pickle(source)
    steps = _Steps(source, seed, rank, first)
    # Started afresh: a fork would copy threads' locks and the GPU's state.
    loader = DataLoader(
        steps, batch_size=None, num_workers=workers, prefetch_factor=AHEAD, multiprocessing_context="spawn"
    )
    iterator = _started(loader)
    while True:
        try:
            batch = next(iterator)
        except (RuntimeError, OSError, EOFError) as error:
            # A dead worker is told of so, or seen by the connection that it leaves; what a source raised
            # there may be of the same class, and says that it was caught.
            if str(error).startswith("Caught"):
                raise
            raise TrainingFailed(
                f"every worker must live as long as training, one ended ({error}): look for lack of memory, "
                f"in /dev/shm too, or use fewer workers"
            ) from error
        yield batch.to(device)


class _Steps(IterableDataset):
    """The steps' batches, each worker making every n-th; the loader takes from them in turn."""

    def __init__(self, source: Source, seed: int, rank: int, first: int) -> None:
        self.source, self.seed, self.rank, self.first = source, seed, rank, first

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        offset, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for step in itertools.count(self.first + offset, stride):
            yield self.source(step_generator(self.seed, self.rank, step))


def _started(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """Start a loader's workers, and let their death be told when the next batch is asked for, not before.

    torch's own handler of SIGCHLD raises wherever the main thread is, in the middle of a step too.
    """
    before = signal.getsignal(signal.SIGCHLD)
    iterator = iter(loader)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    return iterator


def _require_pickle(source: Source) -> None:
    try:
        pickle.dumps(source)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InvalidInput(
            f"with workers a source must pickle, this one does not ({error}): make it a function of a module "
            f"or a dataclass, or train without workers"
        ) from error
