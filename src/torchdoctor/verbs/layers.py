"""List what a model offers, without data."""

from __future__ import annotations

import torch

from torchdoctor.models.catalogue import MODELS
from torchdoctor.models.loading import load_model
from torchdoctor.network.layers import default_layers, survey_layers
from torchdoctor.randomness import key


def survey(
    model: str, *, image_size: int = 224, channels: int = 3, classes: int = 10, seed: int = 0
) -> list[dict[str, object]]:
    """Return {name, shape, kernels, rho, affine, reaches_earlier, default} of every candidate layer.

    Measured on one random image of `image_size` pixels, with new weights.
    """
    torch.manual_seed(key("weights", seed) % (1 << 63))
    network = load_model(model, classes, channels=channels, image_size=image_size).eval()
    images = torch.randn(1, channels, image_size, image_size)
    chosen = MODELS[model].layers if model in MODELS else default_layers(network, images)
    return [
        {
            "name": one.name,
            "shape": list(one.shape),
            "kernels": one.kernels,
            "rho": round(one.rho, 4),
            "affine": one.affine,
            "reaches_earlier": dict(one.reaches_earlier),
            "default": one.name in chosen,
        }
        for one in survey_layers(network, images, chosen)
    ]
