"""Run any weights on any images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from torchdoctor.case.classifier import load_classifier
from torchdoctor.case.settings import Settings
from torchdoctor.data.loader import Loader
from torchdoctor.data.readers.folder import FolderImages
from torchdoctor.data.readers.naming import files_below, masks_of, photographs
from torchdoctor.data.table import ImageTable
from torchdoctor.network.prediction import predict_logits
from torchdoctor.types import InputError


def predict(settings: Settings, paths: Sequence[str]) -> list[dict[str, object]]:
    """Predict the categories of images.

    The model, its categories and its preprocessing come from the card beside the weights (`train` and `treat`
    write it); without a card, categories are numbers.

    Args:
        settings: What was asked for: weights, model, device, batch size, image size.
        paths: Image files, and folders that are searched for images.

    Returns:
        {image, category, confidence, runner_up, runner_up_confidence} of every image; confidences in 0 to 1.

    Raises:
        InputError: There is no image, or weights and model do not fit.
    """
    files = image_files(paths)
    model, classes, preprocessing = load_classifier(settings)
    loader = Loader(table_of_files(files, classes), preprocessing, settings.batch_size)
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


def image_files(paths: Sequence[str]) -> list[Path]:
    """List image files.

    Args:
        paths: Files, and folders that are searched for images.

    Returns:
        The files; those of a folder sorted by name.

    Raises:
        InputError: A path does not exist, or there is no image at all.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            files += photographs(files_below(path), path)
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(f"image {str(path)!r}: no such file or folder")
    if not files:
        raise InputError(f"no image in {', '.join(paths) or 'nothing'}: expected files like .jpg or .png")
    return files


def table_of_files(files: Sequence[Path], classes: Sequence[str]) -> ImageTable:
    """Make a table of image files, with the masks beside them.

    Args:
        files: The image files.
        classes: The names of the categories.

    Returns:
        The table. An image's label is known where its folder is called like a category; otherwise it is
        category 0.
    """
    masks = masks_of(files)
    names = list(classes)
    labels = [names.index(file.parent.name) if file.parent.name in names else 0 for file in files]
    return ImageTable(
        classes=tuple(classes),
        labels=np.array(labels, dtype=np.int64),
        names=tuple(map(str, files)),
        ids=np.arange(len(files), dtype=np.int64),
        read=FolderImages(Path(), tuple(files), masks),
        has_mask=np.array([bool(group) for group in masks], dtype=bool),
    )
