"""A campaign's orders carried out side by side by Dask: processes of this machine, or any cluster.

What is sent to a worker is text: the settings without Tiled's key, and one order. The worker finds the key in
its own environment. (Dask itself pickles what it sends: who can connect to its scheduler can run anything.)
"""

import importlib.util
import json
import logging
import math
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from multiprocessing import resource_tracker
from typing import Any

from bluesky_cdinn.backfill import Order
from bluesky_cdinn.backfill_campaign import POLL_S, Campaign, one_by_one
from bluesky_cdinn.backfill_job import Outcome, carry_out
from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.errors import InvalidInput, ReconstructionFailed
from bluesky_cdinn.settings import Settings

logger = logging.getLogger(__name__)

KEY_NAME = "CDINN_TILED__API_KEY"
# Acquisition on the same machine goes first.
NICENESS = 5
# What takes a dead process' place on this machine is up within seconds.
REPLACED_S = 60.0


def carry_out_all(campaign: Campaign, *, processes: int, scheduler: str | None = None) -> Iterator[Outcome]:
    """Carry orders out until told to stop, and yield how each ended.

    Parameters
    ----------
    campaign
        Gives the orders.
    processes
        Of this machine. A single one is this process: it takes no Dask, and dies with what it computes.
    scheduler
        Address of a Dask scheduler whose workers are used instead.

    Raises
    ------
    InvalidInput
        There is no Dask, or no such scheduler; or its workers couldn't reach Tiled.
    """
    settings = campaign.catalog.settings
    if scheduler is not None:
        with cluster_at(scheduler, settings) as client:
            yield from by_dask(client, campaign)
    elif processes > 1:
        with local_cluster(settings, processes) as client:
            yield from by_dask(client, campaign, alone_s=REPLACED_S)
    else:
        yield from one_by_one(campaign)


def by_dask(client: Any, campaign: Campaign, alone_s: float = math.inf) -> Iterator[Outcome]:
    """Carry orders out on the workers of a Dask cluster, one for each worker that there is at the time.

    Parameters
    ----------
    client
        `distributed.Client`.
    campaign
        Gives the orders, and is told how they ended.
    alone_s
        How long to wait where there is no worker at all.

    Raises
    ------
    ReconstructionFailed
        The scheduler has gone; or its workers, and none has come since.
    """
    text = portable(campaign.catalog.settings)
    seen = time.monotonic()
    running: dict[Any, Order] = {}
    # Claimed while all are busy, so that who gets free needs not wait for Tiled.
    ready: Order | None = None
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def send() -> None:
        nonlocal ready, seen
        if workers := _workers(client):
            seen = time.monotonic()
        elif time.monotonic() > seen + alone_s:
            raise ReconstructionFailed(
                f"no process is left to reconstruct, for {alone_s:g} s; run the same command again to go on"
            )
        # One order waits for the first worker that comes.
        if ready is not None and len(running) < max(1, workers) and not campaign.stopped:
            future = client.submit(work, text, json.dumps(asdict(ready)), pure=False)
            running[future], ready = ready, None
            future.add_done_callback(ended.put)

    try:
        while running or (ready is not None and not campaign.stopped) or not campaign.over:
            while ready is None and (given := campaign.next()) is not None:
                if isinstance(given, Outcome):
                    yield given
                else:
                    ready = given
                    send()
            send()
            try:
                future = ended.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if future.status in ("pending", "lost"):
                # Its worker died before it was asked how it ended: it is done again, by the next one.
                time.sleep(POLL_S)
                future.add_done_callback(ended.put)
                continue
            order = running.pop(future)
            said = _outcome(future, order)
            send()
            outcome = campaign.died(order) if said is None else campaign.ended(said)
            if outcome is not None:
                yield outcome
    finally:
        if ready is not None:
            campaign.put_back(ready)


def work(settings: str, order: str) -> dict[str, Any]:
    """Carry one order out in a Dask worker's process; both are JSON."""
    from dask import config

    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
    given = json.loads(order)
    # Tiled's client reads arrays by Dask, which would here wait for a worker while it keeps one.
    with config.set(scheduler="synchronous"):
        return asdict(carry_out(_catalog(settings), Order(**{**given, "known": tuple(given["known"])})))


