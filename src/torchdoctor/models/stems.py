"""Fit networks made for large photos to small images and to grey ones, without copying the networks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.inception import InceptionAux

Halving = tuple[str, ...]  # the modules that together halve the map once


def halvings_to_drop(made_for: int, image_size: int) -> int:
    """Return how many times the map must be halved less often than in the original.

    So that the last map keeps about half its side or more: of a network made for 224 pixels none at
    112 and above, one from 56, two from 28.

    >>> [halvings_to_drop(224, size) for size in (28, 32, 64, 96, 224)]
    [2, 2, 1, 1, 0]
    """
    return max(0, math.floor(math.log2((made_for - 1) / image_size)))


def drop_halvings(model: nn.Module, halvings: Sequence[Halving], number: int) -> None:
    """Adapt the stem: undo the first `number` of its halvings in place; no parameter changes its shape.

    A convolution of a halving gets half its stride, a pooling becomes the identity. With more asked for
    than a family names, all of its halvings go.
    """
    for names in halvings[:number]:
        for name in names:
            module = model.get_submodule(name)
            if isinstance(module, nn.Conv2d):
                module.stride = (max(1, module.stride[0] // 2), max(1, module.stride[1] // 2))
            else:
                model.set_submodule(name, nn.Identity())


def set_input_channels(model: nn.Module, channels: int) -> None:
    """Replace the first convolution, in place, by one for images of that many channels.

    Its kernels become the original's summed over the colours and shared out evenly, so that a grey
    image repeated over the channels gives the same map as before.
    """
    name, first = next((name, one) for name, one in model.named_modules() if isinstance(one, nn.Conv2d))
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
    """Sum kernels [out, in, height, width] over the colours and share the sum out over `channels`."""
    return (weight.sum(1, keepdim=True) / channels).expand(-1, channels, -1, -1)


class SmallInceptionAux(InceptionAux):
    """Inception's auxiliary head for maps under 17 x 17, which the original's pooling cannot take.

    The pooling becomes an adaptive one to the same 5 x 5; parameters and names are the original's.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Return the auxiliary logits [batch, category]."""
        if min(maps.shape[-2:]) >= 17:
            return super().forward(maps)
        pooled = nn.functional.adaptive_avg_pool2d(maps, (5, 5))
        return self.fc(self.conv1(self.conv0(pooled)).mean((2, 3)))


def fit_auxiliary_head(model: nn.Module) -> None:
    """Let Inception's auxiliary head take small maps, in place."""
    for module in model.modules():
        if type(module) is InceptionAux:
            module.__class__ = SmallInceptionAux
