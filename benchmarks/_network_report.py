"""Rows of the network's benchmark to tables and figures."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _report import ordered, table

Row = dict[str, Any]
NAMES = {
    "network": "**network**",
    "paper": "published network",
    "coarse": "coarse phasing, no network",
    "autocorrelation": "autocorrelation",
    "random": "random",
}
COLOURS = {
    "network": "#c1272d",
    "paper": "#008176",
    "coarse": "#e08a00",
    "autocorrelation": "#0000a7",
    "random": "#999999",
}
RECIPES = {
    "engine": "this package's search",
    "er_hio": "ER/HIO, 620 steps",
    "adam": "Adam, 1000 steps, as published",
}
FIGURES = Path(__file__).resolve().parents[1] / "docs" / "images"
# On the real scan: the time until chi2 is under these.
LEVELS = (0.02, 0.01, 0.008)


def middle(rows: Iterable[Row], key: str) -> float:
    """Return the median, what is missing counting as worst."""
    values = [np.inf if row.get(key) is None else row[key] for row in rows]
    return float(np.median(values)) if values else np.nan


def shown(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "-"


def chosen(rows: Iterable[Row], **key: Any) -> list[Row]:
    return [row for row in rows if all(row.get(name) == value for name, value in key.items())]


def contenders(rows: Iterable[Row]) -> list[str]:
    present = {row["contender"] for row in rows}
    return [name for name in NAMES if name in present]


def classes(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Return rows by kind and strain."""
    labelled = [{**row, "class": f"{row['kind']}, {row['strain']}"} for row in rows]
    return ordered(labelled, "class")


def crystals(rows: Iterable[Row]) -> int:
    return len({row["case"] for row in rows})


def alone_table(rows: Sequence[Row], side: int) -> str:
    """Return chi2, IoU, phase RMSE and correlation of each start by itself."""
    mine = chosen(rows, section="alone", side=side)
    names = [name for name in contenders(mine) if name != "random"]
    body = []
    for label, group in classes(mine):
        for counts, part in ordered(group, "counts"):
            cells = [f"{label}, {counts:.0e} counts ({crystals(part)})".replace("e+0", "e")]
            for name in names:
                here = chosen(part, contender=name)
                numbers = [shown(middle(here, k)) for k in ("chi2", "iou", "phase_rmse", "correlation")]
                cells.append("; ".join(numbers) if here else "-")
            body.append(cells)
    return table(["crystals", *(NAMES[name] for name in names)], body)


def refined_table(rows: Sequence[Row], recipe: str) -> str:
    """Return success, steps and CPU time to it, and steps relative to the autocorrelation's start."""
    mine = [with_work(row) for row in chosen(rows, section="refined", recipe=recipe)]
    names = contenders(mine)
    body = []
    for label, group in [*classes(mine), ("**all**", mine)]:
        cells = [f"{label} ({crystals(group)})"]
        for name in names:
            here = chosen(group, contender=name)
            numbers = [f"{sum(row['found'] for row in here)} of {len(here)}", shown(middle(here, "steps"), 0)]
            numbers += [shown(middle(here, "work"), 0), shown(middle(here, "cpu_s"), 2)]
            cells.append("; ".join(numbers) if here else "-")
        cells.append(speed_up(group))
        body.append(cells)
    return table(["crystals", *(NAMES[name] for name in names), "steps, all steps, CPU: times fewer"], body)


def with_work(row: Row) -> Row:
    """Return a row with ``work``: steps, and those inside the start as so many on the whole grid."""
    return {**row, "work": None if row["steps"] is None else row["steps"] + row["inside"]}


def speed_up(rows: Sequence[Row]) -> str:
    """Return by what factors the network shortens the way, where both starts got there."""
    mine, other = (
        {row["case"]: row for row in chosen(rows, contender=name, found=True)}
        for name in ("network", "autocorrelation")
    )
    both = mine.keys() & other.keys()
    if not both:
        return "-"
    # A start that needs no step at all counts as one that needs five, half of what lies between two looks.
    least = {"steps": 5, "work": 5, "cpu_s": 1e-3}
    factors = [
        float(np.median([max(other[c][key], low) / max(mine[c][key], low) for c in both]))
        for key, low in least.items()
    ]
    return "; ".join(f"{factor:.1f}" for factor in factors) + f" ({len(both)})"


