"""Draw matrices: which category relies on which kernel, and which category is called what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from torchdoctor.display.style import (
    AMOUNTS,
    INK,
    MUTED,
    PALE,
    canvas,
    category_ticks,
    colour_bar,
    label_size,
    literal,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MOST_NAMED = 100  # beyond so many categories rows have no names, and the figure is a picture of all of them
PICTURE_HEIGHT = 7.5  # inches of such a picture
MOST_ROWS, MOST_CELLS = 1000, 250  # rows of a heat map, and rows and columns of a confusion matrix, at most


def normalised_rows(values: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "row column"]:
    """Scale each row to 0..1 by (value - minimum) / (maximum - minimum).

    Args:
        values: A matrix.

    Returns:
        The scaled rows; a constant row becomes 0.
    """
    low = values.min(axis=1, keepdims=True)
    span = values.max(axis=1, keepdims=True) - low
    return np.divide(values - low, span, out=np.zeros_like(values), where=span > 0)


def kernel_order(
    rows: Float[np.ndarray, "category kernel"], diagnosed: Bool[np.ndarray, " category"], most_kernels: int
) -> Int[np.ndarray, " drawn"]:
    """Order kernels by the category that owns them (the largest of `rows`), then the strongest first.

    Args:
        rows: The evidence, each row scaled to 0..1.
        diagnosed: Which categories were diagnosed; the others own no kernel.
        most_kernels: The greatest number of kernels to draw: those with the highest maximum.

    Returns:
        The columns of `rows` in the order in which they are drawn.
    """
    seen = np.where(diagnosed[:, None], rows, -1.0)
    owner, strength = seen.argmax(axis=0), seen.max(axis=0)
    strongest = np.sort(np.argsort(-strength, kind="stable")[:most_kernels])
    return strongest[np.lexsort((-strength[strongest], owner[strongest]))]


def correlation_heat_map(
    correlation: Float[np.ndarray, "category kernel"],
    correlated: Bool[np.ndarray, "category kernel"],
    diagnosed: Bool[np.ndarray, " category"],
    classes: Sequence[str],
    *,
    layer: str,
    theta: float,
    most_kernels: int = 128,
) -> Figure:
    """Draw how strongly each category relies on each kernel of a layer (Fig. 2a), 0..1 within a category.

    Of more than 100 categories the rows are thin, without names and dots.

    Args:
        correlation: The mean evidence of each category for each kernel.
        correlated: Which kernels are correlated with which category; they carry a dot.
        diagnosed: Which categories were diagnosed; the others are hatched.
        classes: The names of the categories.
        layer: The name of the layer, for the title.
        theta: The threshold from which a kernel counts as correlated, for the title.
        most_kernels: The greatest number of kernels to draw: those with the highest maximum.

    Returns:
        The figure.
    """
    rows = normalised_rows(correlation)
    order = kernel_order(rows, diagnosed, most_kernels)
    categories = len(classes)
    heights = np.where(diagnosed[:, None], rows[:, order], 0.0)
    named = categories <= MOST_NAMED
    row_height = float(np.clip(3.2 / categories, 0.145, 0.36)) if named else PICTURE_HEIGHT / categories
    figure, (axes,) = canvas(categories * row_height + 0.95)
    if not named:
        heights = _largest_of_blocks(heights, _block(categories, MOST_ROWS), 1)
    picture = axes.imshow(heights, cmap=AMOUNTS, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    if named:
        _mark_correlated(axes, correlated[:, order] & diagnosed[:, None], heights, row_height)
        _hatch_rows(axes, np.flatnonzero(~diagnosed), order.size, label_size(row_height))
        category_ticks(axes, classes, row_height)
    else:
        _without_names(axes, categories, _block(categories, MOST_ROWS))
    axes.set_xticks([])
    axes.set_xlabel("kernels, grouped by the category that owns them, strongest first")
    title = _heat_map_title(layer, correlation.shape[1], order.size, theta if named else None)
    axes.set_title(title, loc="left", fontsize=10.5)
    colour_bar(figure, axes, picture, "relative within the category", categories * row_height)
    return figure


def confusion_matrix(confusion: Int[np.ndarray, "category category"], classes: Sequence[str]) -> Figure:
    """Draw which category is called what, as the share of each category's images, in percent.

    Of more than 100 categories the rows have no names; of more than 250 each cell is the largest of several.

    Args:
        confusion: The number of images of category i (row) that were called j (column).
        classes: The names of the categories.

    Returns:
        The figure.
    """
    from matplotlib.colors import PowerNorm

    totals = confusion.sum(axis=1, keepdims=True)
    share = 100.0 * confusion / np.maximum(totals, 1)
    categories = len(classes)
    named = categories <= MOST_NAMED
    row_height = float(np.clip(4.0 / categories, 0.145, 0.4)) if named else PICTURE_HEIGHT / categories
    figure, (axes,) = canvas(categories * row_height + 1.6)
    norm = PowerNorm(0.5, vmin=0, vmax=100)
    block = 1 if named else _block(categories, MOST_CELLS)
    cells = _largest_of_blocks(share, block, block)
    picture = axes.imshow(cells, cmap=AMOUNTS, norm=norm, aspect="auto", interpolation="nearest")
    if named:
        empty = np.flatnonzero(totals[:, 0] == 0)
        _hatch_rows(axes, empty, categories, label_size(row_height), "no images")
        category_ticks(axes, classes, row_height)
    if categories <= 60:
        turned: Any = {"rotation": 30 if categories <= 10 else 90, "rotation_mode": "anchor", "ha": "right"}
        columns = [literal(name, 20) for name in classes]
        axes.set_xticks(range(categories), columns, fontsize=label_size(row_height), va="center", **turned)
    else:
        axes.set_xticks([])
    axes.set(xlabel="called (columns in the order of the rows)", ylabel="category")
    if not named:
        _without_names(axes, categories, block)
    if categories <= 20:
        _write_cells(axes, confusion, share, 9.0 if categories <= 12 else 7.0)
    bar = colour_bar(figure, axes, picture, "share of the category's images, %", categories * row_height)
    bar.set_ticks([0, 5, 20, 50, 100])
    return figure


def _block(categories: int, most: int) -> int:
    """Return how many categories share a row, so that there are at most so many rows."""
    return -(-categories // most)


def _largest_of_blocks(
    values: Float[np.ndarray, "row column"], height: int, width: int
) -> Float[np.ndarray, "block_row block_column"]:
    """Return the largest value of each block of rows and columns, so that no single cell is lost."""
    if (height, width) == (1, 1):
        return values
    rows, columns = range(0, values.shape[0], height), range(0, values.shape[1], width)
    largest: np.ndarray = np.maximum.reduceat(np.maximum.reduceat(values, rows, axis=0), columns, axis=1)
    return largest


def _without_names(axes: Axes, categories: int, block: int) -> None:
    """Say how many categories the rows are, which have no names."""
    axes.set_yticks([])
    together = f", the largest of {block} neighbours each" if block > 1 else ""
    axes.set_ylabel(f"{categories:,} categories in their order{together}")


def _heat_map_title(layer: str, total: int, drawn: int, theta: float | None) -> str:
    """Return the layer's name, how many kernels are drawn and, where there are dots, what they mean."""
    which = (
        f"{total} kernels" if drawn == total else f"the {drawn} of {total} kernels with the highest maximum"
    )
    dots = "" if theta is None else f"    • correlated (at least θ = {theta:g})"
    return f"{literal(layer, 48)}: {which}{dots}"


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


def _write_cells(
    axes: Axes, counts: Int[np.ndarray, "row column"], share: Float[np.ndarray, "row column"], size: float
) -> None:
    """Write the number of images into each cell that has any."""
    for row, column in np.argwhere(counts > 0).tolist():
        colour = INK if share[row, column] > 36 else "#ffffff"
        axes.text(
            column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=size, color=colour
        )
