"""Draw a Grad-CAM map beside ours (Fig. 5), by torchcam: optional, `pip install torchdoctor[cam]`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchdoctor.evidence.per_image import summed_maps
from torchdoctor.network.hooks import find_layer
from torchdoctor.network.outputs import as_logits, unwrap
from torchdoctor.network.prediction import device_of, dtype_of
from torchdoctor.types import InputError


def grad_cam(
    model: nn.Module, image: Float[Tensor, "channel height width"], layer: str, category: int
) -> Float[np.ndarray, "height width"]:
    """Return the Grad-CAM map of one category at one layer, stretched onto the image; not negative.

    The network is left as it was. InputError without torchcam or for an unknown layer.
    """
    own = copy.deepcopy(unwrap(model)).eval()
    find_layer(own, layer)
    for parameter in own.parameters():
        parameter.requires_grad_(True)
    with torch.enable_grad(), _torchcam()(own, target_layer=layer) as camera:
        logits = as_logits(own(image[None].to(device_of(own), dtype_of(own)).requires_grad_(True)))
        (found,) = camera(class_idx=category, scores=logits, normalized=False)
    size = (image.shape[1], image.shape[2])
    drawn: np.ndarray = summed_maps(found.reshape(1, 1, *found.shape[-2:]).clamp(min=0), size)[0]
    return drawn


def _torchcam() -> Callable[..., Any]:
    """Return torchcam's Grad-CAM."""
    try:
        from torchcam.methods import GradCAM
    except ImportError as error:
        raise InputError(
            "Grad-CAM maps are drawn by torchcam, which is not installed: pip install torchdoctor[cam]"
        ) from error
    made: Callable[..., Any] = GradCAM
    return made