def pipeline_table(rows: Sequence[Row]) -> str:
    """Return what one call of the package makes from each start."""
    mine = chosen(rows, section="pipeline")
    names = contenders(mine)
    body = []
    for label, group in [*classes(mine), ("**all**", mine)]:
        cells = [f"{label} ({crystals(group)})"]
        for name in names:
            here = chosen(group, contender=name)
            solved = sum(row["solved"] for row in here)
            numbers = [
                f"{solved} of {len(here)}",
                shown(middle(here, "phase_rmse")),
                shown(middle(here, "iou")),
            ]
            numbers += [shown(middle(here, "chi2"), 4), shown(middle(here, "cpu_s"), 2)]
            cells.append("; ".join(numbers))
        body.append(cells)
    return table(["crystals", *(NAMES[name] for name in names)], body)


def scan_table(rows: Sequence[Row]) -> str:
    """Return when chi2 falls under some levels on the real scan, and what it ends with."""
    mine = chosen(rows, section="scan")
    body = []
    for name in contenders(mine):
        here = chosen(mine, contender=name)
        cells = [f"{NAMES[name]} ({len(here)} seeds)"]
        for level in LEVELS:
            first = [next((point for point in row["curve"] if point[2] < level), None) for row in here]
            times = [np.inf if point is None else point[1] for point in first]
            steps = [np.inf if point is None else point[0] for point in first]
            cells.append(f"{shown(float(np.median(times)), 2)}; {shown(float(np.median(steps)), 0)}")
        last = [row["curve"][-1][2] for row in here]
        cells += [f"{np.median(last):.4f} ({min(last):.4f}-{max(last):.4f})"]
        likeness = [row["correlation"] for row in here]
        cells += [f"{np.median(likeness):.3f} ({min(likeness):.3f})"]
        body.append(cells)
    head = ["start", *(f"chi2 < {level}: CPU s; steps" for level in LEVELS)]
    return table([*head, "chi2 in the end (range)", "correlation with the package's result (least)"], body)


def forward_table(rows: Sequence[Row]) -> str:
    """Return what a start costs."""
    body = [
        [f"{NAMES[row['contender']]}, {row['threads']} threads", f"{row['ms']:.0f}", f"{row['least_ms']:.0f}"]
        for row in chosen(rows, section="forward")
    ]
    return table(["start at 64³", "ms, median", "ms, least"], body)


def contender_table(facts: dict[str, Row]) -> str:
    """Return what ran where and when."""
    own = ("date", "cpu", "cores", "python", "numpy", "torch", "commit")
    body = []
    for name in [name for name in NAMES if name in facts]:
        row = facts[name]
        extra = "; ".join(f"{key} {value}" for key, value in row.items() if key not in own)
        body.append([NAMES[name], extra or "-", row["commit"], row["date"], f"{row['cpu']}, one thread"])
    return table(["start", "what it is", "commit", "date", "processor"], body)


def report(facts: dict[str, Row], rows: Sequence[Row]) -> str:
    """Return all tables that there are rows for, as Markdown."""
    sections: list[tuple[str, str, Callable[[], str]]] = [
        (
            "alone",
            "Starts alone, 64³: chi2; IoU; phase RMSE, rad; correlation",
            lambda: alone_table(rows, 64),
        ),
        ("alone", "Alone, central 32³: the same", lambda: alone_table(rows, 32)),
    ]
    for recipe, title in RECIPES.items():
        if chosen(rows, section="refined", recipe=recipe):
            heading = f"Refined by {title}: found; median steps; with those inside the start; CPU s"
            sections.append(("refined", heading, lambda recipe=recipe: refined_table(rows, recipe)))
    sections += [
        (
            "pipeline",
            "One call of the package: solved; phase RMSE, rad; IoU; chi2; CPU s",
            lambda: pipeline_table(rows),
        ),
        ("scan", "The real scan, central 64³, refined by this package's search", lambda: scan_table(rows)),
        ("forward", "What a start costs", lambda: forward_table(rows)),
    ]
    present = {row["section"] for row in rows}
    parts = [f"### {title}\n\n{make()}" for section, title, make in sections if section in present]
    return "\n".join([*parts, f"### What ran\n\n{contender_table(facts)}"])