def portable(settings: Settings) -> str:
    """Return settings as JSON for another process: paths whole, secrets left out."""
    tiled, options = settings.tiled, settings.reconstruction
    here = {
        "directory": tiled.directory.absolute(),
        "readable_storage": tuple(folder.absolute() for folder in tiled.readable_storage),
        "api_key": None,
    }
    weights = {"weights": options.weights and options.weights.absolute()}
    whole = settings.model_copy(
        update={
            "tiled": tiled.model_copy(update=here),
            "reconstruction": options.model_copy(update=weights),
            "spool": settings.spool.absolute(),
        }
    )
    return whole.model_dump_json(exclude={"tiled": {"api_key"}, "remote": {"kafka"}})


@contextmanager
def local_cluster(settings: Settings, processes: int) -> Iterator[Any]:
    """Give the client of a Dask cluster of processes on this machine that nobody else can connect to.

    Raises
    ------
    InvalidInput
        Dask is not installed.
    """
    distributed = _distributed("more than one process needs it; --processes 1 does without")
    from dask import config

    key = settings.tiled.api_key
    # The processes get it from their environment, as workers elsewhere do.
    environment = {} if key is None else {KEY_NAME: key.get_secret_value()}
    special = {
        # Whether an order is tried again the campaign decides; the scheduler would also blame orders that
        # were moved to a worker which then died.
        "distributed.scheduler.allowed-failures": 0,
        # What Dask sets it to has every volume's pages given back and cleared anew: 3 s of 5 a scan of 64^3.
        "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
    }
    with _deaf_to_interrupts(), config.set(special):
        cluster = distributed.LocalCluster(
            n_workers=processes,
            threads_per_worker=1,
            host="127.0.0.1",
            protocol="tls://",
            security=True,
            dashboard_address=None,
            memory_limit=None,
            env=environment,
            silence_logs=logging.ERROR,
        )
    with cluster, distributed.Client(cluster, set_as_default=False) as client:
        yield client


@contextmanager
def cluster_at(address: str, settings: Settings, connect_s: float = 20.0) -> Iterator[Any]:
    """Give the client of a Dask cluster that runs already.

    Raises
    ------
    InvalidInput
        Dask is not installed, nobody answers at the address, or the settings name no Tiled server that the
        cluster's workers could reach.
    """
    distributed = _distributed("--scheduler needs it")
    if settings.tiled.uri is None and settings.tiled.profile is None:
        raise InvalidInput(
            "a cluster's workers need a Tiled server that they can reach, the settings name the directory "
            f"{settings.tiled.directory}: set tiled.uri"
        )
    try:
        client = distributed.Client(address, timeout=connect_s, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise InvalidInput(
            f"--scheduler must be the address of a Dask scheduler, {address} doesn't answer: {error}"
        ) from error
    with client:
        if not client.nthreads():
            logger.warning("the scheduler at %s has no workers yet", address)
        yield client


def _distributed(why: str) -> Any:
    if importlib.util.find_spec("distributed") is None:
        raise InvalidInput(f"Dask is not installed, and {why}: pip install 'bluesky-cdinn[backfill]'")
    import distributed

    return distributed


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Have threads and processes that start here never see Ctrl-C, which a terminal sends to all of them."""
    # To start it unblocks these signals, in the thread that first has need of it.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _workers(client: Any) -> int:
    """Return how many workers there are."""
    try:
        return len(client.nthreads())
    except (OSError, TimeoutError, AttributeError, RuntimeError) as error:  # as far as it had noticed
        raise ReconstructionFailed(
            f"the Dask scheduler has gone ({type(error).__name__}); run the same command again to go on"
        ) from error


def _outcome(future: Any, order: Order) -> Outcome | None:
    """Return how an order ended; None if the process died which carried it out."""
    from distributed.scheduler import KilledWorker

    try:
        if future.status == "finished":
            # What it said is lost if it dies now, and it is done again, by one who may die too.
            return Outcome(**future.result())
        if future.status == "error":
            raise future.exception()
    except KilledWorker:
        return None
    except Exception as error:
        return Outcome(order.raw_uid, "error", reason=f"{type(error).__name__}: {error}")
    return Outcome(
        order.raw_uid,
        "error",
        reason=f"the Dask scheduler dropped it ({future.status}): it ended, or was restarted",
    )


@lru_cache(maxsize=1)
def _catalog(settings: str) -> Catalog:
    return Catalog(Settings(**json.loads(settings)))
