"""Figure 1 and discovery 1: how many kernels a category is correlated with, layer by layer.

    python benchmarks/paper/figure1.py --data ROOT [--protocol short] [--budget MINUTES]

Paper: "the number of convolutional kernels with high correlation reduces along with the network layer goes
deeper", and a single image's highly correlated kernels are "almost identical" with its category's (the
diagrams are in a supplement). Here: every convolution, Eq. 3 (no noise), T = 100 images surer than 0.9, fewer
where there are fewer (`sifted`), threshold theta 0.2 of the range. A line per layer, which is the variant;
`depth` is the share of the forward pass's arithmetic up to the layer's map. `between` says how alike the
categories are to one another: only above it does agreement mean anything.
Got in `short` (3 seeds, minutes): the share falls with depth, the number of kernels rises; docs/ledger.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.experiment.arms import convolutions
from benchmarks.experiment.cells import Bench, Cell
from benchmarks.experiment.networks import SMALL_VGG
from benchmarks.experiment.recording import (
    COLOURS,
    is_missing,
    keep_picture,
    lines_of,
    mean_of,
    picture_name,
    record,
    run_and_draw,
)
from benchmarks.experiment.running import arguments, bench_of
from benchmarks.ledger.lines import Line
from benchmarks.paper.sparseness import sparseness
from torchdoctor.display.style import INK, MUTED, RULE, canvas
from torchdoctor.evidence.measurement import first_images
from torchdoctor.network.flops import compute_before

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REACH = 1  # layers on either side that a running mean takes in


def figure_1(cell: Cell) -> bool:
    """Measure a cell: all of its convolutions at once."""
    layers = [one.name for one in convolutions(cell)]
    if not any(is_missing(cell, "figure1", "base", layer) for layer in layers):
        return True
    if cell.bench.over:
        return False
    started = time.monotonic()
    diagnosis = cell.diagnosis(layers, draws=0)
    seconds = time.monotonic() - started
    done = compute_before(cell.base, first_images(cell.base, cell.train)[:1], layers)[0]
    tested = {name: cell.tested()[name] for name in ("accuracy", "images")}
    for place, layer in enumerate(layers):
        values = {
            **tested,
            **sparseness(diagnosis, layer),
            "place": place,
            "depth": round(done[layer] / max(done[""], 1), 4),
        }
        settings = {"draws": 0, "theta": diagnosis.theta, "confidence": cell.protocol.confidence}
        record(cell, "figure1", values, variant=layer, settings=settings, seconds=seconds / len(layers))
    return True


def draw(given: argparse.Namespace, bench: Bench) -> None:
    """Draw share, number and agreement against depth: a row per data set, a colour per network."""
    rows = [(dataset, lines_of(given, bench, dataset)) for dataset in given.datasets]
    rows = [(dataset, lines) for dataset, lines in rows if lines]
    if not rows:
        return
    figure, grid = canvas(2.9 * len(rows) + 0.5, panels=(1.0, 1.0, 1.0), rows=len(rows))
    for row, (dataset, lines) in enumerate(rows):
        share, amount, alike = grid[3 * row : 3 * row + 3]
        for architecture, colour in zip(given.architectures, COLOURS, strict=False):
            mine = [line for line in lines if line["architecture"] == architecture]
            if not mine:
                continue
            _curve(share, mine, "correlated_share", colour, "-", architecture, times=100)
            _curve(amount, mine, "correlated", colour, "-", architecture)
            _curve(alike, mine, "agreement", colour, "-", f"{architecture}: image and its category")
            _curve(alike, mine, "between", colour, ":", f"{architecture}: two categories")
        share.set_title(f"{dataset}: correlated kernels, %", loc="left", fontsize=9.5)
        amount.set_title("correlated kernels, number", loc="left", fontsize=9.5)
        alike.set_title("how alike (cosine)", loc="left", fontsize=9.5)
        share.set_ylim(0, 102)
        amount.set_ylim(bottom=0)
        alike.set_ylim(0, 1.02)
        for axes in (share, amount, alike):
            axes.set_xlim(0, 102)
            axes.grid(color=RULE, linewidth=0.7)
            if row == len(rows) - 1:
                axes.set_xlabel("depth: % of the forward pass's arithmetic")
    title = f"dots: convolutions; lines: running means of {2 * REACH + 1}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=9.5, color=MUTED)
    marks, labels = grid[2].get_legend_handles_labels()
    figure.legend(marks, labels, loc="outside lower left", ncols=2, frameon=False, labelcolor=INK, fontsize=9)
    keep_picture(figure, bench, picture_name(given.protocol, "figure1"))


def _curve(
    axes: Axes, lines: Sequence[Line], field: str, colour: str, style: str, label: str, times: float = 1
) -> None:
    """Draw one field against depth, the mean over the seeds: a dot per layer, a line through running means.

    Networks of several kinds of convolutions jump from layer to layer; the line shows where they go.
    """
    layers = sorted({(line["place"], line["depth"], line["variant"]) for line in lines})
    depths = [100 * depth for _, depth, _ in layers]
    values = [mean_of([one[field] for one in lines if one["variant"] == layer]) for *_, layer in layers]
    shown = times * np.array(values)
    axes.scatter(depths, shown, s=7, color=colour, alpha=0.45, linewidths=0)
    parts = [slice(max(place - REACH, 0), place + REACH + 1) for place in range(len(shown))]
    middle = [mean_of(shown[part].tolist()) for part in parts]
    axes.plot(depths, middle, style, color=colour, linewidth=1.5, label=label)


def main() -> None:
    """Measure what is missing and draw it."""
    given = arguments(
        __doc__ or "",
        architectures=["small_resnet", SMALL_VGG],
        datasets=["cifar10", "tiny_imagenet20"],
    ).parse_args()
    run_and_draw(given, bench_of(given, "figure1"), figure_1, draw)


if __name__ == "__main__":
    main()
