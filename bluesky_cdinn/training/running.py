"""A training run: a folder that says what is trained in it, and goes on from where it stands."""

import json
import os
import platform
from collections.abc import Callable, Generator
from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bluesky_cdinn.errors import InvalidInput, TrainingFailed
from bluesky_cdinn.files import replacing
from bluesky_cdinn.training.checkpoint import checkpoints
from bluesky_cdinn.training.curve import tensorboard
from bluesky_cdinn.training.distributed import Ranks
from bluesky_cdinn.training.loop import TrainingProgress, train
from bluesky_cdinn.training.presets import Preset, changed, preset_from
from bluesky_cdinn.training.subjects import subject
from bluesky_cdinn.training.validation import Validation
from bluesky_cdinn.weights import fill, load_weights

NAME = "run.json"
# Crystals of each kind that the learning curve is judged on, or a batch where that is less.
VALIDATED = 16


def begin(
    folder: Path,
    preset: Preset,
    ranks: Ranks,
    *,
    warm_start: Path | None = None,
    **how: Any,
) -> Generator[TrainingProgress]:
    """Begin a run in a folder of its own, and yield after each step.

    Parameters
    ----------
    folder
        Where all that comes of it goes; made where absent.
    preset
        What, on what, and how.
    ranks
        This process among those that train together.
    warm_start
        Weights to begin with instead of random ones; of the same architecture, on any grid.
    how
        ``tensorboard_too`` and ``stop``, as for `go_on`.

    Raises
    ------
    InvalidInput
        The folder holds a run, or the preset can't be trained.
    WeightsError
        The weights to begin with don't fit.
    TrainingFailed
        See `loop.train`.
    """
    if checkpoints(folder):
        raise InvalidInput(f"a folder without a run is required, {folder} has one: resume it or name another")
    # So that each process builds the same network.
    torch.manual_seed(preset.training.seed)
    network, objective = subject(preset.network)
    began_with: dict[str, str] | None = None
    if warm_start is not None:
        weights = load_weights(warm_start, architectures=[preset.network.architecture])
        fill(network, weights)
        began_with = {"name": weights.name, "sha256": weights.sha256}
    if ranks.first:
        describe(folder, preset, began_with)
    yield from _train(folder, preset, ranks, network, objective, resume=False, **how)


def go_on(
    folder: Path,
    ranks: Ranks,
    *,
    steps: int | None = None,
    hours: float | None = None,
    workers: int | None = None,
    **how: Any,
) -> Generator[TrainingProgress]:
    """Resume a folder's run from its last checkpoint, and yield after each step.

    Parameters
    ----------
    folder, ranks
        As in `begin`.
    steps, hours
        Another budget for the whole run, earlier sessions included; None leaves it.
    workers
        Another number of them, which changes no result.
    how
        ``tensorboard_too``: whether its events are written; ``stop``: asked before each step whether to end.

    Raises
    ------
    TrainingFailed
        There is nothing to resume; see `loop.train` too.
    """
    run = read_run(folder)
    preset = preset_from(run["preset"], folder.name)
    preset = changed(preset, training={"steps": steps, "hours": hours, "workers": workers})
    if ranks.first:
        _write(folder, run | {"preset": preset.as_dict()})
    network, objective = subject(preset.network)
    yield from _train(folder, preset, ranks, network, objective, resume=True, **how)


def describe(folder: Path, preset: Preset, warm_start: dict[str, str] | None = None) -> None:
    """Write in a folder what is trained in it: what `go_on` and packaging need beside the checkpoints.

    Parameters
    ----------
    folder
        Of the run; made where absent.
    preset
        What is trained there.
    warm_start
        Name and sha256 of the weights that it begins with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, {"preset": preset.as_dict(), "warm_start": warm_start, "sessions": []})


def read_run(folder: Path) -> dict[str, Any]:
    """Return what a run's folder says of it: ``preset``, ``warm_start`` and ``sessions``.

    Raises
    ------
    TrainingFailed
        It holds no run.
    """
    try:
        return json.loads((folder / NAME).read_text())
    except (OSError, ValueError) as error:
        raise TrainingFailed(f"the folder of a run must hold {NAME}, {folder} does not: {error}") from error


def _train(
    folder: Path,
    preset: Preset,
    ranks: Ranks,
    network: torch.nn.Module,
    objective: Any,
    *,
    resume: bool,
    tensorboard_too: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Generator[TrainingProgress]:
    source = preset.source()
    session = {"from_step": None, **_surroundings(ranks)}
    steps = train(
        network,
        source,
        objective,
        preset.training,
        folder,
        held_out=Validation(preset.network.side, min(VALIDATED, preset.data.batch), objective, ranks.device),
        resume=resume,
        ranks=ranks,
        scalars=(lambda step: tensorboard(folder, step)) if tensorboard_too else None,
        stop=stop,
    )
    with closing(steps):
        for progress in steps:
            if session["from_step"] is None and ranks.first:
                session["from_step"] = progress.step - 1
                run = read_run(folder)
                _write(folder, run | {"sessions": [*run["sessions"], session]})
            yield progress


def _write(folder: Path, run: dict[str, Any]) -> None:
    with replacing(folder / NAME) as stream:
        stream.write(json.dumps(run, indent=1).encode())


def _surroundings(ranks: Ranks) -> dict[str, Any]:
    """Return when and on what a session ran, as the model card tells it."""
    on_gpu = ranks.device.type == "cuda"
    processor = torch.cuda.get_device_name(ranks.device) if on_gpu else _processor()
    return {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor,
        "threads": torch.get_num_threads(),
        "processes": ranks.size,
        "torch": torch.__version__,
        "package_version": version("bluesky-cdinn"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return f"{next(named, platform.machine())}, {os.cpu_count()} cores"
