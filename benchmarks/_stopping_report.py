"""What stopping scans early comes to: rows to tables and a figure."""

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from _report import table
from running_scans import RIGHT, machine

from bluesky_cdinn.records import PartialResult
from bluesky_cdinn.steadiness import UntilSteady, moved_rad
from bluesky_cdinn.steering import StopRule

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TOLERANCES = (0.03, 0.05, 0.1)
COLOURS = {"weak": "tab:blue", "medium": "tab:orange", "strong": "tab:red", "defect": "tab:purple"}
_NOTHING = np.zeros((3, 1, 1), np.float32)

Row = dict[str, Any]
# What share of a scan was measured, and what came of it.
Ended = tuple[float, Row]
Ends = Callable[[Row], Ended]


def partials(row: Row) -> list[PartialResult]:
    """Return what a rule would have been shown of a scan, no look missing."""
    before = [math.nan, *(update["points"] for update in row["updates"])]
    return [
        PartialResult(
            points=update["points"],
            fraction=update["fraction"],
            amplitude=_NOTHING,
            phase=_NOTHING,
            chi2=update["chi2"],
            confidence=update["confidence"],
            scalars={**update["scalars"], "change_since_points": since},
        )
        for since, update in zip(before, row["updates"], strict=False)
    ]


def whole(row: Row) -> Ended:
    return 1.0, row["full"]


def by(rule: StopRule) -> Ends:
    """Return how scans end by a rule, shown one partial result after the other."""

    def ends(row: Row) -> Ended:
        shown = partials(row)
        for n, update in enumerate(row["updates"], start=1):
            if rule(shown[:n]) is not None:
                return update["fraction"], update["stopped"]
        return whole(row)

    return ends


def at(share: float) -> Ends:
    """Return how scans end that are all stopped at one share: of the kept ones, or between two of them."""

    def ends(row: Row) -> Ended:
        known = {**{float(s): found for s, found in row["fixed"].items()}, 1.0: row["full"]}
        below = max((s for s in known if s <= share + 1e-9), default=min(known))
        above = min(s for s in known if s >= share - 1e-9)
        weight = (share - below) / (above - below) if above > below else 0.0
        first, second = known[below], known[above]
        names = [name for name in first if isinstance(first[name], float) and name in second]
        return share, {name: (1 - weight) * first[name] + weight * second[name] for name in names}

    return ends


def rule_table(rows: Sequence[Row]) -> str:
    """Return what each way to end scans saves and costs; scans that aren't stopped count with no loss."""
    default = by(UntilSteady())
    dose = float(np.mean([default(row)[0] for row in rows]))
    ways: dict[str, Ends] = {"all of each scan": whole}
    ways |= {f"until steady, {t:g} rad{' (default)' * (t == 0.05)}": by(UntilSteady(t)) for t in TOLERANCES}
    ways |= {f"all at {share:.0%}": at(share) for share in (0.6, 0.8)}
    ways[f"all at {dose:.0%}, the default's dose"] = at(dose)
    head = ["scans end", "stopped", "frames saved", "phase RMSE, rad", "moved from the whole's, rad"]
    head += ["fine detail", "strain rms off", "wrong"]
    return table(head, [[name, *cells(rows, ends)] for name, ends in ways.items()])


def cells(rows: Sequence[Row], ends: Ends) -> list[str]:
    ended = [ends(row) for row in rows]
    right = [row["full"]["phase_rmse"] < RIGHT for row in rows]
    moved = [found["to_full_rad"] for _, found in ended]
    wrong = sum(ok and found["phase_rmse"] >= RIGHT for ok, (_, found) in zip(right, ended, strict=True))
    strain = [
        abs(found["strain_rms"] - row["full"]["strain_rms"]) / found["true_strain_rms"]
        for row, (_, found) in zip(rows, ended, strict=True)
    ]
    return [
        f"{sum(share < 1 for share, _ in ended)} of {len(rows)}",
        f"{1 - np.mean([share for share, _ in ended]):.0%}",
        f"{np.median([found['phase_rmse'] for _, found in ended]):.3f}",
        spread(moved, ".3f"),
        f"{np.median([found['fine_rocking'] for _, found in ended]):.2f}",
        spread(strain, ".1%"),
        f"{wrong} of {sum(right)}",
    ]


def spread(values: Sequence[float], form: str) -> str:
    """Return the median, the ninth of ten, and the worst."""
    return ", ".join(format(float(value), form) for value in np.quantile(values, (0.5, 0.9, 1.0)))


