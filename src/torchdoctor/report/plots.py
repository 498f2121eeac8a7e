"""Draw the figures of a report; every function returns a matplotlib Figure and touches no global state.

Colours are safe for colour-blind readers: viridis for amounts, blue for "treated is better" and orange for
"control is better". Names given by users are shown literally: a `$` in them starts no formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from torchdoctor.diagnosis.result import Diagnosis, LayerDiagnosis
from torchdoctor.proof.result import ArmComparison, Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, RULE, PALE = "#1c2530", "#5b6671", "#dfe4e8", "#eceff1"
BLUE, ORANGE, GREY = "#1f6fb2", "#d97a1d", "#8a949e"
FURTHER = ("#009e73", "#b65d9b", "#56b4e9", "#8c6d1f", "#5b3f8c", "#1c2530")  # told apart by the colour-blind
AMOUNTS = "viridis"
WIDTH = 9.6
DIM = 0.6


def literal(text: str, most: int = 32) -> str:
    """Return `text` on one line, at most `most` characters long, with nothing matplotlib would interpret."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text).strip()
    if len(shown) > most:  # the ends tell long names apart
        shown = f"{shown[: most - most // 3 - 1]}…{shown[-(most // 3) :]}"
    return shown.replace("$", r"\$")


def normalised_rows(values: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "row column"]:
    """Scale each row to 0..1 by (value - minimum) / (maximum - minimum); a constant row becomes 0."""
    low = values.min(axis=1, keepdims=True)
    span = values.max(axis=1, keepdims=True) - low
    return np.divide(values - low, span, out=np.zeros_like(values), where=span > 0)


def kernel_order(
    rows: Float[np.ndarray, "category kernel"], diagnosed: Bool[np.ndarray, " category"], most_kernels: int
) -> Int[np.ndarray, " shown"]:
    """Order kernels by the category that owns them (the largest of `rows`), then the strongest first.

    Categories that were not diagnosed own nothing. With more than `most_kernels` kernels, those with the
    highest maximum are kept.
    """
    seen = np.where(diagnosed[:, None], rows, -1.0)
    owner, strength = seen.argmax(axis=0), seen.max(axis=0)
    kept = np.sort(np.argsort(-strength, kind="stable")[:most_kernels])
    return kept[np.lexsort((-strength[kept], owner[kept]))]


