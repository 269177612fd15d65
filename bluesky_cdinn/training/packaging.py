"""From a training run to weights that tell where they come from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bluesky_cdinn.network import NetworkConfig
from bluesky_cdinn.training.checkpoint import load_checkpoint
from bluesky_cdinn.training.curve import read_curve
from bluesky_cdinn.training.evaluation import Row, median
from bluesky_cdinn.training.model_card import model_card
from bluesky_cdinn.training.running import read_run
from bluesky_cdinn.training.subjects import normalisation, subject
from bluesky_cdinn.weights import Dtype, Weights, fill, load_weights, save_weights

# Points of the learning curve that the card keeps.
KEPT = 60
# What held-out figures are grouped by, and told of each group: medians.
GROUPS = ("kind", "strain", "counts")
FIGURES = ("chi2", "iou", "phase_rmse", "correlation")


def package(
    folder: Path, output: Path, dtype: Dtype = "float16", rows: Sequence[Row] = (), notes: str = ""
) -> Weights:
    """Write the averaged weights of a run, and their model card beside them.

    Parameters
    ----------
    folder
        Of the run; it may still be going on.
    output
        The safetensors file; the card takes its name, with ``.md``.
    dtype
        What the weights are stored as. In float16 the file is half as large, and no held-out correlation
        changed by more than 0.0003; in bfloat16 some did by 0.003.
    rows
        What `evaluation.score_start` found with them on held-out crystals.
    notes
        What else is to be known of the run, in the card.

    Returns
    -------
    Weights
        As they are in the file.

    Raises
    ------
    TrainingFailed
        The folder holds no run, or no checkpoint.
    WeightsError
        The weights aren't finite, or aren't the network's.
    """
    run, state = read_run(folder), load_checkpoint(folder)
    config = NetworkConfig.from_mapping(run["preset"]["network"])
    network, _ = subject(config)
    card = {
        "name": output.stem,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "training": _training(run, state),
        "data": _data(run["preset"]),
        "warm_start": run["warm_start"],
        "notes": notes,
        "learning_curve": thinned(read_curve(folder)),
        "figures": summary(rows),
    }
    weights = Weights(run["preset"]["network"], state["average"], normalisation(config), card)
    fill(network, weights)
    save_weights(output, weights, dtype)
    packaged = load_weights(output)
    output.with_suffix(".md").write_text(model_card(packaged))
    return packaged


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return medians of held-out figures for each group of crystals, in the order in which they are met."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in GROUPS), []).append(row)
    return [
        {
            **dict(zip(GROUPS, group, strict=True)),
            "crystals": len(members),
            **{figure: median(members, figure) for figure in FIGURES},
            "found": sum(bool(row["found"]) for row in members),
        }
        for group, members in groups.items()
    ]


def thinned(lines: Sequence[dict[str, Any]], most: int = KEPT) -> list[dict[str, Any]]:
    """Return a learning curve with at most so many lines, those with held-out figures before others.

    The last line stays.
    """
    judged = [line for line in lines if "held_out" in line] or list(lines)
    if len(judged) <= most:
        return judged
    return [judged[round(i * (len(judged) - 1) / (most - 1))] for i in range(most)]


def _training(run: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    options = run["preset"]["training"]
    return {
        "preset": run["preset"]["name"],
        "steps": state["step"],
        "crystals": state["crystals"],
        "skipped_steps": state["skipped"],
        "hours": state["seconds"] / 3600,
        "clock": options["clock"],
        "options": options,
        "sessions": run["sessions"],
    }


def _data(preset: dict[str, Any]) -> dict[str, Any]:
    """Return what was trained on; of a stored set its name, as paths are nobody else's business."""
    data = dict(preset["data"])
    if data["atomistic"] is not None:
        data["atomistic"] = Path(data["atomistic"]).name
    return data | {key: preset[key] for key in ("crystals", "views", "conditions")}
