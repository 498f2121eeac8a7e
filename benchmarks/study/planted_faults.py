"""Small networks with one planted fault each, trained once and kept: what causes.py is judged on.

    python benchmarks/study/planted_faults.py --cache FOLDER [--seeds 5] [--architectures residual plain]

Every (architecture, seed) gives a clean network and twins with a fault that has to be trained in: a
background that gives the category away, one category thinned out, the labels of two categories drawn at
random between them (confused), few images for long (over-fitted), few steps (under-fitted). Faults that
need no training (scrambled kernels, flipped labels) are planted into the clean one by causes.py. Networks
whose training labels are partly wrong (mislabelled) are trained when treatment_planted.py asks for them. A
network that is there already is not trained again.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from torchdoctor.data.loader import Loader
from torchdoctor.data.pixels import Preprocessing
from torchdoctor.data.scenes.scenes import AGREEMENT, CLASSES, Scenes, scenes_table
from torchdoctor.models.architectures.small_resnet import SmallResNet
from torchdoctor.treatment.recipe import Recipe
from torchdoctor.treatment.training import accuracy, fit

TRAINING, VALIDATION, TEST = 0, 3, 4  # streams of the drawing generator
IMAGES, CHECKED = 2000, 800
FAIR = 1 / len(CLASSES)
THIN = 12  # images left of a thinned category, of 250
FEW = 15  # images per category of the over-fitted network
MISLABELLED = 0.2  # share of wrong training labels
PREPROCESSING = Preprocessing(64, (0.5,) * 3, (0.25,) * 3)
TRAINED = ("clean", "background", "thinned", "confused", "over-fitted", "under-fitted")


def block(channels_in: int, channels_out: int, stride: int, groups: int, act: type[nn.Module]) -> nn.Module:
    """Return a convolution with batch-norm; with groups, a depthwise one and a pointwise one."""
    if groups == 1:
        conv: list[nn.Module] = [nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)]
    else:
        depth = nn.Conv2d(channels_in, channels_in, 3, stride, 1, groups=channels_in, bias=False)
        conv = [
            depth,
            nn.BatchNorm2d(channels_in),
            act(),
            nn.Conv2d(channels_in, channels_out, 1, bias=False),
        ]
    return nn.Sequential(*conv, nn.BatchNorm2d(channels_out), act())


def stacked(groups: int, act: type[nn.Module]) -> nn.Module:
    """Return a network without shortcuts: six blocks, average pool, one linear layer."""
    widths = ((3, 16, 2), (16, 32, 1), (32, 32, 2), (32, 64, 1), (64, 64, 2), (64, 128, 1))
    body = [block(a, b, stride, 1 if a == 3 else groups, act) for a, b, stride in widths]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, len(CLASSES)))


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "residual": (lambda: SmallResNet(len(CLASSES)), ("layer2.conv2", "layer3.conv2", "layer4.conv2")),
    "plain": (lambda: stacked(1, nn.ReLU), ("2.0", "3.0", "5.0")),
    "separable": (lambda: stacked(2, nn.SiLU), ("2.3", "3.3", "5.3")),
}


def images(seed: int, stream: int, count: int, agreement: float) -> Loader:
    """Return drawn images, each with its mask."""
    table = scenes_table(Scenes(100 + seed, stream, count, agreement), "image")
    return Loader(table, PREPROCESSING, 64)


def training_images(fault: str, seed: int, count: int = IMAGES) -> Loader:
    """Return what a network of this fault is trained on, and diagnosed with."""
    drawn = images(seed, TRAINING, count, AGREEMENT if fault == "background" else FAIR)
    labels = drawn.table.labels
    if fault in ("confused", "mislabelled"):
        wrong = confused(labels, seed) if fault == "confused" else mislabelled(labels, seed)
        return replace(drawn, table=replace(drawn.table, labels=wrong))
    keep = np.arange(len(labels))
    if fault == "thinned":
        rare = np.flatnonzero(labels == thinned_category(seed))
        keep = np.setdiff1d(keep, rare[THIN:])
    if fault == "over-fitted":
        keep = np.arange(FEW * len(CLASSES))
    return drawn.select(drawn.table.ids[keep])


def thinned_category(seed: int) -> int:
    """Return which category the seed thins out."""
    return (3 * seed + 1) % len(CLASSES)


def confused(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return labels of which those of two categories are drawn at random between the two."""
    pair = np.array([thinned_category(seed), (thinned_category(seed) + 1) % len(CLASSES)])
    drawn = pair[np.random.default_rng(seed).integers(0, 2, len(labels))]
    return np.where(np.isin(labels, pair), drawn, labels)


def mislabelled(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return labels of which a share is wrong: any other category, each as likely."""
    generator = np.random.default_rng([seed, len(labels)])
    hit = generator.random(len(labels)) < MISLABELLED
    return (labels + hit * generator.integers(1, len(CLASSES), len(labels))) % len(CLASSES)


def recipe(fault: str) -> Recipe:
    """Return the training of a fault: about as many steps for all but the under-fitted one."""
    epochs = {"over-fitted": 120, "under-fitted": 2}.get(fault, 16)
    return Recipe(epochs=epochs, learning_rate=0.1)


def keep(model: nn.Module, file: Path) -> None:
    """Write the weights under another name first, so that whoever looks finds the whole file or none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    save_file(model.state_dict(), partial)
    partial.replace(file)


def network(cache: Path, architecture: str, fault: str, seed: int, count: int = IMAGES) -> nn.Module:
    """Return the trained network, from the cache where it is there."""
    file = cache / f"{architecture}-{fault}-{seed}.safetensors"
    torch.manual_seed(seed)
    model = ARCHITECTURES[architecture][0]()
    if file.is_file():
        model.load_state_dict(load_file(file))
        return model.eval()
    train = training_images(fault, seed, count)
    started = time.perf_counter()
    trained = fit(
        model, lambda epoch: train.epoch(epoch, seed), recipe(fault),
        steps_per_epoch=train.steps_per_epoch, seed=seed,
    )  # fmt: skip
    keep(model, file)
    checked = accuracy(model, images(seed, VALIDATION, CHECKED, FAIR))
    print(
        f"{architecture} {fault} {seed}: {trained.steps} steps, {time.perf_counter() - started:.0f} s, loss "
        f"{trained.history[-1]['loss']:.3f}, validation accuracy {checked:.1f}",
        flush=True,
    )
    return model.eval()


def main() -> None:
    """Train whatever is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--architectures", nargs="*", default=list(ARCHITECTURES))
    given = parser.parse_args()
    for seed in range(given.seeds):
        for architecture in given.architectures:
            for fault in TRAINED:
                network(given.cache, architecture, fault, seed)


if __name__ == "__main__":
    main()
