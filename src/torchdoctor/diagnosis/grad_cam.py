"""Compute Grad-CAM maps to compare with ours (Fig. 5); needs torchcam: `pip install torchdoctor[cam]`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchdoctor.evidence.per_image import summed_maps
from torchdoctor.network.copying import copy_of
from torchdoctor.network.gradients import score_gradients
from torchdoctor.network.hooks import find_layer, hooked
from torchdoctor.network.outputs import as_logits, unwrap
from torchdoctor.network.prediction import device_of, dtype_of
from torchdoctor.network.taps import keep_in, layout_of, run_tapped, token_grids
from torchdoctor.types import InputError


def grad_cam(
    model: nn.Module, image: Float[Tensor, "channel height width"], layer: str, category: int
) -> Float[np.ndarray, "height width"]:
    """Compute the Grad-CAM map of a category.

    Args:
        model: The network; a copy is used, and it is left as it was.
        image: The normalised image.
        layer: The name of the layer.
        category: The number of the category.

    Returns:
        The map, resized to the image; its values are not negative.

    Raises:
        InputError: torchcam is not installed, or the network has no such layer.
    """
    network = copy_of(unwrap(model)).eval()
    find_layer(network, layer)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    pixels = image[None].to(device_of(network), dtype_of(network)).requires_grad_(True)
    maps: dict[str, Tensor] = {}
    if not _is_map(network, pixels, layer):
        with torch.enable_grad():
            logits = run_tapped(network, pixels, {layer: keep_in(maps, layer)})
            slopes = score_gradients([logits[:, category]], maps)[0][layer]
        weighted = slopes.mean((2, 3), keepdim=True) * maps[layer].detach()
        size, grid = (image.shape[1], image.shape[2]), token_grids(network, pixels, [layer])[layer]
        return summed_maps(weighted.sum(1, keepdim=True).clamp(min=0), size, grid)[0]
    with torch.enable_grad(), _torchcam()(network, target_layer=layer) as camera:
        logits = as_logits(network(pixels))
        (layer_map,) = camera(class_idx=category, scores=logits, normalized=False)
    size = (image.shape[1], image.shape[2])
    resized: np.ndarray = summed_maps(layer_map.reshape(1, 1, *layer_map.shape[-2:]).clamp(min=0), size)[0]
    return resized


def _is_map(network: nn.Module, pixels: Tensor, layer: str) -> bool:
    """Whether a layer gives a map as it is, which torchcam reads; it does not read tokens by their places."""
    outputs: list[object] = []
    module = find_layer(network, layer)
    with hooked([(module, lambda *call: outputs.append(call[2]))]), torch.no_grad():
        network(pixels)
    output = outputs[-1] if outputs else None
    return not isinstance(output, Tensor) or layout_of(module, pixels, output, layer).is_plain


def _torchcam() -> Callable[..., Any]:
    """Return the Grad-CAM class of torchcam; InputError if it is not installed."""
    try:
        from torchcam.methods import GradCAM
    except ImportError as error:
        raise InputError(
            "Grad-CAM maps are drawn by torchcam, which is not installed: pip install torchdoctor[cam]"
        ) from error
    grad_cam_class: Callable[..., Any] = GradCAM
    return grad_cam_class
