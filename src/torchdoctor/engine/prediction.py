"""Run any weights on any images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from torchdoctor.data import IMAGENET_MEAN, IMAGENET_STD, ImageTable, Loader, Preprocessing
from torchdoctor.data.decoding import decode_image
from torchdoctor.engine.preparation import device_named, model_of_card
from torchdoctor.engine.settings import Settings
from torchdoctor.models import load_into, load_model, load_weights, weights_card
from torchdoctor.sifting import predict_logits
from torchdoctor.types import InputError

ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


def predict(settings: Settings, paths: Sequence[str]) -> list[dict[str, object]]:
    """Return {image, category, confidence, runner_up, runner_up_confidence} of every image.

    Folders are searched for images. The model, its categories and its preprocessing come from the
    card beside the weights (`train` and `treat` write one); without a card, categories are numbers.
    """
    if settings.weights is None:
        raise InputError("--weights is missing: give the classifier's .safetensors or state dict")
    files = _image_files(paths)
    card: dict[str, Any] = dict(weights_card(settings.weights) or {})
    name = settings.model or model_of_card(card, settings.weights)
    if name is None:
        raise InputError("--model is missing, and no card lies beside the weights: give torchvision:NAME")
    state = load_weights(settings.weights)
    preprocessing = _preprocessing(settings, card)
    classes = card.get("classes") or [str(one) for one in range(_head_size(name, state, preprocessing))]
    model = load_model(name, classes, channels=preprocessing.channels, image_size=preprocessing.image_size)
    load_into(model, state, settings.weights)
    model = model.to(device_named(settings.device))
    loader = Loader(_table(files, classes), preprocessing, settings.batch_size)
    _, _, logits = predict_logits(model, loader)
    confidence, category = logits.double().softmax(1).topk(min(2, len(classes)), dim=1)
    return [
        {
            "image": str(file),
            "category": classes[best[0]],
            "confidence": sure[0],
            "runner_up": classes[best[1]] if len(best) > 1 else None,
            "runner_up_confidence": sure[1] if len(sure) > 1 else None,
        }
        for file, best, sure in zip(files, category.tolist(), confidence.tolist(), strict=True)
    ]


def _head_size(name: str, state: dict[str, torch.Tensor], fitted: Preprocessing) -> int:
    """Return the number of logits in the file: the size of what the model has as its last matrix.

    The order of the file says nothing: safetensors are sorted by name.
    """
    model = load_model(name, 2, channels=fitted.channels, image_size=fitted.image_size)
    for entry, value in reversed(model.state_dict().items()):
        if value.ndim >= 2 and entry in state:
            return state[entry].shape[0]
    raise InputError(f"the weights hold no head of {name}: they belong to another model")


def _preprocessing(settings: Settings, card: dict[str, Any]) -> Preprocessing:
    """Return the card's preprocessing, else the size asked for (or 224 px) and ImageNet's statistics."""
    if settings.image_size is None and "preprocessing" in card:
        return Preprocessing.from_json(card["preprocessing"])
    kept = card.get("preprocessing") or {}
    mean, std = kept.get("mean", IMAGENET_MEAN), kept.get("std", IMAGENET_STD)
    return Preprocessing(settings.image_size or 224, tuple(mean), tuple(std))


def _image_files(paths: Sequence[str]) -> list[Path]:
    """List the images; InputError for what is missing or no image."""
    files: list[Path] = []
    for one in map(Path, paths):
        if one.is_dir():
            files += sorted(f for f in one.rglob("*") if f.suffix.lower() in ENDINGS and f.is_file())
        elif one.is_file():
            files.append(one)
        else:
            raise InputError(f"image {str(one)!r}: no such file or folder")
    if not files:
        raise InputError(f"no image in {', '.join(paths) or 'nothing'}: expected files like .jpg or .png")
    return files


def _table(files: Sequence[Path], classes: Sequence[str]) -> ImageTable:
    """Make a table of unlabelled images."""

    def read(position: int) -> tuple[Image.Image, None]:
        return decode_image(files[position], str(files[position])), None

    number = len(files)
    return ImageTable(
        classes=tuple(classes),
        labels=np.zeros(number, dtype=np.int64),
        names=tuple(map(str, files)),
        ids=np.arange(number, dtype=np.int64),
        read=read,
        has_mask=np.zeros(number, dtype=bool),
    )
