"""Fit networks made for large photographs to small images and to grey images, without copying their code."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.inception import InceptionAux

Halving = tuple[str, ...]  # the names of the modules that together halve the side of the map once


def halvings_to_drop(made_for: int, image_size: int) -> int:
    """Return how many times less often than in the original a network should halve its maps.

    With this number the last map keeps at least about half of the side that it has in the original. A
    network made for 224 pixels drops no halving for images of 112 pixels and more, 1 from 56 pixels, 2
    from 28 pixels.

    Args:
        made_for: The image size in pixels that the network was designed for.
        image_size: The size of the images in pixels.

    Returns:
        The number of halvings to remove.

    >>> [halvings_to_drop(224, size) for size in (28, 32, 64, 96, 224)]
    [2, 2, 1, 1, 0]
    """
    return max(0, math.floor(math.log2((made_for - 1) / image_size)))


def drop_halvings(model: nn.Module, halvings: Sequence[Halving], number: int) -> None:
    """Remove halvings of the map from a network, in place.

    The stride of a convolution is halved; a pooling layer is replaced by the identity. No parameter changes
    its shape, so that pretrained weights still fit.

    Args:
        model: The network.
        halvings: The halvings that can be removed, in the order in which they are.
        number: How many to remove; all of them if it is more than there are.
    """
    for names in halvings[:number]:
        for name in names:
            module = model.get_submodule(name)
            if isinstance(module, nn.Conv2d):
                module.stride = (max(1, module.stride[0] // 2), max(1, module.stride[1] // 2))
            else:
                model.set_submodule(name, nn.Identity())


def set_input_channels(model: nn.Module, channels: int) -> None:
    """Replace the first convolution of a network, in place, to take images with another number of channels.

    Its kernels are those of `grey_kernels`, so that a grey image that is repeated over the channels gives
    the same map as before.

    Args:
        model: The network.
        channels: The number of channels of the images.
    """
    convolutions = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    name, first = next(convolutions)
    if first.in_channels == channels:
        return
    fitted = nn.Conv2d(
        channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    with torch.no_grad():
        fitted.weight.copy_(grey_kernels(first.weight, channels))
        if first.bias is not None and fitted.bias is not None:
            fitted.bias.copy_(first.bias)
    model.set_submodule(name, fitted)


def grey_kernels(weight: Tensor, channels: int) -> Tensor:
    """Sum convolution kernels over their input channels and divide the sum evenly over new channels.

    Args:
        weight: The kernels, [out, in, height, width].
        channels: The new number of input channels.

    Returns:
        The new kernels, [out, channels, height, width].
    """
    return (weight.sum(1, keepdim=True) / channels).expand(-1, channels, -1, -1)


class SmallInceptionAux(InceptionAux):
    """Inception's auxiliary classifier, able to take maps smaller than 17 x 17.

    The original's pooling fails on such maps; here an adaptive pooling gives the same 5 x 5 output.
    Parameters and their names are the original's.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Classify feature maps.

        Args:
            maps: The feature maps, [batch, channel, height, width].

        Returns:
            The auxiliary logits, [batch, category].
        """
        if min(maps.shape[-2:]) >= 17:
            return super().forward(maps)
        pooled = nn.functional.adaptive_avg_pool2d(maps, (5, 5))
        return self.fc(self.conv1(self.conv0(pooled)).mean((2, 3)))


def fit_auxiliary_head(model: nn.Module) -> None:
    """Let the auxiliary classifier of an Inception network take small maps, in place.

    Args:
        model: The network; other networks stay as they are.
    """
    for module in model.modules():
        if type(module) is InceptionAux:
            module.__class__ = SmallInceptionAux
