"""Figure 6: at which depth the constraints help.

    python benchmarks/paper/figure6.py --data ROOT [--protocol short] [--budget MINUTES]

Paper: VGG-16 (83 %), mini-ImageNet: "the increased accuracy of all constraints will increase when the layer
goes deep". Here: the last convolution of each quarter of the network, one layer at a time, and one control
for all of them. Variants: `layer4.conv2-literal`, `-ours`. `literal` has the paper's J = 10 in protocol
`paper` and J = 1 elsewhere: ten draws at a first layer are ten times the network behind it, far over three
minutes.
Got in `short` (small_resnet, 3 seeds, 50 minutes of one core): no gain grows with depth; docs/ledger.md.
"""

from __future__ import annotations

import argparse
import functools
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.experiment.arms import (
    COMBINED,
    LITERAL,
    OURS,
    READINGS,
    TAU,
    arms_at,
    convolutions,
    variants_of,
)
from benchmarks.experiment.cells import Bench, Cell, measure
from benchmarks.experiment.recording import ARM_COLOURS, keep_picture, lines_of, picture_name, run_and_draw
from benchmarks.experiment.running import arguments, bench_of
from benchmarks.ledger.lines import Line
from torchdoctor.display.style import INK, RULE, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PARTS = 4


def layers_of(cell: Cell) -> list[str]:
    """Return the last convolution of each quarter, in the order of the forward pass; gates are left out."""
    names = [one.name for one in convolutions(cell) if one.shape[1] * one.shape[2] > 1]
    last = [round((part + 1) * len(names) / PARTS) - 1 for part in range(PARTS)]
    return list(dict.fromkeys(names[max(place, 0)] for place in last))


def figure_6(cell: Cell) -> bool:
    """Measure a cell, from the last layer, the paper's, to the first."""
    layers = layers_of(cell)
    diagnosis = functools.cache(lambda: cell.diagnosis(layers))
    literal = LITERAL if cell.protocol.name == "paper" else replace(LITERAL, draws=1)
    for layer in reversed(layers):
        arms = arms_at(cell, layer, before=f"{layer}-", readings=(literal, OURS))
        settings = {"layers": [layer], "tau": TAU, "masks_per_category": 20, "literal_draws": literal.draws}
        if not measure(
            cell, "figure6", arms, variants=variants_of(arms), diagnosis=diagnosis, settings=settings
        ):
            return False
    return True


def draw(given: argparse.Namespace, bench: Bench) -> None:
    """Draw a picture per data set: a row per network, a column per reading."""
    for dataset in given.datasets:
        lines = lines_of(given, bench, dataset)
        rows = [one for one in given.architectures if any(line["architecture"] == one for line in lines)]
        if not rows:
            continue
        figure, grid = canvas(3.0 * len(rows) + 0.5, panels=(1.0, 1.0), rows=len(rows))
        for row, architecture in enumerate(rows):
            mine = [line for line in lines if line["architecture"] == architecture]
            pair = grid[2 * row : 2 * row + 2]
            for axes, reading in zip(pair, READINGS, strict=True):
                _gains(axes, mine, reading.name)
                axes.set_title(f"{architecture}, {dataset}: {reading.name}", loc="left", fontsize=9.5)
            low, high = (pick(edge(axes) for axes in pair) for pick, edge in ((min, _low), (max, _high)))
            for axes in pair:
                axes.set_ylim(low, high)
            pair[0].set_ylabel("gain over the control, points")
        marks, labels = grid[0].get_legend_handles_labels()
        figure.legend(marks, labels, loc="outside lower left", ncols=3, frameon=False, labelcolor=INK)
        keep_picture(figure, bench, picture_name(given.protocol, "figure6", dataset))


def _low(axes: Axes) -> float:
    return min(axes.get_ylim()[0], -0.5)


def _high(axes: Axes) -> float:
    return max(axes.get_ylim()[1], 0.5)


def _gains(axes: Axes, lines: list[Line], reading: str) -> None:
    """Draw each arm's gain by layer: a dot per seed, a line through the means."""
    controls = {line["seed"]: line["accuracy"] for line in lines if line["arm"] == "control"}
    mine = [line for line in lines if line["variant"].endswith(f"-{reading}") and line["seed"] in controls]
    # The lines are measured from the last layer to the first.
    layers = list(dict.fromkeys(line["settings"]["layers"][0] for line in mine))[::-1]
    for place, arm in enumerate(COMBINED):
        means = []
        for position, layer in enumerate(layers):
            variant, shift = f"{layer}-{reading}", 0.09 * (place - 1)
            gains = [
                line["accuracy"] - controls[line["seed"]]
                for line in mine
                if (line["arm"], line["variant"]) == (arm, variant)
            ]
            axes.scatter([position + shift] * len(gains), gains, s=14, alpha=0.4, color=ARM_COLOURS[arm])
            means.append(float(np.mean(gains)) if gains else np.nan)
        if np.isfinite(means).any():
            places = np.arange(len(layers)) + 0.09 * (place - 1)
            axes.plot(places, means, color=ARM_COLOURS[arm], marker="o", markersize=5, label=f"+{arm}")
    axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
    axes.set_xticks(range(len(layers)), layers, fontsize=8.5)
    axes.set_xlim(-0.4, len(layers) - 0.6)
    axes.grid(axis="y", color=RULE, linewidth=0.7)


def main() -> None:
    """Measure what is missing and draw it."""
    given = arguments(
        __doc__ or "", architectures=["small_resnet"], datasets=["tiny_imagenet20"]
    ).parse_args()
    run_and_draw(given, bench_of(given, "figure6"), figure_6, draw)


if __name__ == "__main__":
    main()
