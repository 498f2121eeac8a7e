"""The networks of the ledger: the package's, and a light one for `short` that is of another family."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from torchdoctor import load_model
from torchdoctor.models.catalogue import MODELS

SMALL_VGG = "small_vgg"


def network(name: str, classes: int, image_size: int) -> nn.Module:
    """Return a network with random weights."""
    return small_vgg(classes) if name == SMALL_VGG else load_model(name, classes, image_size=image_size)


def constrained_layers(name: str) -> tuple[str, ...]:
    """Return the layers that a network is constrained at by default; the last one is the paper's."""
    return ("conv3", "conv5", "conv6") if name == SMALL_VGG else MODELS[name].layers


def small_vgg(classes: int) -> nn.Module:
    """Return six 3 x 3 convolutions with batch-norm, no shortcuts, halved by max pooling as in VGG."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    widths, halved = (16, 32, 64, 64, 128, 128), (2, 4)
    before = 3
    for number, width in enumerate(widths, 1):
        parts[f"conv{number}"] = nn.Conv2d(before, width, 3, 2 if number == 1 else 1, 1, bias=False)
        parts[f"norm{number}"] = nn.BatchNorm2d(width)
        parts[f"relu{number}"] = nn.ReLU()
        if number in halved:
            parts[f"pool{number}"] = nn.MaxPool2d(2)
        before = width
    parts.update(avgpool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(before, classes))
    return nn.Sequential(parts)
