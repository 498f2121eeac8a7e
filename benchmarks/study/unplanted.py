"""Let a checkup choose a cure where no fault was planted, and measure what it brings over the control.

    TORCHDOCTOR_DATA=ROOT python -m benchmarks.study.unplanted [--sets mini_imagenet30 ...] [--networks
        residual lite0] [--seeds 50 51 52] [--out benchmarks/results/unplanted.jsonl]

Ten categories of a data set, 120 training images and 40 validation images of each. `residual` is a small
residual network trained from random weights for 20 epochs. `lite0` is an EfficientNet-Lite0 with its
published weights at 64 pixels, whose last layer is fitted to the images; only that layer is trained further.
Then the stages of `torchdoctor checkup` run, with nothing chosen by hand, as in `planted`. The seed decides
which categories are taken, and everything random. Test images are looked at once. The interval is over seeds.
"""

from __future__ import annotations

import argparse
import os
from itertools import product
from pathlib import Path

import numpy as np
import torch

from benchmarks.study import json_lines
from benchmarks.study.photo_networks import KINDS
from benchmarks.study.planted import interval
from benchmarks.study.planted_photos import some
from benchmarks.study.planted_stages import Line, Plant, measure
from torchdoctor import load_data
from torchdoctor.network.copying import copy_of

SETS = {"mini_imagenet30": 48, "tiny_imagenet20": 48, "cifar10": 32, "fashion_mnist": 28}  # pixels
NETWORKS = ("residual", "lite0")
CATEGORIES, IMAGES, CHECKED, TESTED = 10, 120, 40, 1000
PRETRAINED_PIXELS, BASE_EPOCHS, EPOCHS, SEEDS = 64, 20, 4, 2


def prepared(data: str, network: str, seed: int) -> Plant:
    """Train a network on a data set as it is."""
    kind = KINDS[network]
    splits = load_data(
        f"parquet:{os.environ['TORCHDOCTOR_DATA']}/{data}", classes=CATEGORIES, seed=seed,
        image_size=SETS[data] if network == "residual" else PRETRAINED_PIXELS, **kind.prepared,
    )  # fmt: skip
    test = splits.tests["test"]
    test = test.select(np.sort(np.random.default_rng(seed).permutation(test.table.ids)[:TESTED]))
    images = some(splits.train, [IMAGES] * CATEGORIES)
    checked = some(splits.train, [CHECKED] * CATEGORIES, IMAGES)
    torch.manual_seed(seed)
    model = kind.build(CATEGORIES)
    kind.train(model, images, lambda batch: batch, BASE_EPOCHS, seed)
    model.eval()
    return Plant(copy_of(model), model, images, checked, test, None, kind.layers, EPOCHS, SEEDS)


def table(lines: list[Line]) -> str:
    """Return a Markdown table: a row for each data set and network."""
    rows = [
        "| data | network | seeds | base | control | chosen | gain over the control | chosen arms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for data, network in product(SETS, NETWORKS):
        cells = [one for one in lines if (one["data"], one["network"]) == (data, network)]
        if cells:
            means = [np.mean([one[name] for one in cells]) for name in ("faulty", "control", "chosen")]
            gain = interval(one["chosen"] - one["control"] for one in cells)
            names = [one["chosen_arm"] for one in cells]
            counts = ", ".join(f"{name} {names.count(name)}" for name in dict.fromkeys(names))
            rows.append(
                f"| {data} | {network} | {len(cells)} | " + " | ".join(f"{mean:.1f}" for mean in means)
                + f" | {gain[0]:+.1f} ({gain[1]:+.1f} to {gain[2]:+.1f}) | {counts} |"
            )  # fmt: skip
    return "\n".join(rows)


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[50, 51, 52])
    parser.add_argument("--out", type=Path, help="a .jsonl; what it holds is not measured again")
    given = parser.parse_args()
    lines: list[Line] = json_lines.read_finished(given.out)
    done = {(one["data"], one["network"], one["seed"]) for one in lines}
    for seed, data, network in product(given.seeds, given.sets, given.networks):
        if (data, network, seed) in done:
            continue
        line = {"data": data, "network": network, "seed": seed}
        line |= measure(prepared(data, network, seed), seed, name=network)
        json_lines.write(line, given.out)
        lines.append(line)
    print(table(lines))


if __name__ == "__main__":
    main()
