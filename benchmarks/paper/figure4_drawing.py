"""Draw Figure 4 from its lines: base accuracy, gain over the base and over the control, by category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.experiment.recording import ARM_COLOURS, mean_of
from benchmarks.ledger.lines import Line
from torchdoctor.display.style import INK, MUTED, RULE, canvas, literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Gains = Mapping[tuple[str, str], Mapping[str, list[float]]]  # (arm, reading), category: one number per seed
MARKS = {"": "o", "literal": "D", "ours": "o"}


def category_gains(lines: Sequence[Line], title: str) -> Figure | None:
    """Draw three panels that share their categories, the least accurate first; None without lines."""
    base, over_base, over_control = _by_category(lines)
    if not base:
        return None
    order = sorted(base, key=lambda name: np.mean(base[name]))
    figure, (left, middle, right) = canvas(0.3 * len(order) + 1.6, panels=(0.8, 1.2, 1.2))
    places = np.arange(len(order))
    left.barh(places, [np.mean(base[name]) for name in order], height=0.6, color="#c3cad1")
    for place, name in enumerate(order):
        left.text(np.mean(base[name]) + 2, place, f"{np.mean(base[name]):.0f}", va="center", fontsize=8.5)
    left.set_xlim(0, 115)
    left.set_xticks([0, 50, 100])
    left.set_yticks(places, [literal(name, 26) for name in order], fontsize=8.5)
    _dots(middle, over_base, order)
    _dots(right, over_control, order)
    for axes in (left, middle, right):
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.grid(axis="x", color=RULE, linewidth=0.7)
    left.set_title("base accuracy, %", loc="left", fontsize=9.5)
    middle.set_title("gain over the base, points", loc="left", fontsize=9.5)
    right.set_title("gain over the control, points", loc="left", fontsize=9.5)
    seeds = len({(line["classes_seed"], line["seed"]) for line in lines})
    title += f": means over {seeds} seed{'s' * (seeds > 1)}; ρ: rank correlation of the gain over the control"
    title += " with accuracy on validation images"
    figure.suptitle(title, x=0.01, ha="left", fontsize=9.5, color=MUTED)
    marks, labels = middle.get_legend_handles_labels()
    labels = [name + _said(lines, name) for name in labels]
    figure.legend(marks, labels, loc="outside lower left", ncols=4, frameon=False, labelcolor=INK)
    return figure


def _said(lines: Sequence[Line], name: str) -> str:
    """Return the mean over the seeds of an arm's rank correlation, as the legend says it."""
    arm, _, reading = name.lstrip("+").partition(", ")
    found = [
        line.get("rank_correlation")
        for line in lines
        if (line["arm"], line["variant"]) == (arm, f"{reading}-rank")
    ]
    mean = mean_of(found)
    return "" if np.isnan(mean) else f" (ρ {mean:+.2f})".replace("-", "−")


def _by_category(lines: Sequence[Line]) -> tuple[dict[str, list[float]], Gains, Gains]:
    """Return base accuracies, gains over the base and gains over the control, by category."""
    base: dict[str, list[float]] = {}
    over_base: dict[tuple[str, str], dict[str, list[float]]] = {}
    over_control: dict[tuple[str, str], dict[str, list[float]]] = {}
    for cell in sorted({(line["classes_seed"], line["seed"]) for line in lines}):
        mine = {
            (line["arm"], line["variant"]): line
            for line in lines
            if (line["classes_seed"], line["seed"]) == cell and "per_category" in line
        }
        if not {("base", "validation"), ("base", ""), ("control", "")} <= set(mine):
            continue
        for place, name in enumerate(mine["base", "validation"]["categories"]):
            was, further = (mine[arm, ""]["per_category"][place] for arm in ("base", "control"))
            base.setdefault(name, []).append(was)
            for key, line in mine.items():
                if key[0] == "base":
                    continue
                now = line["per_category"][place]
                over_base.setdefault(key, {}).setdefault(name, []).append(now - was)
                if key[0] != "control":
                    over_control.setdefault(key, {}).setdefault(name, []).append(now - further)
    return base, over_base, over_control


def _dots(axes: Axes, gains: Gains, order: Sequence[str]) -> None:
    """Draw a dot per category and arm: filled for our reading, hollow for the literal one."""
    axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
    for lane, ((arm, reading), rows) in enumerate(sorted(gains.items(), key=_rank_of)):
        shift = 0.6 * (lane + 0.5) / len(gains) - 0.3
        values = [float(np.mean(rows[name])) if name in rows else np.nan for name in order]
        colour = ARM_COLOURS[arm]
        axes.scatter(
            values,
            np.arange(len(order)) + shift,
            s=26,
            marker=MARKS[reading],
            facecolors="white" if reading == "literal" else colour,
            edgecolors=colour,
            linewidths=1.2,
            label=f"+{arm}, {reading}" if reading else arm,
            zorder=3,
        )
    for place in range(len(order) - 1):
        axes.axhline(place + 0.5, color=RULE, linewidth=0.7, zorder=0)
    reach = [abs(edge) for edge in axes.get_xlim()]
    if max(reach) < 1:
        axes.set_xlim(-1, 1)
    axes.set_yticks([])


def _rank_of(item: tuple[tuple[str, str], object]) -> tuple[int, str]:
    """Sort arms as the table does, literal before ours."""
    (arm, reading), _ = item
    return list(ARM_COLOURS).index(arm), reading
