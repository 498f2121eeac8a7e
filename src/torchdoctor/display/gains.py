"""Draw what a comparison measured: accuracies by arm and test split, gains over the control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from torchdoctor.display.style import (
    BLUE,
    FURTHER,
    GREY,
    INK,
    ORANGE,
    RULE,
    canvas,
    category_ticks,
    label_bar,
    label_size,
    literal,
    signed,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def category_gains(
    classes: Sequence[str],
    before: Float[np.ndarray, " category"],
    gains: Float[np.ndarray, " category"],
    *,
    arm: str,
) -> Figure:
    """Draw each category's accuracy before treatment and its gain over control, best first (Fig. 4).

    Args:
        classes: The names of the categories.
        before: The accuracy of the base network in percent, NaN where it is not known.
        gains: The arm's accuracy minus the control's in percentage points, NaN where it is not known.
        arm: The name of the arm, for the title.

    Returns:
        The figure: accuracies on the left axes, gains on the right.
    """
    order = np.argsort(np.where(np.isnan(gains), np.inf, -gains), kind="stable")
    base = before[order]
    gains, places = gains[order], np.arange(gains.size)
    row_height = float(np.clip(3.4 / gains.size, 0.165, 0.36))
    figure, (left, right) = canvas(gains.size * row_height + 0.95, panels=(1.0, 1.5))
    left.barh(places, np.nan_to_num(base), height=0.62, color="#c3cad1")
    right.barh(places, np.nan_to_num(gains), height=0.62, color=np.where(gains < 0, ORANGE, BLUE).tolist())
    right.axvline(0, color=INK, linewidth=0.8)
    for place, (was, gain) in enumerate(zip(base, gains, strict=True)):
        label_bar(left, float(place), float(was), f"{was:.1f}", label_size(row_height))
        label_bar(right, float(place), float(gain), signed(gain), label_size(row_height))
    reach = max(1.0, float(np.max(np.abs(np.nan_to_num(gains)))))
    right.set_xlim(-1.2 * reach if np.any(gains < 0) else -0.04 * reach, 1.2 * reach)
    left.set_xlim(0, 118)
    left.set_xticks([0, 25, 50, 75, 100])
    for axes in (left, right):
        axes.set_ylim(gains.size - 0.4, -0.6)
        axes.grid(axis="x", color=RULE, linewidth=0.7)
    category_ticks(left, [classes[category] for category in order], row_height)
    right.set_yticks([])
    left.set_title("accuracy before treatment, %", loc="left", fontsize=10)
    right.set_title(f"gain: {literal(arm, 16)} minus control, points", loc="left", fontsize=10)
    return figure


def arm_colours(arms: Sequence[str], first: str) -> dict[str, str]:
    """Return each arm's colour: base, control, the arm that the verdict speaks of, then the others.

    Args:
        arms: The names of all arms.
        first: The arm that the verdict speaks of.

    Returns:
        A colour for each arm, in the order in which they are drawn.
    """
    rest = [arm for arm in arms if arm not in ("base", "control", first)]
    further = {arm: FURTHER[place % len(FURTHER)] for place, arm in enumerate(rest)}
    return {"base": GREY, "control": ORANGE, first: BLUE, **further}


def accuracy_summary(
    accuracy: Mapping[str, Mapping[str, Sequence[float]]],
    gains: Mapping[str, Mapping[str, tuple[float, float, float]]],
    *,
    first: str,
    primary: str,
) -> Figure:
    """Draw the accuracy of every arm on every split, a faint dot per seed, and the gains with intervals.

    Args:
        accuracy: By split and arm: the accuracy of each seed in percent.
        gains: By split and arm: the gain over the control and the bounds of its 95 % interval, in points.
        first: The arm that the verdict speaks of.
        primary: The split that the verdict speaks of.

    Returns:
        The figure: accuracies on the left axes, gains on the right.
    """
    splits = list(accuracy)
    colours = arm_colours(list(accuracy[splits[0]]), first)
    lanes = len(colours)
    figure, (left, right) = canvas(0.27 * lanes * len(splits) + 0.95, panels=(1.5, 1.0))
    for place, split in enumerate(splits):
        for lane, (arm, colour) in enumerate(colours.items()):
            height = place + 0.78 * (lane - (lanes - 1) / 2) / lanes
            label = literal(arm, 24) if place == 0 else None
            _seed_dots(left, height, accuracy[split].get(arm, ()), colour, label)
            if arm in gains[split]:
                _interval(right, height, gains[split][arm], colour)
    right.axvline(0, color=INK, linewidth=0.8, zorder=1)
    for axes in (left, right):
        axes.set_ylim(len(splits) - 0.5, -0.5)
        axes.margins(x=0.12)
        axes.grid(axis="x", color=RULE, linewidth=0.7)
        for edge in range(1, len(splits)):
            axes.axhline(edge - 0.5, color=RULE, linewidth=0.7)
    if all(low == high == 0 for by_arm in gains.values() for _, low, high in by_arm.values()):
        right.set_xlim(-1, 1)
    names = [literal(name, 24) + ("\n(primary)" if name == primary else "") for name in splits]
    left.set_yticks(range(len(splits)), names, fontsize=10)
    right.set_yticks([])
    left.set_title("accuracy, %", loc="left", fontsize=10)
    right.set_title("gain and 95 % interval, points", loc="left", fontsize=10)
    marks, labels = left.get_legend_handles_labels()
    figure.legend(marks, labels, loc="outside lower left", ncols=min(lanes, 6), frameon=False, labelcolor=INK)
    return figure


def _seed_dots(axes: Axes, place: float, accuracies: Sequence[float], colour: str, label: str | None) -> None:
    """Draw an arm on a split: a faint dot per seed, the mean as a large one with its value."""
    values = [value for value in accuracies if not np.isnan(value)]
    mean = float(np.mean(values)) if values else np.nan
    if len(values) > 1:
        axes.scatter(values, [place] * len(values), s=16, color=colour, alpha=0.4, linewidths=0, zorder=2)
    axes.scatter([mean], [place], s=58, color=colour, edgecolors="white", zorder=3, label=label)
    if values:
        label_bar(axes, place, max(values), f"{mean:.1f}", 8.5, gap=8.0)


def _interval(axes: Axes, place: float, gain: tuple[float, float, float], colour: str) -> None:
    """Draw the gain of an arm on a split as a dot on its interval, with the numbers at the right."""
    mean, low, high = gain
    missing = np.isnan(mean)
    text = "-" if missing else f"{signed(mean)} ({signed(low)} to {signed(high)})"
    axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8.5, color=INK)
    axes.plot([low, high], [place, place], color=colour, linewidth=2.4, zorder=2)
    axes.scatter([mean], [place], s=58, color=colour, edgecolors="white", zorder=3)
