"""Figure 4: each category's accuracy, and what the constraints add to it.

    python benchmarks/paper/figure4.py --data ROOT [--protocol short] [--budget MINUTES]

Paper: VGG-16, 10 categories of mini-ImageNet: "Model Doctor can improve higher accuracy increase on low
accuracy categories", read off the gain over the base against the base's accuracy on the same test images.
That falls by chance alone: a category whose images happened to go wrong has nowhere to go but up, and the
control, which is not treated, shows the same. So the claim is tested as the rank correlation (Spearman)
between the gain over the CONTROL on test images and the base's accuracy on VALIDATION images, which share no
luck. Lines of variant `validation` hold the latter, lines of variant `literal-rank` and `ours-rank`:
`rank_correlation` (negative: low categories gain more) and `p_value`; `over_base` the same of the gain over
the base; `over_base_same_images` what the paper shows. The control's line is of variant `rank`.
mini_imagenet30 has no masks: the channel-wise constraint alone there, a draw of 10 categories for each seed.
Got in `short` (3 seeds, a quarter of an hour on one core): +0.4 with the channel-wise constraint (high
categories gain more), 0.0 with the space-wise one; docs/ledger.md.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

from benchmarks.experiment.arms import TAU, arms_at, variants_of
from benchmarks.experiment.cells import Bench, Cell, measure
from benchmarks.experiment.recording import (
    is_missing,
    keep_picture,
    lines_of,
    number,
    picture_name,
    record,
    run_and_draw,
)
from benchmarks.experiment.running import arguments, bench_of
from benchmarks.ledger.lines import Line
from benchmarks.paper.figure4_drawing import category_gains
from torchdoctor.network.prediction import predict_logits


def figure_4(cell: Cell) -> bool:
    """Measure a cell: the arms, the base on validation images, then the correlations of both."""
    last = cell.layers[-1]
    arms = arms_at(cell, last)
    settings = {"layers": [last], "tau": TAU, "masks_per_category": 20}
    if not measure(
        cell, "figure4", arms,
        variants=variants_of(arms), diagnosis=lambda: cell.diagnosis([last]), settings=settings,
    ):  # fmt: skip
        return False
    _validate(cell)
    _rank(cell)
    return True


def _validate(cell: Cell) -> None:
    """Record the base's accuracy on validation images, with the names of the categories."""
    if not is_missing(cell, "figure4", "base", "validation"):
        return
    started = time.monotonic()
    _, labels, logits = predict_logits(cell.base, cell.loader("validation"))
    right = 100 * (logits.argmax(1) == labels).double()
    values = {
        "accuracy": float(right.mean()),
        "per_category": [round(float(right[labels == one].mean()), 2) for one in labels.unique()],
        "categories": list(cell.tables.classes),
        "images": len(labels),
    }
    record(cell, "figure4", values, variant="validation", seconds=time.monotonic() - started)


def _rank(cell: Cell) -> None:
    """Record the rank correlations of every arm of this cell."""
    own = cell.key("figure4", "", "")
    same = ("architecture", "dataset", "classes_seed", "image_size", "seed", "protocol")
    lines = {
        (line["arm"], line["variant"]): line
        for line in cell.bench.ledger.lines()
        if all(line[name] == getattr(own, name) for name in same)
    }
    row = {key: np.array(line["per_category"]) for key, line in lines.items() if "per_category" in line}
    elsewhere, base, control = row["base", "validation"], row["base", ""], row["control", ""]
    for (arm, variant), mine in row.items():
        if arm == "base":
            continue
        over_base = mine - base
        values = {
            "accuracy": lines[arm, variant]["accuracy"],
            "over_base": rank_correlation(elsewhere, over_base)[0],
            "over_base_same_images": rank_correlation(base, over_base)[0],
            "categories": len(mine),
        }
        if arm != "control":
            found, chance = rank_correlation(elsewhere, mine - control)
            values |= {"rank_correlation": found, "p_value": chance}
        record(cell, "figure4", values, arm=arm, variant=f"{variant}-rank".lstrip("-"))


def rank_correlation(
    some: np.ndarray | Sequence[float], other: np.ndarray | Sequence[float]
) -> tuple[float | None, float | None]:
    """Return Spearman's correlation and its p-value; None where one side is constant or of another length."""
    if len(some) != len(other) or len(some) < 3:
        return None, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a constant side
        found = spearmanr(some, other)
    return number(found.statistic), number(found.pvalue)


def draw(given: argparse.Namespace, bench: Bench) -> None:
    """Draw a picture per data set and network; the first network's is called by the data set alone."""
    for dataset in given.datasets:
        lines = lines_of(given, bench, dataset)
        for place, architecture in enumerate(given.architectures):
            mine: list[Line] = [line for line in lines if line["architecture"] == architecture]
            figure = category_gains(mine, f"{architecture}, {dataset}")
            if figure is not None:
                further = [architecture] if place else []
                keep_picture(figure, bench, picture_name(given.protocol, "figure4", dataset, *further))


def main() -> None:
    """Measure what is missing and draw it."""
    given = arguments(
        __doc__ or "", architectures=["small_resnet"], datasets=["mini_imagenet30", "tiny_imagenet20"]
    ).parse_args()
    run_and_draw(given, bench_of(given, "figure4"), figure_4, draw)


if __name__ == "__main__":
    main()
