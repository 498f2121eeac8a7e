"""Draw curves and bars: sparsity by layer, noise, training histories, causes of errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from torchdoctor.display.style import BLUE, FURTHER, GREY, INK, ORANGE, RULE, canvas, label_bar, literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NAMED = 40  # layers whose names still fit under the axis
CURVES = {
    "normal": ("normal images, still right", BLUE, "-", "o"),
    "restored": ("adversarial, back at the true label", ORANGE, "--", "s"),
    "fooled": ("adversarial, still at the false label", GREY, ":", "^"),
}


def sparsity_by_layer(shares_by_layer: Mapping[str, Float[np.ndarray, " category"]]) -> Figure:
    """Draw the share of each layer's kernels that carries 90 % of the evidence, a dot per category.

    The paper's first discovery: few kernels speak for a category, the fewer the deeper the layer.

    Args:
        shares_by_layer: By layer: the share of its kernels (0..1) for each category, NaN where not known.

    Returns:
        The figure.
    """
    figure, (axes,) = canvas(3.4)
    middles = []
    for place, layer_shares in enumerate(shares_by_layer.values()):
        shares = 100 * layer_shares[~np.isnan(layer_shares)]
        spread = np.linspace(-0.16, 0.16, len(shares)) if len(shares) > 1 else np.zeros(len(shares))
        axes.scatter(place + spread, shares, s=14, color=BLUE, alpha=0.35, linewidths=0)
        middles.append(float(np.median(shares)) if len(shares) else np.nan)
    axes.plot(range(len(middles)), middles, color=INK, marker="o", markersize=5, linewidth=1.4)
    axes.set_ylim(0, 102)
    axes.set_xlim(-0.5, len(middles) - 0.5)
    axes.grid(axis="y", color=RULE, linewidth=0.7)
    names = [literal(name, 26) for name in shares_by_layer]
    step = 1 + (len(names) - 1) // MOST_NAMED
    turned: Any = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"} if len(names) > 4 else {}
    axes.set_xticks(range(0, len(names), step), names[::step], fontsize=8.5, **turned)
    axes.set_ylabel("% of the layer's kernels")
    axes.set_title(
        "kernels that carry 90 % of the evidence: a dot per category, the line is their median",
        loc="left",
        fontsize=10,
    )
    return figure


def noise_curves(
    ranges: Sequence[float],
    curves: Mapping[str, Float[np.ndarray, "range repeat"]],
    *,
    title: str,
    unit: str,
    images: int,
) -> Figure:
    """Draw the noise curves (Fig. 3): the mean over the repeats, and the range of all of them.

    Args:
        ranges: The noise ranges.
        curves: The percentages by curve; the keys are those of `CURVES`.
        title: The title.
        unit: The unit of the noise ranges.
        images: The number of images.

    Returns:
        The figure.
    """
    figure, (axes,) = canvas(3.6)
    for name, (label, colour, style, mark) in CURVES.items():
        values = curves[name]
        axes.fill_between(ranges, values.min(1), values.max(1), color=colour, alpha=0.13, linewidth=0)
        axes.plot(
            ranges, values.mean(1), color=colour, linestyle=style, marker=mark, markersize=5, label=label
        )
    axes.set_ylim(-2, 103)
    axes.grid(color=RULE, linewidth=0.7)
    axes.set_xlabel(f"noise range, {unit}")
    axes.set_ylabel(f"% of {images} images")
    axes.set_title(title, loc="left", fontsize=10)
    axes.legend(frameon=False, labelcolor=INK, fontsize=9, loc="best")
    return figure


def history_curves(histories: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], term: str) -> Figure:
    """Draw how a number of the training went on, epoch by epoch: a line for each arm and seed.

    Args:
        histories: By arm: for each seed the numbers of every epoch, among them "epoch".
        term: The name of the number, such as "loss" or "validation_accuracy". Epochs without it are left out.

    Returns:
        The figure; all seeds of an arm have its colour.
    """
    figure, (axes,) = canvas(3.2)
    colours = [ORANGE, BLUE, *FURTHER]
    for place, (arm, seeds) in enumerate(histories.items()):
        for number, epochs in enumerate(seeds):
            points = [(epoch["epoch"], epoch[term]) for epoch in epochs if term in epoch]
            axes.plot(
                [at for at, _ in points],
                [value for _, value in points],
                color=colours[place % len(colours)],
                linewidth=1.4,
                marker="o",
                markersize=3,
                label=literal(arm, 24) if number == 0 else None,
            )
    axes.grid(color=RULE, linewidth=0.7)
    axes.set_xlabel("epoch")
    axes.set_ylabel(literal(term.replace("_", " "), 40))
    axes.legend(frameon=False, labelcolor=INK, fontsize=9, loc="best")
    return figure


def cause_bars(counts: Mapping[str, int], *, title: str) -> Figure:
    """Draw how many errors have which cause.

    Args:
        counts: The number of errors by cause, in the order in which they are drawn.
        title: The title.

    Returns:
        The figure.
    """
    figure, (axes,) = canvas(0.34 * max(len(counts), 1) + 0.95)
    places = np.arange(len(counts))
    axes.barh(places, list(counts.values()), height=0.62, color=[_cause_colour(cause) for cause in counts])
    for place, number in enumerate(counts.values()):
        label_bar(axes, float(place), float(number), str(number), 9.0)
    axes.set_yticks(places, [literal(cause, 32) for cause in counts], fontsize=9)
    axes.set_ylim(len(counts) - 0.4, -0.6)
    axes.set_xlim(0, 1.12 * max([1, *counts.values()]))
    axes.grid(axis="x", color=RULE, linewidth=0.7)
    axes.set_xlabel("errors")
    axes.set_title(title, loc="left", fontsize=10)
    return figure


def _cause_colour(cause: str) -> str:
    """Return grey for errors whose cause is not known, blue for all others."""
    return GREY if cause == "unknown" else BLUE
