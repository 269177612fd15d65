"""Rows to tables and a figure."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _cases import HARDER, OTHERS

Row = dict[str, Any]
NAMES = {
    "ours": "**bluesky-cdinn**",
    "er_hio": "plain torch ER/HIO",
    "adam": "Adam alone, as in 3D-CDI-NN",
    "cohere": "cohere, threshold 0.1",
    "cohere_sharp": "cohere, threshold 0.2",
    "pynx": "PyNX",
}
COLOURS = {
    "ours": "#c1272d",
    "er_hio": "#777777",
    "adam": "#bbbbbb",
    "cohere": "#0000a7",
    "cohere_sharp": "#6b6bd6",
    "pynx": "#008176",
}
# Cases of a plain crystal with a stronger phase than the main ones.
STRONG = ("extra1", "phase3", "phase5")
# A confidence under this flags a result.
TRUSTED = 0.5
FIGURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "benchmark_phasing.png"


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, numbers to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in body)]) + "\n"


def ordered(rows: Iterable[Row], key: str, order: Iterable[str] | None = None) -> list[tuple[str, list[Row]]]:
    """Return rows in groups, in the order given or met."""
    groups: dict[str, list[Row]] = {name: [] for name in order or ()}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return [(name, group) for name, group in groups.items() if group]


def median(rows: Iterable[Row], key: str) -> float:
    return float(np.nanmedian([row[key] for row in rows]))


def successes(rows: Sequence[Row]) -> str:
    return f"{sum(row['success'] for row in rows)} of {len(rows)}"


def is_main(row: Row) -> bool:
    return row["case"].startswith("main")


def is_solved(row: Row) -> bool:
    return row["success"]


def solved(rows: Sequence[Row]) -> str:
    """Return how many are solved, strictly and nearly."""
    return f"{sum(map(is_solved, rows))} / {sum(map(is_near, rows))} of {len(rows)}"


def is_near(row: Row) -> bool:
    """Whether the looser criterion holds, by which issues and other comparisons count."""
    return row["phase_rmse"] < 0.2 and row["iou"] > 0.9


def is_trusted(row: Row) -> bool:
    """Whether our own confidence says that the phase is right."""
    return row["confidence"] >= TRUSTED


def main_table(rows: Sequence[Row]) -> str:
    """Return the programs side by side on the main cases."""
    head = (
        "program",
        "success",
        "RMSE < 0.2, IoU > 0.9",
        "CPU s",
        "wall s",
        "CPU s a success",
        "CPU, times ours",
        "chi2",
        "over the truth's",
        "phase RMSE, rad",
        "IoU",
        "amplitude NRMSE",
        "correlation",
    )
    mine = {row["case"]: row for row in rows if row["program"] == "ours"}
    body = []
    for name, group in ordered(filter(is_main, rows), "program", NAMES):
        good = sum(row["success"] for row in group)
        ratios = [row["cpu_s"] / mine[row["case"]]["cpu_s"] for row in group if row["case"] in mine]
        cells = [
            NAMES[name],
            successes(group),
            f"{sum(map(is_near, group))} of {len(group)}",
            f"{median(group, 'cpu_s'):.2f}",
            f"{median(group, 'wall_s'):.2f}",
        ]
        cells += [f"{sum(row['cpu_s'] for row in group) / good:.1f}" if good else "-"]
        cells += [f"{np.median(ratios):.1f}" if ratios else "-"]
        cells += [f"{1e3 * median(group, 'chi2'):.2f}e-3", f"{median(group, 'chi2_over_truth'):.2f}"]
        keys = ("phase_rmse", "iou", "amplitude_nrmse", "correlation")
        body.append([*cells, *(f"{median(group, key):.3f}" for key in keys)])
    return table(head, body)


def class_table(rows: Sequence[Row]) -> str:
    """Return success, phase RMSE and CPU time of each program, kind by kind."""
    programs = [name for name, _ in ordered(rows, "program", NAMES) if name != "adam"]
    body = []
    for kind, group in ordered(rows, "kind"):
        cells = [f"{kind} ({len({row['case'] for row in group})})"]
        for name in programs:
            part = [row for row in group if row["program"] == name]
            cells.append(
                f"{successes(part)}; {median(part, 'phase_rmse'):.3f}; {median(part, 'iou'):.3f}; "
                f"{median(part, 'cpu_s'):.1f}"
                if part
                else "-"
            )
        body.append(cells)
    return table(["kind (cases)", *(NAMES[name] for name in programs)], body)


def flagged_table(rows: Sequence[Row]) -> str:
    """Return what ours solved, flagged and got wrong in silence, and what others solved, kind by kind.

    By the strict criterion, and behind the stroke by the looser one.
    """
    programs = [name for name, _ in ordered(rows, "program", NAMES) if name not in ("ours", "adam")]
    body = []
    for kind in (*HARDER, *OTHERS):
        group = [row for row in rows if row["kind"] == kind.title]
        mine = [row for row in group if row["program"] == "ours"]
        if not mine:
            continue
        failed = [[row for row in mine if not good(row)] for good in (is_solved, is_near)]
        cells = [kind.title if kind in HARDER else f"*{kind.title}*", solved(mine)]
        cells += [" / ".join(str(sum(not is_trusted(row) for row in part)) for part in failed)]
        cells += [" / ".join(str(sum(is_trusted(row) for row in part)) for part in failed)]
        for name in programs:
            part = [row for row in group if row["program"] == name]
            cells.append(solved(part) if part else "-")
        body.append(cells)
    head = ["kind", "ours: solved", "flagged", "silently wrong", *(f"{NAMES[n]}: solved" for n in programs)]
    return table(head, body)


def confidence_table(rows: Sequence[Row]) -> str:
    """Return how ours judges itself, kind by kind."""
    mine = [row for row in rows if row["program"] == "ours"]
    body = []
    for kind, group in ordered(mine, "kind"):
        good = [row for row in group if row["success"]]
        bad = [row for row in group if not row["success"]]
        near = [row for row in bad if row["phase_rmse"] < 0.1]
        trusted = [sum(map(is_trusted, part)) for part in (good, bad)]
        wrong = sum(is_trusted(row) for row in bad if row not in near)
        body.append(
            [kind, f"{trusted[0]} of {len(good)}", f"{len(bad) - trusted[1]} of {len(bad)}", str(wrong)]
        )
    head = ["kind", "successes trusted", "failures flagged", "trusted, and phase RMSE over 0.1 rad"]
    return table(head, body)


def failure_table(rows: Sequence[Row]) -> str:
    """Return what ours didn't solve, one by one."""
    head = ["case", "kind", "phase range, rad", "oversampling", "chi2 over the truth's"]
    head += ["phase RMSE, rad", "IoU", "confidence"]
    body = [
        [
            row["case"],
            row["kind"],
            f"{row['phase_range_rad']:.2f}",
            " x ".join(f"{value:.2f}" for value in row["oversampling"]),
            f"{row['chi2_over_truth']:.2f}",
            f"{row['phase_rmse']:.3f}",
            f"{row['iou']:.3f}",
            f"{row['confidence']:.2f}",
        ]
        for row in rows
        if row["program"] == "ours" and not row["success"]
    ]
    return table(head, body) if body else "None.\n"