def class_table(rows: Sequence[Row]) -> str:
    """Return what the default does to each class, count and kind of schedule."""
    default = by(UntilSteady())
    groups: dict[str, list[Row]] = {kind: [r for r in rows if r["kind"] == kind] for kind in COLOURS}
    for counts in sorted({row["counts"] for row in rows}, reverse=True):
        groups[f"{counts:.0e} counts".replace("e+0", "e")] = [r for r in rows if r["counts"] == counts]
    narrow = min(row["frames"] for row in rows)
    groups["as wide as the detector"] = [r for r in rows if r["frames"] == narrow]
    groups["half as wide again"] = [r for r in rows if r["frames"] > narrow]
    for interval in sorted({row["interval"] for row in rows}):
        groups[f"a look every {interval:.0%}"] = [r for r in rows if r["interval"] == interval]
    head = ["crystals", "stopped", "frames saved", "phase RMSE, rad", "moved from the whole's, rad"]
    head += ["fine detail", "strain rms off", "wrong"]
    return table(head, [[name, *cells(group, default)] for name, group in groups.items() if group])


def scan_table(row: Row) -> str:
    """Return the real scan look by look."""
    body = []
    shown = partials(row)
    rules = [UntilSteady(), UntilSteady(0.1), UntilSteady(0.1, least_confidence=0.25)]
    for n, update in enumerate(row["updates"], start=1):
        said, moved = update["scalars"], moved_rad(shown[:n], UntilSteady().span)
        body.append(
            [
                f"{update['fraction']:.0%}",
                f"{moved:.3f}" if np.isfinite(moved) else "-",
                f"{said['phase_spread_rad']:.3f}",
                f"{update['confidence']:.2f}",
                f"{update['stopped']['to_full_rad']:.3f}",
                f"{update['stopped']['to_full_correlation']:.3f}",
                *("stop" if rule(shown[:n]) is not None else "" for rule in rules),
            ]
        )
    head = ["scan done", "moved, rad", "spread, rad", "confidence", "from the whole's, rad", "correlation"]
    return table([*head, "default", "0.1 rad", "0.1 rad, confidence 0.25"], body)


def draw(rows: Sequence[Row], picture: Path) -> None:
    """Plot where scans end against what that moves, and what was seen to move against what was to come."""
    figure, (ends, tells) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for share, mark in ((0.6, "v"), (0.8, "^")):
        moved = [at(share)(row)[1]["to_full_rad"] for row in rows]
        places = share + np.linspace(-0.012, 0.012, len(moved))
        ends.scatter(places, moved, s=10, marker=mark, color="grey", alpha=0.5, label=f"all at {share:.0%}")
    default = by(UntilSteady())
    for kind, colour in COLOURS.items():
        of_kind = [row for row in rows if row["kind"] == kind]
        stopped = [default(row) for row in of_kind]
        points = [(share, found["to_full_rad"]) for share, found in stopped if share < 1]
        if points:
            ends.scatter(*np.transpose(points), s=18, color=colour, label=f"{kind}, until steady")
        seen = [
            (moved_rad(partials(row)[:n], UntilSteady().span), update["stopped"]["to_full_rad"])
            for row in of_kind
            for n, update in enumerate(row["updates"], start=1)
        ]
        seen = [(x, y) for x, y in seen if np.isfinite(x) and y > 1e-3]
        if seen:
            tells.scatter(*np.transpose(seen), s=7, color=colour, alpha=0.5, label=kind)
    ends.axhline(UntilSteady().tolerance_rad, color="black", linewidth=0.7, linestyle="--")
    ends.set(yscale="log", ylim=(3e-3, 2), xlabel="share of the scan measured", ylabel="moved, rad rms")
    ends.set_title("from the whole scan's result", fontsize=10)
    tells.plot([3e-3, 1], [3e-3, 1], color="black", linewidth=0.7, linestyle="--")
    tells.set(xscale="log", yscale="log", xlim=(3e-3, 1), ylim=(1e-3, 1))
    tells.set(xlabel="moved over the last 5 % of the scan, rad", ylabel="to the whole scan's result, rad")
    tells.set_title("what the rule goes by", fontsize=10)
    for axis in (ends, tells):
        axis.legend(fontsize=7)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def render(kept: Sequence[Row], tables: Path, picture: Path) -> None:
    """Write tables and figure."""
    rows = [row for row in kept if row["kind"] in COLOURS]
    text = [
        f"{len(rows)} crystals, {datetime.now(UTC):%Y-%m-%d}, {machine()}. Three numbers are the median, the "
        "ninth of ten, and the worst; scans that were not stopped count, with no "
        f"loss. Right: to {RIGHT} rad; wrong: not right though the whole scan is. Fine detail: median "
        "correlation with the truth in the outer half of the range along the rocking direction. Strain rms "
        "off: from the whole scan's, in parts of the true one.",
        rule_table(rows),
        "The default, class by class:",
        class_table(rows),
    ]
    for real in (row for row in kept if row["kind"] == "real"):
        text += ["The measured scan, its central 64 x 64 x 64:", scan_table(real)]
    tables.write_text("\n\n".join(text) + "\n")
    print(tables.read_text())
    draw(rows, picture)
