"""Load a trained classifier with its categories and its preprocessing, without any data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from torchdoctor.case.device import device_named
from torchdoctor.case.own_weights import model_of_card
from torchdoctor.case.settings import Settings
from torchdoctor.data.load import preprocessing_of
from torchdoctor.data.pixels import Preprocessing
from torchdoctor.images.normalisation import IMAGENET_MEAN, IMAGENET_STD
from torchdoctor.models.loading import load_model
from torchdoctor.models.pretrained import PRETRAINED, own_preprocessing
from torchdoctor.models.state_names import fitted
from torchdoctor.models.weights import load_into, read_checkpoint, weights_card
from torchdoctor.types import InputError

USUAL = {"image_size": 224, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}  # what is not said otherwise


def load_classifier(settings: Settings) -> tuple[nn.Module, tuple[str, ...], Preprocessing]:
    """Load a network for prediction; no data are needed.

    Args:
        settings: What was asked for: weights, model, device, image size. Published weights (`pretrained`)
            bring categories and preprocessing with them.

    Returns:
        The network in evaluation mode, the names of its categories, and how images are prepared for it.

    Raises:
        InputError: Weights or model are missing, or do not fit each other.
    """
    if settings.weights is None:
        raise InputError("--weights is missing: give the classifier's .safetensors or state dict")
    if settings.weights == PRETRAINED:
        return _published(settings)
    card: dict[str, Any] = dict(weights_card(settings.weights) or {})
    name = settings.model or model_of_card(card, settings.weights)
    if name is None:
        raise InputError("--model is missing, and no card lies beside the weights: give torchvision:NAME")
    checkpoint = read_checkpoint(settings.weights)
    state, preprocessing = checkpoint.state, _preprocessing(settings, card, name)
    classes = card.get("classes") or checkpoint.classes
    if not classes:
        classes = imagenet_names(_head_size(name, state, preprocessing, settings.weights))
    model = load_model(name, classes, channels=preprocessing.channels, image_size=preprocessing.image_size)
    load_into(model, state, settings.weights)
    return model.to(device_named(settings.device)).eval(), tuple(classes), preprocessing


def _published(settings: Settings) -> tuple[nn.Module, tuple[str, ...], Preprocessing]:
    """Return a network with the weights that its library publishes, its last layer included."""
    if settings.model is None:
        raise InputError(f"--model is missing: --weights {PRETRAINED} needs torchvision:NAME or timm:NAME")
    preprocessing, categories = published_preparation(settings.model)
    if not categories:
        raise InputError(
            f"--weights {PRETRAINED}: {settings.model} has no published weights with a known head"
        )
    if settings.image_size != "auto":
        preprocessing = replace(preprocessing, image_size=settings.image_size)
    classes = imagenet_names(categories)
    model = load_model(settings.model, classes, PRETRAINED, image_size=preprocessing.image_size)
    return model.to(device_named(settings.device)).eval(), classes, preprocessing


def published_preparation(name: str) -> tuple[Preprocessing, int | None]:
    """Return how images are prepared for published weights.

    Args:
        name: The name of the network, as for `load_model`.

    Returns:
        The preparation, with 224 px and ImageNet's numbers where the source of the network does not say them;
        and the number of categories of the published head, None without one.
    """
    own = own_preprocessing(name, pretrained=True)
    return Preprocessing.from_json({**USUAL, **own}), own.get("categories") or None


def imagenet_names(categories: int) -> tuple[str, ...]:
    """Return the names of ImageNet's 1000 categories.

    Args:
        categories: The number of categories.

    Returns:
        Their names; for any other number than 1000, the numbers 0, 1, ... as text.
    """
    if categories != 1000:
        return tuple(map(str, range(categories)))
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.DEFAULT.meta["categories"])


def _head_size(name: str, state: dict[str, torch.Tensor], preprocessing: Preprocessing, origin: str) -> int:
    """Return the number of logits of the weights: the rows of the last matrix of the model.

    "Last" is by the order in the model; a safetensors file is sorted by name.
    """
    model = load_model(name, 2, channels=preprocessing.channels, image_size=preprocessing.image_size)
    state = fitted(state, model.state_dict(), origin)
    for entry, value in reversed(model.state_dict().items()):
        if value.ndim >= 2 and entry in state:
            return state[entry].shape[0]
    first, own = next(iter(state), "none"), next(iter(model.state_dict()), "none")
    raise InputError(
        f"the weights hold no head under the names of {name}: theirs begin with {first!r}, the model's with "
        f"{own!r}. Save the state dict of this network alone, or give the --model that they belong to"
    )


def _preprocessing(settings: Settings, card: dict[str, Any], name: str) -> Preprocessing:
    """Return what was asked for, else the card's or the model's own, else 224 px and ImageNet's numbers."""
    known = card.get("preprocessing") or own_preprocessing(name, pretrained=True)
    return preprocessing_of(settings, Preprocessing.from_json({**USUAL, **known}))
