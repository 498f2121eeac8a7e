"""The two protocols: how long and on what a cell is trained, the same for all of its arms.

`paper`: as close as the paper's text allows: all training images, 10 draws of 10 categories of mini-ImageNet,
the treatment as long as the training with the same optimiser ("the parameter setting and the optimizer are
the same"). The text names neither epochs, learning rates nor weights: those are ours.
`short`: fewer images, epochs and draws, so that an arm takes at most three minutes of one CPU core.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torchdoctor import Recipe
from torchdoctor.types import NormPolicy

# Without batch-norm a rate of 0.05 does not train.
GENTLE = ("alexnet", "vgg16", "squeezenet")
SEEDS = 3


@dataclass(frozen=True)
class Size:
    """How much of a data set a protocol uses: images per category, test images, categories, draws of them."""

    limit: int | None
    tests: int | None
    image_size: int
    classes: int | None = None
    draws: int = 1


@dataclass(frozen=True)
class Protocol:
    """How a cell is trained and treated."""

    name: str
    base_epochs: int
    epochs: int
    batch_size: int
    rate: float
    rate_of_treatment: float  # relative to the base's
    sizes: Mapping[str, Size]
    precision: str = "fp32"
    confidence: float = 0.9  # of the images that a diagnosis is made from
    norm: NormPolicy = "train"  # of the treatment

    def recipe(self, architecture: str, *, treating: bool) -> Recipe:
        """Return the recipe of the base training or of every arm."""
        rate = self.rate / 5 if architecture in GENTLE else self.rate
        return Recipe(
            epochs=self.epochs if treating else self.base_epochs,
            learning_rate=rate * (self.rate_of_treatment if treating else 1.0),
            precision=self.precision,  # type: ignore[arg-type]
            norm=self.norm if treating else "train",
        )


SHORT = Protocol(
    "short", base_epochs=12, epochs=3, batch_size=64, rate=0.05, rate_of_treatment=0.2,
    sizes={
        "mnist": Size(60, 2000, 28),
        "fashion_mnist": Size(100, 2000, 28),
        "cifar10": Size(150, 2000, 32),
        "cifar100": Size(20, 2000, 32),
        "stl10_2": Size(None, None, 96),
        "mini_imagenet30": Size(120, None, 84, classes=10, draws=3),
        "tiny_imagenet20": Size(60, None, 64),
        "scenes": Size(120, None, 64),
    },
)  # fmt: skip
PAPER = Protocol(
    "paper", base_epochs=100, epochs=100, batch_size=128, rate=0.1, rate_of_treatment=1.0,
    sizes={
        "mnist": Size(None, None, 28),
        "fashion_mnist": Size(None, None, 28),
        "cifar10": Size(None, None, 32),
        "cifar100": Size(None, None, 32),
        "svhn": Size(None, None, 32),
        "stl10": Size(None, None, 96),
        "stl10_2": Size(None, None, 96),
        "mini_imagenet30": Size(None, None, 84, classes=10, draws=10),
        "tiny_imagenet20": Size(None, None, 64),
        "scenes": Size(None, None, 64),
    },
    precision="bf16",
)  # fmt: skip
SMALLEST = Protocol(  # that every program runs end to end; its numbers mean nothing
    "smallest", base_epochs=1, epochs=1, batch_size=16, rate=0.05, rate_of_treatment=0.2,
    sizes={
        name: Size(8, 40, min(one.image_size, 32), one.classes and 3) for name, one in SHORT.sizes.items()
    },
    confidence=0.0,  # its networks are sure of nothing, and a diagnosis of nothing would try out nothing
)  # fmt: skip
PROTOCOLS = {one.name: one for one in (SHORT, PAPER, SMALLEST)}