def correlation_heat_map(diagnosis: Diagnosis, layer: str, most_kernels: int = 128) -> Figure:
    """Draw how strongly each category relies on each kernel of one layer (Fig. 2a), 0..1 within a category.

    Correlated kernels carry a dot; categories that were not diagnosed are hatched.
    """
    found, diagnosed = diagnosis.layer(layer), diagnosis.counts > 0
    rows = normalised_rows(found.correlation)
    order = kernel_order(rows, diagnosed, most_kernels)
    categories = len(diagnosis.classes)
    row_height = float(np.clip(3.2 / categories, 0.145, 0.36))
    figure, (axes,) = canvas(categories * row_height + 0.95)
    shown = np.where(diagnosed[:, None], rows[:, order], 0.0)
    picture = axes.imshow(shown, cmap=AMOUNTS, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    _mark_correlated(axes, found.correlated[:, order] & diagnosed[:, None], shown, row_height)
    _hatch_rows(axes, np.flatnonzero(~diagnosed), order.size, _font(row_height))
    _category_ticks(axes, diagnosis.classes, row_height)
    axes.set_xticks([])
    axes.set_xlabel("kernels, grouped by the category that owns them, strongest first")
    axes.set_title(_heat_map_title(found, order.size, diagnosis.theta), loc="left", fontsize=10.5)
    _colour_bar(figure, axes, picture, "relative within the category", categories * row_height)
    return figure


def confusion_matrix(diagnosis: Diagnosis) -> Figure:
    """Draw which category is called what, as the share of each category's images, in percent."""
    from matplotlib.colors import PowerNorm

    totals = diagnosis.confusion.sum(axis=1, keepdims=True)
    share = 100.0 * diagnosis.confusion / np.maximum(totals, 1)
    categories = len(diagnosis.classes)
    row_height = float(np.clip(4.0 / categories, 0.145, 0.4))
    figure, (axes,) = canvas(categories * row_height + 1.6)
    norm = PowerNorm(0.5, vmin=0, vmax=100)
    picture = axes.imshow(share, cmap=AMOUNTS, norm=norm, aspect="auto", interpolation="nearest")
    _hatch_rows(axes, np.flatnonzero(totals[:, 0] == 0), categories, _font(row_height), "no images")
    _category_ticks(axes, diagnosis.classes, row_height)
    if categories <= 60:
        turned: Any = {"rotation": 30 if categories <= 10 else 90, "rotation_mode": "anchor", "ha": "right"}
        columns = [literal(name, 20) for name in diagnosis.classes]
        axes.set_xticks(range(categories), columns, fontsize=_font(row_height), va="center", **turned)
    else:
        axes.set_xticks([])
    axes.set(xlabel="called (columns in the order of the rows)", ylabel="category")
    if categories <= 20:
        _write_cells(axes, diagnosis.confusion, share, 9.0 if categories <= 12 else 7.0)
    bar = _colour_bar(figure, axes, picture, "share of the category's images, %", categories * row_height)
    bar.set_ticks([0, 5, 20, 50, 100])
    return figure


def category_gains(comparison: Comparison, split: str) -> Figure:
    """Draw each category's accuracy before treatment and its gain over control, best first (Fig. 4)."""
    chosen = comparison.splits[split]
    gains = np.asarray(chosen.first.gain_per_category, dtype=float)
    order = np.argsort(np.where(np.isnan(gains), np.inf, -gains), kind="stable")
    base = np.asarray(chosen.per_category.get("base", (np.nan,) * gains.size), dtype=float)[order]
    gains, places = gains[order], np.arange(gains.size)
    row_height = float(np.clip(3.4 / gains.size, 0.165, 0.36))
    figure, (left, right) = canvas(gains.size * row_height + 0.95, panels=(1.0, 1.5))
    left.barh(places, np.nan_to_num(base), height=0.62, color="#c3cad1")
    right.barh(places, np.nan_to_num(gains), height=0.62, color=np.where(gains < 0, ORANGE, BLUE).tolist())
    right.axvline(0, color=INK, linewidth=0.8)
    for place, (was, gain) in enumerate(zip(base, gains, strict=True)):
        _label_bar(left, float(place), float(was), f"{was:.1f}", _font(row_height))
        _label_bar(right, float(place), float(gain), _signed(gain), _font(row_height))
    reach = max(1.0, float(np.max(np.abs(np.nan_to_num(gains)))))
    right.set_xlim(-1.2 * reach if np.any(gains < 0) else -0.04 * reach, 1.2 * reach)
    left.set_xlim(0, 118)
    left.set_xticks([0, 25, 50, 75, 100])
    for axes in (left, right):
        axes.set_ylim(gains.size - 0.4, -0.6)
        axes.grid(axis="x", color=RULE, linewidth=0.7)
    _category_ticks(left, [comparison.classes[one] for one in order], row_height)
    right.set_yticks([])
    left.set_title("accuracy before treatment, %", loc="left", fontsize=10)
    right.set_title(f"gain: {literal(comparison.arm, 16)} minus control, points", loc="left", fontsize=10)
    return figure


def arm_colours(comparison: Comparison) -> dict[str, str]:
    """Return each arm's colour: base, control, the arm that the verdict speaks of, then the others."""
    arms = list(next(iter(comparison.splits.values())).accuracy)
    rest = [arm for arm in arms if arm not in ("base", "control", comparison.arm)]
    further = {arm: FURTHER[place % len(FURTHER)] for place, arm in enumerate(rest)}
    return {"base": GREY, "control": ORANGE, comparison.arm: BLUE, **further}


def accuracy_summary(comparison: Comparison) -> Figure:
    """Draw the accuracy of every arm on every split, a faint dot per seed, and the gains with intervals."""
    splits, colours = list(comparison.splits.items()), arm_colours(comparison)
    lanes = len(colours)
    figure, (left, right) = canvas(0.27 * lanes * len(splits) + 0.95, panels=(1.5, 1.0))
    for place, (_, split) in enumerate(splits):
        for lane, (arm, colour) in enumerate(colours.items()):
            height = place + 0.78 * (lane - (lanes - 1) / 2) / lanes
            label = literal(arm, 24) if place == 0 else None
            _seed_dots(left, height, split.accuracy.get(arm, ()), colour, label)
            if arm in split.arms:
                _interval(right, height, split.arms[arm], colour)
    right.axvline(0, color=INK, linewidth=0.8, zorder=1)
    for axes in (left, right):
        axes.set_ylim(len(splits) - 0.5, -0.5)
        axes.margins(x=0.12)
        axes.grid(axis="x", color=RULE, linewidth=0.7)
        for edge in range(1, len(splits)):
            axes.axhline(edge - 0.5, color=RULE, linewidth=0.7)
    if all(one.gain.low == one.gain.high == 0 for _, split in splits for one in split.arms.values()):
        right.set_xlim(-1, 1)
    names = [literal(name, 24) + ("\n(primary)" if name == comparison.primary else "") for name, _ in splits]
    left.set_yticks(range(len(splits)), names, fontsize=10)
    right.set_yticks([])
    left.set_title("accuracy, %", loc="left", fontsize=10)
    right.set_title("gain and 95 % interval, points", loc="left", fontsize=10)
    marks, labels = left.get_legend_handles_labels()
    figure.legend(marks, labels, loc="outside lower left", ncols=min(lanes, 6), frameon=False, labelcolor=INK)
    return figure


def overlay(
    image: Float[np.ndarray, "height width 3"], summed_map: Float[np.ndarray, "height width"], maximum: float
) -> Float[np.ndarray, "height width 3"]:
    """Lay a summed derivative map (Fig. 2b) over the dimmed grey image; `maximum` is the top of the scale.

    Image and result are in 0..1, the map is not negative. Two maps drawn with the same `maximum` can be
    compared by eye. Where the map is 0 only the dimmed image is left.
    """
    from matplotlib import colormaps

    grey = DIM * (np.clip(image, 0, 1) @ np.array([0.299, 0.587, 0.114]))
    usable = np.isfinite(maximum) and maximum > 0
    amount = np.clip(np.nan_to_num(summed_map) / maximum, 0, 1) if usable else np.zeros(grey.shape)
    opacity = np.minimum(1.0, 1.6 * amount)[..., None]
    colours = np.asarray(colormaps[AMOUNTS](0.15 + 0.85 * amount))[..., :3]
    return (1 - opacity) * grey[..., None] + opacity * colours


def canvas(height: float, panels: tuple[float, ...] = (1.0,), rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a white figure and its axes side by side, row by row, without box, in quiet ink."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(WIDTH, height), dpi=100, layout="constrained", facecolor="white")
    grid = list(figure.subplots(rows, len(panels), squeeze=False, width_ratios=panels).flat)
    for axes in grid:
        axes.spines[:].set_visible(False)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
        axes.tick_params(length=0, labelcolor=INK, labelsize=9)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set(color=MUTED, fontsize=9)
    return figure, grid


def _font(row_height: float) -> float:
    """Return the largest label size in points that fits rows of `row_height` inches, 7 to 9.5."""
    return float(np.clip(50 * row_height, 7.0, 9.5))


def _category_ticks(axes: Axes, names: Sequence[str], row_height: float) -> None:
    """Name every row."""
    axes.set_yticks(range(len(names)), [literal(name, 24) for name in names], fontsize=_font(row_height))


def _heat_map_title(layer: LayerDiagnosis, shown: int, theta: float) -> str:
    """Return the layer's name, how many kernels are shown and what a dot means."""
    total = layer.correlation.shape[1]
    which = (
        f"{total} kernels" if shown == total else f"the {shown} of {total} kernels with the highest maximum"
    )
    return f"{literal(layer.name, 48)}: {which}    • correlated (at least θ = {theta:g})"


def _mark_correlated(
    axes: Axes,
    correlated: Bool[np.ndarray, "row column"],
    values: Float[np.ndarray, "row column"],
    height: float,
) -> None:
    """Put a small dot on each correlated cell, dark on bright cells and bright on dark ones."""
    rows, columns = np.nonzero(correlated)
    size = min(72 * height, 72 * 7.0 / max(1, correlated.shape[1])) * 0.38
    colours = np.where(values[rows, columns] > 0.45, INK, "#ffffff")
    axes.scatter(columns, rows, s=min(size, 4.0) ** 2, c=colours.tolist(), linewidths=0)


def _hatch_rows(
    axes: Axes, rows: Int[np.ndarray, " row"], width: int, size: float, text: str = "not diagnosed"
) -> None:
    """Hatch whole rows and say why they are empty."""
    box = {"facecolor": PALE, "edgecolor": "none", "pad": 0.8}
    for row in rows.tolist():
        span = (row - 0.5, row + 0.5)
        axes.fill_betweenx(span, -0.5, width - 0.5, fc=PALE, ec="#c2c9cf", lw=0, hatch="////")
        axes.text((width - 1) / 2, row, text, ha="center", va="center", fontsize=size, color=MUTED, bbox=box)


def _colour_bar(figure: Figure, axes: Axes, picture: Any, label: str, height: float) -> Any:
    """Add a slim scale at the right, as tall as the axes but at most about 3 inches."""
    bar = figure.colorbar(
        picture, ax=axes, shrink=min(1.0, 3.0 / height), anchor=(0, 1), aspect=28, pad=0.012
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8.5, labelcolor=INK)
    bar.set_label(label, fontsize=8.5, color=MUTED)
    return bar


def _write_cells(
    axes: Axes, counts: Int[np.ndarray, "row column"], share: Float[np.ndarray, "row column"], size: float
) -> None:
    """Write the number of images into each cell that has any."""
    for row, column in np.argwhere(counts > 0).tolist():
        colour = INK if share[row, column] > 36 else "#ffffff"
        axes.text(
            column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=size, color=colour
        )


def _signed(value: float) -> str:
    """Return a signed number with one decimal and a true minus."""
    return f"{value:+.1f}".replace("-", "−")


def _label_bar(axes: Axes, place: float, value: float, text: str, size: float, gap: float = 4) -> None:
    """Write a value beyond the end of its bar; "-" for a missing one."""
    end, shift = (0.0, gap) if np.isnan(value) else (value, -gap if value < 0 else gap)
    side = "left" if shift > 0 else "right"
    look: Any = {"ha": side, "va": "center", "fontsize": size, "color": INK}
    shown = "-" if np.isnan(value) else text
    axes.annotate(shown, (end, place), (shift, 0), textcoords="offset points", **look)


def _seed_dots(axes: Axes, place: float, accuracies: Sequence[float], colour: str, label: str | None) -> None:
    """Draw one arm on one split: a faint dot per seed, the mean as a large one with its value."""
    values = [value for value in accuracies if not np.isnan(value)]
    mean = float(np.mean(values)) if values else np.nan
    if len(values) > 1:
        axes.scatter(values, [place] * len(values), s=16, color=colour, alpha=0.4, linewidths=0, zorder=2)
    axes.scatter([mean], [place], s=58, color=colour, edgecolors="white", zorder=3, label=label)
    if values:
        _label_bar(axes, place, max(values), f"{mean:.1f}", 8.5, gap=8.0)


def _interval(axes: Axes, place: float, found: ArmComparison, colour: str) -> None:
    """Draw the gain of one arm on one split as a dot on its interval, with the numbers at the right."""
    gain = found.gain
    missing = np.isnan(gain.mean)
    text = "-" if missing else f"{_signed(gain.mean)} ({_signed(gain.low)} to {_signed(gain.high)})"
    axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8.5, color=INK)
    axes.plot([gain.low, gain.high], [place, place], color=colour, linewidth=2.4, zorder=2)
    axes.scatter([gain.mean], [place], s=58, color=colour, edgecolors="white", zorder=3)
