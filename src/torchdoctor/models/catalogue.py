"""The model catalogue: the classifiers of the paper, and a small network for the demo, by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from torchdoctor.models.architectures.simplenet import SimpleNet
from torchdoctor.models.architectures.small_resnet import SmallResNet
from torchdoctor.models.architectures.wide_resnet import WideResNet
from torchdoctor.models.stems import (
    Halving,
    drop_halvings,
    fit_auxiliary_head,
    halvings_to_drop,
    set_input_channels,
)

Make = Callable[[int, int, int], nn.Module]  # makes a network for (categories, channels, image size)


@dataclass(frozen=True)
class ModelEntry:
    """A classifier of the catalogue.

    Attributes:
        name: What `--model` and `load_model` call it.
        title: Its name as papers write it.
        source: Where the network and its pretrained weights come from: `torchvision:NAME`, `timm:NAME`, or
            the paper that describes it.
        make: Builds the network, called with (categories, channels, image size in pixels).
        layers: The layers that are diagnosed and treated by default, in the order of the forward pass.
        made_for: The image size in pixels that the original was designed for.
    """

    name: str
    title: str
    source: str
    make: Make
    layers: tuple[str, ...]
    made_for: int = 224

    def build(self, classes: int, channels: int = 3, image_size: int | None = None) -> nn.Module:
        """Build the network with new random weights.

        Args:
            classes: The number of categories.
            channels: The number of channels of the images.
            image_size: The side of the images in pixels; None is `made_for`.

        Returns:
            The network.
        """
        return self.make(classes, channels, image_size or self.made_for)


def upstream(source: str, made_for: int, halvings: tuple[Halving, ...], **options: Any) -> Make:
    """Return a function that builds a network of torchvision or timm, adapted to the size of the images.

    Args:
        source: `torchvision:NAME` or `timm:NAME`.
        made_for: The image size in pixels that the original was designed for.
        halvings: The halvings of the map that small images drop, in this order (see `drop_halvings`).
        **options: Further arguments of the library's own constructor.

    Returns:
        A function of (categories, channels, image size in pixels) that builds the network with new
        weights.
    """
    library, _, name = source.partition(":")

    def make(classes: int, channels: int, image_size: int) -> nn.Module:
        if library == "timm":
            import timm

            model = timm.create_model(name, num_classes=classes, in_chans=channels, **options)
        else:
            from torchvision import models

            with warnings.catch_warnings():
                # The warning is about a future change to the initial weights of GoogLeNet and Inception.
                warnings.simplefilter("ignore", FutureWarning)
                model = models.get_model(name, weights=None, num_classes=classes, **options)
            set_input_channels(model, channels)
        drop_halvings(model, halvings, halvings_to_drop(made_for, image_size))
        fit_auxiliary_head(model)
        return model

    return make


def _entry(
    name: str,
    title: str,
    source: str,
    layers: tuple[str, ...],
    halvings: tuple[Halving, ...],
    *,
    made_for: int = 224,
    keeps_until: int | None = None,
    **options: Any,
) -> ModelEntry:
    """Make an entry for a network of torchvision or timm.

    `keeps_until` replaces `made_for` in the count of halvings to drop, for a network whose last map has more
    than 1/32 of the side of the image.
    """
    make = upstream(source, keeps_until or made_for, halvings, **options)
    return ModelEntry(name, title, source, make, layers, made_for)


RESNET_STEM: tuple[Halving, ...] = (("maxpool",), ("conv1",))
AUXILIARY = {"aux_logits": True, "init_weights": True}

_ENTRIES = (
    _entry(
        "alexnet", "AlexNet", "torchvision:alexnet", ("features.3", "features.6", "features.10"),
        (("features.0",), ("features.0",)),
    ),
    _entry(
        "vgg16", "VGG-16", "torchvision:vgg16", ("features.14", "features.21", "features.28"),
        (("features.4",),), keeps_until=112,
    ),
    _entry(
        "resnet34", "ResNet-34", "torchvision:resnet34",
        ("layer2.3.conv2", "layer3.5.conv2", "layer4.2.conv2"), RESNET_STEM,
    ),
    _entry(
        "resnet50", "ResNet-50", "torchvision:resnet50",
        ("layer2.3.conv3", "layer3.5.conv3", "layer4.2.conv3"), RESNET_STEM,
    ),
    _entry(
        "senet34", "SENet-34", "timm:legacy_seresnet34",
        ("layer2.3.conv2", "layer3.5.conv2", "layer4.2.conv2"), (("pool0",), ("layer0.conv1",)),
    ),
    ModelEntry(
        "wideresnet28_10", "WideResNet-28-10", "Zagoruyko and Komodakis 2016", WideResNet,
        ("group1.3.conv2", "group2.3.conv2", "group3.3.conv2"), 32,
    ),
    _entry(
        "resnext50", "ResNeXt-50 (32x4d)", "torchvision:resnext50_32x4d",
        ("layer2.3.conv3", "layer3.5.conv3", "layer4.2.conv3"), RESNET_STEM,
    ),
    # Each dense layer adds 32 kernels to those before it, and a block outputs all of them: 1024 at the end.
    _entry(
        "densenet121", "DenseNet-121", "torchvision:densenet121",
        ("features.denseblock2", "features.denseblock3", "features.denseblock4"),
        (("features.pool0",), ("features.conv0",)),
    ),
    ModelEntry(
        "simplenet_v1", "SimpleNet-v1", "Hasanpour et al. 2016", SimpleNet,
        ("stages.1.6", "stages.2.3", "stages.3.0"), 32,
    ),
    _entry(
        "efficientnetv2_s", "EfficientNetV2-S", "torchvision:efficientnet_v2_s",
        ("features.3.3.block.1.0", "features.5.8.block.3.0", "features.7.0"),
        (("features.0.0",), ("features.2.0.block.0.0",)),
    ),
    # The output of a block holds the kernels of its four branches.
    _entry(
        "googlenet", "GoogLeNet", "torchvision:googlenet", ("inception3b", "inception4e", "inception5b"),
        (("maxpool1",), ("conv1.conv",)), **AUXILIARY,
    ),
    _entry(
        "xception", "Xception", "timm:legacy_xception",
        ("block3.rep.4.pointwise", "block12.rep.4.pointwise", "conv4.pointwise"),
        (("conv1",), ("block1.skip", "block1.rep.5"), ("block2.skip", "block2.rep.6")), made_for=299,
    ),
    _entry(
        "mobilenet_v2", "MobileNetV2", "torchvision:mobilenet_v2",
        ("features.6.conv.2", "features.13.conv.2", "features.18.0"),
        (("features.0.0",), ("features.2.conv.1.0",)),
    ),
    _entry(
        "inception_v3", "Inception-v3", "torchvision:inception_v3", ("Mixed_5d", "Mixed_6e", "Mixed_7c"),
        (("maxpool1",), ("Conv2d_1a_3x3.conv",), ("maxpool2",)), made_for=299, **AUXILIARY,
    ),
    _entry(
        "shufflenet_v2", "ShuffleNetV2 (1x)", "torchvision:shufflenet_v2_x1_0",
        ("stage2.3.branch2.5", "stage3.7.branch2.5", "conv5.0"), (("maxpool",), ("conv1.0",)),
    ),
    _entry(
        "squeezenet", "SqueezeNet 1.0", "torchvision:squeezenet1_0",
        ("features.5", "features.10", "features.12"), (("features.2",), ("features.0",)),
    ),
    _entry(
        "mnasnet", "MnasNet 1.0", "torchvision:mnasnet1_0",
        ("layers.9.2.layers.6", "layers.11.1.layers.6", "layers.14"),
        (("layers.0",), ("layers.8.0.layers.3",)),
    ),
    ModelEntry(
        "small_resnet", "Small residual network of the demo", "torchdoctor", SmallResNet,
        ("layer1.conv2", "layer2.conv2", "layer4.conv2"), 64,
    ),
)  # fmt: skip

MODELS: dict[str, ModelEntry] = {entry.name: entry for entry in _ENTRIES}
