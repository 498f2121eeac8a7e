"""Compute Grad-CAM maps to compare with evidence (Fig. 5); needs torchcam: `pip install torchdoctor[cam]`."""

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
from torchdoctor.network.hooks import find_layer
from torchdoctor.network.layouts import on_grid
from torchdoctor.network.outputs import as_logits, unwrap
from torchdoctor.network.prediction import device_of, dtype_of
from torchdoctor.network.taps import keep_in, map_shapes, run_tapped, token_grids
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
        The map, resized to the image; its values are 0 or more.

    Raises:
        InputError: torchcam is not installed, the network has no such layer, or it gives no map.
    """
    network = copy_of(unwrap(model)).eval()
    find_layer(network, layer)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    pixels = image[None].to(device_of(network), dtype_of(network)).requires_grad_(True)
    map_shapes(network, pixels, [layer])  # refuses a layer without a map
    maps: dict[str, Tensor] = {}
    grid = token_grids(network, pixels, [layer]).get(layer)
    if grid is not None:
        with torch.enable_grad():
            logits = run_tapped(network, pixels, {layer: keep_in(maps, layer)})
            slopes = score_gradients([logits[:, category]], maps)[0][layer]
        # Tokens without a place on the image count neither for the weights nor for the map.
        at_places, slopes = on_grid(maps[layer].detach(), grid), on_grid(slopes, grid)
        weighted = slopes.mean((2, 3), keepdim=True) * at_places
        return summed_maps(weighted.sum(1, keepdim=True).clamp(min=0), (image.shape[1], image.shape[2]))[0]
    with torch.enable_grad(), _torchcam()(network, target_layer=layer) as camera:
        logits = as_logits(network(pixels))
        (layer_map,) = camera(class_idx=category, scores=logits, normalized=False)
    size = (image.shape[1], image.shape[2])
    resized: np.ndarray = summed_maps(layer_map.reshape(1, 1, *layer_map.shape[-2:]).clamp(min=0), size)[0]
    return resized


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
