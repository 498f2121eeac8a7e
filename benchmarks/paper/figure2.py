"""Figure 2a: which kernels of the last layer each category is correlated with.

    python benchmarks/paper/figure2.py --data ROOT [--protocol short] [--budget MINUTES]

Paper: GoogLeNet on CIFAR-10, evidence (Eq. 3) summed over 100 images of each category surer than 0.9: "each
category is only correlated with sparse and specific convolutional kernels". Here: the same at the last
default layer, with fewer images where fewer are sure (`sifted`), and threshold theta 0.2 of the range. The
variant is the kind of evidence: `gradient` is the paper's. `affine` says whether the logits are affine in the
layer's map (a global average and one linear layer follow): then the gradient is the linear layer's weight,
the same for every image, and "every image agrees with its category" holds by construction.
`gradient_x_activation` depends on the image at every layer. GoogLeNet trains a quarter of an hour on one core
in `short`; --architectures takes smaller networks.
Got in `short` (small_resnet, 3 seeds, minutes): 27 % of the kernels are correlated with a category, 14 % by
gradient x activation; GoogLeNet, one seed with 15 sure images: 32 and 3 %; docs/ledger.md.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, get_args

import numpy as np

from benchmarks.experiment.cells import Cell
from benchmarks.experiment.recording import has_picture, is_missing, keep_picture, picture_name, record
from benchmarks.experiment.running import arguments, bench_of, run_cells
from benchmarks.paper.sparseness import sparseness
from torchdoctor import survey_layers
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.display.matrices import kernel_order, normalised_rows
from torchdoctor.display.style import AMOUNTS, INK, MUTED, canvas, literal
from torchdoctor.evidence.measurement import first_images
from torchdoctor.types import Evidence

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure_2(cell: Cell) -> bool:
    """Measure and draw a cell, both kinds of evidence; the picture is of the first network measured."""
    layer = cell.layers[-1]
    for evidence in get_args(Evidence):
        name = picture_name(cell.protocol.name, "figure2", cell.architecture, cell.dataset, evidence)
        wanted = is_missing(cell, "figure2", "base", evidence)
        if not wanted and has_picture(cell.bench, name):
            continue
        if cell.bench.over:
            return False
        started = time.monotonic()
        diagnosis = cell.diagnosis([layer], draws=0, evidence=evidence)
        seconds = time.monotonic() - started
        if not has_picture(cell.bench, name):
            keep_picture(heat_map(diagnosis, layer, f"{cell.architecture}, {cell.dataset}"), cell.bench, name)
        if wanted:
            example = first_images(cell.base, cell.train)
            facts = {one.name: one for one in survey_layers(cell.base, example, also=[layer])}
            values = {
                **{one: cell.tested()[one] for one in ("accuracy", "images")},
                **sparseness(diagnosis, layer),
                "layer": layer,
                "affine": facts[layer].affine,
                "sifted_per_category": diagnosis.counts.tolist(),
            }
            settings = {"draws": 0, "theta": diagnosis.theta, "confidence": cell.protocol.confidence}
            record(cell, "figure2", values, variant=evidence, settings=settings, seconds=seconds)
    return True


def heat_map(diagnosis: Diagnosis, layer: str, title: str) -> Figure:
    """Draw all kernels of a layer in columns, each diagnosed category in a row, 0..1 within it."""
    diagnosed = np.flatnonzero(diagnosis.counts > 0)
    found = diagnosis.layer(layer)
    rows = normalised_rows(found.correlation[diagnosed])
    kernels = rows.shape[1]
    order = kernel_order(rows, np.ones(len(rows), dtype=bool), kernels)
    figure, (axes,) = canvas(max(0.3 * len(rows) + 1.0, 2.6))
    shown = rows[:, order] if len(rows) else np.zeros((1, kernels))
    picture = axes.imshow(shown, cmap=AMOUNTS, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    names = [f"{literal(diagnosis.classes[one], 20)} ({diagnosis.counts[one]})" for one in diagnosed]
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_xlabel(f"all {kernels} kernels, grouped by the category that owns them, strongest first")
    share = 100 * found.correlated[diagnosed].mean() if len(rows) else 0.0
    words = {"gradient": "gradient", "gradient_x_activation": "gradient x activation"}[diagnosis.evidence]
    axes.set_title(
        f"{title}, {literal(layer)}: {words}; {share:.0f} % at or above θ = {diagnosis.theta:g}; "
        "in brackets: images",
        loc="left",
        fontsize=9.5,
    )
    bar = figure.colorbar(picture, ax=axes, aspect=28, pad=0.012)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8.5, labelcolor=INK)
    bar.set_label("relative within the category", fontsize=8.5, color=MUTED)
    return figure


def main() -> None:
    """Measure and draw what is missing."""
    given = arguments(__doc__ or "", architectures=["googlenet"], datasets=["cifar10"]).parse_args()
    run_cells(given, bench_of(given, "figure2"), figure_2)


if __name__ == "__main__":
    main()
