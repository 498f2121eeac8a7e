"""List what a model offers, without data."""

from __future__ import annotations

import torch

from torchdoctor.models.catalogue import MODELS
from torchdoctor.models.loading import load_model
from torchdoctor.network.default_layers import default_choices
from torchdoctor.network.layers import survey_layers
from torchdoctor.randomness import key


def survey(
    model: str, *, image_size: int = 224, channels: int = 3, classes: int = 10, seed: int = 0
) -> list[dict[str, object]]:
    """Return what is known about every layer that can be diagnosed, measured on a random image.

    Args:
        model: The model's name; it gets new weights.
        image_size: Height and width of the random image, in pixels.
        channels: 3 for colour, 1 for grey.
        classes: The number of categories.
        seed: The number that the weights are drawn from.

    Returns:
        For each layer {name, shape, kernels, rho, affine, reaches_earlier, default, reason}; `default` says
        whether it is diagnosed where no layers are named, and `reason` why, or is empty.

    Raises:
        InputError: The model is unknown or cannot run on such images.
    """
    torch.manual_seed(key("weights", seed) % (1 << 63))
    network = load_model(model, classes, channels=channels, image_size=image_size).eval()
    images = torch.randn(1, channels, image_size, image_size)
    if model in MODELS:
        reasons = dict.fromkeys(MODELS[model].layers, "named in the catalogue of models")
    else:
        reasons = {choice.name: choice.reason for choice in default_choices(network, images)}
    return [
        {
            "name": layer.name,
            "shape": list(layer.shape),
            "kernels": layer.kernels,
            "rho": round(layer.rho, 4),
            "affine": layer.affine,
            "reaches_earlier": dict(layer.reaches_earlier),
            "default": layer.name in reasons,
            "reason": reasons.get(layer.name, ""),
        }
        for layer in survey_layers(network, images, tuple(reasons))
    ]
