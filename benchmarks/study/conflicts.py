"""Ask which number finds the training images whose background speaks for another category.

    [TORCHDOCTOR_DATA=ROOT] python -m benchmarks.study.conflicts [--seeds 0 1 2 3 4]
        [--data scenes tiny_imagenet20] [--epochs 4 16] [--out benchmarks/results/conflicts.jsonl]

In 90 % of the training images (`scenes`; 95 % of Tiny-ImageNet's with tinted surroundings) the background is
that of the category. A small residual network is trained on them for few and for many epochs. The others, in
conflict with their background, are then ranked by the network's loss on them, and by the share of the
evidence for the label that lies on the background (Eq. 2, at the last two stages), lowest first. The evidence
gets the true masks, which nobody has who needs the ranking: it is the best that proposed masks could reach.
Printed is the area under the ROC curve: how often an image in conflict comes before another.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.study import json_lines
from benchmarks.study import planted_faults as drawn
from benchmarks.study.people import area
from benchmarks.study.photo_causes import CATEGORIES, TINTED, Photographs, tinted
from benchmarks.study.photo_networks import KINDS
from benchmarks.study.planted import QUICK, loader
from torchdoctor.data.scenes.scenes import AGREEMENT, Scenes
from torchdoctor.evidence.per_image import background_shares_of, clean_evidence
from torchdoctor.images.batches import Batch
from torchdoctor.models.architectures.small_resnet import SmallResNet
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.treatment.recipe import Recipe
from torchdoctor.treatment.training import fit

LAYERS = ("layer3.conv2", "layer4.conv2")


def drawn_images(seed: int, epochs: int) -> tuple[nn.Module, list[Batch], np.ndarray]:
    """Return a network trained on drawn images, the images, and which of them are in conflict."""
    images = loader(seed, drawn.TRAINING, QUICK.images, AGREEMENT, QUICK)
    scenes = Scenes(100 + seed, drawn.TRAINING, QUICK.images, AGREEMENT)
    torch.manual_seed(seed)
    model = drawn.ARCHITECTURES["residual"][0]()
    fit(
        model, lambda epoch: images.epoch(epoch, seed), Recipe(epochs=epochs, learning_rate=0.05),
        steps_per_epoch=images.steps_per_epoch, seed=seed,
    )  # fmt: skip
    return model, list(images), scenes.families != scenes.labels


def photographs(seed: int, epochs: int) -> tuple[nn.Module, list[Batch], np.ndarray]:
    """Return the same for photographs with tinted surroundings."""
    images = Photographs("tiny_imagenet20", seed, KINDS["residual"]).train
    torch.manual_seed(seed)
    model = SmallResNet(CATEGORIES)
    KINDS["residual"].train(model, images, lambda batch: tinted(batch, TINTED, seed), epochs, seed)
    shown = [tinted(batch, TINTED, seed) for batch in images]
    conflict = []
    for batch in shown:
        for image, label in zip(batch.ids.tolist(), batch.labels.tolist(), strict=True):
            random = np.random.default_rng([seed, 13, image])  # drawn as `tinted` draws
            conflict.append(random.random() >= TINTED and int(random.integers(CATEGORIES)) != label)
    return model, shown, np.array(conflict)


def ranks(model: nn.Module, images: Sequence[Batch], conflict: np.ndarray) -> dict[str, float]:
    """Return how well each number ranks the images in conflict first, as the area under the ROC curve."""
    losses: list[np.ndarray] = []
    shares: dict[str, list[np.ndarray]] = {layer: [] for layer in LAYERS}
    with frozen_eval(model.eval()) as frozen:
        for batch in images:
            evidence, _, logits = clean_evidence(frozen, batch.images, batch.labels, LAYERS, "gradient")
            losses.append(functional.cross_entropy(logits, batch.labels, reduction="none").numpy())
            for layer in LAYERS:
                shares[layer].append(background_shares_of(evidence[layer], batch))
    found = {"loss": area(conflict, np.concatenate(losses))}
    for layer in LAYERS:
        share = np.concatenate(shares[layer])
        known = ~np.isnan(share)
        found[layer] = area(conflict[known], -share[known])
    return {name: round(value, 3) for name, value in found.items()}


SOURCES = {"scenes": drawn_images, "tiny_imagenet20": photographs}


def main() -> None:
    """Measure and print a line for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--data", nargs="+", default=list(SOURCES), choices=list(SOURCES))
    parser.add_argument("--epochs", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--out", type=Path, help="JSON lines are added to this file")
    given = parser.parse_args()
    if "tiny_imagenet20" in given.data and "TORCHDOCTOR_DATA" not in os.environ:
        parser.error("tiny_imagenet20 is read from the folder that TORCHDOCTOR_DATA names")
    for data, seed, epochs in product(given.data, given.seeds, given.epochs):
        model, images, conflict = SOURCES[data](seed, epochs)
        line = {"data": data, "seed": seed, "epochs": epochs, "conflict": round(float(conflict.mean()), 3)}
        line |= ranks(model, images, conflict)
        json_lines.write(line, given.out)


if __name__ == "__main__":
    main()