def draw(rows: Sequence[Row], folder: Path) -> None:
    """Draw the figures that there are rows for."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figures: dict[str, Callable[[Any, Sequence[Row]], Any]] = {
        "alone": draw_alone,
        "refined": draw_refined,
        "scan": draw_scan,
        "curves": draw_curves,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in figures.items():
        part = chosen(rows, section=name)
        if part:
            figure = make(plt, part)
            figure.savefig(folder / f"benchmark_network_{name}.png", dpi=110)
            plt.close(figure)


def draw_alone(plt: Any, rows: Sequence[Row]) -> Any:
    """Draw correlation, IoU and phase RMSE of starts by themselves, class by class."""
    rows = chosen(rows, side=64)
    names = contenders(rows)
    groups = classes(rows)
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    keys = {"correlation": "complex correlation", "iou": "IoU of supports", "phase_rmse": "phase RMSE, rad"}
    for axis, (key, label) in zip(axes, keys.items(), strict=True):
        for i, name in enumerate(names):
            offset = (i - (len(names) - 1) / 2) * 0.8 / len(names)
            values = [[r[key] for r in chosen(g, contender=name) if np.isfinite(r[key])] for _, g in groups]
            places = np.arange(len(groups)) + offset
            look = {"color": COLOURS[name]}
            axis.boxplot(
                values,
                positions=places,
                widths=0.7 / len(names),
                whis=(0, 100),
                boxprops=look,
                medianprops=look,
            )
            axis.plot([], [], **look, label=NAMES[name].strip("*"))
        axis.set_xticks(range(len(groups)), [name for name, _ in groups], fontsize=8, rotation=30, ha="right")
        axis.set(ylabel=label)
    axes[0].legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def draw_refined(plt: Any, rows: Sequence[Row]) -> Any:
    """Draw the share of crystals that are found, by steps and by CPU time."""
    recipes = [name for name in RECIPES if chosen(rows, recipe=name)]
    figure, axes = plt.subplots(
        2, len(recipes), figsize=(4.4 * len(recipes), 7), layout="constrained", sharey=True, squeeze=False
    )
    for column, recipe in enumerate(recipes):
        for axis, key in zip(axes[:, column], ("steps", "cpu_s"), strict=True):
            for name in contenders(rows):
                here = chosen(rows, recipe=recipe, contender=name)
                if not here:
                    continue
                end = max(row[f"{key}_done"] for row in chosen(rows, recipe=recipe))
                times = sorted(row[key] for row in here if row["found"])
                share = np.arange(len(times) + 1) / len(here)
                axis.step(
                    [*([0] if key == "steps" else [1e-3]), *times, end],
                    [*share, share[-1]],
                    where="post",
                    color=COLOURS[name],
                    label=NAMES[name].strip("*"),
                )
            axis.set(xlabel="steps" if key == "steps" else "CPU s", ylim=(0, 1.02))
            if key == "cpu_s":
                axis.set_xscale("log")
                axis.set_xlim(left=0.02)
        axes[0, column].set_title(RECIPES[recipe], fontsize=10)
    for axis in axes[:, 0]:
        axis.set_ylabel("share of crystals found")
    axes[0, 0].legend(frameon=False, fontsize=8)
    return figure


def draw_scan(plt: Any, rows: Sequence[Row]) -> Any:
    """Draw chi2 by CPU time and by steps on the real scan, every seed, and their median."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
    for axis, place, label in zip(axes, (1, 0), ("CPU s", "steps"), strict=True):
        for name in contenders(rows):
            curves = [np.array(row["curve"]) for row in chosen(rows, contender=name)]
            for curve in curves:
                axis.plot(curve[:, place], curve[:, 2], color=COLOURS[name], lw=0.6, alpha=0.4)
            middle_curve = np.median(curves, axis=0)
            axis.plot(
                middle_curve[:, place], middle_curve[:, 2], color=COLOURS[name], label=NAMES[name].strip("*")
            )
        axis.set(xlabel=label, yscale="log")
    axes[0].set_ylabel("chi2")
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def draw_curves(plt: Any, rows: Sequence[Row]) -> Any:
    """Draw how training went."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
    fallback = iter(("#c1272d", "#e08a8d", "#555555", "#bbbbbb"))
    for row in rows:
        name, lines = row["contender"], row["lines"]
        colour = COLOURS.get(name) or next(fallback)
        for key in [key for key in lines[0]["scores"] if key.startswith("correlation")]:
            look = "--" if key.endswith("_1") else "-"
            values = [line["scores"][key] for line in lines]
            label = NAMES.get(name, name).strip("*") + key.removeprefix("correlation").replace("_", ", look ")
            axes[0].plot([line["seconds"] / 60 for line in lines], values, look, color=colour, label=label)
            axes[1].plot([line["crystals"] for line in lines], values, look, color=colour)
    axes[0].set(xlabel="minutes of training", ylabel="complex correlation, training crystals", ylim=(0, 1))
    axes[1].set(xlabel="crystals seen")
    axes[0].legend(frameon=False, fontsize=8)
    return figure