def scan_table(scans: Sequence[Row]) -> str:
    """Return cost, fit and agreement between seeds on the real scan."""
    head = ["volume", "program", "seeds", "CPU s", "chi2, median (range)"]
    head += ["correlation of pairs, median (least)", "phase difference of pairs, rad", "the same object"]
    body = []
    for kind, group in ordered(scans, "kind"):
        for name, (row,) in ordered(group, "program", NAMES):
            chi2, same, apart = (row[k] for k in ("chi2", "correlations", "phase_differences_rad"))
            body.append(
                [
                    kind,
                    NAMES[name],
                    str(row["seeds"]),
                    f"{np.median(row['cpu_s']):.1f}",
                    f"{np.median(chi2):.4f} ({min(chi2):.4f}-{max(chi2):.4f})",
                    f"{np.median(same):.3f} ({min(same):.3f})" if same else "-",
                    f"{np.median(apart):.3f}" if apart else "-",
                    f"{row['alike']} of {row['seeds']}",
                ]
            )
    return table(head, body)


def program_table(programs: dict[str, Row]) -> str:
    """Return what ran where and when."""
    head = ["program", "version", "torch", "date", "processor"]
    body = [
        [
            NAMES[name],
            str(facts.get("version", facts["commit"] if name == "ours" else "")),
            "" if name == "pynx" else facts["torch"],
            facts["date"],
            f"{facts['cpu']}, {facts['cores']} cores, one thread",
        ]
        for name, facts in sorted(programs.items(), key=lambda item: list(NAMES).index(item[0]))
    ]
    return table(head, body)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw phase error by phase range, success by kind, and CPU time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    groups = [(n, g) for n, g in ordered(rows, "program", NAMES) if n != "adam"]
    figure, (error, share, cost) = plt.subplots(
        1, 3, figsize=(14, 5.4), layout="constrained", width_ratios=(1.2, 1.0, 0.8)
    )
    for place, (name, group) in enumerate(groups):
        label, colour = NAMES[name].strip("*"), COLOURS[name]
        clean = [row for row in group if is_main(row) or row["case"].startswith(STRONG)]
        x = [row["phase_range_rad"] / np.pi for row in clean]
        mark = {"s": 22 if name == "ours" else 14, "color": colour, "zorder": 3 if name == "ours" else 2}
        error.scatter(x, [max(row["phase_rmse"], 1e-3) for row in clean], label=label, **mark)
        cost.boxplot(
            [row["cpu_s"] for row in group],
            positions=[place],
            widths=0.6,
            whis=(0, 100),
            boxprops={"color": colour},
            medianprops={"color": colour},
        )
    error.axhline(0.1, color="black", lw=0.8, ls=":")
    error.set(yscale="log", xlabel="phase range of the crystal, π rad", ylabel="phase RMSE, rad")
    names = [NAMES[name].strip("*").replace(", ", "\n") for name, _ in groups]
    draw_shares(share, groups, names)
    cost.set_xticks(range(len(groups)), names, rotation=35, fontsize=7)
    cost.set(ylabel="CPU s a case", ylim=(0, None))
    figure.legend(loc="outside upper center", ncols=len(groups), fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_shares(axes: Any, groups: Sequence[tuple[str, list[Row]]], names: Sequence[str]) -> None:
    """Draw the share that each program solved of each kind, the strictly solved of it in numbers."""
    rows = [row for _, group in groups for row in group]
    troubles = [kind.title for kind in (*HARDER, *OTHERS)]
    kinds = [kind for kind, _ in ordered(rows, "kind") if kind not in troubles]
    kinds += [kind for kind in troubles if any(row["kind"] == kind for row in rows)]
    parts = [[[r["success"] for r in group if r["kind"] == kind] for _, group in groups] for kind in kinds]
    shares = np.array([[np.mean(part) if part else np.nan for part in line] for line in parts])
    axes.imshow(shares, aspect="auto", cmap="Blues", vmin=0, vmax=1.6)
    for i, line in enumerate(parts):
        for j, part in enumerate(line):
            axes.text(j, i, f"{sum(part)}/{len(part)}" if part else "", ha="center", va="center", fontsize=7)
    axes.set_xticks(range(len(names)), names, rotation=35, fontsize=7)
    axes.set_yticks(range(len(kinds)), kinds, fontsize=7)
    axes.set_title("solved: RMSE < 0.1 rad and IoU > 0.95", fontsize=9)


def report(programs: dict[str, Row], rows: Sequence[Row], scans: Sequence[Row]) -> str:
    """Return all tables as Markdown."""
    sections: list[tuple[str, Callable[[], str]]] = [
        ("Synthetic crystals, 0.5 to 2π rad, 1e6 counts", lambda: main_table(rows)),
        ("Solved, or flagged: strictly / by RMSE < 0.2 rad and IoU > 0.9", lambda: flagged_table(rows)),
        ("By kind: success; median phase RMSE, rad; median IoU; median CPU s", lambda: class_table(rows)),
        ("How it judges itself", lambda: confidence_table(rows)),
        ("What it didn't solve", lambda: failure_table(rows)),
    ]
    if scans:
        sections.append(("The real scan", lambda: scan_table(scans)))
    sections.append(("What ran", lambda: program_table(programs)))
    return "\n".join(f"### {title}\n\n{make()}" for title, make in sections)
