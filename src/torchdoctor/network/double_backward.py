"""Cheaper second derivatives of batch-norm, ReLU and pooling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn


@contextmanager
def fast_double_backward(model: nn.Module) -> Iterator[None]:
    """Let modules compute the same values in ways whose second derivative is cheap, inside the block.

    Batch-norms scale and shift: PyTorch's own second derivative allows for statistics that change with the
    batch. ReLUs multiply by a fixed mask: PyTorch's own sends zeros back through all that lies before them.
    Pooling over the whole map divides after summing, where the tensor is small. Other modules, subclasses
    with more inside (as timm's), batch-norms in training mode and modules whose `forward` was already
    replaced stay as they are.

    Args:
        model: The network, in evaluation mode.

    Yields:
        Nothing.
    """
    replacements: dict[type, Callable[..., Tensor]] = {
        nn.ReLU: _rectified,
        nn.ReLU6: _rectified_to_6,
        nn.AdaptiveAvgPool2d: _averaged,
    }
    changed: list[nn.Module] = []
    try:
        for module in model.modules():
            forward = replacements.get(type(module))
            if type(module).forward is nn.modules.batchnorm._BatchNorm.forward and not module.training:
                forward = _scaled_and_shifted if module.running_mean is not None else None
            if forward is _averaged and module.output_size not in (1, (1, 1)):
                forward = None
            if forward is not None and "forward" not in module.__dict__:
                module.__dict__["forward"] = partial(forward, module)  # __setattr__ of modules is slow
                changed.append(module)
        yield
    finally:
        for module in changed:
            module.__dict__.pop("forward", None)


def _scaled_and_shifted(
    norm: nn.modules.batchnorm._BatchNorm, maps: Float[Tensor, "batch channel *space"]
) -> Float[Tensor, "batch channel *space"]:
    """Return what a batch-norm gives with its remembered statistics."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    place = (1, -1) + (1,) * (maps.ndim - 2)
    return torch.addcmul(shift.view(place), maps, scale.view(place))


def _rectified(relu: nn.ReLU, maps: Tensor) -> Tensor:
    """Return what a ReLU gives, written into its input where it does that."""
    mask = maps.detach().relu().sign_()
    return maps.mul_(mask) if relu.inplace else maps * mask


def _rectified_to_6(relu: nn.ReLU6, maps: Tensor) -> Tensor:
    """Return what a ReLU6 gives, written into its input where it does that."""
    low, high = maps.detach().relu().sign_(), (6 - maps.detach()).relu_().sign_()
    inside, above = low * high, 6 * (1 - high)
    return maps.mul_(inside).add_(above) if relu.inplace else maps * inside + above


def _averaged(pool: nn.AdaptiveAvgPool2d, maps: Float[Tensor, "*lead height width"]) -> Tensor:
    """Return what pooling to a single position gives."""
    del pool
    return maps.sum((-2, -1), keepdim=True) / (maps.shape[-2] * maps.shape[-1])
