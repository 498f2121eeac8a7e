"""Colours, fonts and axes that all figures share; nothing here or beside it touches pyplot's global state.

Colours are safe for colour-blind readers: viridis for amounts, blue for "treated is better" and orange for
"control is better". Names that come from users are drawn literally: a `$` in them starts no formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, RULE, PALE = "#1c2530", "#5b6671", "#dfe4e8", "#eceff1"
BLUE, ORANGE, GREY = "#1f6fb2", "#d97a1d", "#8a949e"
FURTHER = ("#009e73", "#b65d9b", "#56b4e9", "#8c6d1f", "#5b3f8c", "#1c2530")  # told apart by the colour-blind
AMOUNTS = "viridis"
WIDTH = 9.6


def literal(text: str, most: int = 32) -> str:
    """Return a name on a single line with nothing that matplotlib would interpret.

    Args:
        text: The name, of any characters.
        most: The greatest length in characters; a longer name loses its middle.

    Returns:
        The text to draw.
    """
    line = "".join(letter if letter.isprintable() else " " for letter in text).strip()
    if len(line) > most:  # the ends tell long names apart
        line = f"{line[: most - most // 3 - 1]}…{line[-(most // 3) :]}"
    return line.replace("$", r"\$")


def canvas(height: float, panels: tuple[float, ...] = (1.0,), rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a white figure and its axes side by side, row by row, without boxes.

    Args:
        height: The figure's height in inches; the width is `WIDTH`.
        panels: The relative widths of the axes in a row.
        rows: The number of rows.

    Returns:
        The figure, and its axes in reading order.
    """
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


def label_size(row_height: float) -> float:
    """Return the label size that fits the rows of a figure.

    Args:
        row_height: The height of a row in inches.

    Returns:
        The size in points, 7 to 9.5.
    """
    return float(np.clip(50 * row_height, 7.0, 9.5))


def category_ticks(axes: Axes, names: Sequence[str], row_height: float) -> None:
    """Name every row of a figure.

    Args:
        axes: The axes whose rows 0, 1, ... are named.
        names: A name for each row.
        row_height: The height of a row in inches.
    """
    axes.set_yticks(range(len(names)), [literal(name, 24) for name in names], fontsize=label_size(row_height))


def colour_bar(figure: Figure, axes: Axes, picture: Any, label: str, height: float) -> Any:
    """Add a slim scale at the right, as tall as the axes but at most about 3 inches.

    Args:
        figure: The figure.
        axes: The axes that the scale belongs to.
        picture: What was drawn with colours.
        label: What the colours mean.
        height: The height of the axes in inches.

    Returns:
        The colour bar.
    """
    bar = figure.colorbar(
        picture, ax=axes, shrink=min(1.0, 3.0 / height), anchor=(0, 1), aspect=28, pad=0.012
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8.5, labelcolor=INK)
    bar.set_label(label, fontsize=8.5, color=MUTED)
    return bar


def label_bar(axes: Axes, place: float, value: float, text: str, size: float, gap: float = 4) -> None:
    """Write a value beyond the end of its horizontal bar; "-" where it is missing (NaN).

    Args:
        axes: The axes with the bar.
        place: The bar's height on the y axis.
        value: The bar's end.
        text: The value in words.
        size: The size of the text in points.
        gap: The distance from the end in points.
    """
    end, shift = (0.0, gap) if np.isnan(value) else (value, -gap if value < 0 else gap)
    side = "left" if shift > 0 else "right"
    look: Any = {"ha": side, "va": "center", "fontsize": size, "color": INK}
    axes.annotate(
        "-" if np.isnan(value) else text, (end, place), (shift, 0), textcoords="offset points", **look
    )


def signed(value: float) -> str:
    """Return a signed number with a single decimal and a true minus.

    Args:
        value: The number.

    Returns:
        The text, such as "+1.5" or "−0.3".
    """
    return f"{value:+.1f}".replace("-", "−")
