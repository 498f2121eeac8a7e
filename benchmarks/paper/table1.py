"""Table 1: accuracy of the classifiers, and what channel-wise, space-wise and both constraints add.

    python benchmarks/paper/table1.py --data ROOT [--protocol short] [--budget MINUTES] [--shard 0/2]

Paper: "Model Doctor helps all CNN classifiers improve accuracy by 1% ~ 5%" on 7 data sets, without a control.
Here every arm stands beside a control of equal steps. Variants: `literal` is Eq. 5-6 by the letter at the
last default layer (plain gradient, unscaled, J = 10), `ours` gradient x activation with `share` at the same
layer (J = 1); the weights of both are automatic, tau 0.3.
Got in `short` (small_resnet and small_vgg, 8 data sets, 3 seeds; 100 minutes of one core): over the control
`literal` +0.0 with each constraint, `ours` -0.3 channel-wise and -0.1 space-wise; training on alone +0.4. All
cells: docs/ledger.md.
"""

from __future__ import annotations

from benchmarks.experiment.arms import TAU, arms_at, variants_of
from benchmarks.experiment.cells import Cell, measure
from benchmarks.experiment.networks import SMALL_VGG
from benchmarks.experiment.running import arguments, bench_of, run_cells

ARCHITECTURES = ("small_resnet", SMALL_VGG)
DATASETS = (
    "fashion_mnist",
    "cifar10",
    "cifar100",
    "mini_imagenet30",
    "tiny_imagenet20",
    "stl10_2",
    "scenes",
    "mnist",
)


def table_1(cell: Cell) -> bool:
    """Measure a cell: channel everywhere, space and all where there are masks."""
    last = cell.layers[-1]
    arms = arms_at(cell, last)
    settings = {"layers": [last], "tau": TAU, "masks_per_category": 20}
    return measure(
        cell,
        "table1",
        arms,
        variants=variants_of(arms),
        settings=settings,
        diagnosis=lambda: cell.diagnosis([last]),
    )


def main() -> None:
    """Measure what is missing."""
    given = arguments(__doc__ or "", architectures=ARCHITECTURES, datasets=DATASETS).parse_args()
    bench = bench_of(given, "table1")
    run_cells(given, bench, table_1)


if __name__ == "__main__":
    main()
