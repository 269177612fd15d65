"""Whether a scan's newest reconstruction will still do, from what it says it was made with."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bluesky_cdinn.settings import ReconstructionOptions

Start = Mapping[str, Any]


class Stale(StrEnum):
    """What may be another one than now."""

    VERSION = "version"
    WEIGHTS = "weights"
    OPTIONS = "options"


# Beside the data these decide the result; device and threads only when it is there.
_DECISIVE = ("start", "refine", "starts", "seed", "max_shape")


@dataclass(frozen=True)
class Standard:
    """What a scan's newest reconstruction must be for the scan to be left alone.

    Parameters
    ----------
    options
        What a reconstruction made now would depend on.
    stale
        What must be as it would be now: the package's version, the weights' sha256, the options.
    keep_failed
        Whether a failed reconstruction will do.
    version
        Of the package.
    weights
        sha256 of the weights that would be asked; None where none would be.
    least_side
        Grids with a smaller side aren't shown to the network.
    """

    options: ReconstructionOptions = field(default_factory=ReconstructionOptions)
    stale: frozenset[Stale] = frozenset()
    keep_failed: bool = False
    version: str = version("bluesky-cdinn")
    weights: str | None = None
    least_side: int = 0


def standard_now(
    options: ReconstructionOptions, stale: Iterable[Stale] = (), *, keep_failed: bool = False
) -> Standard:
    """Return the standard of reconstructions that this installation would make with these options.

    Raises
    ------
    WeightsError
        The weights that the options name can't be read.
    """
    standard = Standard(options, frozenset(stale), keep_failed)
    if Stale.WEIGHTS not in standard.stale or options.start not in ("auto", "network"):
        return standard
    # With torch, which takes long: only here is it needed.
    from bluesky_cdinn.network_start import LEAST
    from bluesky_cdinn.weights import load_weights, shipped_weights

    path: Path | None = options.weights or shipped_weights()
    sha256 = None if path is None else load_weights(path).sha256
    return replace(standard, weights=sha256, least_side=LEAST)


def fault(reconstructions: Sequence[Mapping[str, Any]], standard: Standard) -> str | None:
    """Return why a scan with these ended reconstructions needs another; None: it doesn't."""
    failed = [run["start"] for run in reconstructions if run["start"]["status"] == "failed"]
    # A process that died while it wrote a run leaves one that says success and holds nothing.
    will_do = [
        run["start"]
        for run in reconstructions
        if run["start"]["status"] == "success" and run["stop"]["exit_status"] == "success"
    ]
    if standard.keep_failed:
        will_do += failed
    if not will_do:
        if failed:
            return f"failed: {max(failed, key=_time).get('reason') or 'without a reason'}"
        return "cancelled" if reconstructions else "never reconstructed"
    newest = max(will_do, key=_time)
    objections = (_OBJECTIONS[name](newest, standard) for name in Stale if name in standard.stale)
    return next((objection for objection in objections if objection), None)


def _other_version(start: Start, standard: Standard) -> str | None:
    made_by = (start.get("versions") or {}).get("bluesky-cdinn")
    return None if made_by == standard.version else f"made by version {made_by}"


def _other_weights(start: Start, standard: Standard) -> str | None:
    asked = (start.get("weights") or {}).get("sha256")
    if asked == standard.weights:
        return None
    if asked is not None:
        return f"made with weights {asked[:8]}"
    # Where the network can't be asked, other weights change nothing.
    levels = (start.get("parameters") or {}).get("levels")
    small = not levels or min(levels[0]) < standard.least_side
    return None if small else "made without weights"


def _other_options(start: Start, standard: Standard) -> str | None:
    parameters = start.get("parameters") or {}
    used = {name: parameters.get(name) for name in _DECISIVE}
    if parameters.get("fallback"):
        # It had to do with fewer than it was asked for.
        used["starts"] = parameters["fallback"][0]["starts"]
    now = standard.options.model_dump(mode="json", include=set(_DECISIVE))
    other = [f"{name} {used[name]}" for name in _DECISIVE if used[name] != now[name]]
    return f"made with {', '.join(other)}" if other else None


_OBJECTIONS = {
    Stale.VERSION: _other_version,
    Stale.WEIGHTS: _other_weights,
    Stale.OPTIONS: _other_options,
}


def _time(start: Start) -> float:
    return float(start["time"] or 0.0)
