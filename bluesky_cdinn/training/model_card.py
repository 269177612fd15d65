"""What a person should know of weights before using them, in Markdown, from what the file says of itself."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bluesky_cdinn.training.evaluation import FOUND_IOU, FOUND_RMSE
from bluesky_cdinn.weights import Weights

INTENDED = """\
A first guess of a nanocrystal's complex density from one three-dimensional Bragg diffraction pattern,
for `bluesky_cdinn`'s phase retrieval to begin with. The refinement that follows fits the data themselves,
and the agreement of independent starts judges the result; the guess alone is no measurement.
"""
LIMITS = """\
- One crystal, one reflection. Crystals, strains, counts and gaps unlike those listed under *Data* were
  never seen. Where the guesses misfit the data or disagree, phasing goes on from classical starts.
- Twin, translation and global phase are not determined by the data, nor by the network.
- The training crystals are simulated. What an instrument does beyond the listed conditions is not in them.
"""


def model_card(weights: Weights) -> str:
    """Return the model card of packaged weights, Markdown."""
    return "\n".join(_lines(weights)).rstrip() + "\n"


def _lines(weights: Weights) -> Iterator[str]:
    card, config, training = weights.card, weights.config, weights.card["training"]
    yield from (f"# {weights.name}", "")
    yield f"Weights of the network `{config['architecture']}`, version {config['version']}, trained on a grid"
    yield f"of {config['side']}³ voxels; {card['parameters']:,} parameters, stored as {card['stored_as']}."
    yield from ("", f"sha256 `{weights.sha256}`", "")
    yield from ("## Intended use", "", INTENDED, "## Limits", "", LIMITS)
    yield from ("## Figures on held-out crystals", "", *_figures(card["figures"]), "")
    yield from ("## Training", "")
    yield f"{training['steps']:,} steps, {training['crystals']:,} measurements of simulated crystals,"
    yield f"{training['hours']:.2f} hours ({training['clock']} clock), seed {training['options']['seed']}."
    if training["skipped_steps"]:
        yield f"{training['skipped_steps']} steps were skipped, their loss or gradient not being finite."
    if card["warm_start"]:
        before = card["warm_start"]
        yield f"It began with the weights {before['name']}, sha256 `{before['sha256']}`."
    if card.get("notes"):
        yield from ("", card["notes"])
    yield from ("", *_sessions(training["sessions"]), "", *_settings(training["options"]), "")
    yield from ("### Learning curve", "", *_curve(card["learning_curve"]), "")
    yield from ("## Data", "", *_data(card["data"]), "")
    yield from ("## Network", "", *_settings(config), "", f"Normalisation: {weights.normalisation}.", "")


def _figures(groups: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not groups:
        yield "None were taken when these weights were packaged: `cdinn evaluate` takes them."
        return
    yield "The network's guess alone, without refinement, one for each crystal; medians. *Found* counts those"
    yield f"with an IoU above {FOUND_IOU} and a phase within {FOUND_RMSE} rad rms."
    yield ""
    heads = ("kind", "strain", "counts", "crystals", "chi2", "IoU", "phase RMSE, rad", "correlation", "found")
    rows = [
        (
            group["kind"],
            group["strain"],
            f"{group['counts']:.0e}",
            group["crystals"],
            *(_number(group[name]) for name in ("chi2", "iou", "phase_rmse", "correlation")),
            group["found"],
        )
        for group in groups
    ]
    yield from _table(heads, rows)


def _curve(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not lines:
        yield "None was recorded."
        return
    kinds = list(lines[-1].get("held_out", {}))
    if kinds:
        yield "Complex correlation on crystals that were not trained on, by kind, beside the training's loss."
        yield ""
    rows = [
        (
            f"{line['crystals']:,}",
            f"{line['seconds'] / 3600:.2f}",
            _number(line["loss"]),
            *(_number(line.get("held_out", {}).get(kind)) for kind in kinds),
        )
        for line in lines
    ]
    yield from _table(("measurements", "hours", "loss", *kinds), rows)


def _sessions(sessions: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    rows = [
        (
            f"{session['from_step']:,}",
            session["began"],
            session["processor"],
            f"{session['processes']} x {session['threads']}",
            session["torch"],
            session["package_version"],
        )
        for session in sessions
    ]
    yield from _table(
        ("from step", "began", "processor", "processes x threads", "torch", "bluesky-cdinn"), rows
    )


def _data(data: Mapping[str, Any]) -> Iterator[str]:
    parts = {name: data[name] for name in ("crystals", "views", "conditions")}
    own = {name: value for name, value in data.items() if name not in parts}
    yield from ("Batches", "", *_settings(own), "")
    yield from ("Procedural crystals", "", *_settings(parts["crystals"]), "")
    if own["atomistic"] is not None:
        yield from ("Views of relaxed atomistic crystals", "", *_settings(parts["views"]), "")
    yield from ("Conditions of measurement", "", *_settings(parts["conditions"]))


def _settings(values: Mapping[str, Any]) -> Iterator[str]:
    rows = [(f"`{name}`", _shown(value)) for name, value in values.items() if value is not None]
    yield from _table(("setting", "value"), rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) if not any(isinstance(v, list) for v in value) else str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.4f}"
