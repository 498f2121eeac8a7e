"""Table 2: how many annotated images the space-wise constraint needs.

    python benchmarks/paper/table2.py --data ROOT [--protocol short] [--budget MINUTES]

Paper: VGG-16, 10 categories of mini-ImageNet, 100 to 1000 annotated images, that is 10 to 100 per category:
+3.22 points with 100, +5.58 with 200, +8.03 with 1000; "12% annotated samples ... have achieved near-optimal
accuracy increase". Here: 5 to 100 per category, as many as there are, of those that are sifted as worth
annotating. The annotated images enter the batches of the control too, so that every number of them has a
control of its own. Variants: `annotated20` for base and control, `annotated20-literal` and `-ours`.
Got in `short` (small_resnet, 3 seeds, 14 minutes of one core): -0.4 to +0.1 over the control with 5 to 60
annotated images a category, whatever their number; docs/ledger.md.
"""

from __future__ import annotations

import functools

import numpy as np

from benchmarks.experiment.arms import TAU, arms_at, need_masks, variants_of
from benchmarks.experiment.cells import Cell, measure
from benchmarks.experiment.running import arguments, bench_of, run_cells

COUNTS = (5, 10, 20, 40, 60, 80, 100)  # per category; the paper's are 10 to 100


def counts_of(cell: Cell) -> list[int]:
    """Return the numbers of annotated images per category that the training images allow."""
    table = cell.tables.train
    most = int(np.bincount(table.labels[table.has_mask]).max())
    return sorted({min(one, most) for one in COUNTS})


def table_2(cell: Cell) -> bool:
    """Measure a cell: the space-wise constraint with every number of annotated images."""
    need_masks(cell)
    last, counts = cell.layers[-1], counts_of(cell)
    # One diagnosis sifts for all: the first n of a category's images are what sifting n would give.
    diagnosis = functools.cache(lambda: cell.diagnosis([last], annotations=counts[-1]))
    for count in counts:
        variant = f"annotated{count}"
        arms = arms_at(cell, last, before=f"{variant}-", wanted=["space"])
        settings = {"layers": [last], "tau": TAU, "masks_per_category": count}
        if not measure(
            cell, "table2", arms,
            variants=variants_of(arms), variant=variant, diagnosis=diagnosis, masks_per_category=count,
            settings=settings,
        ):  # fmt: skip
            return False
    return True


def main() -> None:
    """Measure what is missing."""
    given = arguments(
        __doc__ or "", architectures=["small_resnet"], datasets=["tiny_imagenet20"]
    ).parse_args()
    run_cells(given, bench_of(given, "table2"), table_2)


if __name__ == "__main__":
    main()
