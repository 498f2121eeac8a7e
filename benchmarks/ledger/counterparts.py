"""Which of the paper's data sets stands beside which of ours, and what is not the same about them."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.ledger.protocols import PROTOCOLS
from benchmarks.ledger.published import DATASETS as PUBLISHED


@dataclass(frozen=True)
class Counterpart:
    """A data set as the page calls it.

    `paper` is the column of the paper's Table 1 that stands beside it, `masks` says where its object masks
    come from (empty: it has none), `files` names original files that have to be put under ROOT first.
    """

    words: str
    paper: str = ""
    masks: str = ""
    files: str = ""


COUNTERPARTS = {
    "mnist": Counterpart("MNIST", "mnist", "by pixel > 0"),
    "fashion_mnist": Counterpart("Fashion-MNIST", "fashion_mnist", "by pixel > 0"),
    "cifar10": Counterpart("CIFAR-10 re-encoded as WebP", "cifar10"),
    "cifar100": Counterpart("CIFAR-100 re-encoded as WebP", "cifar100"),
    "svhn": Counterpart("SVHN", "svhn", files="svhn"),
    "stl10": Counterpart("STL-10", "stl10", files="stl10"),
    "stl10_2": Counterpart("two categories of STL-10's training split", masks="coarse masks"),
    "mini_imagenet30": Counterpart("10 of 30 mini-ImageNet categories", "mini_imagenet"),
    "tiny_imagenet20": Counterpart("20 categories of Tiny-ImageNet", masks="boxes"),
    "scenes": Counterpart("scenes, drawn with a planted fault", masks="exact masks"),
}
TITLES = {
    "alexnet": "AlexNet",
    "vgg16": "VGG-16",
    "resnet50": "ResNet-50",
    "senet34": "SENet-34",
    "wideresnet28_10": "WideResNet-28-10",
    "resnext50": "ResNeXt-50",
    "densenet121": "DenseNet-121",
    "simplenet_v1": "SimpleNet-v1",
    "efficientnetv2_s": "EfficientNetV2-S",
    "googlenet": "GoogLeNet",
    "xception": "Xception",
    "mobilenet_v2": "MobileNetV2",
    "inception_v3": "Inception-v3",
    "shufflenet_v2": "ShuffleNetV2",
    "squeezenet": "SqueezeNet",
    "mnasnet": "MnasNet",
    "small_resnet": "small_resnet (not the paper's)",
    "small_vgg": "small_vgg (not the paper's)",
}


def title_of(architecture: str) -> str:
    """Return what the page calls an architecture."""
    return TITLES.get(architecture, f"{architecture} (not the paper's)")


def words_of(dataset: str, *, draws: int = 1, image_size: int | None = None, protocol: str = "") -> str:
    """Return what the page calls a data set, with draws of categories and a size that is not its own."""
    own = PROTOCOLS[protocol].sizes.get(dataset) if protocol in PROTOCOLS else None
    words = COUNTERPARTS[dataset].words if dataset in COUNTERPARTS else dataset
    if own is not None and own.draws > 1:
        words += f", {draws} draw" + "s" * (draws != 1)
    if own is not None and image_size not in (None, own.image_size):
        words += f", enlarged to {image_size} px" if image_size > own.image_size else f", {image_size} px"
    return words


def rank(dataset: str, architecture: str) -> tuple[int, int, str, str]:
    """Return what sorts rows as the paper's table is sorted, what it does not have behind that."""
    sets, nets = list(COUNTERPARTS), list(TITLES)
    return (
        sets.index(dataset) if dataset in sets else len(sets),
        nets.index(architecture) if architecture in nets else len(nets),
        dataset,
        architecture,
    )


def published_as(dataset: str) -> str:
    """Return the name of the paper's data set beside ours, empty where there is none."""
    found = COUNTERPARTS[dataset].paper if dataset in COUNTERPARTS else ""
    return PUBLISHED.get(found, "")
